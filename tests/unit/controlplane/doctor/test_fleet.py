"""What the doctor finds of a fleet, from records and from what was heard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controlplane.doctor.findings import AILMENTS, Finding
from controlplane.doctor.fleet import REGISTRY, ROUTER, Fleet, examine
from proto.ids import WorkerId
from proto.scaling import Desired, Reason, Scaled
from proto.workers import Role, WorkerRecord, WorkerState
from tests.unit.controlplane.registry.records import card, worker

WITHOUT_WORKER = {"no-worker", "tokenizer-missing", "no-scaler", "scaler-trouble"}
MARK = "00aa00aa"
CARD = card("sim").model_copy(update={"tokenizer_json": "{}"})


def _worker(name: str = "a", **changes: object) -> WorkerRecord:
    plain = {"url": f"http://{name}:8000", "agent_version": "1", "secret_mark": MARK}
    return worker(name).model_copy(update=plain | changes)


def _desired() -> Desired:
    return Desired(
        model="sim",
        role=Role.AGGREGATED,
        hardware="h100",
        replicas=2,
        decision="d1",
        reason=next(iter(Reason)),
        decided_s=0.0,
        planner="p",
    )


def _scaled(decision: str, trouble: str = "") -> Scaled:
    return Scaled(
        model="sim",
        role=Role.AGGREGATED,
        hardware="h100",
        decision=decision,
        replicas=2,
        trouble=trouble,
    )


def _examine(*workers: WorkerRecord, **changes: Any) -> dict[str, Finding]:
    healthy = Fleet(
        workers={each.worker: each for each in workers},
        models={"sim": CARD},
        heard={each.worker: 0.0 for each in workers},
        services=frozenset({ROUTER, REGISTRY}),
        version="1",
        secret_mark=MARK,
        now_s=100.0,
    )
    return {each.code: each for each in examine(healthy._replace(**changes))}


def test_a_healthy_fleet_has_nothing() -> None:
    assert _examine(_worker("a"), _worker("b")) == {}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("no-router", _examine(_worker(), services=frozenset({REGISTRY}))),
        ("no-registry", _examine(_worker(), services=frozenset({ROUTER}))),
        ("no-worker", _examine()),
        ("no-worker", _examine(_worker(state=WorkerState.DRAINING))),
        ("worker-unhealthy", _examine(_worker("b"), _worker("a", state=WorkerState.UNHEALTHY))),
        ("silent-worker", _examine(_worker("b"), _worker("a"), heard={WorkerId("b"): 0.0})),
        ("unregistered-worker", _examine(_worker("b"), heard={"a": 0.0, "b": 0.0})),
        ("no-kv-events", _examine(_worker("a", kv_events=False))),
        ("block-size", _examine(_worker("a", block_tokens=32), _worker("b"))),
        ("two-agents", _examine(_worker("a", url="http://x"), _worker("b", url="http://x"))),
        ("clock-skew", _examine(_worker("a"), heard={WorkerId("a"): 2.5})),
        ("clock-skew", _examine(_worker("a"), heard={WorkerId("a"): -2.5})),
        ("secret-mismatch", _examine(_worker("a", secret_mark="ffffffff"))),
        ("version-mismatch", _examine(_worker("a", agent_version="0.9"))),
        ("no-scaler", _examine(_worker("a"), desired=(_desired(),))),
        ("no-scaler", _examine(_worker("a"), desired=(_desired(),), scaled=(_scaled("old"),))),
        (
            "scaler-trouble",
            _examine(_worker("a"), desired=(_desired(),), scaled=(_scaled("d1", "no room"),)),
        ),
        ("tokenizer-missing", _examine(_worker("a"), models={"sim": card("sim")})),
    ],
)
def test_trouble_is_found_alone_and_names_the_worker(code: str, found: dict[str, Finding]) -> None:
    assert set(found) == {code}
    assert found[code].fix == AILMENTS[code].fix
    if not code.startswith("no-r") and code not in WITHOUT_WORKER:
        assert "a" in found[code].what.replace(":", " ").replace(",", " ").split()


def test_a_scaler_is_given_a_moment() -> None:
    assert _examine(_worker("a"), desired=(_desired(),), now_s=10.0) == {}


def test_a_scaler_that_does_what_is_wanted() -> None:
    assert _examine(_worker("a"), desired=(_desired(),), scaled=(_scaled("d1"),)) == {}


def test_a_tokenizer_that_lies_elsewhere(tmp_path: Path) -> None:
    there = tmp_path / "tokenizer.json"
    models = {"sim": card("sim").model_copy(update={"tokenizer_path": str(there)})}
    assert str(there) in _examine(_worker(), models=models)["tokenizer-missing"].what
    there.write_text("{}")
    assert _examine(_worker(), models=models) == {}


def test_workers_of_older_agents_are_not_blamed() -> None:
    assert _examine(_worker(secret_mark="", agent_version="")) == {}
