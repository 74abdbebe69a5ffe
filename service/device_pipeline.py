"""A pipeline whose batches run on a device of this process, and the size of batch that pays there."""

from models.prompts import Prompt
from models.stopping import Stop
from service.batch_size import find_batch_size
from service.batcher import Batched, Batcher
from service.forward_passes import ForwardPasses, is_out_of_memory
from service.image_threads import ImageThreads
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.predictor import Prediction, Predictor, Prepared, Row
from service.priorities import yield_to_event_loop
from service.settings import Settings
from service.turns import Turns

BATCH_LIMITS = {"cpu": 8, "cuda": 128}
"""The largest batch size that is tried, by type of device: past these nothing is won, and callers wait longer."""

BATCH_SIZE_BUDGETS_S = {"cpu": 1.0, "cuda": 10.0}
"""Seconds for trying them; a GPU's include recording each size, which is needed all the same."""


GPU_BESIDE_WAIT_S = 0.005
"""For a batch to fill while another computes, which loses nothing: each batch costs the interpreter some thirty turns
at its lock, whatever its size. Without, a light network's were of 8 photos, and the second stream slowed all down."""


class DevicePipeline(Pipeline):
    """One model, its predictor and the batcher before it."""

    def __init__(
        self, predictor: Predictor, pool: ImageThreads, turns: Turns, settings: Settings, metrics: Metrics
    ) -> None:
        """turns: shared by all models of the device."""
        self.metrics = metrics.of_model(predictor.facts.name, predictor.keeps_images)
        super().__init__(predictor.facts, predictor.work, pool, settings, self.metrics)
        self.predictor = predictor
        self.passes = ForwardPasses(predictor.predict, self._limit_batches, self.metrics)
        self.batcher: Batcher[Row, Prediction] = Batcher(
            self.passes,
            max_batch_size=max(1, settings.max_batch_size),
            queue_size=settings.queue_size,
            max_wait_s=settings.max_wait_s,
            beside_wait_s=GPU_BESIDE_WAIT_S if predictor.engine.device.type == "cuda" else 0.0,
            streams=settings.streams * predictor.engine.passes_per_stream,
            name=self.name,
            take_turn=turns.take,
            new_stop=Stop,
            begin=yield_to_event_loop,
        )

    @property
    def photos_together(self) -> int:
        """Photos that a stream computes together at most, at present."""
        return 1 if self.predictor.engine.is_row_by_row else self.batcher.max_batch_size

    def prepare(self, upload: bytes | None, image_id: str | None, prompt: Prompt) -> Row:
        """Decode and letterbox a photo, or find its features."""
        return self.predictor.prepare(upload, image_id, prompt)

    async def submit(self, prepared: Prepared, deadline: float, waits: bool) -> Batched[Prediction]:
        """The prediction for a row that `prepare` gave. Raises what the batcher raises."""
        assert isinstance(prepared, Row)
        return await self.batcher.submit(prepared, deadline, self.settings.max_queue_s, counts=not waits)

    def retry_after_s(self) -> int:
        """Whole seconds, at least 1, until about half of the queue is done."""
        return self.batcher.retry_after_s()

    @property
    def is_stalled(self) -> bool:
        """Whether a forward pass takes longer than the settings allow."""
        return 0 < self.settings.stall_s < self.passes.running_s

    @property
    def fault(self) -> str | None:
        """A lost device, or a forward pass that hangs."""
        if self.passes.is_device_lost:
            return f"the device of {self.name} failed for good"
        if self.is_stalled:
            return f"a forward pass of {self.name} has run for {self.passes.running_s:.0f} s"
        return None

    @property
    def is_dead(self) -> bool:
        """Whether only a new process mends its fault."""
        return self.passes.is_device_lost or 0 < self.settings.stall_fatal_s < self.passes.running_s

    def warm_up(self) -> None:
        """Run what is set up on first use, and take the batch size that pays where the settings leave it open.

        Takes a second or so, on any thread, before the first request. For a stand-in nothing is measured.
        """
        engine = self.predictor.engine
        known = self.settings.max_batch_size or engine.best_batch_size
        size = known or 1
        if not known and not engine.is_stand_in:
            kind = engine.device.type
            size = find_batch_size(
                engine.example_run,
                BATCH_LIMITS[kind],
                is_too_much=is_out_of_memory,
                budget_s=BATCH_SIZE_BUDGETS_S[kind],
            )
            engine.release_memory()  # of the sizes that are not taken
        for batch_size in sorted({1, size}):
            engine.warm_up(batch_size)
        self.passes.set_max_batch_size(size)

    def _limit_batches(self, size: int) -> None:
        self.batcher.max_batch_size = size
