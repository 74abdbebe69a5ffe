"""Every architecture is built from the [smoke] sizes of its recipes and held to the one interface."""

from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from models.architectures import get_architecture, list_architectures
from models.architectures.prompt import PromptConfig
from models.base import PromptMismatchError, SegmentationModel
from models.checkpoint import ModelCard, backbone_digest, load_checkpoint, save_checkpoint
from models.clip_backbone import BackboneConfig
from models.letterbox import Letterbox
from models.prompts import PointPrompt, Prompt, PromptKind, PromptTensors, TextPrompt
from training.config import list_configs, load_config

PROMPTS: dict[PromptKind, Prompt] = {
    PromptKind.NONE: None,
    PromptKind.TEXT: TextPrompt("a photo of a Siamese cat"),
    PromptKind.POINTS: PointPrompt(((5.0, 6.0), (20.0, 3.0)), (1, 0)),
}


def build(recipe: str) -> SegmentationModel:
    config = load_config(recipe, smoke=True)
    torch.manual_seed(0)
    return get_architecture(config.architecture)(config.architecture_config())


def batch(model: SegmentationModel, count: int) -> tuple[Tensor, PromptTensors]:
    side = model.config.image_size
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    prompt = model.prompt_tensors(PROMPTS[model.prompt_kind], Letterbox((side, side), side))
    return images, default_collate([prompt] * count)


def test_every_architecture_has_a_recipe() -> None:
    assert {load_config(recipe).architecture for recipe in list_configs()} == set(list_architectures())


@pytest.mark.parametrize("recipe", list_configs())
def test_logits_have_the_shape_and_a_gradient(recipe: str) -> None:
    model = build(recipe)
    images, prompt = batch(model, 2)
    logits = model.train()(images, prompt)
    assert logits.shape == (2, len(model.config.class_names), model.config.image_size, model.config.image_size)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    learning = {
        name
        for name, parameter in model.named_parameters()
        if name.split(".")[0] not in model.frozen + model.training_only
    }
    unreached = {name for name, parameter in model.named_parameters() if name in learning and parameter.grad is None}
    assert not unreached
    assert all(p.grad is None for n, p in model.named_parameters() if n.split(".")[0] in model.frozen)


@pytest.mark.parametrize("recipe", list_configs())
def test_a_batch_equals_its_singles(recipe: str) -> None:
    model = build(recipe).eval()
    images, prompt = batch(model, 3)
    with torch.no_grad():
        together = model(images, prompt)
        for index in range(3):
            alone = model(images[index : index + 1], {k: v[index : index + 1] for k, v in prompt.items()})
            torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", list_configs())
def test_a_loaded_checkpoint_gives_the_same_logits(recipe: str, tmp_path: Path) -> None:
    model = build(recipe).eval()
    card = ModelCard(
        architecture=load_config(recipe).architecture,
        config=model.config.model_dump(mode="json"),
        backbone_digest=backbone_digest(model),
    )
    save_checkpoint(tmp_path / "saved.safetensors", model, card)
    loaded = load_checkpoint(tmp_path / "saved.safetensors")
    assert loaded.card == card
    images, prompt = batch(model, 2)
    with torch.no_grad():
        assert torch.equal(model(images, prompt), loaded.model(images, prompt))
    kept = {name.split(".")[0] for name, _ in loaded.model.named_parameters()}
    assert not kept & set(model.training_only)


@pytest.mark.parametrize("name", list_architectures())
def test_a_prompt_of_another_kind_is_refused(name: str) -> None:
    model = build(next(recipe for recipe in list_configs() if load_config(recipe).architecture == name))
    letterbox = Letterbox((32, 32), 32)
    for kind, prompt in PROMPTS.items():
        if prompt is not None and kind is not model.prompt_kind:
            with pytest.raises(PromptMismatchError, match="this model takes"):
                model.prompt_tensors(prompt, letterbox)
    if model.prompt_required:
        with pytest.raises(PromptMismatchError, match="got no prompt"):
            model.prompt_tensors(None, letterbox)


def test_unknown_architecture_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="got architecture 'vnet', wanted one of autoencoder, clip"):
        get_architecture("vnet")


@pytest.mark.parametrize("recipe", list_configs())
def test_logits_are_the_native_ones_enlarged(recipe: str) -> None:
    model = build(recipe).eval()
    images, prompt = batch(model, 2)
    with torch.no_grad():
        features = model.encode(images)
        native, logits = model.decode_native(features, prompt), model.decode(features, prompt)
    assert native.shape[-1] <= logits.shape[-1] == model.config.image_size
    enlarged = F.interpolate(native, logits.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(enlarged, logits, rtol=1e-4, atol=1e-4)


def shapes(name: str, config: dict[str, object]) -> tuple[SegmentationModel, list[tuple[int, ...]], tuple[int, ...]]:
    """A model at full size on the meta device, the shapes of its features and of its logits for one image."""
    architecture = get_architecture(name)
    with torch.device("meta"):
        model = architecture(architecture.Config.model_validate(config)).eval()
        side = model.config.image_size
        features = model.encode(torch.zeros(1, 3, side, side))
        prompt = {
            PromptKind.NONE: {},
            PromptKind.TEXT: {"tokens": torch.zeros(1, 77, dtype=torch.int64)},
            PromptKind.POINTS: {"points": torch.zeros(1, 64, 2), "point_labels": torch.zeros(1, 64)},
        }[model.prompt_kind]
        logits = model.decode(features, prompt)
    return model, [tuple(feature.shape[1:]) for feature in features], tuple(logits.shape[1:])


def test_unet_has_the_sizes_of_the_study() -> None:
    _, features, logits = shapes("unet", load_config("unet").model)
    assert features == [(64, 128, 128), (128, 64, 64), (256, 32, 32), (512, 16, 16), (1024, 8, 8)]
    assert logits == (3, 128, 128)


def test_autoencoder_has_the_sizes_of_the_study() -> None:
    model, features, logits = shapes("autoencoder", load_config("autoencoder").model)
    assert features == [(256, 8, 8)]
    assert logits == (3, 128, 128)
    bottleneck = model.get_submodule("bottleneck.1")
    assert isinstance(bottleneck, torch.nn.Linear)
    assert (bottleneck.in_features, bottleneck.out_features) == (256 * 8 * 8, 512)
    with torch.device("meta"):
        assert model.reconstruct(torch.zeros(1, 3, 128, 128)).shape == (1, 3, 128, 128)  # type: ignore[operator]


def test_context_blocks_show_the_autoencoder_the_whole_image() -> None:
    def reach(blocks: int) -> bool:
        torch.manual_seed(0)
        model = get_architecture("autoencoder")
        network = model(model.Config.model_validate({"context_blocks": blocks})).eval()
        image = torch.rand(1, 3, 128, 128, requires_grad=True)
        network(image, {})[0, :, 0, 0].sum().backward()
        return bool(cast(Tensor, image.grad)[0, :, -1, -1].abs().sum() > 0)

    assert not reach(0)
    assert reach(2)


@pytest.mark.parametrize(("name", "classes"), [("clip", 3), ("prompt", 2)])
def test_clip_and_prompt_have_the_sizes_of_the_study(name: str, classes: int) -> None:
    model, features, logits = shapes(name, load_config(name).model)
    assert features[2] == (768, 16, 16)
    fusion = model.get_submodule("head.trunk.0")
    assert isinstance(fusion, torch.nn.Conv2d)
    assert (fusion.in_channels, fusion.out_channels) == (1536, 256)
    assert logits == (classes, 224, 224)


def test_study_backbone_is_the_default() -> None:
    for name in ("clip", "prompt"):
        backbone = get_architecture(name).Config.model_fields["backbone"].default
        assert backbone == BackboneConfig(name="ViT-L-14", pretrained="openai")


def test_compact_clip_and_prompt_share_one_backbone_and_its_features() -> None:
    clip, prompt = build("clip-compact"), build("prompt-compact")
    assert clip.get_submodule("backbone") is prompt.get_submodule("backbone")
    assert clip.encoder_digest() == prompt.encoder_digest()


def test_clip_picks_its_own_prompt_and_says_which() -> None:
    model = build("clip-compact").eval()
    side = model.config.image_size
    none = model.prompt_tensors(None, Letterbox((side, side), side))
    given = model.prompt_tensors(TextPrompt("a dog"), Letterbox((side, side), side))
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        features = model.encode(images)
        chosen = model.chosen_prompts(features, default_collate([none, given]))
        assert chosen[0] is not None
        assert chosen[0].startswith("a photo of a")
        assert chosen[1] is None
        named = model.prompt_tensors(TextPrompt(chosen[0]), Letterbox((side, side), side))
        picked, spelt_out = (
            model.decode(features, default_collate([none, given])),
            model.decode(features, default_collate([named, given])),
        )
    torch.testing.assert_close(picked, spelt_out)


def test_padding_clicks_do_not_count() -> None:
    model = build("prompt-compact").eval()
    side = model.config.image_size
    prompt = model.prompt_tensors(PointPrompt(((5.0, 6.0),), (1,)), Letterbox((side, side), side))
    moved = {"points": prompt["points"].clone(), "point_labels": prompt["point_labels"]}
    moved["points"][1:] = 17.0
    features = model.encode(torch.rand(1, 3, side, side))
    with torch.no_grad():
        first = model.decode(features, default_collate([prompt]))
        assert torch.equal(first, model.decode(features, default_collate([moved])))
        other = model.prompt_tensors(PointPrompt(((50.0, 40.0),), (1,)), Letterbox((side, side), side))
        assert not torch.equal(first, model.decode(features, default_collate([other])))


@pytest.mark.parametrize("recipe", list_configs())
def test_bfloat16_autocast_runs_and_stays_close(recipe: str) -> None:
    model = build(recipe).eval()
    images, prompt = batch(model, 2)
    with torch.no_grad():
        exact = model(images, prompt)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(images, prompt).float()
    assert (rounded - exact).abs().mean() <= 0.1 * exact.abs().mean() + 0.05


def test_clip_picks_its_own_prompt_under_autocast() -> None:
    model = build("clip-compact").eval()
    side = model.config.image_size
    none = default_collate([model.prompt_tensors(None, Letterbox((side, side), side))] * 2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        images = torch.rand(2, 3, side, side)
        assert None not in model.chosen_prompts(model.encode(images), none)
        assert model(images, none).isfinite().all()


def test_clicks_become_gaussians_and_padding_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("prompt")
    config = cast(PromptConfig, model.config)
    points = torch.rand(2, 64, 2, generator=torch.Generator().manual_seed(3)) * config.image_size
    labels = torch.full((2, 64), -1)
    labels[0, 0], labels[1, 0], labels[1, 5] = 1, 0, 1
    features = (torch.zeros(2, 1, 1, 1),)
    found = model.embed_prompt(features, {"points": points, "point_labels": labels})
    pixels = torch.arange(config.image_size)
    for name, wanted in (("positive", {(0, 0), (1, 5)}), ("negative", {(1, 0)})):
        expected = torch.zeros(2, 1, config.image_size, config.image_size)
        for row, place in wanted:
            x, y = points[row, place]
            squares = (pixels - x).square()[None, :] + (pixels - y).square()[:, None]
            expected[row, 0] += (-0.5 * squares / config.sigma_px**2).exp()
        torch.testing.assert_close(found[name], expected)
    monkeypatch.setattr("models.architectures.prompt.is_recorded", lambda tensor: True)
    padded = model.embed_prompt(features, {"points": points, "point_labels": labels})
    assert all(torch.equal(found[name], padded[name]) for name in found)
