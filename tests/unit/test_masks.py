"""Pictures whose pixels say what they claim, segments that say where they are."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from models.letterbox import Array, Letterbox
from service import masks
from tests.fakes import decode_rle, picture, read


def test_png_values_are_classes_and_their_colours_are_visible() -> None:
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3) % 3
    image = read(masks.encode_png(mask))
    assert image.mode == "P"
    assert (np.asarray(image) == mask).all()
    shown = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert [tuple(map(int, colour)) for colour in shown[:3]] == list(masks.COLOURS[:3])


def square_logits(mask: Array, classes: int = 3, margin: float = 6.0) -> torch.Tensor:
    return margin * torch.nn.functional.one_hot(torch.from_numpy(mask).long(), classes).permute(2, 0, 1).float()


def test_segments_say_where_each_class_is() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[1:4, 2:7] = 2
    mask[6, 0] = 1
    cat, dog = masks.find_segments(mask, square_logits(mask), Letterbox((8, 8), 8))
    assert (cat.category_id, cat.area, cat.bbox) == (1, 1, (0, 6, 1, 1))
    assert (dog.category_id, dog.area, dog.bbox) == (2, 15, (2, 1, 5, 3))
    assert dog.size == (8, 8)
    wanted = float(np.exp(6) / (np.exp(6) + 2))
    assert cat.score == dog.score == pytest.approx(wanted, abs=1e-4)
    assert (decode_rle(dog.size, dog.counts) == (mask == 2)).all()


def test_a_mask_of_background_has_no_segments() -> None:
    mask = np.zeros((5, 4), np.uint8)
    assert masks.find_segments(mask, square_logits(np.zeros((8, 8), np.uint8)), Letterbox((5, 4), 8)) == []


def test_a_class_that_wins_only_between_cells_has_a_score() -> None:
    # Of two cells one is background and one a dog; halfway the cat, second in both, is first.
    logits = torch.tensor([[[9.0, 0.0]], [[8.0, 8.0]], [[0.0, 9.0]]]).expand(3, 2, 2).contiguous()
    letterbox = Letterbox((8, 8), 2)
    mask = letterbox.restore_mask(logits)
    cat, _ = masks.find_segments(mask, logits, letterbox)
    assert cat.category_id == 1
    assert cat.score == pytest.approx(float(logits.softmax(0)[1].max()), abs=1e-4)


def test_overlay_tints_animals_and_leaves_the_ground() -> None:
    photo = picture(40, 30)
    mask = np.zeros((30, 40), np.uint8)
    mask[5:25, 10:30] = 1
    drawn = np.asarray(read(masks.draw_overlay(photo, mask)))
    before = np.asarray(photo)
    assert drawn.shape == before.shape
    assert (drawn[mask == 0] == before[mask == 0]).all()
    assert tuple(drawn[5, 10]) == masks.COLOURS[1]  # the outline, in full colour
    tinted = 0.55 * before[15, 20].astype(float) + 0.45 * np.array(masks.COLOURS[1])
    assert np.abs(drawn[15, 20] - tinted).max() <= 1


def test_cutout_keeps_the_animals_pixels_alone() -> None:
    photo = picture(40, 30)
    mask = np.zeros((30, 40), np.uint8)
    mask[5:25, 10:30] = 2
    image = read(masks.draw_cutout(photo, mask))
    assert image.mode == "RGBA"
    cutout = np.asarray(image)
    assert ((cutout[..., 3] == 255) == (mask == 2)).all()
    assert (cutout[mask == 0] == 0).all()
    assert (cutout[mask == 2][:, :3] == np.asarray(photo)[mask == 2]).all()


def test_probability_is_one_less_that_of_the_background() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 16, 16)
    letterbox = Letterbox((11, 23), 16)
    image = read(masks.draw_probability(logits, letterbox))
    wanted = 255 * (1 - letterbox.restore_logits(logits).softmax(0)[0])
    assert image.mode == "L"
    assert np.abs(np.asarray(image, dtype=float) - wanted.numpy()).max() <= 0.5 + 1e-3


def test_large_masks_stay_small_files() -> None:
    mask = np.zeros((2000, 3000), np.uint8)
    mask[500:1500, 1000:2000] = 1
    data = masks.encode_png(mask)
    assert len(data) < 40_000
    assert (np.asarray(Image.open(io.BytesIO(data))) == mask).all()
