"""Whose batch runs next on a device that several models share. Knows no model: each model's batcher takes turns."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Turn:
    group: str
    started_at: float = field(default_factory=time.monotonic)
    is_counted: bool = True
    """Whether it still takes up a place; False once it has overstayed."""


class Turns:
    """At most `places` holders at once; a free place goes to the waiting group that has used the device least.

    So a model with few requests waits for one batch of a busy one, never for its whole queue. Time spent idle earns
    no credit: who comes back starts level with the least of those present. A holder that overstays `patience_s` while
    others wait loses its place to them: one that hangs must not stop the rest.
    """

    def __init__(self, places: int, patience_s: float = 2.0) -> None:
        self._free = places
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[object]] = {}
        self._holding: set[_Turn] = set()
        self._used_s: dict[str, float] = {}

    @contextmanager
    def take(self, group: str) -> Iterator[None]:
        """Wait for a place, hold it inside the block, and charge the block's time to `group`."""
        turn = self._enter(group)
        try:
            yield
        finally:
            self._leave(turn)

    def used_s(self, group: str) -> float:
        """Seconds charged to `group`, levelled when it came back from being idle."""
        return self._used_s.get(group, 0.0)

    @property
    def waiting(self) -> int:
        """Threads that wait for a place."""
        return sum(map(len, self._waiting.values()))

    def _enter(self, group: str) -> _Turn:
        with self._changed:
            self._level(group)
            ticket = object()
            self._waiting.setdefault(group, deque()).append(ticket)
            while not (self._free > 0 and self._is_next(group, ticket)):
                self._changed.wait(self._patience_s)
                self._discount_overstayers()  # also where others kept this one awake
            self._waiting[group].popleft()
            if not self._waiting[group]:
                del self._waiting[group]
            turn = _Turn(group)
            self._holding.add(turn)
            self._free -= 1
            if self._free and self._waiting:
                self._changed.notify_all()
            return turn

    def _leave(self, turn: _Turn) -> None:
        with self._changed:
            self._used_s[turn.group] += time.monotonic() - turn.started_at
            self._holding.remove(turn)
            self._free += turn.is_counted
            self._changed.notify_all()

    def _level(self, group: str) -> None:
        """Whoever comes back from being idle has used at least what the least of those present has."""
        present = self._waiting.keys() | {turn.group for turn in self._holding}
        if group not in present:
            least = min((self._used_s[each] for each in present), default=0.0)
            self._used_s[group] = max(self._used_s.get(group, 0.0), least)

    def _is_next(self, group: str, ticket: object) -> bool:
        return self._waiting[group][0] is ticket and group == min(self._waiting, key=lambda each: self._used_s[each])

    def _discount_overstayers(self) -> None:
        latest = time.monotonic() - self._patience_s
        overstayed = [turn for turn in self._holding if turn.is_counted and turn.started_at <= latest]
        for turn in overstayed:
            turn.is_counted = False
        self._free += len(overstayed)
        if overstayed:
            self._changed.notify_all()
