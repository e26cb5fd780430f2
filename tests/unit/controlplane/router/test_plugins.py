"""What users add: found where it is installed, refused where it is broken, never in the way."""

from __future__ import annotations

import random
import re
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from controlplane.cli.main import main
from controlplane.router.core import RouterCore
from controlplane.router.plugins import PluginBroken, discover, installed
from controlplane.router.policies.base import Candidates, Floats, Policy, Prompt, State, Weighed
from controlplane.router.policies.catalog import POLICIES, Catalog, Faults
from controlplane.router.policies.guarded import guarded_filter, guarded_policy
from controlplane.router.settings import RouterSettings
from proto.ids import WorkerId
from proto.route import NO_WORKER, Rejected, RouteRequest
from proto.workers import WorkerRecord
from tests.support.router_core import ask, chosen, record

EXAMPLE = Path(__file__).parents[4] / "examples" / "custom_policy"

Install = Callable[..., None]


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Install:
    """Puts a distribution on the path, as an installer would: its metadata, and its module."""
    monkeypatch.syspath_prepend(tmp_path)
    request.addfinalizer(installed.cache_clear)

    def put(name: str, entry_points: dict[str, dict[str, str]], module: str = "") -> None:
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        (metadata / "METADATA").write_text(head)
        groups = [
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
            for group, points in entry_points.items()
        ]
        (metadata / "entry_points.txt").write_text("\n".join(groups))
        if module:
            (tmp_path / f"{name}.py").write_text(module)
            monkeypatch.delitem(sys.modules, name, raising=False)
        assert version(name) == "1.0"

    return put


def core_with(catalog: Catalog, *records: WorkerRecord) -> RouterCore:
    core = RouterCore(RouterSettings(), "r", random.Random(0), catalog)
    for each in records or (record("a"), record("b")):
        core.worker_joined(each)
    return core


def test_the_example_is_found_and_decides(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    monkeypatch.syspath_prepend(EXAMPLE)
    install("custom_policy", project["entry-points"])
    catalog = discover()
    assert set(catalog.policies) == {*POLICIES, "emptiest"}
    kept_off = record("kept-off", hardware={"topology": {"batch": "no"}}, total_blocks=9_000)
    core = core_with(catalog, record("small", total_blocks=100), record("large"), kept_off)
    assert chosen(ask(core, "1", policy="emptiest")).worker == "kept-off"
    reply = chosen(ask(core, "2", policy="emptiest", slo_class="batch", explain=True))
    assert (reply.worker, reply.policy) == ("large", "emptiest")
    assert [(t.worker, t.excluded) for t in reply.terms if t.excluded] == [("kept-off", "no_batch")]
    assert reply.terms[0].values == {"new_tokens": 320.0}
    assert not catalog.faults.counts


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("raise RuntimeError('boom')", "cannot be loaded: RuntimeError: boom"),
        ("import not_there_at_all", "cannot be loaded: ModuleNotFoundError"),
        ("other = 1", "cannot be loaded: AttributeError"),
        ("broken = 1", "is no function"),
        ("def broken(prompt): ...", "cannot be called with prompt, candidates, state"),
    ],
)
def test_a_broken_one_is_refused_by_the_name_of_its_distribution(
    install: Install, module: str, says: str
) -> None:
    install("faulty", {"tokenplane.policies": {"mine": "faulty:broken"}}, module)
    with pytest.raises(PluginBroken, match=f"'mine' of faulty 1.0 .*{says}"):
        discover()


def test_a_process_that_is_to_use_a_broken_one_does_not_start(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("faulty", {"tokenplane.policies": {"mine": "faulty:broken"}}, "")
    installed.cache_clear()
    assert main(["router", "--router.policy", "mine"]) == 2
    assert "plug-in 'mine' of faulty 1.0" in capsys.readouterr().err


def test_a_filter_is_called_with_two(install: Install) -> None:
    install("faulty", {"tokenplane.filters": {"mine": "faulty:f"}}, "def f(a, b, c): ...")
    with pytest.raises(PluginBroken, match="cannot be called with request, record"):
        discover()


def test_nobody_takes_the_name_of_another(install: Install) -> None:
    weigh = "def weigh(prompt, candidates, state): ..."
    install("one", {"tokenplane.policies": {"mine": "one:weigh"}}, weigh)
    discover()
    install("two", {"tokenplane.policies": {"mine": "two:weigh"}}, weigh)
    with pytest.raises(PluginBroken, match="same name as one of"):
        discover()


def test_ours_are_not_replaced(install: Install) -> None:
    install("one", {"tokenplane.policies": {"kv": "one:weigh"}}, "def weigh(a, b, c): ...")
    with pytest.raises(PluginBroken, match=r"'kv' of one 1\.0 .* would replace our own"):
        discover()


def raises(prompt: Prompt, candidates: Candidates, state: State) -> Floats:
    raise ZeroDivisionError("by nothing")


def writes(prompt: Prompt, candidates: Candidates, state: State) -> Floats:
    candidates.requests[:] = 0
    return candidates.requests.astype(np.float64)


def costs_of(*costs: float, **values: Floats) -> Policy:
    return lambda prompt, candidates, state: Weighed(np.array(costs), values)


BAD: dict[str, tuple[Policy, str]] = {
    "raises": (raises, "ZeroDivisionError: by nothing"),
    "writes": (writes, "read-only"),
    "too few": (costs_of(1.0), r"\(1,\) numbers for 2 candidates"),
    "a table": (costs_of(*np.ones((2, 2))), r"\(2, 2\) numbers"),
    "not a number": (costs_of(1.0, np.nan), "costs must be numbers"),
    "all infinite": (costs_of(np.inf, np.inf), "one of them finite"),
    "less than all": (costs_of(1.0, -np.inf), "costs must be numbers"),
    "a short column": (costs_of(1.0, 2.0, harm_ms=np.ones(1)), r"\(1,\) numbers"),
    "text": (cast(Policy, lambda *_: "ab"), "ValueError"),
    "nothing": (cast(Policy, lambda *_: None), "numbers for 2 candidates"),
}


@pytest.mark.parametrize("name", BAD)
def test_where_a_policy_fails_kv_decides_and_it_is_counted(name: str) -> None:
    weigh, why = BAD[name]
    catalog = Catalog({**POLICIES, "mine": guarded_policy(weigh)})
    core = core_with(catalog)
    replies = [chosen(ask(core, str(i), policy="mine", explain=True)) for i in range(3)]
    assert [reply.policy for reply in replies] == ["kv"] * 3
    assert all(term.requests for term in replies[2].terms), "what is known was changed"
    assert catalog.faults.counts == {"mine": 3}
    [(told, said)] = catalog.faults.take_untold().items()
    assert told == "mine"
    assert re.search(why, said)
    assert not catalog.faults.take_untold()


def test_plain_costs_and_integers_will_do() -> None:
    catalog = Catalog({**POLICIES, "mine": guarded_policy(cast(Policy, lambda *_: [2, 1]))})
    assert chosen(ask(core_with(catalog), policy="mine")).worker == "b"
    assert not catalog.faults.counts


@pytest.mark.parametrize("gives", [None, 1, ZeroDivisionError()])
def test_where_a_filter_fails_nobody_gets_through(gives: object) -> None:
    def fails(request: RouteRequest, each: WorkerRecord) -> str:
        if each.worker == "b":
            return ""
        if isinstance(gives, Exception):
            raise gives
        return cast(str, gives)

    faults = Faults()
    catalog = Catalog(filters={"mine": guarded_filter("mine", fails, faults.note)}, faults=faults)
    core = core_with(catalog)
    reply = chosen(ask(core, explain=True))
    assert [(t.worker, t.excluded) for t in reply.terms if t.excluded] == [("a", "mine_failed")]
    assert isinstance(nobody := ask(core, "2", exclude=(WorkerId("b"),)), Rejected)
    assert nobody.reason == NO_WORKER
    assert faults.counts == {"mine": 2}
