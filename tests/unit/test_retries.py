"""How long a client waits before it tries again."""

import datetime
import email.utils

import httpx
import pytest

from service.retries import Retries, retry_after_s


def answer(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert Retries().wait_s(1, answer(status)) is not None


@pytest.mark.parametrize("status", [400, 401, 404, 410, 413, 415, 422, 500])
def test_what_will_not_pass_is_not(status: int) -> None:
    assert Retries().wait_s(1, answer(status)) is None


def test_lost_connections_are_tried_again_and_wrong_addresses_are_not() -> None:
    assert Retries().wait_s(1, httpx.ConnectError("refused")) is not None
    assert Retries().wait_s(1, httpx.ReadTimeout("slow")) is not None
    assert Retries().wait_s(1, httpx.UnsupportedProtocol("no http")) is None


def test_waits_double_up_to_the_longest_and_end() -> None:
    retries = Retries(max_tries=6, first_wait_s=1, max_wait_s=5)
    for tries, longest_s in ((1, 1), (2, 2), (3, 4), (4, 5), (5, 5)):
        waits = [retries.wait_s(tries, answer(503)) for _ in range(50)]
        assert all(wait is not None and longest_s / 2 <= wait <= longest_s for wait in waits)
        assert len(set(waits)) > 1
    assert retries.wait_s(6, answer(503)) is None


def test_retry_after_is_honoured_to_the_second() -> None:
    assert Retries().wait_s(1, answer(429, retry_after="7")) == 7
    assert Retries().wait_s(3, answer(503, retry_after="0")) == 0
    assert Retries(max_wait_s=60).wait_s(1, answer(503, retry_after="61")) is None


def test_retry_after_may_be_a_date() -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    wait = retry_after_s(answer(503, retry_after=email.utils.format_datetime(later, usegmt=True)))
    assert wait is not None
    assert 20 < wait <= 30
    assert retry_after_s(answer(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT")) == 0
    for nonsense in ("", "soon", "-3", "1.5"):
        assert retry_after_s(answer(503, retry_after=nonsense)) is None
