"""Connections go to the front that holds the fewest, and to another where that one does not come."""

import pytest

from service.connection_share import ABSENT, ConnectionShare


@pytest.mark.parametrize(
    ("counts", "held", "delay_s"),
    [
        ([3, 3, 3], 3, 0.0),
        ([3, 4, 5], 3, 0.0),
        ([5, 3, 4], 5, 0.002),
        ([90, 0, 0], 90, 0.01),
        ([2, ABSENT, 2], 2, 0.0),
        ([9, ABSENT, ABSENT], 9, 0.0),
    ],
)
def test_who_holds_more_than_the_least_leaves_the_next_to_others_for_a_moment(
    counts: list[int], held: int, delay_s: float
) -> None:
    assert ConnectionShare(counts, 0).delay_s(held) == pytest.approx(delay_s)


def test_others_see_what_is_told_and_wait_for_nobody_who_left() -> None:
    counts = [ABSENT, ABSENT]
    one, other = ConnectionShare(counts, 0), ConnectionShare(counts, 1)
    one.tell(2)
    other.tell(0)
    assert one.delay_s(2) > 0
    other.leave()
    assert one.delay_s(2) == 0


def test_own_connections_count_although_the_last_of_them_were_not_told_yet() -> None:
    counts = [4, 1]
    assert ConnectionShare(counts, 0).delay_s(1) == 0
    assert ConnectionShare(counts, 0).delay_s(2) > 0
