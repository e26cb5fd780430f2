"""Everything that the doctor can find. docs/troubleshooting.md has one section for each. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec


class Level(StrEnum):
    """`ERROR`: something does not work. `WARNING`: it works, and not as well as it could."""

    ERROR = "error"
    WARNING = "warning"


class Ailment(NamedTuple):
    """One kind of trouble: how bad, and what helps."""

    level: Level
    fix: str


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong; `what` names the server, worker or setting."""

    code: str
    level: Level
    what: str
    fix: str


def find(code: str, what: str) -> Finding:
    """A finding by its code in `AILMENTS`."""
    ailment = AILMENTS[code]
    return Finding(code, ailment.level, what, ailment.fix)


_ERROR, _WARNING = Level.ERROR, Level.WARNING

AILMENTS = {
    "nats-unreachable": Ailment(
        _ERROR,
        "start NATS (`nats-server --jetstream`), or correct nats.servers; a firewall or network "
        "policy may be in between",
    ),
    "nats-not-nats": Ailment(
        _ERROR, "correct the port in nats.servers: 4222 is NATS, 8222 only its monitoring"
    ),
    "nats-tls": Ailment(
        _ERROR,
        "set nats.ca to the authority that signed the server (and nats.cert and nats.key where it "
        "asks for ours), or leave all three empty for a server without TLS",
    ),
    "nats-credentials": Ailment(
        _ERROR,
        "correct nats.user and nats.password (or nats.token, nats.credentials); `tokenplane "
        "access nats` prints the users that a server should know",
    ),
    "nats-rights": Ailment(
        _ERROR,
        "visit as `operator`; where that is who we are, give the server what `tokenplane access "
        "nats` prints",
    ),
    "jetstream-off": Ailment(
        _ERROR, "start NATS with `--jetstream` and a --store_dir, or a jetstream block"
    ),
    "jetstream-full": Ailment(
        _WARNING, "raise max_file_store of NATS, or remove streams that nobody reads"
    ),
    "etcd-unreachable": Ailment(
        _ERROR, "start etcd, or correct etcd.endpoints (host:port, without a scheme)"
    ),
    "etcd-tls": Ailment(
        _ERROR,
        "set etcd.ca to the authority that signed the server (and etcd.cert and etcd.key where it "
        "asks for ours), or leave all three empty for a server without TLS",
    ),
    "etcd-credentials": Ailment(
        _ERROR,
        "correct etcd.user and etcd.password; `tokenplane access etcd` puts the users in place",
    ),
    "etcd-rights": Ailment(
        _ERROR, "`tokenplane access etcd --cluster NAME` grants each user what it needs"
    ),
    "etcd-full": Ailment(
        _ERROR,
        "compact and defragment etcd, raise --quota-backend-bytes, then `etcdctl alarm disarm`",
    ),
    "wrong-cluster": Ailment(
        _ERROR, "set cluster (TOKENPLANE_CLUSTER) to the same name in every process"
    ),
    "no-router": Ailment(
        _ERROR,
        "start `tokenplane router`; until then gateways choose by load alone and find no cache",
    ),
    "no-registry": Ailment(
        _WARNING, "start `tokenplane registry`; only commands that list workers need it"
    ),
    "registry-stale": Ailment(
        _WARNING, "see why the registry cannot reach etcd: its log, and its etcd settings"
    ),
    "no-worker": Ailment(
        _ERROR, "start an engine and its agent for the model, or wait until they are ready"
    ),
    "worker-unhealthy": Ailment(
        _ERROR, "look at the engine's and the agent's log; `/ready` of the agent says more"
    ),
    "no-scaler": Ailment(
        _WARNING,
        "start a scaler, or scale by hand to what the planner says; where that is all it is for, "
        "set planner.advisory",
    ),
    "scaler-trouble": Ailment(
        _ERROR, "see the scaler's log; it lacks room, rights, or whom it asks does not answer"
    ),
    "silent-worker": Ailment(
        _ERROR,
        "its agent reaches etcd and not NATS (or another one): compare nats.servers and cluster, "
        "and what its NATS user may publish",
    ),
    "unregistered-worker": Ailment(
        _ERROR,
        "its agent reaches NATS and not etcd (or another one): compare etcd.endpoints and cluster",
    ),
    "no-kv-events": Ailment(
        _WARNING,
        "start the engine with KV events and set agent.events and agent.replay; routers can only "
        "guess what it caches",
    ),
    "block-size": Ailment(
        _ERROR, "start all engines of a model with one --block-size; prefixes cannot be compared"
    ),
    "two-agents": Ailment(
        _WARNING, "stop one of them, unless they stand for data-parallel ranks of one engine"
    ),
    "clock-skew": Ailment(
        _WARNING, "run NTP (chrony) on both machines; deadlines are in wall time"
    ),
    "secret-mismatch": Ailment(
        _ERROR,
        "give TOKENPLANE_SECRET (or _FILE) the same value in all gateways and agents; with "
        "different ones nothing is ever found in a cache",
    ),
    "version-mismatch": Ailment(
        _WARNING, "roll all processes to one version; mixed ones work, and miss what is new"
    ),
    "tokenizer-missing": Ailment(
        _ERROR,
        "set agent.model_directory to where tokenizer.json lies, on a path that gateways can read "
        "too; without it the model is routed by load alone",
    ),
    "gateway-open": Ailment(
        _WARNING, "make keys (`tokenplane key TENANT`) and set gateway.tenants"
    ),
    "development-secret": Ailment(
        _WARNING, "set TOKENPLANE_SECRET or TOKENPLANE_SECRET_FILE, the same in every process"
    ),
    "port-taken": Ailment(
        _ERROR, "stop what listens there, or choose another gateway.port or admin.port"
    ),
    "disk-low": Ailment(
        _WARNING, "free some space: NATS and etcd stop taking writes when their disk is full"
    ),
    "collector-unreachable": Ailment(
        _WARNING, "start the collector, correct telemetry.otlp_endpoint, or leave it empty"
    ),
}
