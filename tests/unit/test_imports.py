"""Imports point one way: service -> models <- training, and within service only to files listed above."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAY_IMPORT = {
    "models": {"models"},
    "training": {"models", "training"},
    "service": {"models", "service"},
    "benchmarks": {"models", "service", "training", "benchmarks"},
}

SERVICE_FROM_THE_GROUND_UP = [
    "schemas",
    "rle",
    "retries",
    "client_requests",
    "client",
    "photo_files",
    "journal",
    "folder_results",
    "segment_photos",
    "settings",
    "logs",
    "trace_context",
    "stages",
    "metrics",
    "figures",
    "errors",
    "reference",
    "label_studio_images",
    "png",
    "api_keys",
    "rate_limits",
    "masks",
    "outlines",
    "brush_rle",
    "label_studio",
    "embedding_cache",
    "priorities",
    "turns",
    "batch_size",
    "batcher",
    "image_work",
    "image_processes",
    "image_threads",
    "model_facts",
    "photo_reading",
    "feature_rows",
    "predictor",
    "forward_passes",
    "pipeline",
    "device_pipeline",
    "gathering",
    "gauges",
    "watchdog",
    "memory",
    "reload",
    "link",
    "photo_slots",
    "front_messages",
    "connection_share",
    "front_pipeline",
    "request_record",
    "tracing",
    "spans",
    "ledger",
    "multipart",
    "forms",
    "affinity",
    "rendering",
    "batches",
    "direct_routes",
    "openapi",
    "admission",
    "answer_transport",
    "protocol",
    "middleware",
    "security_headers",
    "documentation",
    "operation",
    "front_session",
    "hub",
    "routes",
    "label_studio_routes",
    "page",
    "app",
    "scale",
    "in_process",
    "photo_cli",
    "server",
    "front_server",
    "front",
    "key_cli",
    "cli",
    "__main__",
]


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of all that `path` imports, in function bodies too."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", list(MAY_IMPORT))
def test_folders_import_one_way(folder: str) -> None:
    ours = set(MAY_IMPORT) | {"tests"}
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in modules(folder)
        for name in imported(path)
        if name.split(".")[0] in ours - MAY_IMPORT[folder]
    }
    assert modules(folder)
    assert found == set()


def test_service_files_import_only_files_above_them() -> None:
    order = {name: place for place, name in enumerate(SERVICE_FROM_THE_GROUND_UP)}
    assert {path.stem for path in modules("service")} == {*order, "__init__"}
    for path in modules("service"):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "service":
                assert order[parts[1]] < order[path.stem], f"{path.stem} imports {parts[1]}"


def test_the_batcher_and_the_cache_know_nothing_of_ours() -> None:
    for name in ("batcher", "embedding_cache", "turns", "batch_size"):
        roots = {each.split(".")[0] for each in imported(ROOT / "service" / f"{name}.py")}
        assert not roots & {"torch", "service", "models", "fastapi", "starlette"}


def test_fronts_bring_no_clip_towers() -> None:
    code = "import sys, service.front; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"open_clip", "torchvision", "timm", "openvino"} & set(found.split())


def test_imports_inside_functions_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "sly.py"
    file.write_text("def f():\n    from training import train\n    from . import base\n    import service.app\n")
    assert list(imported(file)) == ["training.train", "models.base", "service.app"]
