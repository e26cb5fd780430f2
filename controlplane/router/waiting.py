"""Who is served next of those who wait for a busy fleet, and who goes when too many do. Pure.

A higher priority goes first. Among equals the tenant goes first that has been served least, and of
one tenant's requests the one whose deadline comes first. What a tenant has been served is counted
in tokens, as a long prompt costs more than a short one (KR1), by the Virtual Token Counter of Sheng
et al., "Fairness in Serving Large Language Models" (OSDI 2024): who comes anew is lifted to the
least of those that wait, so that nobody saves up for a flood, and two tenants that both wait all
the time never drift apart by more than the costliest request of each.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(order=True, frozen=True)
class Place:
    """One request's place in a line; the order is that of one tenant's requests."""

    deadline_s: float
    number: int
    """Of arrival; no two have the same."""
    priority: int = field(compare=False)
    tenant: str = field(compare=False)
    cost_tokens: int = field(compare=False)


class Line:
    """The places of those who wait for the workers of one model."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def __iter__(self) -> Iterator[Place]:
        """In the order in which they would be served if each tenant's turn lasted; the first one
        is the next. Not to be used after a change."""
        for priority in sorted(self._levels, reverse=True):
            yield from self._levels[priority]

    def join(self, place: Place) -> None:
        """Somebody comes."""
        self._levels.setdefault(place.priority, _Level()).add(place)

    def leave(self, place: Place, *, served: bool) -> None:
        """Somebody goes, and has been served or not."""
        level = self._levels[place.priority]
        level.remove(place, served=served)
        if not level.places:
            del self._levels[place.priority]

    def last(self) -> Place:
        """Who has to go when there is no room: of the lowest priority, from the tenant with most
        places, the latest deadline."""
        return self._levels[min(self._levels)].last()

    def ahead(self, place: Place) -> int:
        """How many are likely to be served before, if nobody else comes."""
        higher = (level for priority, level in self._levels.items() if priority > place.priority)
        return sum(map(len, higher)) + self._levels[place.priority].ahead(place)


class _Level:
    """The places of one priority. Counters are kept while anybody waits there: once nobody does,
    nobody has been wronged."""

    def __init__(self) -> None:
        self.places: dict[str, list[Place]] = {}
        """By tenant, in order; no tenant without one."""
        self._served_tokens: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))

    def __iter__(self) -> Iterator[Place]:
        for tenant in sorted(self.places, key=self._turn):
            yield from self.places[tenant]

    def add(self, place: Place) -> None:
        tenant = place.tenant
        if tenant not in self.places:
            served = self._served_tokens.get(tenant, 0)
            self._served_tokens[tenant] = max(served, self._least_served())
            self.places[tenant] = []
        insort(self.places[tenant], place)

    def remove(self, place: Place, *, served: bool) -> None:
        tenant = place.tenant
        self.places[tenant].remove(place)
        if served:
            self._served_tokens[tenant] += place.cost_tokens
        if not self.places[tenant]:
            del self.places[tenant]
            self._forget_lifted()

    def last(self) -> Place:
        most = max(self.places, key=lambda tenant: (len(self.places[tenant]), tenant))
        return self.places[most][-1]

    def ahead(self, place: Place) -> int:
        """Tenants take turns, more or less."""
        before = self.places[place.tenant].index(place)
        others = (len(each) for tenant, each in self.places.items() if tenant != place.tenant)
        return before + sum(min(waiting, before + 1) for waiting in others)

    def _turn(self, tenant: str) -> tuple[int, Place]:
        return self._served_tokens[tenant], self.places[tenant][0]

    def _least_served(self) -> int:
        return min((self._served_tokens[tenant] for tenant in self.places), default=0)

    def _forget_lifted(self) -> None:
        """Who is absent and would be lifted when it comes again need not be remembered."""
        least = self._least_served()
        for tenant in self._served_tokens.keys() - self.places.keys():
            if self._served_tokens[tenant] <= least:
                del self._served_tokens[tenant]
