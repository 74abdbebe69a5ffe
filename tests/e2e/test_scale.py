"""Two replicas under Ray Serve, by the config that ships: where clicks go, and what a killed replica costs."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from models.checkpoint import CHECKPOINT_FOLDER
from tests.e2e.server import ROOT, free_port
from tests.fakes import encode, picture

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs petseg[scale]"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc"),
]

START_DEADLINE_S = 300
REPLICA = "ray::ServeReplica:petseg:Replica"
BOTH_KNOWN = re.compile(r"Rebuilt consistent-hash ring .*: 2 replicas")
MARK = "SCALE_TEST"
"""Environment variable that tells this test's processes from those of another cluster on the machine."""
PHOTOS = [encode(picture(300, 200, seed=seed)) for seed in range(10)]


@pytest.fixture(scope="module")
def url(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The shipped config with two replicas and small checkpoints: `prompt`, which keeps photos, and `unet`."""
    folder = tmp_path_factory.mktemp("scale")
    (folder / "unet.safetensors").symlink_to(checkpoint_folder / "unet.safetensors")
    (folder / "prompt.safetensors").symlink_to(CHECKPOINT_FOLDER / "prompt.safetensors")
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "ray.yaml").read_text())
    config["proxy_location"] = "HeadOnly"
    config["http_options"]["port"] = port = free_port()
    (application,) = config["applications"]
    application["runtime_env"]["env_vars"]["PETSEG_CHECKPOINTS"] = str(folder)
    for deployment in application["deployments"]:
        deployment["num_replicas"] = 2 if deployment["name"] == "Replica" else 1
        deployment["ray_actor_options"] = {"num_cpus": 0}
        del deployment["autoscaling_config"]
    file, log = folder / "ray.yaml", folder / "log.txt"
    file.write_text(yaml.safe_dump(config))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        MARK: str(os.getpid()),
    }
    command = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(file)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)


def wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Until the service answers and the door knows of both replicas."""
    ends_at = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < ends_at:
        if process.poll() is not None:
            pytest.fail(f"Ray Serve ended with {process.returncode}:\n{log.read_text()}")
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200 and BOTH_KNOWN.search(log.read_text()):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"Ray Serve was not ready within {START_DEADLINE_S} s:\n{log.read_text()}")


def replica_processes() -> list[int]:
    """Process ids of this test's replicas."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            name, environment = (folder / "cmdline").read_text(), (folder / "environ").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if name.startswith(REPLICA) and f"{MARK}={os.getpid()}\0" in environment:
            found.append(int(folder.name))
    return found


def upload(client: httpx.Client, photo: bytes) -> httpx.Response:
    form = {"x": "60", "y": "90", "output": "rle"}
    return client.post("/segment/prompt", files={"image": photo}, data=form)


def click(client: httpx.Client, image_id: str) -> httpx.Response:
    return client.post("/segment/prompt", data={"image_id": image_id, "x": "70", "y": "90", "output": "rle"})


def test_clicks_go_where_the_features_are_and_a_killed_replica_costs_no_upload(url: str) -> None:
    with httpx.Client(base_url=url, timeout=120) as client:
        first = [upload(client, photo) for photo in PHOTOS]
        assert [answer.status_code for answer in first] == [200] * len(PHOTOS)
        ids = [answer.json()["image"]["id"] for answer in first]
        for answer in [click(client, image_id) for image_id in 2 * ids] + [upload(client, photo) for photo in PHOTOS]:
            assert answer.status_code == 200, answer.text
            assert answer.json()["timing_ms"]["encode"] == 0  # the encoder did not run again

        before = replica_processes()
        assert len(before) == 2
        answers = under_load(url, lambda: os.kill(before[0], signal.SIGKILL))
        assert set(answers) == {200}, answers
        assert answers[200] > 4

        after = Counter(answer.status_code for answer in (click(client, image_id) for image_id in ids))
        assert set(after) == {200, 410}, after
        gone = next(answer for image_id in ids if (answer := click(client, image_id)).status_code == 410)
        assert gone.json()["type"] == "/problems/image-gone"
        again = [upload(client, photo) for photo in PHOTOS]
        assert [answer.status_code for answer in again] == [200] * len(PHOTOS)
        assert [answer.json()["segments"] for answer in again] == [answer.json()["segments"] for answer in first]


def under_load(url: str, strike: Callable[[], None]) -> Counter[int]:
    """Statuses of uploads by four clients, from before `strike` until each has had two answers after it."""
    statuses: Counter[int] = Counter()
    has_begun, has_struck = threading.Barrier(5), threading.Event()

    def work(number: int) -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            has_begun.wait(timeout=120)
            left = 2
            while left:
                left -= has_struck.is_set()
                photo = encode(picture(300, 200, seed=100 + number))
                statuses[client.post("/segment/unet", files={"image": photo}).status_code] += 1

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, number) for number in range(4)]
        has_begun.wait(timeout=120)
        strike()
        has_struck.set()
        for each in working:
            each.result()
    return statuses


def test_the_document_and_the_problems_come_through_the_door(url: str) -> None:
    with httpx.Client(base_url=url, timeout=120) as client:
        assert {model["name"] for model in client.get("/models").json()["models"]} == {"prompt", "unet"}
        refused = client.post("/segment/unet", content=b"no photo", headers={"content-type": "image/png"})
        assert refused.status_code == 415
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"] == "/problems/unsupported-image"
        photos = [("image", (f"{index}.png", photo)) for index, photo in enumerate(PHOTOS[:3])]
        lines = client.post("/segment/unet/batch", files=photos).text.splitlines()
        assert len(lines) == 3
