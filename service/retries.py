"""When a client tries again, and how long it waits before: Retry-After where the server says so, else longer each time.

Every request of this service may be repeated: the same photo gives the same mask and changes nothing.
"""

import datetime
import email.utils
import random
from dataclasses import dataclass

import httpx

_WORTH_ANOTHER_TRY = frozenset({429, 502, 503, 504})
_HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)


@dataclass(frozen=True)
class Retries:
    """How patient a client is."""

    max_tries: int = 6
    """The first one included."""
    first_wait_s: float = 0.5
    """Doubled with each try, less up to a half by chance, so that many clients do not come back as one."""
    max_wait_s: float = 60.0
    """Longest wait between two tries; a server that asks for more is given up."""

    def wait_s(self, tries: int, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds before the next try after `tries` made, the last with `outcome`; None where there should be none."""
        if tries >= self.max_tries or not is_worth_another_try(outcome):
            return None
        asked_s = retry_after_s(outcome) if isinstance(outcome, httpx.Response) else None
        if asked_s is not None:
            return asked_s if asked_s <= self.max_wait_s else None
        longest_s = min(self.max_wait_s, self.first_wait_s * float(2 ** (tries - 1)))
        return longest_s * random.uniform(0.5, 1)


def is_worth_another_try(outcome: httpx.Response | httpx.TransportError) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(outcome, httpx.Response):
        return outcome.status_code in _WORTH_ANOTHER_TRY
    return not isinstance(outcome, _HOPELESS)


def retry_after_s(response: httpx.Response) -> float | None:
    """Seconds that the Retry-After header asks to wait, given as a number or as a date; None without a readable one."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    now = datetime.datetime.now(at.tzinfo)
    return max(0.0, (at - now).total_seconds())
