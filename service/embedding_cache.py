"""Least recently used values, bounded in bytes, each made once however many ask at a time.

Knows no model; the predictors keep features of photos in it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")

Key = tuple[str, str]
"""(digest of the encoder, sha256 of the upload): equal keys mean equal features."""

NO_ENCODER = ""
"""In the place of its digest, for what is left of an encoder that is served no more."""


class EmbeddingCache(Generic[Value]):
    """A thread-safe map that forgets its least recently used values once they weigh more than `max_bytes`.

    A cache of 0 bytes holds nothing and costs nothing. Values must own their memory: a slice of a batch would keep
    the whole batch alive while it counts as one row.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._bytes = 0
        self._being_made: dict[Key, Future[Value | None]] = {}
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Weight of everything held."""
        return self._bytes

    def get(self, key: Key) -> Value | None:
        """The value under `key`, now the most recently used, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def find_any(self, upload_digest: str) -> Value | None:
        """What any encoder made of an upload, or `retire` left of it; None where nothing is held."""
        with self._lock:  # all keys are looked at: for the rare upload of which no more is known
            found = next((entry for (_, digest), entry in self._entries.items() if digest == upload_digest), None)
        return None if found is None else found[0]

    def get_or_claim(self, key: Key) -> "Value | Future[Value | None] | None":
        """The value under `key`; or a future of it, where another thread is making it; or None, and it is claimed.

        Who gets None makes the value, and must `put` it or, where that fails, `release` the key; until then others
        wait. Who has claimed must not wait for others before that. The future gives None where its maker failed.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry[0]
            if key in self._being_made:
                return self._being_made[key]
            self._being_made[key] = Future()
            return None

    def release(self, key: Key) -> None:
        """Give up a claim; nothing where there is none (any more)."""
        self._settle(key, None)

    def _settle(self, key: Key, value: Value | None) -> None:
        with self._lock:
            future = self._being_made.pop(key, None)
        if future is not None:
            future.set_result(value)

    def put(self, key: Key, value: Value, size_bytes: int) -> None:
        """Hold `value`, which weighs `size_bytes`, and hand it to those who wait for it.

        One that is heavier than the whole budget is not held.
        """
        self._hold(key, value, size_bytes)
        self._settle(key, value)

    def _hold(self, key: Key, value: Value, size_bytes: int) -> None:
        with self._lock:
            for stale in (key, (NO_ENCODER, key[1])):
                if stale in self._entries:
                    self._bytes -= self._entries.pop(stale)[1]
            if size_bytes > self.max_bytes:
                return
            self._entries[key] = (value, size_bytes)
            self._bytes += size_bytes
            while self._bytes > self.max_bytes:
                self._bytes -= self._entries.popitem(last=False)[1][1]

    def retire(self, encoder_digest: str, reduce: Callable[[Value], tuple[Value, int]]) -> None:
        """Hold what `reduce` leaves of all that this encoder made, and its size in bytes: it is not served any more.

        Nothing of uploads of which another encoder's values are held.
        """
        with self._lock:
            others = {upload for encoder, upload in self._entries if encoder != encoder_digest}
            entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
            for (encoder, upload), entry in self._entries.items():
                if encoder != encoder_digest:
                    entries[encoder, upload] = entry
                elif upload not in others:
                    entries[NO_ENCODER, upload] = reduce(entry[0])
            self._entries = entries
            self._bytes = sum(size for _, size in entries.values())

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0
