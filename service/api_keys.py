"""Who may call: API keys from a file that holds their hashes, read again when it changes.

A key is 32 random bytes, so one round of SHA-256 hides it: there is nothing to guess that a slow hash would protect.
The admission asks a KeyRing; `petseg key` writes the file.
"""

import hashlib
import hmac
import logging
import os
import secrets
import time
import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

logger = logging.getLogger("petseg.api_keys")

PREFIX = "petseg_"
"""Begins every key, so that scanners find one that was committed or posted by mistake."""

_HEADER = (
    "# API keys of petseg: hashes only. A key is revoked by removing its table; the service reads the file again.\n"
)

NAME_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"


class KeyFileError(ValueError):
    """The file cannot be read or says something wrong; one line without its content."""


class ApiKey(BaseModel):
    """One caller's key as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: date | None = None
    expires: date | None = None
    """First day (UTC) on which the key no longer opens."""
    requests_per_minute: Annotated[int | None, Field(ge=0)] = None
    """Over the setting of the same name; 0 is no limit."""


class KeyFile(BaseModel):
    """The file: `[[key]]` tables, each under a name of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "KeyFile":
        names = [key.name for key in self.key]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"got two keys named {doubled[0]}; give each its own name")
        return self


class KeyRing:
    """The keys of the file at `path`; a changed file counts from the next `check_every_s` on, a broken one does not.

    Raises KeyFileError where the file cannot be read at the start.
    """

    def __init__(self, path: Path, check_every_s: float = 1.0) -> None:
        self._path = path
        self._check_every_s = check_every_s
        self._stamp = _stamp(path)
        self._keys = read_keys(path)
        self._checked_at = time.monotonic()

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, presented: str) -> ApiKey | None:
        """The key that `presented` is, unless it is unknown or expired.

        Every hash is compared, each in constant time: the time tells nothing of which one came close.
        """
        self._read_again()
        digest = hash_key(presented)
        found: ApiKey | None = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is not None and found.expires is not None and datetime.now(UTC).date() >= found.expires:
            return None
        return found

    def _read_again(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < self._check_every_s:
            return
        self._checked_at = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except KeyFileError as error:
            logger.error("the key file changed and cannot be used, the keys of before stay: %s", error)
        else:
            logger.info("the key file changed: %d keys", len(self._keys))


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises KeyFileError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise KeyFileError(f"{path.name} cannot be read ({reason}); make it with petseg key new") from error
    except ValueError as error:
        raise KeyFileError(f"{path.name} is no TOML; make it with petseg key new") from error
    try:
        return KeyFile.model_validate(document).key
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise KeyFileError(f"{path.name}: {place + ': ' if place else ''}{first['msg']}") from error


def new_key(
    path: Path, name: str, *, requests_per_minute: int | None = None, expires: date | None = None
) -> tuple[str, ApiKey]:
    """(the key itself, which is nowhere kept; what the file at `path` now says of it). Raises KeyFileError."""
    secret = PREFIX + secrets.token_urlsafe(32)
    fields = {
        "name": name,
        "sha256": hash_key(secret),
        "created": datetime.now(UTC).date(),
        "expires": expires,
        "requests_per_minute": requests_per_minute,
    }
    try:
        key = ApiKey.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise KeyFileError(f"{first['loc'][0]}: {first['msg']}") from error
    if path.exists() and name in {each.name for each in read_keys(path)}:
        raise KeyFileError(f"got the name {name}, which {path.name} has already; choose another, or remove its table")
    _append(path, _table(key))
    return secret, key


def hash_key(secret: str) -> str:
    """What the file keeps of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _table(key: ApiKey) -> str:
    lines = ["", "[[key]]", f'name = "{key.name}"', f'sha256 = "{key.sha256}"']
    given = {"created": key.created, "expires": key.expires, "requests_per_minute": key.requests_per_minute}
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in given.items() if value is not None), ""])


def _append(path: Path, table: str) -> None:
    """Put the longer file in the place of the old one at once: a reader never sees half a table."""
    text = path.read_text(encoding="utf-8") if path.exists() else _HEADER
    mode = path.stat().st_mode if path.exists() else 0o600
    written = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text + table)
        written.chmod(mode & 0o777)
        written.replace(path)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written ({os.strerror(error.errno or 0)})") from error
    finally:
        written.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes whenever the file does; of a missing file, empty."""
    try:
        state = path.stat()
    except OSError:
        return ()
    return (state.st_mtime_ns, state.st_size, state.st_ino)
