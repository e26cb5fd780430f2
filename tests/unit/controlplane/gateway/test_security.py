"""Claims of docs/security.md about the gateway's own port."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest

from controlplane.gateway.openai import ClientError
from controlplane.gateway.tenants import Tenant, Tenants, key_hash
from tests.support.gateway_world import whole
from tests.unit.controlplane.gateway.test_http import Client, served_world

INSIDE = ("/metrics", "/ready", "/v1/explain", "/explain", "/admin", "/debug", "/v1/decisions")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_the_port_of_clients_has_neither_metrics_nor_probes_of_parts(tmp_path: Path) -> None:
    async with served_world(tmp_path) as (_, session, url):
        for path in INSIDE:
            async with session.get(f"{url}{path}") as response:
                assert response.status in (401, 404), path


@pytest.mark.anyio
async def test_explanations_are_not_to_be_had_over_http(tmp_path: Path) -> None:
    """Not of other requests by any path, and not of one's own by a header."""
    async with served_world(tmp_path) as (ours, session, url):
        ours.engine("a", whole)
        async with Client(session, url, "acme-key").post() as response:
            await response.read()
            request, names = response.headers["x-request-id"], set(response.headers)
        assert not {name for name in map(str.lower, names) if "term" in name or "overlap" in name}
        acme = {"authorization": "Bearer acme-key"}
        for path in (f"/v1/explain/{request}", f"/v1/completions/{request}"):
            async with session.get(f"{url}{path}", headers=acme) as response:
                assert response.status in (404, 405)


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is looked up by its hash, and lets in only after `compare_digest` of hashes."""
    compare = hmac.compare_digest
    compared: list[tuple[str, str]] = []

    def watched(known: str, presented: str) -> bool:
        compared.append((known, presented))
        return compare(known, presented)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    known = Tenants({"acme": Tenant(name="acme", keys=(key_hash("right"),))})
    assert known.of("Bearer right").name == "acme"
    assert compared == [(key_hash("right"), key_hash("right"))]
    monkeypatch.setattr(hmac, "compare_digest", lambda *_: False)
    with pytest.raises(ClientError):
        known.of("Bearer right")
