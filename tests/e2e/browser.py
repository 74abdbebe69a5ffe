"""A real Chromium for the end-to-end tests of the web page, and a server thread that remembers what it was sent."""

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, Error, FilePayload, Locator, Page, expect, sync_playwright
from starlette.types import Message, Receive, Scope, Send

START_DEADLINE_S = 20


@dataclass(frozen=True)
class Sent:
    """One POST as the server got it."""

    path: str
    authorization: str
    fields: dict[str, str]
    has_photo: bool


@dataclass
class Recorder:
    """The app, and each POST that it was sent since the test cleared the list."""

    app: FastAPI
    posts: list[Sent] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = bytearray()

        async def receive_and_keep() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        await self.app(scope, receive_and_keep, send)
        found = re.findall(rb'name="(\w+)"\r\n\r\n(.*?)\r\n--', bytes(body), re.DOTALL)
        fields = {name.decode(): value.decode() for name, value in found}
        headers = dict(scope["headers"])
        authorization = headers.get(b"authorization", b"").decode()
        self.posts.append(Sent(scope["path"], authorization, fields, b'name="image"; filename=' in body))


@contextmanager
def serving(app: Recorder) -> Iterator[str]:
    """The address of `app` on a free port, served by a thread of this process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            ends_at = time.monotonic() + START_DEADLINE_S
            while not server.started:
                assert thread.is_alive() and time.monotonic() < ends_at, "the server did not start"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=START_DEADLINE_S)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, or Playwright's own; skips the tests where there is neither."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        try:
            # Containers mostly run as root and without a large /dev/shm.
            browser = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
            )
        except Error as error:
            pytest.skip(f"needs Chromium, for example apt-get install chromium: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


class Visit:
    """What a visitor does on the page, and what is then to be seen."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.picture = page.locator("#canvas .picture")
        self.status = page.get_by_role("status")
        self.problem = page.get_by_role("alert")
        self.command = page.locator("#command")
        page.goto(url)
        expect(page.locator("[name=model]").first).to_be_attached()

    def give(self, photo: bytes, name: str = "photo.png", kind: str = "image/png") -> None:
        """Choose a file that the page can show."""
        self.offer(photo, name, kind)
        expect(self.page.locator("#workspace")).to_be_visible()
        self.settle()

    def offer(self, content: bytes, name: str, kind: str) -> None:
        """Choose a file."""
        self.page.set_input_files("#file", files=[FilePayload(name=name, mimeType=kind, buffer=content)])

    def choose(self, model: str) -> None:
        """Choose a model, or `Compare all`."""
        self.label(model).click()
        self.settle()

    def label(self, text: str) -> Locator:
        """The label of a radio button: its own circle is out of sight."""
        return self.page.locator("label", has_text=re.compile(rf"^\W?{re.escape(text)}$"))

    def click(self, x: float, y: float, **options: object) -> None:
        """Click on the photo, x and y as shares of its sides."""
        box = self.picture.bounding_box()
        assert box is not None
        self.picture.click(position={"x": x * box["width"], "y": y * box["height"]}, **options)  # type: ignore[arg-type]
        self.settle()

    def settle(self) -> None:
        """Wait until nothing is asked any more."""
        expect(self.page.locator("[aria-busy]")).to_have_count(0)

    def pixel(self, x: float, y: float, where: str = "#canvas") -> tuple[int, ...]:
        """RGBA of what is drawn at shares x and y of the photo's sides."""
        script = """([where, x, y]) => {
            const canvas = document.querySelector(where).querySelector("canvas");
            const [column, row] = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
            return [...canvas.getContext("2d").getImageData(column, row, 1, 1).data];
        }"""
        return tuple(self.page.evaluate(script, [where, x, y]))

    def overflow(self) -> int:
        """Pixels by which the page is wider than the screen."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return width
