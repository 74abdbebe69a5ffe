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
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from models.folders import CHECKPOINT_FOLDER
from service.api_keys import new_key
from tests.e2e.server import ROOT, free_port
from tests.fakes import encode, picture

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs petseg[scale]"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc"),
]

START_DEADLINE_S = 900
REPLICA = "ray::ServeReplica:petseg:Replica"
BOTH_KNOWN = re.compile(r"Rebuilt consistent-hash ring .*: 2 replicas")
MARK = "SCALE_TEST"
"""Environment variable that tells this test's processes from those of another cluster on the machine."""
Connect = Callable[[], httpx.Client]
PHOTOS = [encode(picture(300, 200, seed=seed)) for seed in range(10)]


@pytest.fixture(scope="module")
def connect(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connect]:
    """The shipped config with two replicas, a key, and small checkpoints: `prompt`, which keeps photos, and `unet`."""
    folder = tmp_path_factory.mktemp("scale")
    (folder / "unet.safetensors").symlink_to(checkpoint_folder / "unet.safetensors")
    (folder / "prompt.safetensors").symlink_to(CHECKPOINT_FOLDER / "prompt.safetensors")
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "ray.yaml").read_text())
    config["proxy_location"] = "HeadOnly"
    config["http_options"]["port"] = port = free_port()
    (application,) = config["applications"]
    secret, _ = new_key(folder / "keys.toml", "tests")
    application["runtime_env"]["env_vars"] |= {
        "PETSEG_CHECKPOINTS": str(folder),
        "PETSEG_KEYS": str(folder / "keys.toml"),
        "PETSEG_BODY_TIMEOUT_S": "5",
    }
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
        # A busy machine starts processes slowly, above all those that Ray is nice about.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
        MARK: str(os.getpid()),
    }
    command = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(file)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}", log)
        yield partial(httpx.Client, base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": secret}, timeout=120)
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


def test_clicks_go_where_the_features_are_and_a_killed_replica_costs_no_upload(connect: Connect) -> None:
    with connect() as client:
        first = [upload(client, photo) for photo in PHOTOS]
        assert [answer.status_code for answer in first] == [200] * len(PHOTOS)
        ids = [answer.json()["image"]["id"] for answer in first]
        for answer in [click(client, image_id) for image_id in 2 * ids] + [upload(client, photo) for photo in PHOTOS]:
            assert answer.status_code == 200, answer.text
            assert answer.json()["timing_ms"]["encode"] == 0  # the encoder did not run again

        before = replica_processes()
        assert len(before) == 2
        answers = under_load(connect, lambda: os.kill(before[0], signal.SIGKILL))
        assert set(answers) == {200}, answers
        assert answers[200] > 4

        after = Counter(answer.status_code for answer in (click(client, image_id) for image_id in ids))
        assert set(after) == {200, 410}, after
        gone = next(answer for image_id in ids if (answer := click(client, image_id)).status_code == 410)
        assert gone.json()["type"] == "/problems/image-gone"
        again = [upload(client, photo) for photo in PHOTOS]
        assert [answer.status_code for answer in again] == [200] * len(PHOTOS)
        assert [answer.json()["segments"] for answer in again] == [answer.json()["segments"] for answer in first]


def under_load(connect: Connect, strike: Callable[[], None]) -> Counter[int]:
    """Statuses of uploads by four clients, from before `strike` until each has had two answers after it."""
    statuses: Counter[int] = Counter()
    has_begun, has_struck = threading.Barrier(5), threading.Event()

    def work(number: int) -> None:
        with connect() as client:
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


def test_the_document_and_the_problems_come_through_the_door(connect: Connect) -> None:
    with connect() as client:
        assert {model["name"] for model in client.get("/models").json()["models"]} == {"prompt", "unet"}
        refused = client.post("/segment/unet", content=b"no photo", headers={"content-type": "image/png"})
        assert refused.status_code == 415
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"] == "/problems/unsupported-image"
        photos = [("image", (f"{index}.png", photo)) for index, photo in enumerate(PHOTOS[:3])]
        lines = client.post("/segment/unet/batch", files=photos).text.splitlines()
        assert len(lines) == 3


def test_the_door_admits_whom_it_knows_and_waits_for_no_trickle(connect: Connect) -> None:
    def trickle() -> Iterator[bytes]:
        for _ in range(24):
            yield b"x"
            time.sleep(0.5)

    with connect() as client:
        for headers in ({"x-api-key": "petseg_wrong"}, {"x-api-key": ""}):
            unknown = client.post("/segment/unet", content=PHOTOS[0], headers=headers)
            assert (unknown.status_code, unknown.json()["type"]) == (401, "/problems/unauthorized")
            assert unknown.headers["www-authenticate"] == 'Bearer realm="petseg"'
        assert client.get("/readyz", headers={"x-api-key": ""}).status_code == 200
        late = client.post("/segment/unet", content=trickle(), headers={"content-type": "image/png"})
        assert (late.status_code, late.json()["type"]) == (408, "/problems/body-too-slow")
