"""A live cluster on which everything that a dashboard shows happens once, and who watches it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import anyio
import nats
import psutil

from controlplane.local.ports import free_ports
from handbook.pages import OBSERVABILITY, ROOT
from proto.subjects import Subjects
from tests.support.up import UpCluster, up

OPTIONS = ("--roles", "2P3D", "--planner", "--profile", "h100", "--speed", "0.5", "--policy", "slo")
READY_S = 240.0
USERS = 10
IMPATIENT_S = 0.15
"""After which one user in ten goes away, in the middle of a prefill if there is much to compute."""
BREATH_S = 12.0
"""Between one thing that happens and the next: some scrapes."""
ADMIN = "TOKENPLANE_ADMIN__PORT"
BEGINNINGS = [f"Chapter {n}. " + "A token, a block, a place to put it. " * 150 for n in range(12)]


@contextmanager
def watched(program: str, targets: Path, home: Path) -> Iterator[str]:
    """A Prometheus with the provisioned alerts; gives its URL. Scrapes what `targets` lists."""
    (port,) = free_ports(1)
    configuration = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(ROOT / OBSERVABILITY / "prometheus" / "alerts.yml")],
        "scrape_configs": [
            {
                "job_name": "tokenplane",
                "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "2s"}],
            }
        ],
    }
    file = home / "prometheus.json"
    file.write_text(json.dumps(configuration))  # JSON is YAML
    url = f"127.0.0.1:{port}"
    argv = [program, f"--config.file={file}", f"--storage.tsdb.path={home / 'tsdb'}"]
    with (home / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*argv, f"--web.listen-address={url}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield f"http://{url}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def list_targets(cluster: UpCluster, file: Path) -> None:
    """Write down where every process that runs now tells its metrics."""
    family = psutil.Process(cluster.process.pid).children(recursive=True)
    ports = sorted({port for process in family if (port := _admin_port(process))})
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}" for port in ports]}]))
    fresh.replace(file)


def _admin_port(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(ADMIN)
    except psutil.Error:
        return None


@contextmanager
def played(home: Path, targets: Path) -> Iterator[UpCluster]:
    """A cluster that has had its day: load, a bad hour for every part, and a planner's decision."""
    with up(home, *OPTIONS, ready_s=READY_S) as cluster, ThreadPoolExecutor(USERS) as pool:
        list_targets(cluster, targets)
        over = Event()
        try:
            for number in range(USERS):
                pool.submit(_use, cluster.url, cluster.model, random.Random(number), over)
            _happen(cluster, targets)
            yield cluster
        finally:
            over.set()


def _happen(cluster: UpCluster, targets: Path) -> None:
    # The planner asks for one more, and takes nobody away whom we want to see die.
    cluster.tokenplane("config", "set", "planner.least", "3", "--cluster", "test")
    time.sleep(3 * BREATH_S)
    for part in ("engine-3", "engine-0", "agent-1", "router-0", "etcd"):
        cluster.kill(part)
        cluster.wait_ready(READY_S)
        list_targets(cluster, targets)
        time.sleep(BREATH_S)
    anyio.run(_mumble, str(cluster.state["nats"]))
    time.sleep(2 * BREATH_S)


async def _mumble(server: str) -> None:
    """Say what nobody understands."""
    client = await nats.connect(server)
    await client.publish(Subjects("test").every_kv.replace("*", "engine-0"), b"mumble")
    await client.drain()


def _use(url: str, model: str, rng: random.Random, over: Event) -> None:
    while not over.is_set():
        prompt = rng.choice(BEGINNINGS) + f"And number {rng.randrange(10_000)}?"
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": rng.randrange(20, 160),
            "stream": rng.random() < 0.8,
        }
        request = urllib.request.Request(
            f"{url}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        patience_s = IMPATIENT_S if rng.random() < 0.1 else 60.0
        try:
            with urllib.request.urlopen(request, timeout=patience_s) as answer:
                answer.read()
        except (urllib.error.URLError, OSError):
            over.wait(1.0)
        over.wait(rng.expovariate(2.0))
