"""The web page at `/`: the files of web/, read once at import, served with ETags and the page's own policy.

The page is a client like any other: it asks the same addresses that `curl` does. No request reads the disk.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import NotFound

FOLDER = Path(__file__).parent / "web"

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
)
"""Nothing from elsewhere, nothing inline, no text taken for markup; `blob:` is the visitor's own photo."""

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """One file of the page."""

    body: bytes
    media_type: str
    etag: str


def read_assets(folder: Path) -> dict[str, Asset]:
    """Every file below `folder` of a known media type, by its path there."""
    return {
        path.relative_to(folder).as_posix(): read_asset(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in MEDIA_TYPES
    }


def read_asset(path: Path) -> Asset:
    """The file with the ETag of its content."""
    body = path.read_bytes()
    return Asset(body, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')


ASSETS = read_assets(FOLDER)


@router.api_route("/", methods=["GET", "HEAD"])
async def show_page(request: Request) -> Response:
    """The page."""
    return answer(request, ASSETS["index.html"])


@router.api_route("/web/{name:path}", methods=["GET", "HEAD"])
async def get_asset(request: Request, name: str) -> Response:
    """What the page is made of."""
    if name not in ASSETS:
        raise NotFound(f"got /web/{name[:60]}, which is no part of the page; the page itself is at /")
    return answer(request, ASSETS[name])


def answer(request: Request, asset: Asset) -> Response:
    """`asset`, or 304 where the browser has this very content: it asks each time, so a new version shows at once."""
    headers = {
        "ETag": asset.etag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    }
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, headers=headers, media_type=asset.media_type)
