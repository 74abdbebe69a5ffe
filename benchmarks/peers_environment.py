"""The peers' own virtual environment: their packages on top of ours, so that torch is there once."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("peers-requirements.txt")
DEFAULT_FOLDER = Path("runs/peers-venv")


def peers_python(folder: Path) -> Path:
    """The environment's interpreter."""
    return folder.absolute() / "bin" / "python"


def install_peers(folder: Path) -> Path:
    """Make the environment in `folder`, or bring it up to date; returns its interpreter.

    A path file puts our site-packages behind its own: pip sees what is there and fetches the peers alone. Raises
    CalledProcessError where pip fails.
    """
    python = peers_python(folder)
    stamp = folder / "installed.txt"
    if stamp.is_file() and stamp.read_text() == REQUIREMENTS.read_text():
        return python
    venv.create(folder, with_pip=True, clear=True)
    site_packages = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    # "zz": read last. The tree itself comes by PYTHONPATH.
    (site_packages / "zz_petseg.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS], check=True)
    stamp.write_text(REQUIREMENTS.read_text())
    return python


def has_package(python: Path, package: str) -> bool:
    """Whether the interpreter finds the distribution."""
    code = f"import importlib.metadata as m; m.version({package!r})"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def peer_versions(python: Path) -> dict[str, str]:
    """Version of each peer that is installed."""
    code = (
        "import importlib.metadata as m, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    words = [str(python), "-c", code, "litserve", "ray", "bentoml", "fastapi", "uvicorn"]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split() for line in found)


def peers_or_own_python(folder: Path) -> Path:
    """The environment's interpreter where it is made, else the running one: what it has installed can take part."""
    python = peers_python(folder)
    return python if python.exists() else Path(sys.executable)
