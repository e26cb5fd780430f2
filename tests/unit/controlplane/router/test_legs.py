"""Each of both workers of a request is judged by its own part (DG8)."""

from __future__ import annotations

import pytest

from controlplane.router.core import RouterCore
from proto.route import RouteLeg
from proto.workers import Role
from tests.support.router_core import ask, chosen, record, report, router


def split() -> RouterCore:
    core = router("d0", "d1")
    for worker in ("p0", "p1"):
        core.worker_joined(record(worker, role=Role.PREFILL))
    return core


@pytest.mark.parametrize("policy", ["kv", "slo", "least_loaded"])
def test_only_who_prefills_gets_a_prefill_leg(policy: str) -> None:
    core = split()
    names = {chosen(ask(core, policy=policy, leg=RouteLeg.PREFILL)).worker for _ in range(8)}
    assert names <= {"p0", "p1"}
    names = {chosen(ask(core, policy=policy, leg=RouteLeg.DECODE)).worker for _ in range(8)}
    assert names <= {"d0", "d1"}


def test_decoding_does_not_matter_to_who_prefills() -> None:
    core = split()
    core.observe_load(report("p0", decode_kv_tokens=60_000), 0.0)
    core.observe_load(report("p1", queued_prefill_tokens=5_000), 0.0)
    reply = chosen(ask(core, policy="kv", leg=RouteLeg.PREFILL))
    assert reply.worker == "p0"


def test_prefill_does_not_matter_to_who_decodes() -> None:
    core = split()
    core.observe_load(report("d0", decode_kv_tokens=60_000), 0.0)
    core.observe_load(report("d1", queued_prefill_tokens=50_000), 0.0)
    reply = chosen(ask(core, policy="kv", leg=RouteLeg.DECODE))
    assert reply.worker == "d1"
