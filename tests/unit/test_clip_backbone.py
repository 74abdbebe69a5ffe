"""Frozen CLIP towers: shapes, one instance per weights, the text cache, what is refused."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from models import clip_backbone
from models.clip_backbone import BackboneConfig, ClipBackbone, load_backbone

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "layers": 3, "width": 16, "head_width": 8, "patch_size": 8},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    "timm": {"image_size": 64, "timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "linear"},
}


def config_of(tower: str, **fields: Any) -> BackboneConfig:
    model = {"embed_dim": 24, "vision_cfg": TOWERS[tower], "text_cfg": TEXT}
    return BackboneConfig(name=tower, open_clip_config=model, **fields)


@pytest.fixture(autouse=True)
def _no_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_backbone, "_instances", {})


@pytest.fixture(scope="module", params=list(TOWERS))
def backbone(request: pytest.FixtureRequest) -> Iterator[ClipBackbone]:
    clip_backbone._instances.clear()
    yield load_backbone(config_of(request.param))
    clip_backbone._instances.clear()


def images_for(backbone: ClipBackbone, batch: int = 2, scale: int = 1) -> Tensor:
    size = TOWERS[backbone.name]["image_size"] * scale
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_one_pass_gives_grid_embedding_and_layers_of_the_announced_shapes(backbone: ClipBackbone) -> None:
    count = len(backbone.tower.layer_channels)
    layers = (count - 1, 0, 1)  # in the caller's order, not the tower's
    images = images_for(backbone)
    grid, pooled, maps = backbone.encode_image(images, layers)
    assert pooled.shape == (2, 24)
    assert [tuple(each.shape[1:]) for each in (grid, *maps)] == list(backbone.feature_shapes(images.shape[-1], layers))
    assert backbone.layer_channels(layers) == tuple(each.shape[1] for each in maps)
    assert all(each.isfinite().all() for each in (grid, pooled, *maps))


def test_the_embedding_is_open_clips_own(backbone: ClipBackbone) -> None:
    images = images_for(backbone)
    torch.testing.assert_close(backbone.encode_image(images)[1], backbone.clip.encode_image(images))


def test_layers_do_not_change_the_grid(backbone: ClipBackbone) -> None:
    images = images_for(backbone)
    torch.testing.assert_close(backbone.encode_image(images)[0], backbone.encode_image(images, (0, 1))[0])


def test_a_batch_equals_singles(backbone: ClipBackbone) -> None:
    images = images_for(backbone, batch=3)
    grid, pooled, (layer,) = backbone.encode_image(images, (1,))
    for row in range(3):
        one_grid, one_pooled, (one_layer,) = backbone.encode_image(images[row : row + 1], (1,))
        for whole, single in ((grid, one_grid), (pooled, one_pooled), (layer, one_layer)):
            torch.testing.assert_close(whole[row : row + 1], single, rtol=0, atol=1e-5)


def test_other_multiples_of_the_stride_are_taken(backbone: ClipBackbone) -> None:
    images = images_for(backbone, scale=2)
    grid, pooled, _ = backbone.encode_image(images)
    assert tuple(grid.shape[1:]) == backbone.feature_shapes(images.shape[-1])[0]
    assert pooled.isfinite().all()


def test_a_size_off_the_grid_is_refused(backbone: ClipBackbone) -> None:
    with pytest.raises(ValueError, match=r"got images of 40 x 52 pixels, wanted multiples of (8|32)"):
        backbone.encode_image(torch.zeros(1, 3, 40, 52))


def test_a_layer_that_is_not_there_is_refused(backbone: ClipBackbone) -> None:
    with pytest.raises(ValueError, match=r"got layers \[-1, 99\], wanted numbers from 0 to"):
        backbone.encode_image(images_for(backbone), (-1, 0, 99))


def test_frozen_and_always_in_eval(backbone: ClipBackbone) -> None:
    backbone.train()
    assert not backbone.training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_grid_cells_of_a_vit_pass_the_class_tokens_norm_and_projection() -> None:
    backbone = load_backbone(config_of("vit"))
    visual = backbone.clip.visual
    images = images_for(backbone)
    grid, pooled, (last,) = backbone.encode_image(images, (2,))
    cell = visual.ln_post(last[:, :, 1, 2]) @ visual.proj
    torch.testing.assert_close(grid[:, :, 1, 2], cell)
    assert not torch.allclose(grid.mean((2, 3)), pooled)


def test_the_mean_of_a_cnns_grid_is_its_embedding() -> None:
    backbone = load_backbone(config_of("timm"))
    grid, pooled, _ = backbone.encode_image(images_for(backbone))
    torch.testing.assert_close(grid.mean((2, 3)), pooled, rtol=1e-4, atol=1e-5)


def test_a_resnets_grid_is_its_values_projected() -> None:
    backbone = load_backbone(config_of("resnet"))
    pool = backbone.clip.visual.attnpool
    grid, _, (last,) = backbone.encode_image(images_for(backbone), (4,))
    torch.testing.assert_close(grid[:, :, 0, 1], pool.c_proj(pool.v_proj(last[:, :, 0, 1])))


def test_vit_l_14_has_the_studys_sizes() -> None:
    with torch.device("meta"):
        backbone = load_backbone(BackboneConfig(name="ViT-L-14", pretrained="openai"))
        grid, pooled, (layer,) = backbone.encode_image(torch.zeros(1, 3, 224, 224), (11,))
        assert backbone.encode_text(torch.zeros(2, 77, dtype=torch.int64)).shape == (2, 768)
    assert grid.is_meta
    assert grid.shape == (1, 768, 16, 16)
    assert pooled.shape == (1, 768)
    assert layer.shape == (1, 1024, 16, 16)
    assert backbone.feature_shapes(224, (11,)) == ((768, 16, 16), (1024, 16, 16))
    assert clip_backbone._instances == {}


def test_configs_that_share_weights_share_the_instance() -> None:
    first = load_backbone(config_of("vit"))
    assert load_backbone(config_of("vit", layers=(1,))) is first
    assert load_backbone(config_of("timm")) is not first
    assert load_backbone(config_of("vit", quick_gelu=True)) is not first


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_backbone(config_of("vit"))
    torch.testing.assert_close(torch.rand(3), expected)
    clip_backbone._instances.clear()
    second = load_backbone(config_of("vit"))
    assert first is not second
    assert first.digest == second.digest


def test_threads_get_one_instance() -> None:
    found: list[ClipBackbone] = []
    threads = [threading.Thread(target=lambda: found.append(load_backbone(config_of("vit")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({id(each) for each in found}) == 1


@pytest.fixture
def vit() -> ClipBackbone:
    return load_backbone(config_of("vit"))


def test_tokens_are_clips(vit: ClipBackbone) -> None:
    tokens = vit.tokenize(["a photo of a cat", "cat " * 200])
    assert tokens.shape == (2, 77)
    assert tokens.dtype == torch.int64
    assert tokens[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    assert tokens[1, -1] == 49407  # cut, but still ended


def test_the_tokenizer_keeps_a_bounded_number_of_words(vit: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a photo of a cat", "<end_of_text> of a dog", "quite another sentence"]
    wanted = [vit.tokenize([text]) for text in texts]
    monkeypatch.setattr(clip_backbone, "_TOKENIZER_WORDS", 6)
    for number in range(40):
        vit._tokens.clear()
        tokens = vit.tokenize([texts[number % 3]])
        assert torch.equal(tokens, wanted[number % 3])
        assert len(vit._tokenizer.cache) <= 6
        assert {"<start_of_text>", "<end_of_text>"} <= set(vit._tokenizer.cache)


def test_tokens_of_the_latest_texts_are_kept(vit: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_backbone, "_TEXT_CACHE_ROWS", 2)
    texts = ["a cat", "a dog", "a cat"]
    wanted = vit.tokenize(texts)
    assert torch.equal(wanted[0], wanted[2]) and not torch.equal(wanted[0], wanted[1])
    tokenizer, asked = vit._tokenizer, list[str]()

    def tokenize(missing: list[str]) -> torch.Tensor:
        asked.extend(missing)
        tokens: torch.Tensor = tokenizer(missing)
        return tokens

    monkeypatch.setattr(vit, "_tokenizer", tokenize)
    assert torch.equal(vit.tokenize(texts), wanted)
    assert asked == []
    more = vit.tokenize(["a horse", "a cow", "a dog"])  # more at once than are kept
    assert (more.shape, asked) == ((3, vit.context_length), ["a horse", "a cow"])
    assert torch.equal(more[2], wanted[1])
    assert list(vit._tokens) == ["a cow", "a dog"]
    assert torch.equal(vit.tokenize(["a cat"])[0], wanted[0])
    assert asked == ["a horse", "a cow", "a cat"]


def test_cached_text_embeddings_equal_computed_ones(vit: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    compute = vit._embed_text

    def counting(tokens: Tensor) -> Tensor:
        asked.append(len(tokens))
        return compute(tokens)

    monkeypatch.setattr(vit, "_embed_text", counting)
    tokens = vit.tokenize(["cat", "dog", "cat", "a Siamese cat"])
    expected = vit.clip.encode_text(tokens)
    torch.testing.assert_close(vit.encode_text(tokens), expected)
    torch.testing.assert_close(vit.encode_text(tokens.flip(0)), expected.flip(0))
    torch.testing.assert_close(vit.encode_text(vit.tokenize(["dog", "bird"]))[0], expected[1])
    assert asked == [3, 1]  # each distinct row once


def test_the_text_cache_is_bounded_and_forgets_the_longest_unused(
    vit: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_backbone, "_TEXT_CACHE_ROWS", 2)
    for word in ("cat", "dog", "cat", "bird"):
        vit.encode_text(vit.tokenize([word]))
    kept = {key[0] for key in vit._texts}
    assert kept == {vit.tokenize([word])[0].numpy().tobytes() for word in ("cat", "bird")}


def test_cached_texts_follow_the_weights_dtype(vit: ClipBackbone) -> None:
    tokens = vit.tokenize(["cat"])
    assert vit.encode_text(tokens).dtype == torch.float32
    assert vit.double().encode_text(tokens).dtype == torch.float64


def test_texts_embedded_in_inference_mode_may_be_trained_on(vit: ClipBackbone) -> None:
    tokens = vit.tokenize(["cat"])
    with torch.inference_mode():
        vit.encode_text(tokens)
    weight = torch.ones(24, requires_grad=True)
    (F.normalize(vit.encode_text(tokens)) * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None


def test_the_temperature_is_clips(vit: ClipBackbone) -> None:
    assert vit.logit_scale.shape == ()
    assert vit.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either file"),
        ({"file": "petclip", "name": "ViT-L-14"}, "give either file"),
        ({"file": "petclip", "pretrained": "openai"}, "holds its own config and weights"),
        ({"name": "ViT-L-14", "weights": "openai"}, "Extra inputs"),
    ],
)
def test_configs_that_name_no_one_source_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BackboneConfig(**fields)


def test_an_unknown_model_name_gets_close_ones() -> None:
    with pytest.raises(ValueError, match=r"got open_clip model 'ViT-L-15', wanted one it knows, such as .*ViT-L-14"):
        load_backbone(BackboneConfig(name="ViT-L-15"))


def test_an_unknown_tag_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*clip\.pt and no such tag; tags: openai"):
        load_backbone(BackboneConfig(name="ViT-L-14", pretrained=str(tmp_path / "clip.pt")))


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({**TOWERS["vit"], "attentional_pool": True}, "attentional pooling"),
        ({**TOWERS["timm"], "timm_pool": "abs_attn", "timm_proj": ""}, "attention pooling"),
        ({"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg"}, "wanted a CNN"),
    ],
)
def test_towers_whose_tokens_do_not_live_in_the_joint_space_are_refused(vision: dict[str, Any], message: str) -> None:
    model = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}
    with pytest.raises(ValueError, match=message):
        load_backbone(BackboneConfig(name="odd", open_clip_config=model))


def test_coca_is_refused() -> None:
    with pytest.raises(ValueError, match="CoCa"):
        load_backbone(BackboneConfig(name="coca_ViT-B-32"))
