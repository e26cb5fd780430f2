"""The line against a list that is searched from end to end, and the bound that it promises."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.router.waiting import Line, Place

TENANTS = ["a", "b", "c"]


class NaiveLine:
    """Virtual token counters as their authors write them down, and nothing forgotten."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.served: dict[tuple[int, str], int] = {}

    def join(self, place: Place) -> None:
        key = (place.priority, place.tenant)
        peers = [each for each in self.places if each.priority == place.priority]
        if not peers:  # a level that nobody waits in starts anew
            self.served = {k: v for k, v in self.served.items() if k[0] != place.priority}
        if all(each.tenant != place.tenant for each in peers):
            waiting = [self.served[each.priority, each.tenant] for each in peers]
            self.served[key] = max(self.served.get(key, 0), min(waiting, default=0))
        self.places.append(place)

    def leave(self, place: Place, *, served: bool) -> None:
        self.places.remove(place)
        if served:
            self.served[place.priority, place.tenant] += place.cost_tokens

    def next(self) -> Place:
        def head(place: Place) -> Place:
            same = (place.priority, place.tenant)
            return min(each for each in self.places if (each.priority, each.tenant) == same)

        def key(place: Place) -> tuple[int, int, Place, Place]:
            counter = self.served[place.priority, place.tenant]
            return -place.priority, counter, head(place), place

        return min(self.places, key=key)

    def last(self) -> Place:
        lowest = min(each.priority for each in self.places)
        level = [each for each in self.places if each.priority == lowest]

        def key(place: Place) -> tuple[int, str, Place]:
            return sum(e.tenant == place.tenant for e in level), place.tenant, place

        return max(level, key=key)


@st.composite
def steps(draw: st.DrawFn) -> list[Place | str]:
    """Somebody comes, the next is served, the last goes, or somebody gives up."""
    return [
        draw(
            st.one_of(
                st.builds(
                    Place,
                    deadline_s=st.integers(0, 5).map(float),
                    number=st.just(number),
                    priority=st.integers(0, 1),
                    tenant=st.sampled_from(TENANTS),
                    cost_tokens=st.integers(1, 50),
                ),
                st.sampled_from(["serve", "last", "give up"]),
            )
        )
        for number in range(draw(st.integers(1, 40)))
    ]


@settings(max_examples=120, deadline=None)
@given(steps=steps(), rng=st.randoms(use_true_random=False))
def test_it_serves_in_the_order_of_the_naive_line(steps: list[Place | str], rng: object) -> None:
    line, naive = Line(), NaiveLine()
    for step in steps:
        if isinstance(step, Place):
            line.join(step)
            naive.join(step)
        elif naive.places:
            place = naive.next() if step == "serve" else naive.last()
            assert place is (next(iter(line)) if step == "serve" else line.last())
            if step == "give up":
                place = rng.choice(naive.places)  # type: ignore[attr-defined]
            line.leave(place, served=step == "serve")
            naive.leave(place, served=step == "serve")
        assert len(line) == len(list(line)) == len(naive.places)
        assert set(line) == set(naive.places)
        assert all(0 <= line.ahead(each) < len(line) for each in line)


@settings(max_examples=100, deadline=None)
@given(
    costs=st.lists(st.lists(st.integers(1, 1_000), min_size=1), min_size=2, max_size=3),
    turns=st.integers(1, 200),
)
def test_tenants_that_always_wait_are_served_alike(costs: list[list[int]], turns: int) -> None:
    line = Line()
    number = 0

    def come(tenant: int) -> None:
        nonlocal number
        number += 1
        cost = costs[tenant][number % len(costs[tenant])]
        line.join(Place(float(number), number, 0, TENANTS[tenant], cost))

    for tenant in range(len(costs)):
        come(tenant)
        come(tenant)
    served = dict.fromkeys(TENANTS[: len(costs)], 0)
    for _ in range(turns):
        place = next(iter(line))
        line.leave(place, served=True)
        served[place.tenant] += place.cost_tokens
        come(TENANTS.index(place.tenant))
    assert max(served.values()) - min(served.values()) <= max(map(max, costs))
