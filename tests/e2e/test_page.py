"""The web page in a real Chromium: photos come, masks appear, clicks travel without the photo."""

import json

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Route, expect

from service.masks import COLOURS
from service.rle import compress_counts, encode_rle
from tests.e2e.browser import Recorder, Visit
from tests.fakes import TextModel, encode, picture

RED, BLUE, GREEN = (0.25, 0.5), (0.75, 0.5), (0.5, 0.05)
"""Places in `tests.fakes.picture`: the cat, the dog and the ground, as shares of its sides."""

CAT, DOG = (*COLOURS[1], 255), (*COLOURS[2], 255)
BLACK, CLEAR = (0, 0, 0, 255), (0, 0, 0, 0)


def points(visit: Visit) -> list[list[int]]:
    """The clicks that the curl line carries."""
    found: list[list[int]] = json.loads((visit.command.text_content() or "").split("points=")[1].split("'")[0])
    return found


class TestPhotos:
    @pytest.mark.parametrize(("name", "size"), [("Chelsea", "451 \u00d7 300"), ("A dog", "960 \u00d7 660")])
    def test_a_sample(self, visit: Visit, name: str, size: str) -> None:
        visit.page.get_by_role("button", name=name).click()
        expect(visit.page.locator("#photo-name")).to_contain_text(size)
        visit.settle()
        expect(visit.problem).to_be_hidden()

    @pytest.mark.parametrize("event", ["drop", "paste"])
    def test_dropped_or_pasted(self, visit: Visit, photo: bytes, event: str) -> None:
        script = """([kind, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "cat.png", { type: "image/png" }));
            const event = kind === "drop"
                ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
        }"""
        visit.page.evaluate(script, [event, list(photo)])
        expect(visit.page.locator("#photo-name")).to_have_text("cat.png · 300 \u00d7 200")

    def test_what_the_browser_cannot_show(self, visit: Visit) -> None:
        for name, advice in [("IMG_1.HEIC", "export the photo as JPEG"), ("scan.tiff", "with curl"), ("x", "damaged")]:
            visit.offer(b"no picture", name, "")
            expect(visit.problem).to_contain_text("This browser cannot show the file")
            expect(visit.problem).to_contain_text(advice)
        expect(visit.page.locator("#start")).to_be_visible()

    def test_more_than_one(self, visit: Visit) -> None:
        script = """() => {
            const transfer = new DataTransfer();
            for (const name of ["a.png", "b.png"]) transfer.items.add(new File(["x"], name));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        }"""
        visit.page.evaluate(script)
        expect(visit.problem).to_contain_text("Got 2 files")

    def test_a_large_photo_is_drawn_small_and_clicked_in_its_own_pixels(self, visit: Visit, recorder: Recorder) -> None:
        visit.give(encode(picture(4000, 3000), "JPEG"), "large.jpg", "image/jpeg")
        visit.choose("click")
        visit.click(0.25, 0.5)
        assert visit.page.evaluate("document.querySelector('#canvas canvas').width") == 1600
        ((x, y, label),) = points(visit)
        assert abs(x - 1000) <= 5 and abs(y - 1500) <= 5 and label == 1
        visit.label("Mask").click()
        assert visit.pixel(0.25, 0.5) == CAT
        assert visit.pixel(0.6, 0.5) == BLACK

    def test_a_turned_photo_is_clicked_upright(self, visit: Visit) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees: the red block, left in the file, is at the top
        visit.give(encode(picture(300, 200), "JPEG", exif=exif), "turned.jpg", "image/jpeg")
        expect(visit.page.locator("#photo-name")).to_contain_text("200 \u00d7 300")
        visit.choose("colour")
        visit.label("Mask").click()
        assert visit.pixel(0.5, 0.25) == CAT
        assert visit.pixel(0.5, 0.75) == DOG
        visit.choose("click")
        visit.click(0.5, 0.25)
        assert visit.pixel(0.5, 0.25) == CAT


class TestMasks:
    def test_the_views(self, visit: Visit, photo: bytes) -> None:
        visit.give(photo)
        visit.choose("colour")
        expect(visit.page.locator("#segments li")).to_have_count(2)
        expect(visit.page.locator("#segments")).to_contain_text("cat")
        visit.label("Mask").click()
        assert (visit.pixel(*RED), visit.pixel(*BLUE), visit.pixel(*GREEN)) == (CAT, DOG, BLACK)
        visit.label("Cutout").click()
        assert visit.pixel(*GREEN) == CLEAR
        assert visit.pixel(*RED) == (230, 10, 10, 255)
        visit.label("Overlay").click()
        assert visit.pixel(*GREEN) == (0, 200, 0, 255)
        tinted = visit.pixel(*RED)
        assert all(min(10, 159) < value < 159 for value in tinted[1:2])
        visit.page.get_by_label("Opacity").fill("100")
        assert visit.pixel(*RED) == CAT
        visit.page.get_by_label("Opacity").fill("0")
        assert visit.pixel(*RED) == (230, 10, 10, 255)

    def test_words(self, visit: Visit, photo: bytes, recorder: Recorder) -> None:
        visit.give(photo)
        visit.choose("text")
        expect(visit.page.locator("#remark")).to_have_text(f"looked for “{TextModel.own_prompt}”")
        recorder.posts.clear()
        box = visit.page.get_by_label("What to look for")
        box.fill("a dog")
        expect(visit.page.locator("#segments b")).to_have_text("dog")  # typing alone is enough
        assert [(sent.fields["text"], sent.has_photo) for sent in recorder.posts] == [("a dog", False)]
        box.fill("a parrot")
        box.press("Enter")
        expect(visit.page.locator("#remark")).to_have_text("Nothing found. Try other words, or none.")
        visit.page.get_by_role("button", name="Clear the text").click()
        expect(visit.page.locator("#segments b")).to_have_text("cat")
        expect(box).to_be_focused()

    def test_run_lengths_are_read_as_pycocotools_writes_them(self, visit: Visit) -> None:
        rng = np.random.default_rng(0)
        for shape in [(1, 1), (7, 5), (40, 3), (61, 90)]:
            mask = rng.random(shape) < rng.random()
            counts = encode_rle(mask)
            script = """async ([size, forms]) => {
                const { paintMask } = await import("/web/rle.js");
                return forms.map((counts) => {
                    const grid = new Uint8Array(size[0] * size[1]);
                    paintMask({ size, counts }, grid, size[1], size[0], 1);
                    return [...grid];
                });
            }"""
            for grid in visit.page.evaluate(script, [list(shape), [counts, compress_counts(counts)]]):
                assert np.array_equal(np.array(grid).reshape(shape), mask)

    def test_the_colours_are_those_of_the_service(self, visit: Visit) -> None:
        script = "async () => (await import('/web/mask.js')).COLOURS"
        assert [tuple(colour) for colour in visit.page.evaluate(script)] == list(COLOURS)


class TestClicks:
    def test_they_travel_without_the_photo(self, visit: Visit, photo: bytes, recorder: Recorder) -> None:
        visit.give(photo)
        visit.choose("click")
        assert [sent.has_photo for sent in recorder.posts] == [True]  # sent ahead, by this model or the first
        recorder.posts.clear()
        visit.click(*RED)
        visit.click(*BLUE)
        visit.click(*GREEN, button="right")
        visit.click(0.5, 0.9, modifiers=["Shift"])
        assert [sent.has_photo for sent in recorder.posts] == [False] * 4
        assert all(sent.fields["image_id"].startswith("sha256:") for sent in recorder.posts)
        assert [label for _, _, label in json.loads(recorder.posts[-1].fields["points"])] == [1, 1, 0, 0]
        assert visit.picture.locator(".dot").count() == 4
        expect(visit.status).to_contain_text("click found object")

    def test_the_photo_is_sent_again_when_the_server_forgot_it(
        self, visit: Visit, photo: bytes, recorder: Recorder
    ) -> None:
        visit.give(photo)
        visit.choose("click")
        for predictor in recorder.app.state.predictors:
            predictor.cache.clear()
        recorder.posts.clear()
        visit.click(*RED)
        visit.click(*BLUE)
        assert [sent.has_photo for sent in recorder.posts] == [False, True, False]
        expect(visit.problem).to_be_hidden()
        expect(visit.page.locator("#segments b")).to_have_text("object")

    def test_a_model_chosen_while_another_is_asked(self, visit: Visit, photo: bytes, recorder: Recorder) -> None:
        held: list[Route] = []
        visit.page.route("**/segment/text", lambda route: held.append(route))
        with visit.page.expect_request("**/segment/text"):
            visit.offer(photo, "photo.png", "image/png")
        visit.label("click").click()
        held.pop().continue_()  # only now does the first model answer
        visit.settle()
        expect(visit.page.locator("#remark")).to_have_text("Click on the animal.")
        assert [sent.has_photo for sent in recorder.posts] == [True]
        visit.click(*RED)
        expect(visit.page.locator("#segments b")).to_have_text("object")

    def test_on_the_photo_of_a_model_that_takes_none(self, visit: Visit, photo: bytes) -> None:
        takes = "each => getComputedStyle(each.querySelector('span'), '::after').content"
        assert [visit.label(name).evaluate(takes) for name in ("text", "click", "colour")] == [
            '"words"',
            '"clicks"',
            "none",
        ]
        visit.give(photo)
        visit.choose("colour")
        visit.click(*RED)
        expect(visit.page.get_by_role("radio", name="click", exact=False).first).to_be_checked()
        expect(visit.page.locator("#segments b")).to_have_text("object")
        assert len(points(visit)) == 1

    def test_undo_and_clear(self, visit: Visit, photo: bytes) -> None:
        visit.give(photo)
        visit.choose("click")
        undo, clear = (visit.page.get_by_role("button", name=name, exact=True) for name in ("Undo", "Clear"))
        expect(undo).to_be_disabled()
        expect(visit.page.get_by_role("button", name="Download")).to_be_disabled()
        for place in (RED, BLUE, GREEN):
            visit.click(*place)
        visit.page.keyboard.press("Control+z")
        expect(visit.picture.locator(".dot")).to_have_count(2)
        undo.click()
        expect(visit.picture.locator(".dot")).to_have_count(1)
        clear.click()
        expect(visit.picture.locator(".dot")).to_have_count(0)
        expect(visit.page.locator("#remark")).to_have_text("Click on the animal.")
        expect(clear).to_be_disabled()

    def test_by_keyboard_alone(self, visit: Visit, photo: bytes) -> None:
        visit.give(photo)
        visit.choose("click")
        for _ in range(20):
            visit.page.keyboard.press("Shift+Tab")
            if visit.page.evaluate("document.activeElement.classList.contains('picture')"):
                break
        expect(visit.picture).to_be_focused()
        expect(visit.picture.locator(".crosshair")).to_be_visible()
        for _ in range(10):
            visit.page.keyboard.press("ArrowLeft")
        expect(visit.status).to_have_text("25 % across, 50 % down")
        visit.page.keyboard.press("Enter")
        visit.settle()
        visit.page.keyboard.press("Shift+ArrowDown")
        visit.page.keyboard.press("Shift+Enter")
        visit.settle()
        first, second = points(visit)
        assert np.abs(np.array([first, second]) - [[75, 100, 1], [75, 101, 0]]).max() <= 1
        assert (first[2], second[2]) == (1, 0)
        visit.page.keyboard.press("Backspace")
        visit.settle()
        assert points(visit) == [first]

    def test_by_touch(self, browser: Browser, server: tuple[str, Recorder], photo: bytes) -> None:
        with browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True) as context:
            visit = Visit(context.new_page(), server[0])
            visit.give(photo)
            visit.choose("click")
            box = visit.picture.bounding_box()
            assert box is not None
            for name, x in [("This", 0.25), ("Not this", 0.75)]:
                visit.label(name).tap()
                visit.picture.tap(position={"x": x * box["width"], "y": box["height"] / 2})
                visit.settle()
            assert [label for _, _, label in points(visit)] == [1, 0]
