"""How a gateway asks routers that are busy, or dead."""

from __future__ import annotations

import pytest

from controlplane.gateway.openai import ClientError
from proto.route import ALL_BUSY, Queued, Rejected
from tests.unit.controlplane.gateway.test_dispatch import (
    DONE,
    SETTINGS,
    Client,
    records,
    whole,
    world,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]


async def test_who_is_queued_asks_again_with_what_is_left_of_its_patience(
    anyio_backend: str,
) -> None:
    async with world(settings=SETTINGS.model_copy(update={"queue_s": 3.0})) as ours:
        ours.engine("a", whole)
        ours.replies += [Queued(2), Queued(1)]
        client = Client()
        await ours.serve(client)
        assert client.read.endswith(DONE)
        first, second, third = ours.routed
        assert (first.waited_s, first.deadline_s) == (0.0, 3.0)
        assert 0 < second.waited_s < third.waited_s
        assert third.deadline_s == pytest.approx(3.0 - third.waited_s)
        assert {route.attempt for route in ours.routed} == {1}
        assert first.answer_s < SETTINGS.route_s / 2  # or it would be taken for dead


async def test_when_all_are_busy_for_too_long_the_client_is_told_when_to_come_again(
    anyio_backend: str,
) -> None:
    async with world() as ours:
        ours.replies += [Queued(1), Rejected(ALL_BUSY, "a is busy_prefill", 7.0)]
        client = Client()
        with pytest.raises(ClientError) as caught:
            await ours.serve(client)
        error = caught.value
        assert (error.status, error.code, error.retry_after_s) == (503, ALL_BUSY, 7.0)
        [written] = await records(ours, 1)
        assert (written.outcome, written.attempts) == (ALL_BUSY, 0)


async def test_a_router_that_dies_over_a_question_leaves_it_to_another(anyio_backend: str) -> None:
    async with world() as ours:
        ours.engine("a", whole)
        ours.replies += [None]
        client = Client()
        await ours.serve(client)
        assert client.headers["x-tokenplane-policy"] == "kv"
        assert len(ours.routed) == 2


async def test_when_no_router_answers_the_gateway_chooses_by_itself(anyio_backend: str) -> None:
    async with world() as ours:
        for name in ("a", "b"):
            ours.engine(name, whole)
        ours.replies += [None, None]
        client = Client()
        await ours.serve(client)
        assert client.headers["x-tokenplane-policy"] == "fallback"
