"""Our side of the gateway's benchmark: engines, agents that do not exist, a router, gateways.

The rig's cluster has a router. Gateways of other clusters, which know the same engines, have one
each of their own; that they are other clusters keeps them from hearing, and paying for, each other.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np

from bench import agents
from bench.gateway_peers import Side
from bench.rig import CLUSTER, Rig
from bench.stream_engine import MODEL
from controlplane.local.ports import LOOPBACK, free_ports
from proto.subjects import Keys, Subjects
from proto.workers import ModelCard
from workers.sim.tokens import write_model

ENGINES = 2
STEP_MS = 20
CONTEXT_TOKENS = 131_072
TOKEN_S = 25e-6


@asynccontextmanager
async def engines_running(
    rig: Rig, model: Path, *others: str
) -> AsyncIterator[tuple[Sequence[str], Side]]:
    """URLs of engines that are registered in the rig's cluster and `others`, and the first of them
    to be asked directly. The model's tokenizer is written to the folder."""
    write_model(model)
    ports = free_ports(ENGINES)
    urls = [f"http://{LOOPBACK}:{port}" for port in ports]
    for number, port in enumerate(ports):
        words = (sys.executable, "-m", "bench.stream_engine", "--step-ms", str(STEP_MS))
        ready = f"{urls[number]}/health"
        await rig.start(f"engine-{number}", (*words, "--port", str(port)), ready, {})
    async with AsyncExitStack() as stack:
        for cluster in (CLUSTER, *others):
            await stack.enter_async_context(_known(rig, _card(model), urls, cluster))
        await rig.start_router()
        yield urls, Side(ports[0], ("engine-0",))


@asynccontextmanager
async def _known(
    rig: Rig, card: ModelCard, urls: Sequence[str], cluster: str
) -> AsyncIterator[None]:
    """The engines are registered in a cluster, and report there."""
    keys, bus, store = Keys(cluster), rig.carriers.bus, rig.carriers.store
    await store.put(keys.model(MODEL), card.model_dump_json().encode())
    fleet = [agents.Agent(n, Subjects(cluster), time.time) for n in range(ENGINES)]
    for agent, url in zip(fleet, urls, strict=True):
        agent.record = agent.record.model_copy(update={"url": url})
    async with (
        agents.serving(fleet, bus, store, keys),
        agents.reporting(fleet, bus, TOKEN_S, np.random.default_rng(0)),
    ):
        yield


async def gateway_running(rig: Rig, *, processes: int, cluster: str = CLUSTER) -> Side:
    """So many gateway processes behind one port."""
    port, *admins = free_ports(1 + processes)
    names = tuple(f"{cluster}-gateway-{processes}-{number}" for number in range(processes))
    for name, admin in zip(names, admins, strict=True):
        environment = {
            "TOKENPLANE_CLUSTER": cluster,
            "TOKENPLANE_NATS__SERVERS": json.dumps(rig.settings.nats.servers),
            "TOKENPLANE_ETCD__ENDPOINTS": json.dumps(rig.settings.etcd.endpoints),
            "TOKENPLANE_ADMIN__PORT": str(admin),
            "TOKENPLANE_GATEWAY__PORT": str(port),
            "TOKENPLANE_GATEWAY__SHARED": json.dumps(processes > 1),
            "TOKENPLANE_GATEWAY__OWN_ROUTER": json.dumps(cluster != CLUSTER),
            "TOKENPLANE_TELEMETRY__LOG_LEVEL": "warning",
        }
        argv = (sys.executable, "-m", "controlplane.cli.main", "gateway")
        await rig.start(name, argv, f"http://{LOOPBACK}:{admin}/ready", environment)
    return Side(port, names, metrics=f"http://{LOOPBACK}:{admins[0]}/metrics")


def _card(model: Path) -> ModelCard:
    config = json.loads((model / "tokenizer_config.json").read_text())
    return ModelCard(
        name=MODEL,
        context_tokens=CONTEXT_TOKENS,
        tokenizer_json=(model / "tokenizer.json").read_text(),
        chat_template=config["chat_template"],
    )
