"""A trained checkpoint in 8-bit integers: post-training quantization by NNCF, calibrated on training photos.

The file holds OpenVINO graphs in place of weights, and is served like any other where OpenVINO runs.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from models.base import SegmentationModel
from models.checkpoint import Checkpoint, Quantization, load_checkpoint, quantized_parts, save_quantized
from models.engine import Precision, as_model
from models.engine_choice import EngineBuilder, EngineOptions
from models.letterbox import Letterbox, image_tensor
from models.merging import Merging
from models.openvino_engine import convert_decoder, convert_encoder
from models.openvino_graph import Graph, GraphOptions, load_openvino, store_graph
from training.encoded_pictures import CPU
from training.evaluate import PROTOCOLS
from training.measure import measure, protocol_names
from training.official_layout import PetRecord, read_photo, records_fingerprint

Arrays = list[npt.NDArray[Any]]

METHOD = "post-training, NNCF: symmetric ranges, weights in half of theirs, biases corrected layer by layer"
"""What the cards of quantized checkpoints say of how they were made."""
MERGING = Merging.SPLIT
"""The study's UNet does 1.04 times as much with matrix units as with its maps concatenated, and as much with AVX-512
alone. Coarse maps first would be slower: 0.77 with matrix units."""


@dataclass(frozen=True)
class Example:
    """One photo as the graphs read it."""

    image: Tensor
    """[1, 3, S, S] float32 in [0, 1]."""
    prompt: dict[str, Tensor]
    """Of one row."""


def quantize(checkpoint: Checkpoint, root: Path, records: Sequence[PetRecord], out: Path) -> Checkpoint:
    """Write `checkpoint` in 8-bit integers to `out` and load it again.

    A frozen tower stays as it is: models share it and the features it gives, and in integers it cost `clip` half a
    point. records: the photos, in the official layout under `root`, whose activations set the integers' ranges. The
    network of `checkpoint` is folded in place. The card's metrics are left out: they were not measured of these graphs.
    """
    if checkpoint.graphs:
        raise ValueError(f"got {checkpoint.name}, which is quantized already; wanted a checkpoint of weights")
    nncf, openvino = load_nncf(), load_openvino()
    model = checkpoint.model.eval().requires_grad_(False)
    examples = read_examples(model, root, records)
    parts = quantized_parts(model)
    encoder, graphs = convert_encoder(model, checkpoint.name, MERGING), {}
    if "encode" in parts:
        encoder = graphs["encode"] = _quantize(encoder, [_arrays(each.image) for each in examples])
    if "decode" in parts:
        compiled = Graph(encoder, GraphOptions(Precision.FP32, 1, 1))
        rows = [_decoder_inputs(model, compiled, each) for each in examples]
        graphs["decode"] = _quantize(convert_decoder(model, checkpoint.name, MERGING), rows)
    quantization = Quantization(
        method=METHOD,
        source=checkpoint.digest,
        calibration={"photos": len(examples), "fingerprint": records_fingerprint(root, records)},
        made_with=f"nncf {nncf.__version__}, openvino {openvino.__version__}",
    )
    card = checkpoint.card.model_copy(update={"metrics": {}, "quantization": quantization})
    save_quantized(out, {part: store_graph(graph) for part, graph in graphs.items()}, card)
    return load_checkpoint(out)


@dataclass(frozen=True)
class Loss:
    """What the integers cost on a list of photos."""

    protocol: str
    before: float
    """Mean IoU of the checkpoint in float32, in [0, 1]."""
    after: float
    """Mean IoU of the integers."""
    results: dict[str, Any]
    """All scores of the integers, for the card."""

    @property
    def points(self) -> float:
        """Loss in percentage points of mean IoU; negative where the integers did better."""
        return 100 * (self.before - self.after)


def measure_loss(before: Checkpoint, after: Checkpoint, root: Path, records: Sequence[PetRecord]) -> Loss:
    """Both checkpoints on `records` under the headline protocol, as the service runs them."""
    protocol = protocol_names(before.model.prompt_kind)[0]
    floats, integers = (
        measure(as_served(checkpoint, precision), root, records, [protocol])
        for checkpoint, precision in ((before, Precision.FP32), (after, None))
    )
    scores = [float(results[protocol]["boundary_ignore"]["mean_iou"]) for results in (floats, integers)]
    return Loss(protocol, scores[0], scores[1], integers)


def as_served(
    checkpoint: Checkpoint, precision: Precision | None = None, device: torch.device = CPU
) -> SegmentationModel:
    """The network as the service would run it here, for evaluation; None: in the precision that it would choose."""
    options = EngineOptions(precision=precision.value if precision else "auto", threads=torch.get_num_threads())
    return as_model(EngineBuilder(device, options).build(checkpoint))


def load_nncf() -> Any:
    """NNCF, which comes with the extra `train`, without its telemetry. Raises ValueError where it is missing."""
    load_openvino()
    try:
        return importlib.import_module("nncf")
    except ImportError as error:
        raise ValueError(f"got no NNCF ({error}), wanted it to quantize; pip install 'petseg[train]'") from error


def read_examples(model: SegmentationModel, root: Path, records: Sequence[PetRecord]) -> list[Example]:
    """The photos of `records` with prompts of all protocols in turn."""
    prompters = cycle(PROTOCOLS[model.prompt_kind].values())
    examples = []
    for record, prompter in zip(records, prompters, strict=False):
        photo = read_photo(root, record)
        letterbox = Letterbox((photo.image.height, photo.image.width), model.config.image_size)
        prompt = model.prompt_tensors(prompter(record, photo.label_map), letterbox)
        image = image_tensor(letterbox.apply_image(photo.image))
        examples.append(Example(image[None], {name: tensor[None] for name, tensor in prompt.items()}))
    return examples


def _decoder_inputs(model: SegmentationModel, encoder: Graph, example: Example) -> Arrays:
    """What `decode` reads of one photo once it is served."""
    features = encoder(example.image)
    with torch.no_grad():
        embedded = model.embed_prompt(features, example.prompt)
    return _arrays(*features, *embedded.values())


def _arrays(*tensors: Tensor) -> Arrays:
    return [tensor.contiguous().numpy() for tensor in tensors]


def _quantize(graph: Any, rows: Sequence[Arrays]) -> Any:
    nncf = load_nncf()
    return nncf.quantize(
        graph,
        nncf.Dataset(rows),
        # Measured on timm_unet: symmetric ranges lose no more than asymmetric ones and run faster; the slow correction
        # of biases, from the quantized activations before each layer, gains a quarter of a point over the fast one.
        preset=nncf.QuantizationPreset.PERFORMANCE,
        fast_bias_correction=False,
        # CPUs without VNNI add two products of bytes in 16 bits and cut off what does not fit. Weights of half the
        # range fit: there, the study's UNet agrees with float32 on 97.2 % of pixels, and on 71.6 % without.
        # A product of two activations would still not fit: resizing by matrices stays in floats, at no cost in time.
        ignored_scope=nncf.IgnoredScope(types=["MatMul"], validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(rows),
    )
