"""Whose turn it is, and who goes when there is no room."""

from __future__ import annotations

from itertools import count

from controlplane.router.waiting import Line, Place

NUMBERS = count()


def place(
    tenant: str = "", priority: int = 0, deadline_s: float = 10.0, cost_tokens: int = 100
) -> Place:
    return Place(deadline_s, next(NUMBERS), priority, tenant, cost_tokens)


def line_of(*places: Place) -> Line:
    line = Line()
    for each in places:
        line.join(each)
    return line


def served(line: Line) -> list[Place]:
    """Everybody, one after the other."""
    order = []
    while line:
        order.append(next(iter(line)))
        line.leave(order[-1], served=True)
    return order


def test_priority_goes_first_then_the_deadline_then_who_came_first() -> None:
    late, soon, again = place(deadline_s=9), place(deadline_s=3), place(deadline_s=9)
    urgent, idle = place(priority=5, deadline_s=99), place(priority=-5, deadline_s=1)
    assert served(line_of(late, soon, again, urgent, idle)) == [urgent, soon, late, again, idle]


def test_a_tenant_that_floods_does_not_starve_another() -> None:
    flood = [place("flood", deadline_s=1.0) for _ in range(50)]
    line = line_of(*flood)
    for _ in range(10):
        line.leave(next(iter(line)), served=True)
    other = place("other", deadline_s=100.0)
    line.join(other)
    assert other in served(line)[:2]


def test_kr1_a_tenant_is_charged_what_its_requests_cost() -> None:
    dear = [place("dear", cost_tokens=40_000) for _ in range(20)]
    cheap = [place("cheap", cost_tokens=1_000) for _ in range(40)]
    first = served(line_of(*dear, *cheap))[:41]
    assert 39 <= sum(each.tenant == "cheap" for each in first) <= 40


def test_nobody_saves_up_turns_by_staying_away() -> None:
    busy = [place("busy") for _ in range(20)]
    line = line_of(*busy)
    for _ in range(10):
        line.leave(next(iter(line)), served=True)
    idle = [place("idle") for _ in range(10)]
    for each in idle:
        line.join(each)
    assert sum(each.tenant == "idle" for each in served(line)[:10]) in (5, 6)


def test_who_asks_one_at_a_time_gets_its_share_and_no_more() -> None:
    line = line_of(*(place("flood") for _ in range(40)), place("single"))
    turns = []
    for _ in range(20):
        turn = next(iter(line))
        line.leave(turn, served=True)
        turns.append(turn.tenant)
        if turn.tenant == "single":
            line.join(place("single"))
    assert turns.count("single") == 10


def test_leaving_unserved_costs_nothing() -> None:
    line = line_of(place("a"), place("b"))
    gone = [place("a", deadline_s=1.0) for _ in range(9)]
    for each in gone:
        line.join(each)
    for each in gone:
        line.leave(each, served=False)
    assert [each.tenant for each in served(line)] == ["a", "b"]
    assert len(line) == 0


def test_without_room_the_lowest_priority_goes_and_of_it_the_greediest_tenants_last() -> None:
    urgent = [place("flood", priority=1) for _ in range(5)]
    flood = [place("flood", deadline_s=s) for s in (4, 8, 6)]
    modest = place("modest", deadline_s=99)
    assert line_of(*urgent, *flood, modest).last() is flood[1]


def test_how_many_are_ahead_counts_turns_of_other_tenants() -> None:
    urgent = place("b", priority=1)
    mine = [place("a") for _ in range(3)]
    others = [place("b") for _ in range(9)]
    line = line_of(urgent, *mine, *others)
    assert [line.ahead(each) for each in mine] == [2, 4, 6]
    assert line.ahead(urgent) == 0
