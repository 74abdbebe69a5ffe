"""OpenVINO as the engine: the fastest on CPUs, as far as we measured."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from models.base import Features, SegmentationModel
from models.checkpoint import Checkpoint
from models.engine import DecodeGraph, EncodeGraph, Engine, example_images, example_prompts, takes_prompt
from models.folding import fold_batch_norms, has_batch_norms
from models.openvino_graph import Graph, GraphFolder, GraphOptions, convert, graph_key, load_graph
from models.prompts import PromptTensors
from models.stored_graph import StoredGraph


class OpenVinoEngine(Engine):
    """Both halves as graphs; prompts are embedded by torch, and what embeds them stays float32."""

    def __init__(
        self, model: SegmentationModel, encoder: Graph, decoder: Graph | None, numbers: str, encoder_digest: str | None
    ) -> None:
        """decoder: None for image-only models. numbers: what the layers compute in, for `name`."""
        super().__init__(model, torch.device("cpu"))
        self._encoder = encoder
        self._decoder = decoder
        self._numbers = numbers
        self._encoder_digest = encoder_digest

    @property
    def name(self) -> str:
        return f"openvino {self._numbers}"

    @property
    def encoder_digest(self) -> str | None:
        return self._encoder_digest

    def encode(self, images: Tensor) -> Features:
        return self._encoder(images)

    def decode(self, features: Features, prompt: PromptTensors) -> Tensor:
        if self._decoder is None:
            return features[0]
        with torch.inference_mode():
            embedded = self.model.embed_prompt(features, prompt)
        return self._decoder(*features, *embedded.values())[0]


class OpenVinoCompiler:
    """Makes engines; networks with one encoder share its graph."""

    def __init__(self, options: GraphOptions, folder: GraphFolder) -> None:
        self.options = options
        self.folder = folder
        self._encoders: dict[str, Graph] = {}

    def compile(self, checkpoint: Checkpoint) -> OpenVinoEngine:
        """An engine for `checkpoint`. Raises EngineError for a network that does not convert."""
        model = checkpoint.model.eval().requires_grad_(False)
        if checkpoint.graphs:
            return self._compile_stored(model, checkpoint.graphs)
        name, shared = checkpoint.name, model.encoder_digest()
        identity = shared or checkpoint.digest
        encoder = self._encoder(identity, lambda: self._kept(identity, "encode", lambda: convert_encoder(model, name)))
        decoder = None
        if takes_prompt(model):
            kept = self._kept(checkpoint.digest, "decode", lambda: convert_decoder(model, name))
            decoder = Graph(kept, self.options)
        return OpenVinoEngine(model, encoder, decoder, self.options.precision, shared)

    def _compile_stored(self, model: SegmentationModel, graphs: Mapping[str, StoredGraph]) -> OpenVinoEngine:
        """A quantized network: what is not in integers, such as interpolation, runs in the options' precision."""
        digest = graphs["encode"].digest
        encoder = self._encoder(digest, lambda: load_graph(graphs["encode"]))
        decoder = Graph(load_graph(graphs["decode"]), self.options) if "decode" in graphs else None
        return OpenVinoEngine(model, encoder, decoder, "int8", digest)

    def _encoder(self, identity: str, make: Callable[[], Any]) -> Graph:
        if identity not in self._encoders:
            self._encoders[identity] = Graph(make(), self.options)
        return self._encoders[identity]

    def _kept(self, identity: str, part: str, make: Callable[[], Any]) -> Any:
        return self.folder.load(graph_key(identity, part), make)


def convert_encoder(model: SegmentationModel, name: str) -> Any:
    """`encode` as a graph that is not compiled yet; the whole network where it takes no prompt."""
    _fold(model)
    return convert(EncodeGraph(model), lambda rows: (example_images(model, rows),), f"{name}: encode")


def convert_decoder(model: SegmentationModel, name: str) -> Any:
    """`decode` as a graph that is not compiled yet: features, then the embedded prompt's tensors -> logits."""
    _fold(model)

    def example(rows: int) -> tuple[Tensor, ...]:
        features, embedded = _decoder_inputs(model, rows)
        return (*features, *embedded.values())

    features, embedded = _decoder_inputs(model, 1)
    return convert(DecodeGraph(model, len(features), tuple(embedded)), example, f"{name}: decode")


def _fold(model: SegmentationModel) -> None:
    """Fold before conversion: less to trace."""
    if has_batch_norms(model):
        fold_batch_norms(model, lambda: model(example_images(model, 1), example_prompts(model, 1)))


def _decoder_inputs(model: SegmentationModel, rows: int) -> tuple[Features, PromptTensors]:
    with torch.no_grad():
        features = model.encode(example_images(model, rows))
        return features, model.embed_prompt(features, example_prompts(model, rows))
