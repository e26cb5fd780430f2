"""What is wrong with a fleet, from what etcd holds and what was heard on the bus. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from controlplane.doctor.findings import Finding, find
from proto.ids import WorkerId
from proto.scaling import Desired, Scaled
from proto.workers import ModelCard, WorkerRecord, WorkerState

ROUTER, REGISTRY = "tokenplane-router", "tokenplane-registry"
SERVICES = (ROUTER, REGISTRY)
SKEW_S, PATIENCE_S = 1.0, 30.0


class Fleet(NamedTuple):
    """What is known of it at one moment."""

    workers: Mapping[WorkerId, WorkerRecord]
    models: Mapping[str, ModelCard]
    heard: Mapping[WorkerId, float]
    """Workers whose load reports came: by how many seconds their clock is behind ours."""
    services: frozenset[str]
    """Names of those that answer on the bus."""
    version: str
    """Our own."""
    secret_mark: str
    """Of our own secret."""
    desired: tuple[Desired, ...] = ()
    scaled: tuple[Scaled, ...] = ()
    now_s: float = 0.0


def examine(fleet: Fleet) -> Iterator[Finding]:
    """Everything that is wrong with it."""
    yield from _models(fleet)
    yield from _workers(fleet)
    yield from _voices(fleet)
    yield from _agreement(fleet)
    yield from _scaling(fleet)


def _models(fleet: Fleet) -> Iterator[Finding]:
    for name, card in sorted(fleet.models.items()):
        serving = [w for w in fleet.workers.values() if w.model == name]
        if not any(w.state is WorkerState.READY for w in serving):
            states = ", ".join(f"{w.worker} is {w.state}" for w in serving) or "none is registered"
            yield find("no-worker", f"model {name}: no worker is ready ({states})")
        path = card.tokenizer_path
        if card.tokenizer_json is None and not (path and Path(path).is_file()):
            where = f"; {path} is not to be read here" if path else ""
            yield find("tokenizer-missing", f"model {name} has no tokenizer{where}")
        sizes = _by(serving, lambda w: str(w.block_tokens))
        if len(sizes) > 1:
            told = "; ".join(f"{size} tokens: {names}" for size, names in sorted(sizes.items()))
            yield find("block-size", f"model {name} has blocks of different sizes: {told}")


def _workers(fleet: Fleet) -> Iterator[Finding]:
    for worker in sorted(fleet.workers.values(), key=lambda w: w.worker):
        if worker.state is WorkerState.UNHEALTHY:
            yield find("worker-unhealthy", f"{worker.worker} ({worker.url}) is unhealthy")
        if not worker.kv_events:
            yield find("no-kv-events", f"{worker.worker} publishes no KV events")
    for url, names in _by(list(fleet.workers.values()), lambda w: w.url).items():
        if "," in names:
            yield find("two-agents", f"{names} are all registered with the engine at {url}")


def _voices(fleet: Fleet) -> Iterator[Finding]:
    ready = {w.worker for w in fleet.workers.values() if w.state is WorkerState.READY}
    for name in sorted(ready - fleet.heard.keys()):
        yield find("silent-worker", f"{name} is registered, and its load reports do not come")
    for name in sorted(fleet.heard.keys() - fleet.workers.keys()):
        yield find("unregistered-worker", f"{name} reports its load and is not in the registry")
    for name, behind_s in sorted(fleet.heard.items()):
        if abs(behind_s) > SKEW_S:
            how = "behind" if behind_s > 0 else "ahead"
            yield find("clock-skew", f"the clock of {name} is {abs(behind_s):.1f} s {how} of ours")


def _agreement(fleet: Fleet) -> Iterator[Finding]:
    if ROUTER not in fleet.services:
        yield find("no-router", "no router answers on the bus")
    if REGISTRY not in fleet.services:
        yield find("no-registry", "no registry answers on the bus")
    marked = [w for w in fleet.workers.values() if w.secret_mark]
    others = sorted(w.worker for w in marked if w.secret_mark != fleet.secret_mark)
    if others:
        yield find("secret-mismatch", f"{', '.join(others)}: another cluster secret than ours")
    versions = _by(list(fleet.workers.values()), lambda w: w.agent_version)
    for version, names in sorted(versions.items()):
        if version and version != fleet.version:
            what = f"the agents of {names} are {version}, and we are {fleet.version}"
            yield find("version-mismatch", what)


def _scaling(fleet: Fleet) -> Iterator[Finding]:
    answers = {(each.model, each.role, each.hardware): each for each in fleet.scaled}
    for word in fleet.desired:
        pool = f"{word.role} workers of {word.model} on {word.hardware}"
        answer = answers.get((word.model, word.role, word.hardware))
        if answer is None or answer.decision != word.decision:
            if fleet.now_s - word.decided_s < PATIENCE_S:
                continue  # its scaler may not have heard yet
            yield find("no-scaler", f"{word.replicas} {pool} are wanted, and nobody sees to it")
        elif answer.trouble:
            yield find("scaler-trouble", f"{pool}: {answer.trouble}")


def _by(workers: list[WorkerRecord], key: Callable[[WorkerRecord], str]) -> dict[str, str]:
    """Names of workers, by what they have in common."""
    found: dict[str, list[str]] = defaultdict(list)
    for worker in workers:
        found[key(worker)].append(worker.worker)
    return {value: ", ".join(sorted(names)) for value, names in found.items()}
