"""How often each client may ask: a token bucket for each, bounded in number. Knows nothing of HTTP.

One number per client (the generic cell rate algorithm): the time at which its bucket will be full again.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_ROUNDING = 1e-6
"""Of an interval: sums of intervals, and differences of times, carry errors below it. Without it a full bucket could
lack its last request, and an empty one could want a second more than the whole window."""


@dataclass(frozen=True)
class Quota:
    """So many requests in each `window_s`, all at once or spread."""

    requests: int
    window_s: float = 60.0


@dataclass(frozen=True)
class Allowance:
    """Where a client stands."""

    remaining: int
    """Requests that would be granted now."""
    full_after_s: int
    """Whole seconds until the whole quota is there again."""
    retry_after_s: int
    """Whole seconds until one more request is granted; 0 while `remaining` is above 0."""


class RateLimiter:
    """Buckets of up to `max_clients` clients; beyond that the one that has not asked for longest starts anew."""

    def __init__(self, max_clients: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_clients = max_clients
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, client: str, quota: Quota) -> bool:
        """Take one request from the bucket of `client`; False where it holds none."""
        if self.look(client, quota).remaining < 1:
            return False
        self.charge(client, quota, 1)
        return True

    def charge(self, client: str, quota: Quota, requests: int) -> None:
        """Take `requests` whatever the bucket holds: what was found only later to be more goes into debt."""
        full_at = max(self._full_at.pop(client, 0.0), self._clock()) + requests * quota.window_s / quota.requests
        self._full_at[client] = full_at
        if len(self._full_at) > self.max_clients:
            self._full_at.popitem(last=False)

    def look(self, client: str, quota: Quota) -> Allowance:
        """Where `client` stands, nothing taken."""
        missing_s = max(0.0, self._full_at.get(client, 0.0) - self._clock())
        interval_s = quota.window_s / quota.requests
        remaining = max(0, math.floor((quota.window_s - missing_s) / interval_s + _ROUNDING))
        wait_s = missing_s + interval_s - quota.window_s if remaining == 0 else 0.0
        error_s = _ROUNDING / 2 * interval_s  # half: who waits for as long as was said must find a request there
        return Allowance(remaining, _whole_seconds(missing_s - error_s), _whole_seconds(wait_s - error_s))


def _whole_seconds(seconds: float) -> int:
    return max(0, math.ceil(seconds))
