"""The photos that Label Studio's tasks refer to.

A request never makes the service reach out: a task carries its photo as a data URI, or the operator has named the one
Label Studio that photos may be fetched from. Then only its own media addresses are asked, no redirect is followed, and
nothing touches the disk.
"""

import asyncio
import base64
import binascii
from urllib.parse import unquote

import httpx

from service.errors import BodyTooLarge, ImageNotFetched, InvalidRequest
from service.settings import Settings

_MEDIA_PATHS = ("/data/", "/storage-data/")
_CLOUD = ("s3://", "gs://", "azure-blob://")
_TIMEOUT = httpx.Timeout(20.0, connect=5.0)


class LabelStudioImages:
    """Reads references; keeps the access token that a personal one was traded for."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._max_bytes = settings.max_body_bytes
        self._base = httpx.URL(settings.label_studio_url.rstrip("/")) if settings.label_studio_url else None
        self._token = settings.label_studio_token.get_secret_value()
        self._access = "" if _is_personal(self._token) else f"Token {self._token}"
        self._transport = transport

    async def read(self, reference: str, task_id: int | None) -> bytes:
        """The image that `reference` means. Raises InvalidRequest, BodyTooLarge or ImageNotFetched."""
        if reference.startswith("data:"):
            # On a thread: 24 MB take a third of a second, in which the event loop would answer nobody.
            return await asyncio.to_thread(decode_data_uri, reference, self._max_bytes)
        if self._base is None:
            raise InvalidRequest(
                f"got the image reference {_shorten(reference)}, wanted a data URI: this server fetches nothing "
                "until its operator sets PETSEG_LABEL_STUDIO_URL and PETSEG_LABEL_STUDIO_TOKEN"
            )
        return await self._fetch(media_url(self._base, reference, task_id))

    async def _fetch(self, url: httpx.URL) -> bytes:
        """The content of one of Label Studio's own addresses."""
        try:
            async with httpx.AsyncClient(transport=self._transport, timeout=_TIMEOUT, trust_env=False) as http:
                if not self._access:
                    await self._trade(http)
                status, content = await self._get(http, url)
                if status == 401 and _is_personal(self._token):
                    await self._trade(http)
                    status, content = await self._get(http, url)
        except httpx.HTTPError as error:
            raise ImageNotFetched(f"got no image from Label Studio ({type(error).__name__}); is it running?") from error
        if 300 <= status < 400:
            raise ImageNotFetched(
                f"got HTTP {status} from Label Studio, a redirect, which is not followed; let its storage proxy the "
                "images instead of handing out presigned addresses"
            )
        if status != 200:
            raise ImageNotFetched(f"got HTTP {status} from Label Studio for {url.path}; check its token and the task")
        return content

    async def _get(self, http: httpx.AsyncClient, url: httpx.URL) -> tuple[int, bytes]:
        """(status, content), the content counted while it comes."""
        chunks, received = [], 0
        headers = {"Authorization": self._access} if self._token else {}
        async with http.stream("GET", url, headers=headers, follow_redirects=False) as response:
            async for chunk in response.aiter_bytes():
                received += len(chunk)
                if received > self._max_bytes:
                    raise BodyTooLarge(f"got an image of more than {self._max_bytes} bytes from Label Studio")
                chunks.append(chunk)
        return response.status_code, b"".join(chunks)

    async def _trade(self, http: httpx.AsyncClient) -> None:
        """Trade the personal access token, which is a refresh token, for one that opens doors for some minutes."""
        assert self._base is not None
        url = self._base.copy_with(path=f"{self._base.path.rstrip('/')}/api/token/refresh/")
        response = await http.post(url, json={"refresh": self._token}, follow_redirects=False)
        if response.status_code != 200:
            raise ImageNotFetched(
                f"got HTTP {response.status_code} from Label Studio for PETSEG_LABEL_STUDIO_TOKEN, wanted 200; "
                "make a new token"
            )
        self._access = f"Bearer {response.json()['access']}"


def decode_data_uri(uri: str, max_bytes: int) -> bytes:
    """`data:image/png;base64,...` -> bytes. Raises InvalidRequest or BodyTooLarge."""
    head, _, body = uri.partition(",")
    if 3 * len(body) // 4 - body[-2:].count("=") > max_bytes:
        raise BodyTooLarge(f"got a data URI of more than {max_bytes} bytes, wanted at most {max_bytes}")
    try:
        if not head.endswith(";base64"):
            raise ValueError("no base64")
        return base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest(f"got the data URI {_shorten(uri)}, wanted data:image/...;base64,...") from error


def media_url(base: httpx.URL, reference: str, task_id: int | None) -> httpx.URL:
    """The address under `base` that holds the image of `reference`. Raises InvalidRequest for any other address."""
    root = base.path.rstrip("/")
    if reference.startswith(_CLOUD):
        if task_id is None:
            raise InvalidRequest(f"got {_shorten(reference)} in a task without an id, wanted the task's id")
        encoded = base64.urlsafe_b64encode(reference.encode()).decode()
        return base.copy_with(path=f"{root}/tasks/{task_id}/resolve/", params={"fileuri": encoded})
    wanted = f"wanted a data URI or an address of {base} under {' or '.join(_MEDIA_PATHS)}"
    try:
        url = base.join(reference)
    except httpx.InvalidURL:
        raise InvalidRequest(f"got the image reference {_shorten(reference)}, which is no address; {wanted}") from None
    path = url.path
    own = (url.scheme, url.host, url.port, url.userinfo) == (base.scheme, base.host, base.port, base.userinfo)
    is_media = any(path.startswith(prefix + media) for media in _MEDIA_PATHS for prefix in {"", root})
    is_plain = not {".", ".."} & set(unquote(path).replace("\\", "/").split("/"))
    if not (own and is_media and is_plain):
        raise InvalidRequest(f"got the image reference {_shorten(reference)}, {wanted}")
    return url.copy_with(fragment=None)


def _is_personal(token: str) -> bool:
    """Whether a token is one of Label Studio's personal access tokens (a JWT), and not a legacy one (hexadecimal)."""
    return token.count(".") == 2


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
