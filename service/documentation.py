"""The interactive reference at /docs: Swagger UI from an installed package, so that it needs no other host.

All files are held in memory under fixed names: no path of a request reaches the disk.
"""

import hashlib
from functools import cache
from importlib import resources

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import NotFound

router = APIRouter(include_in_schema=False)

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>petseg</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="data:,">
</head>
<body>
<div id="reference"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

_START = """\
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  showCommonExtensions: true,
  validatorUrl: null,
});
"""

_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript"}


@cache
def files() -> dict[str, bytes]:
    """Every file of the reference by its name."""
    package = resources.files("fastapi_offline") / "static"
    shipped = {name: (package / name).read_bytes() for name in ("swagger-ui.css", "swagger-ui-bundle.js")}
    return shipped | {"index.html": _PAGE.encode(), "start.js": _START.encode()}


@router.get("/docs")
async def show_reference(request: Request) -> Response:
    """The page."""
    return _answer(request, "index.html")


@router.get("/docs/{name}")
async def send_file(request: Request, name: str) -> Response:
    """What the page loads."""
    if name not in files():
        raise NotFound(f"got /docs/{name[:60]}, wanted one of: {', '.join(files())}")
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    content = files()[name]
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}  # may be kept, and is asked for again before each use
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[name.rpartition(".")[2]])
