"""The web page in a real Chromium: what is saved, what goes wrong, what is compared, and who can use it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from service.schemas import Output
from tests.e2e.browser import Recorder, Visit
from tests.fakes import read

LEGIBILITY = (Path(__file__).parent / "legibility.js").read_text(encoding="utf-8")


class TestSaving:
    def test_the_file_is_what_the_curl_line_gets(self, visit: Visit, photo: bytes, tmp_path: Path) -> None:
        if shutil.which("curl") is None:
            pytest.skip("needs curl")
        name = "my 'best' cat; 1.png"
        (tmp_path / name).write_bytes(photo)
        visit.give(photo, name)
        visit.choose("text")
        visit.page.get_by_label("What to look for").fill("@cat 'or' \"dog\"")
        visit.page.get_by_label("What to look for").press("Enter")
        visit.settle()
        format_choice = visit.page.get_by_role("combobox", name="Save")
        outputs = format_choice.locator("option").evaluate_all("options => options.map((each) => each.value)")
        assert set(outputs) == set(Output)
        for output in outputs:
            format_choice.select_option(output)
            with visit.page.expect_download() as started:
                visit.page.get_by_role("button", name="Download").click()
            saved = Path(started.value.path()).read_bytes()
            subprocess.run(["sh", "-c", visit.command.text_content() or ""], cwd=tmp_path, check=True, timeout=30)
            written = tmp_path / started.value.suggested_filename
            if output in ("rle", "polygons"):
                ours, theirs = json.loads(saved), json.loads(written.read_text())
                assert ours.pop("timing_ms") and theirs.pop("timing_ms")
                assert ours == theirs
                assert ours["segments"]
            else:
                assert saved and saved == written.read_bytes()

    def test_a_sample_is_fetched_by_its_line(self, visit: Visit, tmp_path: Path) -> None:
        if shutil.which("curl") is None:
            pytest.skip("needs curl")
        visit.page.get_by_role("button", name="Chelsea").click()
        expect(visit.page.locator("#workspace")).to_be_visible()
        visit.choose("click")
        visit.click(0.5, 0.5)
        subprocess.run(["sh", "-c", visit.command.text_content() or ""], cwd=tmp_path, check=True, timeout=30)
        assert read((tmp_path / "chelsea.cutout.png").read_bytes()).size == (451, 300)

    def test_copying(self, visit: Visit, photo: bytes, context: BrowserContext) -> None:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        visit.give(photo)
        visit.page.get_by_role("button", name="Copy curl").click()
        expect(visit.status).to_have_text("The curl line is copied.")
        assert visit.page.evaluate("navigator.clipboard.readText()") == visit.command.text_content()


class TestProblems:
    def test_those_of_the_service_are_shown_in_its_words(self, visit: Visit) -> None:
        svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"></svg>'
        visit.give(svg, "drawing.svg", "image/svg+xml")
        expect(visit.problem.get_by_role("heading")).to_have_text("Unsupported image")
        expect(visit.problem).to_contain_text("that do not decode as JPEG")
        visit.page.get_by_role("button", name="Dismiss").click()
        expect(visit.problem).to_be_hidden()

    def test_nothing_stays_of_the_photo_before(self, visit: Visit, photo: bytes) -> None:
        visit.give(photo)
        expect(visit.page.locator("#segments b")).to_have_text("cat")
        visit.give(b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"></svg>', "d.svg", "image/svg+xml")
        expect(visit.problem).to_be_visible()
        expect(visit.page.locator("#result")).to_have_text(re.compile(r"^\s*$"))

    def test_a_sample_that_does_not_come(self, visit: Visit) -> None:
        visit.page.route("**/samples/**", lambda route: route.fulfill(status=503, body="busy"))
        visit.page.get_by_role("button", name="Chelsea").click()
        expect(visit.problem).to_contain_text("The sample chelsea.jpg did not come")

    def test_no_answer_and_another_try(self, visit: Visit, photo: bytes) -> None:
        visit.page.route("**/segment/**", lambda route: route.abort())
        visit.give(photo)
        expect(visit.problem).to_contain_text("The server did not answer")
        visit.page.unroute("**/segment/**")
        visit.page.get_by_role("button", name="Try again").click()
        expect(visit.page.locator("#segments b")).to_have_text("cat")
        expect(visit.problem).to_be_hidden()

    def test_an_answer_from_something_else(self, visit: Visit, photo: bytes) -> None:
        visit.page.route("**/segment/**", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
        visit.give(photo)
        expect(visit.problem.get_by_role("heading")).to_have_text("HTTP 502")

    def test_a_key_is_asked_for_only_where_the_server_wants_one(
        self, visit: Visit, photo: bytes, recorder: Recorder
    ) -> None:
        def guard(route: Route) -> None:
            if route.request.headers.get("authorization") == "Bearer s3cret":
                route.continue_()
            else:
                body = {"title": "Not authorised", "status": 401, "detail": "got no key, wanted one"}
                route.fulfill(status=401, content_type="application/problem+json", body=json.dumps(body))

        key = visit.page.get_by_label("This server asks for an API key")
        expect(key).to_be_hidden()
        visit.page.route("**/segment/**", guard)
        visit.give(photo)
        expect(visit.problem).to_contain_text("got no key, wanted one")
        expect(key).to_be_focused()
        key.fill("s3cret")
        key.press("Enter")
        expect(visit.page.locator("#segments b")).to_have_text("cat")
        expect(key).to_be_hidden()
        assert recorder.posts[-1].authorization == "Bearer s3cret"
        expect(visit.command).to_contain_text('-H "Authorization: Bearer $PETSEG_API_KEY"')


class TestComparing:
    def test_all_models_side_by_side(self, visit: Visit, photo: bytes, recorder: Recorder) -> None:
        broken = next(each for each in recorder.app.state.predictors if each.checkpoint.name == "broken")
        broken.model.is_broken = True
        try:
            visit.give(photo)
            visit.choose("Compare all")
            cards = visit.page.locator(".compared")
            expect(cards.get_by_role("heading")).to_have_text(["text", "click", "unet", "colour", "broken"])
            expect(cards.nth(1)).to_contain_text("Click on the animal here.")
            expect(cards.nth(3)).to_contain_text("catdog")
            expect(cards.nth(4)).to_contain_text("Internal error")
            recorder.posts.clear()
            cards.nth(1).locator(".picture").click()
            expect(cards.nth(1)).to_contain_text("object")
            assert [sent.path for sent in recorder.posts] == ["/segment/click"]  # no other model's answer changes
        finally:
            broken.model.is_broken = False
        visit.page.get_by_role("button", name="Use colour").click()
        expect(visit.page.locator("#segments b")).to_have_text(["cat", "dog"])
        expect(visit.page.locator("#compare")).to_be_hidden()


class TestEverybody:
    @pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
    def test_the_page_fits_and_is_legible(
        self, browser: Browser, server: tuple[str, Recorder], photo: bytes, width: int, scheme: str
    ) -> None:
        options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
        with browser.new_context(**options) as context:  # type: ignore[arg-type]
            visit = Visit(context.new_page(), server[0])
            self.check(visit)
            visit.give(photo, "a-very-long-file-name-that-would-push-everything-aside" * 3 + ".png")
            for model in ("text", "click", "colour", "Compare all"):
                visit.choose(model)
                self.check(visit)

    def check(self, visit: Visit) -> None:
        assert visit.overflow() <= 0
        assert visit.page.evaluate(LEGIBILITY) == {"nameless": [], "faint": []}

    def test_the_order_of_the_tab_key(self, visit: Visit, photo: bytes) -> None:
        visit.give(photo)
        visit.choose("click")
        visit.page.locator(".skip").focus()
        reached = []
        for _ in range(14):
            reached.append(visit.page.evaluate("document.activeElement.id || document.activeElement.name"))
            visit.page.keyboard.press("Tab")
        wanted = ["other-photo", "view", "opacity", "model", "click-label", "output"]
        assert [name for name in reached if name in wanted] == wanted

    def test_the_reference_comes_back_from_the_browsers_cache(self, page: Page, server: tuple[str, Recorder]) -> None:
        for path, sign in [("/", "#start"), ("/docs", ".swagger-ui .info")]:
            page.goto(server[0] + path)
            for _ in range(2):
                expect(page.locator(sign)).to_be_visible()
                page.reload()
