"""The disk that NATS, etcd and every log write to fills up, and is freed again.

Needs the right to mount a small file system, which a container or a user may not have.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from proto.wire.http import HttpClient
from tests.chaos.load import Load, Verdict, questions
from tests.support.up import UpCluster, up

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

DISK_MIB = 192
"""etcd alone sets 64 MiB aside for its log."""
FULL_S = 10.0
CALM_STREAMS = 40
PROMPTS = [f"Letter {n}. " + "The disk is full of tokens. " * 12 for n in range(8)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of `DISK_MIB`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    how = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tokenplane-test", str(disk)]
    mounted = subprocess.run(how, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take what is left; returns the file that has it."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        free = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    return filler


def test_a_full_disk_costs_no_wrong_token_and_heals_when_it_is_freed(small_disk: Path) -> None:
    with up(small_disk, "--engines", "2", "--speed", "4") as cluster:
        anyio.run(_play, cluster, small_disk)


async def _play(cluster: UpCluster, disk: Path) -> None:
    async with HttpClient() as http:
        load = Load(http, cluster.url, cluster.model, [], random.Random(0))
        load.questions = await questions(load, PROMPTS)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.run)
            filler = fill(disk)
            cluster.kill("agent-1")  # whose new life must be written down somewhere
            await anyio.sleep(FULL_S)
            during = load.count()
            filler.unlink()
            await anyio.to_thread.run_sync(cluster.wait_ready)
            whole = load.count()[Verdict.WHOLE]
            with anyio.fail_after(60):
                while load.count()[Verdict.WHOLE] < whole + CALM_STREAMS:
                    await load.next_end()
            # What must be stored can be: a part that dies registers anew.
            before = cluster.restarts("agent-0")
            await anyio.to_thread.run_sync(cluster.kill, "agent-0")
            again = partial(
                cluster.wait_until, lambda: cluster.restarts("agent-0") > before, "a new agent"
            )
            await anyio.to_thread.run_sync(again)
            await anyio.to_thread.run_sync(cluster.wait_ready)
            tasks.cancel_scope.cancel()
    bad = [e.detail for e in load.ended if e.verdict not in (Verdict.WHOLE, Verdict.REFUSED)]
    assert bad == []
    assert during[Verdict.WHOLE] > 0
