"""A live setting, changed in every router and given back: `python config.py [CLUSTER]`."""

from __future__ import annotations

import sys

import anyio

from controlplane.client.cluster import Cluster
from controlplane.runtime.live import BadSetting


async def main(name: str) -> None:
    async with Cluster.at(name) as cluster:
        await cluster.config.set("router.prefill_weight", 4)
        for told in await cluster.config.told():
            if weight := told.values.get("router.prefill_weight"):
                print(f"{told.service} weighs prefill {weight}")
        try:
            await cluster.config.set("router.prefill_weight", -1)
        except BadSetting as error:
            print(f"refused: {error}")
        await cluster.config.unset("router.prefill_weight")


anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else "local")
