"""Checkpoint files: what their tensors are stored as, and cards that say more than is read today."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.architectures import get_architecture
from models.checkpoint import (
    CheckpointError,
    ModelCard,
    backbone_digest,
    load_checkpoint,
    save_checkpoint,
    without_fields,
)
from training.config import load_config


def test_half_precision_leaves_vectors_whole(tmp_path: Path) -> None:
    config = load_config("unet", smoke=True)
    model = get_architecture("unet")(config.architecture_config())
    statistics = next(buffer for name, buffer in model.named_buffers() if name.endswith("running_var"))
    statistics.fill_(1e6)  # beyond half precision
    card = ModelCard(architecture="unet", config=model.config.model_dump(mode="json"))
    save_checkpoint(tmp_path / "half.safetensors", model, card, half=True)
    floats = [value for value in load_file(tmp_path / "half.safetensors").values() if value.is_floating_point()]
    assert {value.dtype for value in floats if value.ndim > 1} == {torch.float16}
    assert {value.dtype for value in floats if value.ndim < 2} == {torch.float32}
    loaded = load_checkpoint(tmp_path / "half.safetensors").model
    assert next(b for name, b in loaded.named_buffers() if name.endswith("running_var"))[0] == 1e6


def test_a_card_with_a_retired_field_still_loads(tmp_path: Path) -> None:
    config = load_config("clip-compact", smoke=True)
    model = get_architecture("clip")(config.architecture_config())
    written = model.config.model_dump(mode="json")
    assert "image_size" not in written["backbone"]
    older = {**written, "backbone": {**written["backbone"], "image_size": 224}}
    card = ModelCard(architecture="clip", config=older, backbone_digest=backbone_digest(model))
    save_checkpoint(tmp_path / "older.safetensors", model, card)
    assert load_checkpoint(tmp_path / "older.safetensors").model.config == model.config


def test_fields_are_left_out_by_their_dotted_names() -> None:
    table = {"a": 1, "b": {"c": 2, "d": 3}}
    assert without_fields(table, ["b.c", "e", "a.f"]) == {"a": 1, "b": {"d": 3}}
    assert table["b"] == {"c": 2, "d": 3}


def test_a_config_that_no_network_is_built_from_is_named_with_its_file(tmp_path: Path) -> None:
    config = load_config("timm_unet-compact", smoke=True)
    model = get_architecture("timm_unet")(config.architecture_config())
    written = {**model.config.model_dump(mode="json"), "decoder_widths": [8]}
    save_checkpoint(tmp_path / "narrow.safetensors", model, ModelCard(architecture="timm_unet", config=written))
    with pytest.raises(CheckpointError, match=r"narrow\.safetensors: config: got 1 decoder_widths, wanted"):
        load_checkpoint(tmp_path / "narrow.safetensors")
