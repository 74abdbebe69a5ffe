"""OpenVINO as the engine: the fastest on CPUs, as far as we measured."""

from typing import Any

import torch
from torch import Tensor

from models.base import Features, SegmentationModel
from models.engine import DecodeGraph, EncodeGraph, Engine, Precision, example_images, example_prompts, takes_prompt
from models.folding import fold_batch_norms, has_batch_norms
from models.openvino_graph import Graph, GraphFolder, GraphOptions, convert, graph_key
from models.prompts import PromptTensors


class OpenVinoEngine(Engine):
    """Both halves as graphs; prompts are embedded by torch, and what embeds them stays float32."""

    def __init__(self, model: SegmentationModel, encoder: Graph, decoder: Graph | None, precision: Precision) -> None:
        """decoder: None for image-only models."""
        super().__init__(model, torch.device("cpu"))
        self.precision = precision
        self._encoder = encoder
        self._decoder = decoder

    @property
    def name(self) -> str:
        return f"openvino {self.precision}"

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

    def compile(self, model: SegmentationModel, digest: str, name: str) -> OpenVinoEngine:
        """An engine for `model`.

        digest: sha256 of its checkpoint; name: for messages. Raises EngineError for a network that does not convert.
        """
        model = model.eval().requires_grad_(False)
        identity = model.encoder_digest() or digest
        if identity not in self._encoders:
            key = graph_key(identity, "encode")
            self._encoders[identity] = Graph(self.folder.load(key, lambda: _convert_encoder(model, name)), self.options)
        decoder = None
        if takes_prompt(model):
            key = graph_key(digest, "decode")
            decoder = Graph(self.folder.load(key, lambda: _convert_decoder(model, name)), self.options)
        return OpenVinoEngine(model, self._encoders[identity], decoder, self.options.precision)


def _convert_encoder(model: SegmentationModel, name: str) -> Any:
    _fold(model)
    return convert(EncodeGraph(model), lambda rows: (example_images(model, rows),), f"{name}: encode")


def _convert_decoder(model: SegmentationModel, name: str) -> Any:
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
