"""A form's body -> its parts, in memory, while it comes (multipart/form-data, RFC 7578), by python-multipart's parser.

Starlette's form parser copies each piece of a file, writes it into a temporary one, from where it is read again, and
takes the event loop twice as long. Here pieces stay where the server received them until they are joined, once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

if TYPE_CHECKING:  # nothing at run time
    from python_multipart.multipart import MultipartCallbacks

_CHARSETS = ("", "utf-8", "utf8", "us-ascii")
"""What a form may say of its encoding. Any other of Python's codecs may take minutes, or raise what nobody expects."""


class MultipartError(ValueError):
    """The body is no form as it should be; the message is the reason alone."""


class CharsetError(MultipartError):
    """The form is in another encoding than browsers send; the message is its name."""


class TooManyFilesError(MultipartError):
    """There are more files than there may be."""


@dataclass
class Part:
    """One file or field."""

    name: str
    filename: str | None
    """None for a field."""
    pieces: list[memoryview] = field(default_factory=list)
    """Its content, of the chunks as they were fed."""
    size: int = 0
    """Bytes of all pieces."""

    @property
    def text(self) -> str:
        """A field's value."""
        return _decode(b"".join(self.pieces))


class FormReader:
    """Fed with a body's chunks, as they come, it gathers the parts."""

    def __init__(self, content_type: str, *, max_files: int, max_fields: int, max_field_bytes: int) -> None:
        """Raises MultipartError for a Content-Type that tells too little, CharsetError for its charset."""
        _, options = parse_options_header(content_type)
        charset = options.get(b"charset", b"").decode("latin-1")
        if charset.lower() not in _CHARSETS:
            raise CharsetError(charset)
        if not (boundary := options.get(b"boundary")):
            raise MultipartError("its Content-Type names no boundary")
        # An object of its own: one that knew the parser would be in a ring with it, and hold the body until the
        # garbage collector comes.
        self._gathered = _Gathered(max_files, max_fields, max_field_bytes)
        try:
            self._parser = MultipartParser(boundary, self._gathered.callbacks())
        except FormParserError as error:
            raise MultipartError("its boundary is too long") from error

    def feed(self, chunk: bytes) -> None:
        """Take the body's next bytes. Raises MultipartError."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MultipartError("a part is malformed, or does not begin with the boundary") from error

    def finish(self) -> Sequence[Part]:
        """All parts, once the body is whole. Raises MultipartError for one that ends too early."""
        if self._gathered.is_within_part:
            raise MultipartError("it ends within a part")
        return self._gathered.parts


class _Gathered:
    """What the parser has told of so far."""

    def __init__(self, max_files: int, max_fields: int, max_field_bytes: int) -> None:
        self.parts: list[Part] = []
        self.is_within_part = False
        self._max_files = max_files
        self._max_fields = max_fields
        self._max_field_bytes = max_field_bytes
        self._files = 0
        self._name, self._value, self._disposition = b"", b"", b""

    def callbacks(self) -> "MultipartCallbacks":
        """By the names that the parser gives them."""
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_to_name,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_piece,
            "on_part_end": self._end_part,
        }

    def _begin_part(self) -> None:
        self._disposition = b""
        self.is_within_part = True

    def _add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise MultipartError("a part's Content-Disposition gives no name")
        filename = options.get(b"filename")
        self.parts.append(Part(_decode(options[b"name"]), None if filename is None else _decode(filename)))
        self._files += filename is not None
        if self._files > self._max_files:
            raise TooManyFilesError(f"it has more than {self._max_files} files")
        if len(self.parts) - self._files > self._max_fields:
            raise MultipartError(f"it has more than {self._max_fields} fields")

    def _add_piece(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.pieces.append(memoryview(data)[start:end])
        part.size += end - start
        if part.filename is None and part.size > self._max_field_bytes:
            raise MultipartError(f"it has a field of more than {self._max_field_bytes} bytes")

    def _end_part(self) -> None:
        self.is_within_part = False


def _decode(text: bytes) -> str:
    """Names and fields are UTF-8; what is not, is read byte by byte."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
