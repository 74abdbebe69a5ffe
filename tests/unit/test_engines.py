"""Every engine gives the plain network's masks: the shipped checkpoints on real photos, in each precision."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageEnhance

from models import clip_backbone
from models.base import SegmentationModel
from models.checkpoint import load_checkpoint
from models.engine import Engine
from models.engine_choice import EngineBuilder, EngineOptions
from models.folders import CHECKPOINT_FOLDER
from models.letterbox import Array, Letterbox, image_tensor
from models.openvino_graph import has_native_bf16
from models.prompts import PointPrompt, Prompt, PromptKind, TextPrompt
from models.torch_engine import TorchEngine
from tests.e2e.server import GRAPH_FOLDER

CPU = torch.device("cpu")
NAMES = sorted(path.stem for path in CHECKPOINT_FOLDER.glob("*.safetensors"))
ENGINES = {
    "torch fp32": EngineOptions("torch", "fp32"),
    "torch bf16": EngineOptions("torch", "bf16"),
    "openvino fp32": EngineOptions("openvino", "fp32", cache_folder=GRAPH_FOLDER),
    "openvino bf16": EngineOptions("openvino", "bf16", cache_folder=GRAPH_FOLDER),
}
ON_GPU = {name: options for name, options in ENGINES.items() if options.engine == "torch"}


def photos() -> list[Image.Image]:
    """A real cat, whole, turned, cut on either side and at dusk: pictures of different shapes."""
    cat = Image.fromarray(skimage.data.chelsea())  # type: ignore[no-untyped-call]
    width, height = cat.size
    cuts = [cat.crop((0, 0, 2 * width // 3, height)), cat.crop((width // 3, 0, width, height))]
    return [cat, cat.transpose(Image.Transpose.ROTATE_90), *cuts, ImageEnhance.Brightness(cat).enhance(0.6)]


def prompts(kind: PromptKind, photo: Image.Image) -> list[Prompt]:
    width, height = photo.size
    given: dict[PromptKind, list[Prompt]] = {
        PromptKind.NONE: [None],
        PromptKind.TEXT: [None, TextPrompt("a cat"), TextPrompt("a photo of a beagle")],
        PromptKind.POINTS: [
            PointPrompt(((width / 2, height / 2),), (1,)),
            PointPrompt(((width / 3, height / 2), (width - 2, height - 2)), (1, 0)),
        ],
    }
    return given[kind]


def ask(model: SegmentationModel, engine: Engine | None) -> list[Array]:
    """Masks of all photos under all prompts: from `engine`, or from the plain network."""
    masks = []
    for photo in photos():
        letterbox = Letterbox((photo.height, photo.width), model.config.image_size)
        image = image_tensor(letterbox.apply_image(photo))
        asked = [model.prompt_tensors(prompt, letterbox) for prompt in prompts(model.prompt_kind, photo)]
        images = torch.stack([image] * len(asked))
        collated = {name: torch.stack([tensors[name] for tensors in asked]) for name in asked[0]}
        with torch.inference_mode():
            logits = (
                model(images, collated) if engine is None else engine.decode_native(engine.encode(images), collated)
            )
            if engine is not None:
                apart = engine.decode_native(engine.encode(list(images)), collated)
                torch.testing.assert_close(apart, logits, atol=1e-3, rtol=1e-3)
        masks += [letterbox.restore_mask(row) for row in logits]
    return masks


@pytest.fixture
def _own_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen towers of this test's own: engines fold and cast what they take over."""
    monkeypatch.setattr(clip_backbone, "_instances", {})


@pytest.fixture(scope="module")
def plain() -> dict[str, list[Array]]:
    return {name: ask(load_checkpoint(CHECKPOINT_FOLDER / f"{name}.safetensors").model, None) for name in NAMES}


@pytest.mark.usefixtures("_own_towers")
@pytest.mark.parametrize("options", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_masks_are_those_of_the_plain_network(name: str, options: EngineOptions, plain: dict[str, list[Array]]) -> None:
    checkpoint = load_checkpoint(CHECKPOINT_FOLDER / f"{name}.safetensors")
    engine = EngineBuilder(CPU, options).build(checkpoint)
    # OpenVINO computes in bf16 where the CPU does; torch imitates it elsewhere.
    is_refused = options.engine == "openvino" and not has_native_bf16()
    assert engine.name == f"{options.engine} {'fp32' if is_refused else options.precision}"
    compare(ask(checkpoint.model, engine), plain[name], options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="computes on a GPU, and torch sees none here")
@pytest.mark.usefixtures("_own_towers")
@pytest.mark.parametrize("options", ON_GPU.values(), ids=ON_GPU)
@pytest.mark.parametrize("name", NAMES)
def test_masks_of_a_gpu_are_those_of_the_plain_network(
    name: str, options: EngineOptions, plain: dict[str, list[Array]]
) -> None:
    checkpoint = load_checkpoint(CHECKPOINT_FOLDER / f"{name}.safetensors")
    engine = EngineBuilder(torch.device("cuda"), options).build(checkpoint)
    assert isinstance(engine, TorchEngine)
    compare(ask(checkpoint.model, engine), plain[name], options)
    engine.warm_up(4)
    assert engine.graph_sizes == [1, 2, 4]
    compare(ask(checkpoint.model, engine), plain[name], options)


def compare(got: list[Array], wanted: list[Array], options: EngineOptions) -> None:
    pixels = np.concatenate([mask.ravel() for mask in wanted])
    agreement = np.mean(pixels == np.concatenate([mask.ravel() for mask in got]))
    assert agreement >= (0.9999 if options.precision == "fp32" else 0.995)
    assert 0.05 < np.mean(pixels > 0) < 0.95
