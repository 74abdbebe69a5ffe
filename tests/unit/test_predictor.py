"""One encode for the distinct new photos, one decode for all, and the same answer whatever the company."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
import torch

from models.base import Features
from models.checkpoint import Checkpoint
from models.engine import Precision
from models.letterbox import Letterbox
from models.prompts import PointPrompt, Prompt, TextPrompt
from models.stopping import Stop, StoppedError, stoppable
from models.torch_engine import TorchEngine
from service.embedding_cache import EmbeddingCache
from service.errors import (
    ImageGone,
    ImageIdNotKept,
    ImageTooLarge,
    InvalidRequest,
    PromptMismatch,
    UnsupportedImage,
)
from service.image_work import PhotoLimits
from service.predictor import Predictor, choose_device
from tests.fakes import ClickModel, ColourModel, FakeModel, TextModel, encode, fake_checkpoint, picture

CPU = torch.device("cpu")
BUDGET = 10 << 20


def make(
    checkpoint: Checkpoint, cache_bytes: int = BUDGET, precision: str = "fp32", limits: PhotoLimits | None = None
) -> Predictor:
    engine = TorchEngine(checkpoint.model, CPU, Precision(precision))
    return Predictor(checkpoint, engine, EmbeddingCache(cache_bytes), limits=limits)


def click(x: float, y: float) -> Prompt:
    return PointPrompt(((x, y),), (1,))


@pytest.fixture
def clicker() -> Predictor:
    return make(fake_checkpoint(ClickModel, "click"))


def calls(predictor: Predictor) -> FakeModel:
    return cast(FakeModel, predictor.model)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_of_n_equals_n_singles(unet: Checkpoint, precision: str) -> None:
    predictor = make(unet, 0, precision)
    uploads = [encode(picture(20 + 9 * seed, 50 - 6 * seed, seed)) for seed in range(5)]
    prepared = [predictor.prepare(upload, None, None) for upload in uploads]
    together = predictor.predict(prepared)
    for one, alone in zip(together, (predictor.predict([each])[0] for each in prepared), strict=True):
        torch.testing.assert_close(one.logits, alone.logits, atol=1e-5 if precision == "fp32" else 0.3, rtol=1e-5)
        assert one.logits.dtype == torch.float32


def test_logits_are_those_of_the_plain_model(unet: Checkpoint) -> None:
    predictor = make(unet, 0)
    prepared = predictor.prepare(encode(picture()), None, None)
    assert prepared.image is not None
    with torch.inference_mode():
        wanted = unet.model(prepared.image[None], {})[0]
    torch.testing.assert_close(predictor.predict([prepared])[0].logits, wanted)


def test_first_clicks_on_one_photo_encode_once(clicker: Predictor) -> None:
    upload, other = encode(picture(seed=1)), encode(picture(seed=2))
    batch = [
        clicker.prepare(data, None, click(x, 20)) for data, x in ((upload, 10), (other, 10), (upload, 50), (upload, 30))
    ]
    predictions = clicker.predict(batch)
    assert calls(clicker).encoded_rows == [2]
    assert calls(clicker).decoded_rows == [4]
    for prepared, prediction in zip(batch, predictions, strict=True):
        alone = make(fake_checkpoint(ClickModel, "alone")).predict([prepared])[0]
        assert torch.equal(prediction.logits, alone.logits)


def test_a_cached_click_equals_an_uncached_one_and_encodes_nothing(clicker: Predictor) -> None:
    upload = encode(picture())
    clicker.predict([clicker.prepare(upload, None, click(5, 5))])
    first = clicker.prepare(upload, None, click(40, 20))
    by_id = clicker.prepare(None, first.digest, click(40, 20))
    assert first.image is None
    assert (by_id.upload, by_id.letterbox) == (upload, Letterbox((40, 60), 32))
    cached = clicker.predict([by_id])[0]
    fresh_predictor = make(fake_checkpoint(ClickModel, "fresh"), 0)
    fresh = fresh_predictor.predict([fresh_predictor.prepare(upload, None, click(40, 20))])[0]
    assert torch.equal(cached.logits, fresh.logits)
    assert calls(clicker).encoded_rows == [1]
    assert cached.encode_s == 0


def test_a_mixed_batch_of_kept_and_new_photos_keeps_its_order(clicker: Predictor) -> None:
    uploads = [encode(picture(seed=seed)) for seed in range(4)]
    for upload in uploads[1:3]:
        clicker.predict([clicker.prepare(upload, None, click(9, 9))])
    batch = [clicker.prepare(upload, None, click(9 + 10 * place, 9)) for place, upload in enumerate(uploads)]
    calls(clicker).encoded_rows.clear()
    predictions = clicker.predict(batch)
    assert calls(clicker).encoded_rows == [2]
    for place, upload in enumerate(uploads):
        alone = make(fake_checkpoint(ClickModel, "alone"), 0)
        wanted = alone.predict([alone.prepare(upload, None, click(9 + 10 * place, 9))])[0]
        assert torch.equal(predictions[place].logits, wanted.logits)


def test_models_with_one_encoder_share_features() -> None:
    clicker, reader = make(fake_checkpoint(ClickModel, "click")), make(fake_checkpoint(TextModel, "text"))
    reader.cache = clicker.cache
    upload = encode(picture())
    clicker.predict([clicker.prepare(upload, None, click(5, 5))])
    reader.predict([reader.prepare(upload, None, TextPrompt("a cat"))])
    assert calls(reader).encoded_rows == []


@pytest.mark.parametrize("is_retired", [False, True])
def test_a_photo_of_another_encoder_is_encoded_again(is_retired: bool) -> None:
    old, new = make(fake_checkpoint(ClickModel, "old")), make(fake_checkpoint(ClickModel, "new"))
    new.cache, new.encoder_digest = old.cache, "another"
    upload = encode(picture())
    old.predict([old.prepare(upload, None, click(5, 5))])
    digest = old.prepare(upload, None, click(5, 5)).digest
    if is_retired:
        old.retire()
        assert old.cache.bytes == len(upload)
    by_id = new.prepare(None, digest, click(40, 20))
    assert (by_id.kept, by_id.upload, by_id.letterbox) == (None, upload, Letterbox((40, 60), 32))
    fresh = make(fake_checkpoint(ClickModel, "fresh"), 0)
    wanted = fresh.predict([fresh.prepare(upload, None, click(40, 20))])[0]
    assert torch.equal(new.predict([by_id])[0].logits, wanted.logits)
    assert new.prepare(None, digest, click(5, 5)).kept is not None


def test_first_clicks_at_once_on_one_photo_encode_it_once() -> None:
    """Two streams, two models with one encoder, one new photo in both batches and others beside it."""
    clicker, reader = (make(fake_checkpoint(kind, kind.__name__)) for kind in (ClickModel, TextModel))
    clicker.cache = reader.cache
    calls(clicker).encoded_rows.clear()
    calls(reader).encoded_rows.clear()
    uploads = [encode(picture(seed=seed)) for seed in range(3)]
    encoding, may_go_on = threading.Event(), threading.Event()

    encode_images = calls(clicker).encode

    def held_encode(images: torch.Tensor) -> Features:
        encoding.set()
        assert may_go_on.wait(10)
        return encode_images(images)

    calls(clicker).encode = held_encode  # type: ignore[method-assign]
    first = [clicker.prepare(upload, None, click(5, 5)) for upload in uploads[:2]]
    second = [reader.prepare(upload, None, TextPrompt("a cat")) for upload in uploads[1:]]
    with ThreadPoolExecutor(2) as pool:
        clicked = pool.submit(clicker.predict, first)
        assert encoding.wait(10)
        read = pool.submit(reader.predict, second)
        while not calls(reader).encoded_rows:  # its own new photo, while the shared one is under way elsewhere
            time.sleep(0.001)
        assert not read.done()
        may_go_on.set()
        assert (len(clicked.result(10)), len(read.result(10))) == (2, 2)
    assert (calls(clicker).encoded_rows, calls(reader).encoded_rows) == ([2], [1])
    alone = make(fake_checkpoint(TextModel, "alone"), 0)
    wanted = alone.predict([alone.prepare(upload, None, TextPrompt("a cat")) for upload in uploads[1:]])
    for got, other in zip(read.result(), wanted, strict=True):
        assert torch.equal(got.logits, other.logits)


def test_a_photo_whose_first_batch_fails_is_encoded_by_the_next(clicker: Predictor) -> None:
    upload = encode(picture())
    calls(clicker).encoded_rows.clear()
    key = (clicker.encoder_digest, clicker.prepare(upload, None, click(5, 5)).digest)
    encode_images = calls(clicker).encode

    def broken(images: torch.Tensor) -> Features:
        raise RuntimeError("no memory")

    calls(clicker).encode = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no memory"):
        clicker.predict([clicker.prepare(upload, None, click(5, 5))])
    calls(clicker).encode = encode_images  # type: ignore[method-assign]
    # Another batch claims the photo and fails while this one waits for it.
    assert clicker.cache.get_or_claim(key) is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(clicker.predict, [clicker.prepare(upload, None, click(5, 5))])
        time.sleep(0.01)
        clicker.cache.release(key)
        assert len(waiting.result(10)) == 1
    assert calls(clicker).encoded_rows == [1]


def stopped_in_encode(predictor: Predictor, prompt: Prompt) -> bool:
    """Ask for a stop while the photo is encoded; whether `encode` was told."""
    stop, told = Stop(), []
    encode_images = calls(predictor).encode

    def deserted(images: torch.Tensor) -> Features:
        with stoppable(lambda: told.append(1)):
            stop.ask()
            return encode_images(images)

    calls(predictor).encode = deserted  # type: ignore[method-assign]
    with stop.heeded(), pytest.raises(StoppedError):
        predictor.predict([predictor.prepare(encode(picture()), None, prompt)])
    calls(predictor).encode = encode_images  # type: ignore[method-assign]
    return bool(told)


def test_a_pass_that_nobody_waits_for_is_stopped() -> None:
    assert stopped_in_encode(make(fake_checkpoint(ColourModel, "colour"), 0), None)


def test_features_that_can_be_kept_are_finished_whoever_waits(clicker: Predictor) -> None:
    assert not stopped_in_encode(clicker, click(5, 5))
    assert calls(clicker).decoded_rows == []
    assert clicker.prepare(encode(picture()), None, click(9, 9)).kept is not None


def test_an_entry_taken_up_survives_its_eviction(clicker: Predictor) -> None:
    upload = encode(picture())
    digest = clicker.prepare(upload, None, click(5, 5)).digest
    clicker.predict([clicker.prepare(upload, None, click(5, 5))])
    by_id = clicker.prepare(None, digest, click(9, 9))
    clicker.cache.clear()
    assert clicker.predict([by_id])[0].logits.shape == (2, 32, 32)
    with pytest.raises(ImageGone, match=f"sha256:{digest}.*send the image"):
        clicker.prepare(None, digest, click(9, 9))


def test_the_cache_holds_clones_and_counts_the_upload(clicker: Predictor) -> None:
    uploads = [encode(picture(seed=seed)) for seed in range(3)]
    clicker.predict([clicker.prepare(upload, None, click(5, 5)) for upload in uploads])
    row_bytes = 3 * 32 * 32 * 4
    assert clicker.cache.bytes == sum(row_bytes + len(upload) for upload in uploads)
    kept = clicker.prepare(uploads[0], None, click(5, 5)).kept
    assert kept is not None
    assert [part.untyped_storage().nbytes() for part in kept.features.parts] == [row_bytes]


def test_image_only_models_keep_nothing(unet: Checkpoint) -> None:
    predictor = make(unet, 0)
    prepared = predictor.prepare(encode(picture()), None, None)
    predictor.predict([prepared])
    assert len(predictor.cache) == 0
    with pytest.raises(ImageIdNotKept, match="unet keeps no features; send the image"):
        predictor.prepare(None, prepared.digest, None)


def test_a_model_says_which_prompt_it_chose_itself() -> None:
    predictor = make(fake_checkpoint(TextModel, "text"))
    upload = encode(picture())
    batch = [predictor.prepare(upload, None, prompt) for prompt in (None, TextPrompt("a dog"))]
    assert [each.chosen_prompt for each in predictor.predict(batch)] == [TextModel.own_prompt, None]


def test_prompts_that_do_not_fit_are_refused(unet: Checkpoint, clicker: Predictor) -> None:
    upload = encode(picture())
    with pytest.raises(PromptMismatch, match="got a text prompt, this model takes no prompt; send unet no prompt"):
        make(unet, 0).prepare(upload, None, TextPrompt("a cat"))
    with pytest.raises(PromptMismatch, match="got no prompt, this model needs clicks"):
        clicker.prepare(upload, None, None)
    with pytest.raises(PromptMismatch, match="got no prompt"):
        clicker.facts.check_prompt(None)


@pytest.mark.parametrize(("x", "y"), [(-0.5, 3), (60, 3), (3, 40), (3, -1), (1e8, 3)])
def test_clicks_outside_the_photo_are_refused(clicker: Predictor, x: float, y: float) -> None:
    prompt = PointPrompt(((5, 5), (x, y)), (1, 0))
    with pytest.raises(InvalidRequest, match="60 x 40") as caught:
        clicker.prepare(encode(picture(60, 40)), None, prompt)
    assert [error["pointer"] for error in caught.value.errors] == ["#/points/1"]


def test_clicks_at_the_photos_corners_are_taken(clicker: Predictor) -> None:
    upload = encode(picture(60, 40))
    for x, y in ((0, 0), (59, 39), (59.9, 39.9)):
        clicker.prepare(upload, None, click(x, y))


def test_images_that_do_not_decode_are_refused(unet: Checkpoint) -> None:
    with pytest.raises(UnsupportedImage, match="got 4 bytes"):
        make(unet, 0).prepare(b"nope", None, None)
    with pytest.raises(ImageTooLarge, match="got 60 x 40 = 2400 pixels, wanted at most 2399"):
        make(unet, 0, limits=PhotoLimits(max_pixels=2399)).prepare(encode(picture(60, 40)), None, None)


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ValueError, match="got cuda, but torch sees no GPU"):
        choose_device("cuda")
