"""Which front takes a new connection: whoever holds the fewest.

All fronts accept from one socket, and whoever happens to be awake would take most: of 384 connections that 14 fronts
took at once one held 75 and another a single one. A connection stays where it was accepted, so one front worked at its
limit while others idled.
"""

from collections.abc import MutableSequence

ABSENT = -1
"""Instead of the count of a front that does not accept."""

_DELAY_S = 0.001
"""For each connection more than the least that a front holds."""
_LONGEST_DELAY_S = 0.01
"""Whoever holds the fewest may be too busy to come, or hang."""


class ConnectionShare:
    """One front's part of a count that all fronts see."""

    def __init__(self, counts: MutableSequence[int], number: int) -> None:
        """counts: connections of each front, in memory that all share. number: this front's place in it."""
        self._counts = counts
        self._number = number

    def tell(self, connections: int) -> None:
        """How many are held here."""
        self._counts[self._number] = connections

    def leave(self) -> None:
        """No more are taken here: others need not wait for this one."""
        self._counts[self._number] = ABSENT

    def delay_s(self, connections: int) -> float:
        """How long to leave a new connection to others, where `connections` are held here; 0 to take it now."""
        others = [count for count in self._counts if count != ABSENT]
        ahead = connections - min(others, default=connections)
        return min(_LONGEST_DELAY_S, max(0, ahead) * _DELAY_S)
