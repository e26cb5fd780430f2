"""The HTTP border for tenants: keys, limits, settlement, caches apart."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import anyio
import anyio.lowlevel
import pytest

from controlplane.gateway.admission import Admission, OpenToAll
from controlplane.gateway.routing import leg_request
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.tenants import ANONYMOUS, key_hash
from controlplane.local.ports import free_ports
from proto.ids import NAME_MAX_CHARS, check_name
from proto.wire.memory.http import Answer, Request
from tests.support.gateway_world import (
    PIECES,
    SETTINGS,
    World,
    records,
    whole,
    with_adapter,
    world,
)

pytestmark = pytest.mark.anyio

TENANTS = f"""
[tenants.acme]
keys = ["{key_hash("acme-key")}"]
slo_class = "interactive"
priority = 3
tolerations = ["spot"]
tokens_per_minute = 100

[tenants.secret]
keys = ["{key_hash("secret-key")}"]
private_cache = true
concurrent_max = 1
"""


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp's server needs asyncio."""
    return "asyncio"


class Client:
    """One tenant's, over real HTTP."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = url
        self.headers = {"authorization": f"Bearer {key}"} if key else {}

    def post(self, **fields: object) -> aiohttp.client._RequestContextManager:
        body = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 7, "stream": True, **fields}
        return self._session.post(f"{self._url}/v1/completions", json=body, headers=self.headers)

    async def refused(self, **fields: object) -> tuple[int, str, str | None]:
        async with self.post(**fields) as response:
            code = json.loads(await response.read())["error"]["code"]
            return response.status, code, response.headers.get("retry-after")

    async def served_at_last(self, **fields: object) -> None:
        """Ask until it is served; the caller sets the deadline."""
        status = 0
        while status != 200:  # what is waited for cannot be seen from outside but by asking
            await anyio.lowlevel.checkpoint()
            async with self.post(**fields) as response:
                await response.read()
                status = response.status

    async def served(self, **fields: object) -> bytes:
        async with self.post(**fields) as response:
            assert response.status == 200, await response.read()
            return await response.read()


@asynccontextmanager
async def served_world(folder: Path) -> AsyncIterator[tuple[World, aiohttp.ClientSession, str]]:
    path = folder / "tenants.toml"
    path.write_text(TENANTS)
    [port] = free_ports(1)
    settings = SETTINGS.model_copy(update={"port": port, "tenants": path})
    async with (
        world(settings=settings, http_server=True, fleet=with_adapter("poet")) as ours,
        aiohttp.ClientSession() as session,
    ):
        yield ours, session, f"http://127.0.0.1:{port}"


async def test_a_request_that_ends_with_the_process_is_recorded(tmp_path: Path) -> None:
    async def endless() -> AsyncGenerator[bytes]:
        while True:
            yield PIECES[0]
            await anyio.sleep(0.01)

    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", endless)
        client = Client(session, url, "acme-key")
        async with client.post() as response:
            assert await response.content.readany()
            ours.stop()
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        [record] = await records(ours, 1)
        assert record.outcome == "cancelled"


async def test_a_client_that_goes_at_done_has_it_all_though_its_engine_is_slow_to_hang_up(
    tmp_path: Path,
) -> None:
    left = anyio.Event()

    async def lingers() -> AsyncGenerator[bytes]:
        async for piece in whole():
            yield piece
        await left.wait()
        for _ in range(10):  # the gateway sees it, and nothing comes of that
            await anyio.sleep(0.01)

    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", lingers)
        async with Client(session, url, "acme-key").post() as response:
            await response.content.readuntil(b"data: [DONE]")
            response.close()
        left.set()
        [record] = await records(ours, 1)
        assert record.outcome == "completed"
        assert record.output_tokens == len(PIECES)


async def test_only_those_with_a_key_are_served(tmp_path: Path) -> None:
    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", whole)
        for key in ("", "wrong"):
            assert (await Client(session, url, key).refused())[:2] == (401, "invalid_api_key")
        async with session.get(f"{url}/v1/models") as response:
            assert response.status == 401
        async with session.get(f"{url}/live") as response:
            assert response.status == 200
        assert not ours.routed
        await Client(session, url, "acme-key").served()
        [asked] = ours.routed
        assert (asked.tenant, asked.slo_class, asked.priority) == ("acme", "interactive", 3)


async def test_what_a_client_demands_reaches_the_router_if_it_may(tmp_path: Path) -> None:
    where = {"x-tokenplane-topology": "zone=eu, rack=7"}
    pins = {"x-tokenplane-workers": "a"}
    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", whole)
        acme, secret = Client(session, url, "acme-key"), Client(session, url, "secret-key")
        acme.headers |= where
        await acme.served()
        [asked] = ours.routed
        assert asked.constraints.topology == (("rack", "7"), ("zone", "eu"))
        assert asked.constraints.tolerations == ("spot",)
        acme.headers |= {"x-tokenplane-topology": "eu"}
        assert (await acme.refused())[:2] == (400, "invalid_header")
        secret.headers |= pins
        assert (await secret.refused())[:2] == (403, "pins_not_allowed")
        assert len(ours.routed) == 1


async def test_en6_what_work_it_is_reaches_the_router(tmp_path: Path) -> None:
    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", whole)
        acme = Client(session, url, "acme-key")
        await acme.served()
        acme.headers |= {"x-tokenplane-workload": "portable"}
        await acme.served(guided_json={"type": "object"})
        assert [asked.workload for asked in ours.routed] == [
            ("completion",),
            ("structured", "portable"),
        ]


async def test_a_refusal_bears_the_id_that_it_is_explained_by(tmp_path: Path) -> None:
    async with served_world(tmp_path) as (_, session, url):
        client = Client(session, url, "acme-key")
        client.headers |= {"x-request-id": "mine"}
        async with client.post() as response:
            assert response.status == 503
            assert response.headers["x-request-id"].startswith("mine-")


async def test_a_key_stands_for_a_request_to_one_path(tmp_path: Path) -> None:
    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", whole)
        headers = {"authorization": "Bearer acme-key", "idempotency-key": "k"}
        body = {"model": "m", "input": "x", "prompt": "x", "max_tokens": 1}
        told = []
        for path in ("completions", "completions", "embeddings"):
            asked = session.post(f"{url}/v1/{path}", json=body, headers=headers)
            async with asked as response:
                told.append(response.status)
        assert told == [200, 200, 422]
        assert len(ours.routed) == 1


@pytest.mark.parametrize("given", ["mine", "m" * NAME_MAX_CHARS])
async def test_requests_that_clients_gave_one_name_are_told_apart(
    tmp_path: Path, given: str
) -> None:
    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", whole)
        told = []
        for key in ("acme-key", "acme-key", "secret-key"):
            client = Client(session, url, key)
            client.headers |= {"x-request-id": given}
            async with client.post() as response:
                await response.read()
                told.append(response.headers["x-request-id"])
        known = [asked.request for asked in ours.routed]
    assert told == known
    assert len(set(known)) == len({leg_request(each) for each in known}) == 3
    for each in known:
        assert each.startswith(given[:100])
        assert check_name(leg_request(each), "leg")


async def test_a_name_that_is_none_is_not_taken_over(tmp_path: Path) -> None:
    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", whole)
        client = Client(session, url, "acme-key")
        client.headers |= {"x-request-id": "no name"}
        await client.served()
        [asked] = ours.routed
        assert check_name(asked.request, "request") and "name" not in asked.request


async def test_adapters_are_listed_beside_their_model(tmp_path: Path) -> None:
    async with served_world(tmp_path) as (_, session, url):
        headers = Client(session, url, "acme-key").headers
        async with session.get(f"{url}/v1/models", headers=headers) as response:
            listed = json.loads(await response.read())["data"]
        assert [(each["id"], each["max_model_len"]) for each in listed] == [
            ("m", 100),
            ("poet", 100),
        ]


async def test_tokens_are_reserved_and_settled_to_what_was_used(tmp_path: Path) -> None:
    """3 prompt tokens and 90 asked for fit 100 once; as only 6 were used, they fit again."""
    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", whole)
        acme = Client(session, url, "acme-key")
        await acme.served(max_tokens=90)
        await acme.served(max_tokens=90)
        status, code, retry_after = await acme.refused(max_tokens=95)
        assert (status, code) == (429, "rate_limit_exceeded")
        assert retry_after is not None and int(retry_after) >= 1


async def test_a_client_that_leaves_gets_its_tokens_back(tmp_path: Path) -> None:
    began = anyio.Event()

    async def endless() -> AsyncGenerator[bytes]:
        yield PIECES[0]
        began.set()
        await anyio.sleep_forever()

    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", endless)
        acme = Client(session, url, "acme-key")
        async with acme.post(max_tokens=90):
            await began.wait()
            assert (await acme.refused(max_tokens=90))[0] == 429
        ours.engine("a", whole)
        with anyio.fail_after(5):
            await acme.served_at_last(max_tokens=90)


async def test_requests_at_once_are_bounded_by_tenant(tmp_path: Path) -> None:
    release = anyio.Event()

    async def held() -> AsyncGenerator[bytes]:
        yield PIECES[0]
        await release.wait()
        yield b"data: [DONE]\n\n"

    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", held)
        secret, acme = Client(session, url, "secret-key"), Client(session, url, "acme-key")
        async with secret.post() as first:
            assert (await secret.refused())[:2] == (429, "rate_limit_exceeded")
            async with acme.post() as other:
                assert other.status == 200
                release.set()
                await other.read()
            await first.read()


async def test_a_private_cache_has_a_salt_that_nobody_can_guess(tmp_path: Path) -> None:
    bodies: list[dict[str, object]] = []

    def engine(request: Request) -> Answer:
        bodies.append(json.loads(request.body))
        return Answer(200, whole(), {"content-type": "text/event-stream"})

    async with served_world(tmp_path) as (ours, session, url):
        ours.http.origins["http://a"] = engine
        await Client(session, url, "secret-key").served(seed=5, prompt=list(range(20)))
        await Client(session, url, "acme-key").served(cache_salt="secret", prompt=list(range(20)))
        private, shared = bodies
        assert private["seed"] == 5
        assert private["cache_salt"] not in ("", "secret", shared["cache_salt"])
        mine, theirs = ours.routed
        assert mine.blocks != theirs.blocks


async def test_a_changed_file_is_taken_over_and_a_broken_one_is_not(tmp_path: Path) -> None:
    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", whole)
        path = tmp_path / "tenants.toml"
        path.write_text("[tenants.acme\n")
        newcomer = Client(session, url, "new-key")
        await Client(session, url, "acme-key").served()
        path.write_text(TENANTS + f'[tenants.newcomer]\nkeys = ["{key_hash("new-key")}"]\n')
        with anyio.fail_after(10):
            await newcomer.served_at_last()


def test_without_keys_only_loopback_is_served() -> None:
    def door(**settings: object) -> Admission:
        return Admission(GatewaySettings.model_validate(settings), b"k", lambda: 0.0)

    with pytest.raises(OpenToAll, match="tokenplane key"):
        door(host="0.0.0.0")
    for fine in (door(host="0.0.0.0", open=True), door(host="::1"), door(host="localhost")):
        assert fine.tenant("") is ANONYMOUS


async def test_who_shares_a_cache_is_not_told_what_of_it_was_hit(tmp_path: Path) -> None:
    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", whole)
        labels = {}
        for key in ("acme-key", "secret-key"):
            async with Client(session, url, key).post() as response:
                await response.read()
                labels[key] = "x-tokenplane-overlap-tokens" in response.headers
        assert labels == {"acme-key": False, "secret-key": True}
