"""Servers as processes of their own: started on a free port, awaited, measured with all their children, ended."""

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from models.torch_engine import FOR_NOW

START_DEADLINE_S = 600.0
_SAMPLE_S = 2.0
"""Between two looks at memory: each takes CPU time that a server with several processes would miss more than others."""
ROOT = Path(__file__).parents[1]


class ServerFailedError(RuntimeError):
    """The server ended or was not ready in time; the message holds the end of its log."""


@dataclass(frozen=True)
class Use:
    """Memory of a process tree between two looks."""

    peak_pss_mb: float
    """Peak of the tree's proportional set size: shared pages counted once."""
    peak_rss_mb: float
    processes: int


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: "subprocess.Popen[bytes]"
    port: int
    start_s: float
    """From spawn to the first good answer of its readiness address."""
    settled_s: float
    """From spawn to when every model runs on the engine that it was meant for; as `start_s` for a peer."""
    log: Path

    @property
    def url(self) -> str:
        """Address without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def measured(self) -> "Iterator[Meter]":
        """Measure the process tree inside the block."""
        meter = Meter(self.process.pid)
        try:
            yield meter
        finally:
            meter.stop()


@contextmanager
def run_server(
    command: Sequence[str], environment: Mapping[str, str], ready_path: str, *, root: Path = ROOT
) -> Iterator[Server]:
    """The server that `command` starts; `{port}` in its words stands for a free port.

    environment: on top of our own, from which PETSEG_* and thread limits are taken out: defaults are measured.
    Raises ServerFailedError.
    """
    port = free_port()
    words = [word.replace("{port}", str(port)) for word in command]
    given = {name: value.replace("{port}", str(port)) for name, value in environment.items()}
    with tempfile.NamedTemporaryFile(prefix="benchmark-", suffix=".log", delete=False) as output:
        log = Path(output.name)
        started_at = time.perf_counter()
        process = subprocess.Popen(
            words, cwd=root, env=plain_environment(root) | given, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}{ready_path}", log)
        start_s = time.perf_counter() - started_at
        _wait_until_settled(f"http://127.0.0.1:{port}/models")
        yield Server(process, port, start_s, time.perf_counter() - started_at, log)
    finally:
        stop(process)
        log.unlink(missing_ok=True)


def plain_environment(root: Path = ROOT) -> dict[str, str]:
    """Our environment without settings and thread limits, modules found under `root` first."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PETSEG_") and not name.endswith("_NUM_THREADS")
    }
    return ours | {"PYTHONPATH": os.pathsep.join(filter(None, (str(root), ours.get("PYTHONPATH"))))}


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    ends_at = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < ends_at:
        if process.poll() is not None:
            raise ServerFailedError(f"the server ended with {process.returncode}:\n{log_end(log)}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise ServerFailedError(f"got no answer from {url} within {START_DEADLINE_S:g} s:\n{log_end(log)}")


def _wait_until_settled(url: str) -> None:
    """Wait while a server of ours runs models on stand-ins; a peer does not know the address."""
    with suppress(urllib.error.HTTPError):
        while f'{FOR_NOW}"' in _get(url):
            time.sleep(0.05)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def log_end(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def stop(process: "subprocess.Popen[bytes]", patience_s: float = 20.0) -> None:
    """End the server and every process that it started, politely first."""
    tree = family(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
    for member in tree:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(patience_s)


def family(pid: int) -> list[psutil.Process]:
    """The process and all its descendants that live."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


class Meter:
    """Samples a process tree until stopped."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cpu: dict[int, float] = {}
        """Seconds by process, also of those that have ended since the first look."""
        self._lock = threading.Lock()
        self._peak_rss = 0
        self.pss_mb: list[tuple[float, float]] = []
        """(seconds on the monotonic clock, megabytes) of every look."""
        self._is_stopped = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the last look."""
        if not self._is_stopped.is_set():
            self._is_stopped.set()
            self._thread.join()
            self._look()

    @property
    def use(self) -> Use:
        """What was taken so far."""
        return Use(max(pss for _, pss in self.pss_mb), self._peak_rss / 1e6, len(self._cpu))

    def cpu_s(self) -> float:
        """CPU seconds of the tree since its processes began, now."""
        with self._lock:
            self._cpu |= {member.pid: cpu for member, cpu in cpu_seconds(self._pid)}
            return sum(self._cpu.values())

    def _watch(self) -> None:
        while not self._is_stopped.wait(_SAMPLE_S):
            self._look()

    def _look(self) -> None:
        pss = rss = 0
        self.cpu_s()
        for pid in tuple(self._cpu):
            own_pss, own_rss = memory_bytes(pid)
            pss, rss = pss + own_pss, rss + own_rss
        self._peak_rss = max(self._peak_rss, rss)
        self.pss_mb.append((time.monotonic(), pss / 1e6))


def cpu_seconds(pid: int) -> list[tuple[psutil.Process, float]]:
    """Each living process of the family and the CPU seconds that it has used."""
    found = []
    for member in family(pid):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found.append((member, times.user + times.system))
    return found


def loop_seconds(pid: int) -> float:
    """CPU seconds of a process's first thread, which in a server is the event loop's.

    To the nanosecond where the kernel keeps them: in the 10 ms that it gives otherwise an event loop does a lot.
    """
    try:
        nanoseconds = int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])
    except OSError:
        nanoseconds = 0
    if nanoseconds:
        return nanoseconds / 1e9
    (thread,) = (each for each in psutil.Process(pid).threads() if each.id == pid)
    return float(thread.user_time + thread.system_time)


def memory_bytes(pid: int) -> tuple[int, int]:
    """(proportional, resident) set size; the resident one twice where the kernel tells no other, 0 once it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        try:
            resident = int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return 0, 0
        return resident, resident
    rows = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return tuple(1024 * int(rows[name].split()[0]) for name in ("Pss", "Rss"))  # type: ignore[return-value]
