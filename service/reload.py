"""Checkpoints that change on disk are taken up while the service runs: on SIGHUP, or by watching the folder.

So are engines that were not ready when it began: a stand-in runs their networks until then.

A new network is loaded and warmed up beside the old one, which serves until then and finishes what it was asked. One
that cannot be loaded leaves the old one serving.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from models.checkpoint import CheckpointError
from service.device_pipeline import DevicePipeline
from service.memory import free_memory
from service.metrics import Metrics
from service.pipeline import Service
from service.predictor import Predictor
from service.settings import SettingsError

logger = logging.getLogger("petseg.reload")

LOADED, FAILED, REMOVED = "loaded", "failed", "removed"


class FileState(NamedTuple):
    """What tells, without reading it, that a file is not the one that it was."""

    inode: int
    size_bytes: int
    modified_ns: int


Folder = dict[Path, FileState]


class Reloader:
    """Keeps the pipelines of `service` to the checkpoints that lie in its folder. Lives on the event loop.

    build: a checkpoint's path -> its pipeline, loaded, warm and not yet in use; runs in a thread and may raise.
    predictors: those of the pipelines, wherever else they are listed; kept true, so that nothing holds a retired one.
    """

    def __init__(
        self,
        service: Service[DevicePipeline],
        predictors: list[Predictor],
        build: Callable[[Path], DevicePipeline],
        metrics: Metrics,
    ) -> None:
        self._service = service
        self._predictors = predictors
        self._build = build
        self._metrics = metrics
        self._folder = service.settings.checkpoints
        self._poll_s = service.settings.reload_poll_s
        self._loop = asyncio.get_running_loop()
        self._is_asked = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()

    def ask(self) -> None:
        """Reload soon. May be called from any thread or signal handler."""
        self._loop.call_soon_threadsafe(self._is_asked.set)

    async def run(self) -> None:
        """Replace the stand-ins, then reload when asked, and when the folder has changed if `reload_poll_s` is set.

        Until cancelled.
        """
        await self._replace_stand_ins()
        settled: Folder | None = None
        latest: Folder | None = None
        while True:
            if await self._is_asked_within(self._poll_s):
                await self._try_to_reload()
                continue
            now = await asyncio.to_thread(read_folder, self._folder)
            # A file that is still being written differs from look to look; one that failed is not tried again as it is.
            if now == latest and now != settled:
                settled = now
                await self._try_to_reload()
            latest = now

    async def _replace_stand_ins(self) -> None:
        """Serve each network by the engine that it was meant for, as soon as that has converted it."""
        pipelines = self._service.pipelines.items()
        for name in [name for name, each in pipelines if each.predictor.engine.is_stand_in]:
            try:
                new = await asyncio.to_thread(self._build, self._folder / f"{name}.safetensors")
            except Exception as error:
                self._note_failure(name, self._service.pipelines[name], error)
            else:
                self._replace(name, new)
                logger.info("%s: served by %s from now on", name, new.predictor.engine.name)

    async def _try_to_reload(self) -> None:
        try:
            await self.reload()
        except Exception:
            logger.exception("reloading failed; what was loaded goes on serving")

    async def _is_asked_within(self, seconds: float) -> bool:
        """Whether somebody asked; waits without end where `seconds` is 0."""
        try:
            async with asyncio.timeout(seconds or None):
                await self._is_asked.wait()
        except TimeoutError:
            return False
        self._is_asked.clear()
        return True

    async def reload(self) -> None:
        """Take up every file whose content is not the one served, and let go of models whose file is gone."""
        paths = sorted(await asyncio.to_thread(read_folder, self._folder))
        if not paths:
            logger.error("%s: got no *.safetensors, wanted at least one; what was loaded goes on serving", self._folder)
            self._metrics.reloads.labels("", FAILED).inc()
            return
        for path in paths:
            await self._take_up(path)
        for name in self._service.pipelines.keys() - {path.stem for path in paths}:
            self._replace(name, None)
            self._metrics.reloads.labels(name, REMOVED).inc()
            logger.info("%s: its checkpoint is gone, the model is served no more", name)

    async def _take_up(self, path: Path) -> None:
        name = path.stem
        old = self._service.pipelines.get(name)
        try:
            digest = await asyncio.to_thread(file_digest, path)
            if old is not None and old.predictor.checkpoint.digest == digest:
                return
            new = await asyncio.to_thread(self._build, path)
        except Exception as error:
            self._note_failure(name, old, error)
            return
        self._replace(name, new)
        self._metrics.reloads.labels(name, LOADED).inc()
        logger.info("%s: serves checkpoint %s", name, new.predictor.checkpoint.digest[:12])

    def _note_failure(self, name: str, old: DevicePipeline | None, error: Exception) -> None:
        """Tell why a network was not taken up, and what serves in its place."""
        # A file that is no checkpoint takes one line; what broke in building or warming up is for the trace.
        is_expected = isinstance(error, (CheckpointError, SettingsError, OSError))
        logger.error("%s; %s", error, _what_serves(old), exc_info=None if is_expected else error)
        self._metrics.reloads.labels(name, FAILED).inc()

    def _replace(self, name: str, new: DevicePipeline | None) -> None:
        """Route new requests to `new`, or to nobody; the old pipeline ends once its requests are answered."""
        pipelines = dict(self._service.pipelines)
        old = pipelines.pop(name, None)
        if new is not None:
            pipelines[name] = new
        self._service.replace(dict(sorted(pipelines.items())))
        self._predictors[:] = [pipeline.predictor for pipeline in self._service.pipelines.values()]
        if old is not None:
            task = asyncio.create_task(self._retire(old))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _retire(self, old: DevicePipeline) -> None:
        """Wait for the last request of `old`, end its threads and free what only it held."""
        await old.until_unused()
        await old.batcher.close(self._service.settings.drain_s)
        digest = old.predictor.encoder_digest
        if all(each.predictor.encoder_digest != digest for each in self._service.pipelines.values()):
            old.predictor.retire()
        del old
        await asyncio.to_thread(free_memory)

    async def close(self) -> None:
        """Let the retired pipelines end, within what is left of the drain."""
        if self._retiring:
            await asyncio.wait(self._retiring, timeout=self._service.drain_left_s)


def read_folder(folder: Path) -> Folder:
    """Every checkpoint file in `folder` and its state; empty where the folder cannot be read."""
    found: Folder = {}
    try:
        for path in folder.glob("*.safetensors"):
            state = path.stat()
            found[path] = FileState(state.st_ino, state.st_size, state.st_mtime_ns)
    except OSError as error:
        logger.warning("%s cannot be read: %s", folder, error)
        return {}
    return found


def file_digest(path: Path) -> str:
    """sha256 of the file, as checkpoints are named by."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _what_serves(old: DevicePipeline | None) -> str:
    return "the model is not served" if old is None else "the checkpoint that was loaded before goes on serving"
