"""Who is there, and in which state: `python workers.py [CLUSTER]`."""

from __future__ import annotations

import sys

import anyio

from controlplane.client.cluster import Cluster


async def main(name: str) -> None:
    async with Cluster.at(name) as cluster:
        for worker in await cluster.workers():
            print(f"{worker.worker}: {worker.model} on {worker.engine}, {worker.state}")


anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else "local")
