"""What several prompts in one request, and several answers to each, take of a tenant's tokens."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.gateway.openai import ClientError
from controlplane.gateway.routing import Hints
from controlplane.gateway.tenants import Tenant
from tests.support.gateway_world import Client, records, whole, world

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

BATCH = [[1, 2, 3], [7] * 90, [8] * 7]
TENANT = Hints(tenant=Tenant(name="t", tokens_per_minute=200))


async def test_all_prompts_of_a_batch_are_counted(anyio_backend: str) -> None:
    async with world() as ours:
        ours.engine("a", whole)
        await ours.serve(Client(), TENANT, prompt=BATCH, max_tokens=1)
        assert [route.prompt_tokens for route in ours.routed] == [100]
        [written] = await records(ours, 1)
        assert written.prompt_tokens == 100


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": [*BATCH, [9] * 100], "max_tokens": 1},
        {"prompt": BATCH, "max_tokens": 40},
        {"prompt": [1, 2, 3], "max_tokens": 40, "n": 5},
    ],
)
async def test_what_all_its_answers_may_take_is_set_aside(
    anyio_backend: str, asked: dict[str, Any]
) -> None:
    async with world() as ours:
        ours.engine("a", whole)
        with pytest.raises(ClientError) as refused:
            await ours.serve(Client(), TENANT, **asked)
        assert refused.value.code == "request_too_large"
        assert not ours.routed
