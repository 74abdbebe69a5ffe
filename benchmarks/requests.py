"""Photos -> HTTP requests as bytes, built before the clock starts."""

from dataclasses import dataclass
from pathlib import Path

_BOUNDARY = b"petseg-benchmark"


@dataclass(frozen=True)
class Asked:
    """What is asked of a server, the same for each photo."""

    path: str
    """Path and query."""
    body: str = "multipart"
    """`multipart`: a form part named image, or `raw`: the photo is the body."""
    is_unique: bool = False
    """Whether each request's photo differs from all others in bytes (not in pixels), past every cache."""


@dataclass(frozen=True)
class Request:
    """One request in two pieces, between which a counter may stand."""

    before: bytes
    after: bytes
    is_unique: bool

    def parts(self, number: int) -> tuple[bytes, ...]:
        """The pieces to send; `number` makes the photo's bytes unique. Decoders stop before it: the image has ended."""
        if self.is_unique:
            return self.before, b"%016x" % number, self.after
        return self.before, self.after


def read_photos(folder: Path) -> list[bytes]:
    """The *.jpg of `folder`, by name. Raises ValueError where there are none."""
    photos = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    if not photos:
        raise ValueError(f"{folder}: got no *.jpg, wanted at least one")
    return photos


def build_request(asked: Asked, photo: bytes, host: str, port: int) -> Request:
    """`asked` about `photo`."""
    if asked.body == "multipart":
        opening = (
            b'--%b\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n'
            b"Content-Type: image/jpeg\r\n\r\n" % _BOUNDARY
        )
        closing = b"\r\n--%b--\r\n" % _BOUNDARY
        content_type = b"multipart/form-data; boundary=" + _BOUNDARY
    else:
        opening, closing, content_type = b"", b"", b"image/jpeg"
    length = len(opening) + len(photo) + 16 * asked.is_unique + len(closing)
    head = (
        f"POST {asked.path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: {content_type.decode()}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()
    return Request(head + opening + photo, closing, asked.is_unique)


def get_request(path: str, host: str, port: int) -> bytes:
    """A GET of `path`."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
