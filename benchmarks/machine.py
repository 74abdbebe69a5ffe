"""What the figures were taken on: machine and versions, for every result."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import torch

_PACKAGES = ("torch", "openvino", "pillow", "numpy", "fastapi", "uvicorn", "uvloop", "httptools")
_USEFUL_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def describe_machine() -> dict[str, str]:
    """Facts by name, in the order in which the page shows them."""
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.platform(terse=True),
        "Python": sys.version.split()[0],
        "commit": commit(),
    }
    return facts | {name: version for name in _PACKAGES if (version := installed_version(name))}


def installed_version(package: str) -> str:
    """The package's version, or an empty string."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """The working tree's commit, `+` behind it where files differ; empty outside a repository."""
    try:
        short = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return short.stdout.strip() + ("+" if changed.stdout else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = facts.get("flags", "").split()
    useful = [flag for flag in _USEFUL_FLAGS if flag in flags]
    return f"{facts.get('model name', platform.processor())} ({', '.join(useful) or 'no AVX'})"
