"""Where a prompt of 100 tokens would go, by load alone: `python route.py MODEL [CLUSTER]`.

A router books the work for whoever asks it. Here nothing is sent, and the booking is forgotten
after a while without progress.
"""

from __future__ import annotations

import sys
import uuid

import anyio

from controlplane.client.cluster import Cluster
from proto.ids import RequestId
from proto.route import Chosen, RouteRequest


async def main(model: str, name: str) -> None:
    request = RouteRequest(RequestId(uuid.uuid4().hex), model, prompt_tokens=100, blocks={})
    async with Cluster.at(name) as cluster:
        reply = await cluster.route(request)
    if isinstance(reply, Chosen):
        print(f"{reply.worker} at {reply.url}, by policy {reply.policy}")
    else:
        print(f"nowhere: {reply.reason}, {reply.detail}")


anyio.run(main, sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "local")
