"""Forms: the parts come out whole however the body was cut, and what is no form says why."""

import gc
import random
import weakref
from collections.abc import AsyncGenerator
from itertools import pairwise

import pytest
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from service.multipart import CharsetError, FormReader, MultipartError, Part, TooManyFilesError

pytestmark = pytest.mark.anyio

FORM = "multipart/form-data; boundary=b"


def read(body: bytes, cuts: list[int] | None = None, content_type: str = FORM, **limits: int) -> list[Part]:
    """The parts of `body`, fed in pieces that end at `cuts`."""
    allowed = {"max_files": 2, "max_fields": 2, "max_field_bytes": 100} | limits
    reader = FormReader(content_type, **allowed)
    places = [0, *(cuts or []), len(body)]
    for start, end in pairwise(places):
        reader.feed(body[start:end])
    return list(reader.finish())


def file(data: bytes, name: str = "image", filename: str = "a.jpg") -> bytes:
    """A file part, as curl writes it."""
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"'
    return f"--b\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode() + data + b"\r\n"


def field(value: bytes, name: str = "text") -> bytes:
    """A field."""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"


def contents(parts: list[Part]) -> list[tuple[str, str | None, bytes]]:
    return [(part.name, part.filename, b"".join(part.pieces)) for part in parts]


BODY = (
    file(b"\xff\xd8 \r\n--a\r\n-\r\n--") + field("eine Katze, größer".encode()) + file(b"", filename="") + b"--b--\r\n"
)
PARTS = [
    ("image", "a.jpg", b"\xff\xd8 \r\n--a\r\n-\r\n--"),
    ("text", None, "eine Katze, größer".encode()),
    ("image", "", b""),
]


def test_parts_come_out_whole_wherever_the_body_is_cut() -> None:
    assert contents(read(BODY)) == PARTS
    for cut in range(len(BODY) + 1):
        assert contents(read(BODY, [cut])) == PARTS
    assert contents(read(BODY, list(range(1, len(BODY))))) == PARTS
    assert read(BODY)[1].text == "eine Katze, größer"


async def test_the_same_parts_as_starlettes() -> None:
    generator = random.Random(0)
    alphabet = [b"\r", b"\n", b"\r\n", b"--", b"-", b"b", b"--b", b"\r\n--", b"\r\n--a", b"\x00", b"\xff", b"xyz"]
    for _ in range(300):
        files = [b"".join(generator.choices(alphabet, k=generator.randrange(30))) for _ in range(2)]
        files = [data.replace(b"\r\n--b", b"") for data in files]
        body = file(files[0]) + field(b"cat") + file(files[1], filename="b.png") + b"--b--\r\n"
        cuts = sorted(generator.sample(range(len(body)), 3))
        pieces = [body[start:end] for start, end in pairwise([0, *cuts, len(body)])]

        async def stream(pieces: list[bytes] = pieces) -> AsyncGenerator[bytes, None]:
            for piece in pieces:
                yield piece

        form = await MultiPartParser(Headers({"content-type": FORM}), stream()).parse()
        wanted = [
            (name, value.filename, await value.read())
            if isinstance(value, UploadFile)
            else (name, None, value.encode())
            for name, value in form.multi_items()
        ]
        await form.close()
        assert contents(read(body, cuts)) == wanted


def test_pieces_are_not_copied() -> None:
    body = file(bytes(1000)) + b"--b--\r\n"
    reader = FormReader(FORM, max_files=1, max_fields=0, max_field_bytes=0)
    chunks = [body[:500], body[500:]]
    for chunk in chunks:
        reader.feed(chunk)
    (part,) = reader.finish()
    assert [piece.obj for piece in part.pieces] == chunks
    assert part.size == 1000


def test_a_body_is_let_go_without_the_garbage_collector() -> None:
    reader = FormReader(FORM, max_files=1, max_fields=0, max_field_bytes=0)
    reader.feed(file(b"abc"))
    gone = weakref.ref(reader._gathered)
    gc.disable()
    try:
        del reader
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"--x\r\nnope", "malformed, or does not begin with the boundary"),
        (file(b"abc")[:-1], "it ends within a part"),
        (file(b"abc"), "it ends within a part"),
        (file(b"abc") + b"--b\r\nContent-Dispo", "it ends within a part"),
        (b"--b\r\nContent-Type: image/jpeg\r\n\r\nabc\r\n--b--", "gives no name"),
        (b"--b\r\nContent-Disposition: form-data; filename=a\r\n\r\nabc\r\n--b--", "gives no name"),
        (3 * field(b"cat") + b"--b--", "it has more than 2 fields"),
        (field(bytes(101)) + b"--b--", "it has a field of more than 100 bytes"),
        (b"--b\r\n" + 9 * b"X-Header: 1\r\n" + b"\r\nabc\r\n--b--", "malformed"),
    ],
)
def test_what_is_no_form(body: bytes, reason: str) -> None:
    for cuts in ([], [len(body) // 2]):
        with pytest.raises(MultipartError, match=reason):
            read(body, cuts)


def test_too_many_files() -> None:
    with pytest.raises(TooManyFilesError, match="more than 2 files"):
        read(3 * file(b"abc") + b"--b--")


@pytest.mark.parametrize(
    ("content_type", "error", "reason"),
    [
        ("multipart/form-data", MultipartError, "names no boundary"),
        ('multipart/form-data; boundary=""', MultipartError, "names no boundary"),
        (f"multipart/form-data; boundary={257 * 'b'}", MultipartError, "boundary is too long"),
        ("multipart/form-data; boundary=b; charset=utf-16", CharsetError, "utf-16"),
    ],
)
def test_what_a_form_says_of_itself(content_type: str, error: type[MultipartError], reason: str) -> None:
    with pytest.raises(error, match=reason):
        read(b"", content_type=content_type)


def test_names_that_are_no_utf_8_are_read_byte_by_byte() -> None:
    (part,) = read(b'--b\r\nContent-Disposition: form-data; name="te\xe4xt"\r\n\r\n\xff\r\n--b--')
    assert (part.name, part.text) == ("teäxt", "ÿ")
