"""A token bucket on a clock that the test turns."""

from hypothesis import example, given
from hypothesis import strategies as st

from service.rate_limits import Allowance, Quota, RateLimiter


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_quota_and_one_more() -> None:
    clock = Clock()
    limiter, quota = RateLimiter(clock=clock), Quota(3)
    for remaining in (2, 1, 0):
        assert limiter.take("a", quota)
        assert limiter.look("a", quota).remaining == remaining
    assert not limiter.take("a", quota)
    assert limiter.look("a", quota) == Allowance(0, full_after_s=60, retry_after_s=20)
    assert limiter.take("b", quota)
    clock.now += 19.9
    assert not limiter.take("a", quota)
    clock.now += 0.1
    assert limiter.take("a", quota)
    clock.now += 60
    assert limiter.look("a", quota) == Allowance(3, full_after_s=0, retry_after_s=0)


def test_a_charge_goes_into_debt() -> None:
    clock = Clock()
    limiter, quota = RateLimiter(clock=clock), Quota(60)
    limiter.take("a", quota)
    limiter.charge("a", quota, 119)
    assert limiter.look("a", quota) == Allowance(0, full_after_s=120, retry_after_s=61)
    clock.now += 61
    assert limiter.take("a", quota)


def test_clients_are_bounded_in_number() -> None:
    limiter, quota = RateLimiter(max_clients=2, clock=Clock()), Quota(1)
    for client in ("a", "b", "a", "c"):
        limiter.take(client, quota)
    assert len(limiter) == 2
    assert not limiter.take("c", quota)


@example(
    requests=1, gaps=[1.445542248225932, 0.0]
)  # where adding a minute and taking it away again gives more than one
@given(requests=st.integers(1, 1000), gaps=st.lists(st.floats(0, 30), min_size=1, max_size=200))
def test_no_window_holds_more_than_twice_the_quota_and_what_is_promised_is_granted(
    requests: int, gaps: list[float]
) -> None:
    clock = Clock()
    limiter, quota = RateLimiter(clock=clock), Quota(requests)
    granted: list[float] = []
    for gap in gaps:
        clock.now += gap
        promised = limiter.look("a", quota)
        assert 0 <= promised.remaining <= requests and 0 <= promised.full_after_s <= 60
        is_granted = limiter.take("a", quota)
        assert is_granted == (promised.remaining > 0)
        if is_granted:
            granted.append(clock.now)
        else:
            assert promised.retry_after_s <= 60
            clock.now += promised.retry_after_s
            assert limiter.look("a", quota).remaining >= 1
    for end in granted:
        assert sum(end - 60 < at <= end for at in granted) <= 2 * requests
