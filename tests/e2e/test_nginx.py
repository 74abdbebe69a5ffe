"""deploy/nginx.conf in a real nginx: processes are replaced and killed behind it, and no caller loses a request."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import ROOT, free_port, start, wait_until_ready
from tests.fakes import encode, picture

CONF = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
CALLERS = 8

pytestmark = [
    pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx"),
    pytest.mark.skipif(sys.platform != "linux", reason="callers need addresses of their own: 127.0.0.2 and on"),
]


class Processes:
    """What nginx.conf names, each on a port that a new one takes over."""

    def __init__(self, checkpoint_folder: Path, folder: Path) -> None:
        self._checkpoint_folder = checkpoint_folder
        self._folder = folder
        self.ports = [free_port(), free_port()]
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, port: int) -> None:
        """Until it is ready."""
        log = self._folder / f"{port}.log"
        settings = {"PETSEG_PORT": port, "PETSEG_LINGER_S": 0.2, "PETSEG_TRUSTED_PROXIES": "127.0.0.1"}
        self._running[port], _ = start(self._checkpoint_folder, log, settings)
        wait_until_ready(self._running[port], f"http://127.0.0.1:{port}", log)

    def replace(self, port: int, sign: signal.Signals) -> None:
        self._running[port].send_signal(sign)
        self._running[port].wait(timeout=60)
        self.start(port)

    def kill(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait(timeout=60)


@contextmanager
def nginx(ports: list[int], folder: Path) -> Iterator[str]:
    """Our file within the few lines that any nginx has around it; its address."""
    port = free_port()
    text = CONF
    for named, own in {"8001": ports[0], "8002": ports[1], "8080": port}.items():
        assert text.count(named) == 1
        text = text.replace(named, str(own))
    paths = "".join(
        f"{kind}_temp_path {folder / kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off; pid {folder / 'nginx.pid'}; error_log {folder / 'error.log'}; events {{}}\n"
        f"http {{ access_log off; {paths}\n{text}}}\n",
        encoding="utf-8",
    )
    process = subprocess.Popen(["nginx", "-e", str(folder / "error.log"), "-c", str(main)])
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}", folder / "error.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_no_request_is_lost_while_processes_are_replaced_and_killed(checkpoint_folder: Path, tmp_path: Path) -> None:
    answers: list[Counter[str]] = [Counter() for _ in range(CALLERS)]
    is_over = threading.Event()
    photo = encode(picture())

    def call(url: str, number: int) -> None:
        """Ask from an address of one's own, by which nginx chooses the process."""
        with httpx.Client(transport=httpx.HTTPTransport(local_address=f"127.0.0.{2 + number}"), timeout=60) as client:
            while not is_over.is_set():
                answer = client.post(f"{url}/segment/unet", content=photo, headers={"content-type": "image/png"})
                answers[number][f"{answer.status_code} {answer.headers['content-type']}"] += 1

    def until_each_has_answers(count: int) -> None:
        """Whose request the process that was replaced refused, meets the other one's end in this request no more."""
        wanted = [each.total() + count for each in answers]
        ends_at = time.monotonic() + 60
        while any(each.total() < total for each, total in zip(answers, wanted, strict=True)):
            assert time.monotonic() < ends_at, "waited 60 s"
            time.sleep(0.05)

    processes = Processes(checkpoint_folder, tmp_path)
    try:
        for port in processes.ports:
            processes.start(port)
        with nginx(processes.ports, tmp_path) as url, ThreadPoolExecutor(CALLERS) as pool:
            calls = [pool.submit(call, url, number) for number in range(CALLERS)]
            try:
                for sign in (signal.SIGTERM, signal.SIGKILL):
                    for port in processes.ports:
                        until_each_has_answers(2)
                        processes.replace(port, sign)
            finally:
                is_over.set()
            for each in calls:
                each.result()
    finally:
        processes.kill()
    assert {outcome for each in answers for outcome in each} == {"200 image/png"}, answers
