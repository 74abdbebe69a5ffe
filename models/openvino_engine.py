"""OpenVINO as the engine: the fastest on CPUs, as far as we measured."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from models.base import Features, SegmentationModel
from models.checkpoint import Checkpoint
from models.engine import (
    DecodeGraph,
    EncodeGraph,
    Engine,
    Precision,
    Rows,
    example_images,
    example_prompts,
    takes_prompt,
)
from models.folding import fold_batch_norms, has_batch_norms
from models.merging import Merging, rewrite_merges
from models.openvino_graph import (
    Graph,
    GraphFolder,
    GraphOptions,
    Occupancy,
    convert,
    graph_key,
    has_matrix_units,
    load_graph,
)
from models.prompts import PromptTensors

logger = logging.getLogger("petseg.engine")

ROW_BY_ROW_BATCH_SIZE = 4
"""At most, where each row is computed by itself: the cores gain nothing, but all threads before them are woken once for
so many photos. With eight as much got done as with four."""

ROW_BY_ROW_BATCH_S = 0.06
"""What such a batch may take a core: other callers, and other models, wait for its end."""

ROW_BY_ROW_PASSES = 2
"""For each stream: the next is there when one ends. With one up to 9 % less got done, with three as much."""


class OpenVinoEngine(Engine):
    """Both halves as graphs; prompts are embedded by torch, and what embeds them stays float32."""

    has_own_threads = True

    def __init__(
        self,
        model: SegmentationModel,
        encoder: Graph,
        decoder: Graph | None,
        numbers: str,
        shared_encoder: str | None,
        occupancy: Occupancy,
    ) -> None:
        """decoder: None for image-only models. numbers: what the layers compute in, for `name`.

        shared_encoder: identity of the function that `encoder` computes, None where it is this network's own.
        """
        super().__init__(model, torch.device("cpu"))
        self.is_row_by_row = encoder.is_row_by_row
        if self.is_row_by_row:
            self.passes_per_stream = ROW_BY_ROW_PASSES
        self._occupancy = occupancy
        self._encoder = encoder
        self._decoder = decoder
        self._numbers = numbers
        self._shared_encoder = shared_encoder

    @cached_property
    def best_batch_size(self) -> int:
        """Where rows are computed one by one, as many as a core computes in ROW_BY_ROW_BATCH_S; timed once."""
        if not self.is_row_by_row:
            return 0
        run = self.example_run(1)
        run()
        row_s = min(_seconds(run) for _ in range(3))
        return min(ROW_BY_ROW_BATCH_SIZE, max(1, int(ROW_BY_ROW_BATCH_S / row_s)))

    @property
    def name(self) -> str:
        return f"openvino {self._numbers}"

    @property
    def shared_encoder(self) -> str | None:
        return self._shared_encoder

    @property
    def encoder_name(self) -> str:
        return f"openvino {self._encoder.precision}"  # an encoder shared with one whose decoder is in integers, too

    def encode(self, images: Rows) -> Features:
        return self._encoder(images)

    def decode_native(self, features: Features, prompt: PromptTensors) -> Tensor:
        if self._decoder is None:
            return features[0]
        with torch.inference_mode():
            embedded = self.model.embed_prompt(features, prompt)
        return self._decoder(*features, *embedded.values())[0]

    def warm_up(self, batch_size: int) -> None:
        """As any engine's, once alone and once as if another pass were under way."""
        super().warm_up(batch_size)
        self.example_run(batch_size)()

    def release_memory(self) -> None:
        for graph in (self._encoder, self._decoder):
            if graph is not None:
                graph.release_memory()

    def example_run(self, batch_size: int) -> Callable[[], object]:
        """As any engine's, as if another pass were under way."""
        run = super().example_run(batch_size)

        def run_beside_another() -> None:
            with self._occupancy.enter():
                run()

        return run_beside_another


def _seconds(run: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    run()
    return max(time.perf_counter() - started_at, 1e-9)


class OpenVinoCompiler:
    """Makes engines; networks with one encoder share its graph for as long as one of them lives."""

    def __init__(self, options: GraphOptions, folder: GraphFolder) -> None:
        self.options = options
        self.folder = folder
        self._occupancy = Occupancy()
        self._has_warned = False
        self._encoders: WeakValueDictionary[str, Graph] = WeakValueDictionary()

    @property
    def passes_per_stream(self) -> int:
        """The most batches that its engines want under way for each stream."""
        return ROW_BY_ROW_PASSES if self.options.row_by_row else 1

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether the folder has all graphs that `compile` would otherwise convert."""
        halves = (self._encoder_key, self._decoder_key) if takes_prompt(checkpoint.model) else (self._encoder_key,)
        return all(self.folder.holds(key(checkpoint)) for key in halves)

    def compile(self, checkpoint: Checkpoint) -> OpenVinoEngine:
        """An engine for `checkpoint`. Raises EngineError for a network that does not convert.

        Of a quantized one, what is not in integers, such as interpolation, runs in the options' precision.
        """
        model, graphs = checkpoint.model.eval().requires_grad_(False), checkpoint.graphs
        shared = graphs["encode"].digest if "encode" in graphs else model.encoder_digest()
        options = self._options_for(model)
        encoder = self._shared(shared or checkpoint.digest, lambda: self._encoder(checkpoint), options)
        decoder = Graph(self._decoder(checkpoint), options, self._occupancy) if takes_prompt(model) else None
        self._warn_of_other_numbers(encoder.precision)
        numbers = "int8" if graphs else encoder.precision
        return OpenVinoEngine(model, encoder, decoder, numbers, shared, self._occupancy)

    def _warn_of_other_numbers(self, got: Precision) -> None:
        """Say once that this CPU computes in `got` where that is not what was asked for."""
        if got is not self.options.precision and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "got precision %s on a CPU without instructions for it, computing in %s; set it to auto",
                self.options.precision,
                got,
            )

    def _encoder(self, checkpoint: Checkpoint) -> Any:
        if "encode" in checkpoint.graphs:
            return load_graph(checkpoint.graphs["encode"])
        model, name, merging = checkpoint.model, checkpoint.name, self._encoder_merging(checkpoint.model)
        return self.folder.load(self._encoder_key(checkpoint), lambda: convert_encoder(model, name, merging))

    def _decoder(self, checkpoint: Checkpoint) -> Any:
        if "decode" in checkpoint.graphs:
            return load_graph(checkpoint.graphs["decode"])
        model, name, merging = checkpoint.model, checkpoint.name, self._merging(checkpoint.model)
        return self.folder.load(self._decoder_key(checkpoint), lambda: convert_decoder(model, name, merging))

    def _merging(self, model: SegmentationModel) -> Merging:
        """Coarse maps are convolved before they are enlarged where products take the time; with matrix units moving
        maps takes it, and none is concatenated.

        Graphs for any number of rows lose by coarse maps first, which are further layers (a decoder's pass took 0.97 to
        1.25 times as long); the channels of those that there are fill no matrix units.
        """
        if not self._options_for(model).row_by_row:
            return Merging.JOINED
        is_dear = self.options.precision is Precision.FP32 or not has_matrix_units()
        return Merging.COARSE_FIRST if is_dear else Merging.SPLIT

    def _encoder_merging(self, model: SegmentationModel) -> Merging:
        """Maps are merged by `decode`, which belongs to the encoder's graph where no prompt is taken."""
        return Merging.JOINED if takes_prompt(model) else self._merging(model)

    def _encoder_key(self, checkpoint: Checkpoint) -> str:
        merging = self._encoder_merging(checkpoint.model)
        return graph_key(checkpoint.model.encoder_digest() or checkpoint.digest, f"encode, {merging}")

    def _decoder_key(self, checkpoint: Checkpoint) -> str:
        return graph_key(checkpoint.digest, f"decode, {self._merging(checkpoint.model)}")

    def _shared(self, identity: str, make: Callable[[], Any], options: GraphOptions) -> Graph:
        encoder = self._encoders.get(identity)
        if encoder is None:
            encoder = self._encoders[identity] = Graph(make(), options, self._occupancy)
        return encoder

    def _options_for(self, model: SegmentationModel) -> GraphOptions:
        """The options, but for a transformer in bf16: its passes are short beside the reading of its weights, which a
        whole batch shares (1.1 times the photos with batches of 8; in float32 rows by themselves are as much faster).
        Networks that take a prompt rest on CLIP towers, and no others do.
        """
        has_whole_batches = takes_prompt(model) and self.options.precision is Precision.BF16
        return replace(self.options, row_by_row=False) if has_whole_batches else self.options


def convert_encoder(model: SegmentationModel, name: str, merging: Merging) -> Any:
    """`encode` as a graph that is not compiled yet; the whole network where it takes no prompt.

    `model` is changed in place: its batch norms are folded, its maps merged in the way of `merging`.
    """
    module = EncodeGraph(model)
    _rewrite(model, lambda: module(example_images(model, 1)), merging)
    return convert(module, lambda rows: (example_images(model, rows),), f"{name}: encode")


def convert_decoder(model: SegmentationModel, name: str, merging: Merging) -> Any:
    """`decode` as a graph that is not compiled yet: features, then the embedded prompt's tensors -> logits.

    `model` is changed as by `convert_encoder`.
    """
    _rewrite(model, lambda: model(example_images(model, 1), example_prompts(model, 1)), merging)

    def example(rows: int) -> tuple[Tensor, ...]:
        features, embedded = _decoder_inputs(model, rows)
        return (*features, *embedded.values())

    features, embedded = _decoder_inputs(model, 1)
    return convert(DecodeGraph(model, len(features), tuple(embedded)), example, f"{name}: decode")


def _rewrite(model: SegmentationModel, run: Callable[[], object], merging: Merging) -> None:
    """The same function in fewer layers, and perhaps of fewer products; in place."""
    if has_batch_norms(model):
        fold_batch_norms(model, run)
    rewrite_merges(model, merging, run)


def _decoder_inputs(model: SegmentationModel, rows: int) -> tuple[Features, PromptTensors]:
    with torch.no_grad():
        features = model.encode(example_images(model, rows))
        return features, model.embed_prompt(features, example_prompts(model, rows))
