"""CLIP weights on disk: there and back, strictly, and what a damaged or foreign file is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import clip_backbone
from models.backbone_file import (
    CARD_KEY,
    BackboneCard,
    build_clip,
    digest_weights,
    find_backbone,
    find_open_clip_weights,
    open_clip_config,
    read_backbone_card,
    save_backbone,
)
from models.clip_backbone import BackboneConfig, load_backbone
from models.folders import BACKBONE_FOLDER_VARIABLE
from models.tensor_file import CheckpointError, halve_matrices, read_metadata

MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
CARD = BackboneCard(
    name="tiny",
    open_clip_config=MODEL,
    pixel_mean=(0.5, 0.4, 0.3),
    pixel_std=(0.2, 0.3, 0.4),
    zero_shot_prompts={"cat": ("a photo of a cat",), "dog": ("a photo of a dog",)},
    metrics={"species_accuracy": 0.5},
    seed=3,
)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _no_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_backbone, "_instances", {})


@pytest.fixture
def clip() -> Any:
    torch.manual_seed(7)
    return build_clip(MODEL).eval()


@pytest.fixture
def folder(tmp_path: Path, clip: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(BACKBONE_FOLDER_VARIABLE, str(tmp_path))
    save_backbone(tmp_path / "tiny.safetensors", clip, CARD)
    return tmp_path


def test_our_own_file_brings_weights_and_card(folder: Path, clip: Any) -> None:
    backbone = load_backbone(BackboneConfig(file="tiny"))
    assert read_backbone_card(folder / "tiny.safetensors") == CARD
    assert (backbone.name, backbone.pixel_mean, backbone.pixel_std) == ("tiny", CARD.pixel_mean, CARD.pixel_std)
    assert backbone.zero_shot_prompts == CARD.zero_shot_prompts
    clip.load_state_dict(halve_matrices(clip.state_dict()))
    torch.testing.assert_close(backbone.encode_image(IMAGES)[1], clip.encode_image(IMAGES))
    tokens = backbone.tokenize(["a cat"])
    torch.testing.assert_close(backbone.encode_text(tokens), clip.encode_text(tokens))


def test_matrices_are_stored_in_half_precision_and_vectors_whole(folder: Path) -> None:
    stored = load_file(folder / "tiny.safetensors")
    floats = {name: tensor for name, tensor in stored.items() if tensor.is_floating_point()}
    assert {tensor.dtype for tensor in floats.values() if tensor.ndim > 1} == {torch.float16}
    assert {tensor.dtype for tensor in floats.values() if tensor.ndim < 2} == {torch.float32}


def test_our_own_file_is_read_once(folder: Path) -> None:
    first = load_backbone(BackboneConfig(file="tiny"))
    assert load_backbone(BackboneConfig(file="tiny", layers=(0,))) is first


def test_a_file_written_anew_is_read_anew(folder: Path) -> None:
    first = load_backbone(BackboneConfig(file="tiny"))
    torch.manual_seed(8)
    save_backbone(folder / "tiny.safetensors", build_clip(MODEL), CARD)
    second = load_backbone(BackboneConfig(file="tiny"))
    assert second is not first
    assert second.digest != first.digest


def test_the_file_gives_sizes_on_the_meta_device(folder: Path) -> None:
    with torch.device("meta"):
        backbone = load_backbone(BackboneConfig(file="tiny"))
    assert all(parameter.is_meta for parameter in backbone.parameters())
    assert backbone.feature_shapes(32, (0,)) == ((16, 4, 4), (16, 4, 4))


def test_a_missing_backbone_names_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKBONE_FOLDER_VARIABLE, str(tmp_path / "mine"))
    with pytest.raises(
        CheckpointError, match=r"no lynx\.safetensors in .*mine, .*backbones; set PETSEG_BACKBONE_FOLDER"
    ):
        find_backbone("lynx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("visual.proj"), "Missing key"),
        (lambda tensors: tensors.update(stray=torch.zeros(1)), "Unexpected key"),
        (lambda tensors: tensors.update({"visual.proj": torch.zeros(3, 3)}), "size mismatch"),
    ],
)
def test_our_own_file_loads_strictly(folder: Path, change: Any, message: str) -> None:
    path = folder / "tiny.safetensors"
    tensors = load_file(path)
    metadata = read_metadata(path)
    change(tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=message):
        load_backbone(BackboneConfig(file="tiny"))


def test_a_file_cut_short_is_refused(folder: Path) -> None:
    path = folder / "tiny.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged tensors"):
        load_backbone(BackboneConfig(file="tiny"))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "header has no 'backbone_card'"),
        ({CARD_KEY: "{}"}, "name: Field required"),
        ({CARD_KEY: json.dumps({**CARD.model_dump(), "format_version": 9})}, "got 9, wanted 1"),
    ],
)
def test_a_foreign_header_is_refused(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata)
    with pytest.raises(CheckpointError, match=message):
        read_backbone_card(path)


def test_something_else_than_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(b"GIF89a is not a header length")
    with pytest.raises(CheckpointError, match=r"odd\.safetensors"):
        read_backbone_card(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_a_local_weights_file_loads_with_equal_outputs_and_digest(tmp_path: Path, clip: Any, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    if suffix == ".safetensors":
        save_file(clip.state_dict(), path)
    else:
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in clip.state_dict().items()}}, path)
    backbone = load_backbone(BackboneConfig(name="tiny", open_clip_config=MODEL, pretrained=str(path)))
    torch.testing.assert_close(backbone.encode_image(IMAGES)[1], clip.encode_image(IMAGES))
    assert backbone.digest == digest_weights(clip.state_dict())


def test_a_wrong_key_in_a_local_file_is_named(tmp_path: Path, clip: Any) -> None:
    tensors = clip.state_dict()
    tensors["visual.projection"] = tensors.pop("visual.proj")
    save_file(tensors, tmp_path / "clip.safetensors")
    config = BackboneConfig(name="tiny", open_clip_config=MODEL, pretrained=str(tmp_path / "clip.safetensors"))
    with pytest.raises(CheckpointError, match=r"clip\.safetensors: tensors do not fit the model(.|\n)*visual\.proj"):
        load_backbone(config)


class _Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("touched-by-pickle"),))  # type: ignore[return-value]


def test_pickled_code_in_a_local_file_never_runs(tmp_path: Path, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**clip.state_dict(), "payload": _Payload()}, "clip.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_backbone(BackboneConfig(name="tiny", open_clip_config=MODEL, pretrained="clip.pt"))
    assert not Path("touched-by-pickle").exists()


def test_a_local_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    path.write_bytes(b"nothing of use")
    config = BackboneConfig(name="tiny", open_clip_config=MODEL, pretrained=str(path))
    with pytest.raises(CheckpointError, match="not a readable weights file"):
        load_backbone(config)


def test_openai_weights_bring_quick_gelu_and_their_pixel_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    quick = build_clip({**MODEL, "quick_gelu": True}).eval()
    save_file(quick.state_dict(), tmp_path / "openai.safetensors")
    facts = {"quick_gelu": True, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    monkeypatch.setattr(
        clip_backbone, "find_open_clip_weights", lambda name, tag: (tmp_path / "openai.safetensors", facts)
    )
    backbone = load_backbone(BackboneConfig(name="tiny", open_clip_config=MODEL, pretrained="openai"))
    assert (backbone.pixel_mean, backbone.pixel_std) == (facts["mean"], facts["std"])
    torch.testing.assert_close(backbone.encode_image(IMAGES)[1], quick.encode_image(IMAGES))
    plain = build_clip(MODEL).eval()
    plain.load_state_dict(quick.state_dict())
    assert not torch.allclose(backbone.encode_image(IMAGES)[1], plain.encode_image(IMAGES), atol=1e-4)


def test_a_tag_is_downloaded_and_a_failure_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def download(facts: dict[str, Any]) -> str:
        asked.append(facts)
        if len(asked) > 1:
            raise OSError("Name or service not known")
        return "weights.safetensors"

    monkeypatch.setattr("models.backbone_file.download_pretrained", download)
    path, facts = find_open_clip_weights("ViT-L/14", "openai")
    assert path == Path("weights.safetensors")
    assert facts["quick_gelu"] is True
    assert "vit_large_patch14_clip_224.openai" in asked[0]["hf_hub"]
    with pytest.raises(
        CheckpointError, match=r"ViT-L-14, weights 'openai': no network .* give the path of a local file"
    ):
        find_open_clip_weights("ViT-L-14", "openai")


def test_the_digest_knows_names_and_values_not_files() -> None:
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3])}
    digest = digest_weights(tensors)
    assert digest == digest_weights(dict(reversed(tensors.items())))
    assert digest == digest_weights({"a": torch.tensor([1.0, 2.0], dtype=torch.float16), "b": torch.tensor([3])})
    assert digest != digest_weights({"a": torch.tensor([1.0, 2.5]), "b": torch.tensor([3])})
    assert digest != digest_weights({"a": torch.tensor([1.0, 2.0]), "c": torch.tensor([3])})
    assert digest != digest_weights({"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3])})


def test_open_clips_own_configs_are_found_under_both_spellings() -> None:
    assert open_clip_config("ViT-L/14") == open_clip_config("ViT-L-14")
    assert open_clip_config("ViT-L-14")["embed_dim"] == 768
