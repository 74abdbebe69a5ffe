"""The web page as files: whole, cached by content, under a policy that allows nothing inline or from elsewhere."""

import re
from html.parser import HTMLParser

import httpx
import pytest

from service.page import ASSETS, FOLDER, MEDIA_TYPES

pytestmark = pytest.mark.anyio

HTML = ASSETS["index.html"].body.decode()


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags() -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(HTML)
    return parser.found


async def test_the_page_with_its_policy(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == HTML
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]


async def test_nothing_stands_in_the_page_that_its_policy_forbids() -> None:
    for tag, attributes in tags():
        assert tag != "style"
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "script" or attributes["src"]
    assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", b"".join(asset.body for asset in ASSETS.values()))


@pytest.mark.parametrize("name", sorted(ASSETS))
async def test_each_file_comes_with_its_content_as_the_etag(client: httpx.AsyncClient, name: str) -> None:
    full = await client.get(f"/web/{name}")
    assert full.content == (FOLDER / name).read_bytes()
    assert full.headers["cache-control"] == "no-cache"
    for known in (full.headers["etag"], f'"other", W/{full.headers["etag"]}', "*"):
        again = await client.get(f"/web/{name}", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == full.headers["etag"]
    assert (await client.get(f"/web/{name}", headers={"if-none-match": '"other"'})).status_code == 200


async def test_all_that_is_referred_to_is_there(client: httpx.AsyncClient) -> None:
    wanted = {attributes.get(key) for _, attributes in tags() for key in ("src", "href")} - {None, "./", "#main"}
    assert "web/page.js" in wanted
    for path in wanted:
        assert (await client.get(f"/{path}")).status_code == 200, path
    for name, asset in ASSETS.items():
        for module in re.findall(rb'from "\./(.+?)"', asset.body):
            assert module.decode() in ASSETS, name


async def test_every_file_of_the_folder_is_served_or_a_licence() -> None:
    kept = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert kept == {*ASSETS, "samples/LICENCE.txt"}
    assert {path.rpartition(".")[2] for path in ASSETS} == {suffix.removeprefix(".") for suffix in MEDIA_TYPES}


@pytest.mark.parametrize("path", ["/web/nope.js", "/web/../page.py", "/web/%2e%2e/page.py", "/web/samples/LICENCE.txt"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/not-found"


async def test_head(client: httpx.AsyncClient) -> None:
    answer = await client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(HTML.encode())
