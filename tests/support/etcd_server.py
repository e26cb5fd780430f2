"""A real etcd of one's own: started, killed, frozen, and started again on the same data."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from controlplane.local.ports import free_ports

BINARY = Path(sys.executable).with_name("etcd")
CONTROL = Path(sys.executable).with_name("etcdctl")
READY_S, POLL_S = 20.0, 0.01


class EtcdServer:
    """One member; alone, or one of the `peers` of a cluster (name to peer port)."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "m0",
        peers: dict[str, int] | None = None,
        scheme: str = "http",
        options: Sequence[str] = (),
    ) -> None:
        self.port, peer_port = free_ports(2)
        peers = peers or {name: peer_port}
        client = f"{scheme}://127.0.0.1:{self.port}"
        peer = f"http://127.0.0.1:{peers[name]}"
        cluster = ",".join(f"{n}=http://127.0.0.1:{p}" for n, p in peers.items())
        self._argv = [
            str(BINARY),
            *("--name", name, "--data-dir", str(directory / name), "--log-level", "error"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", cluster, "--unsafe-no-fsync", *options),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns at once; `wait` until it listens."""
        self._process = subprocess.Popen(self._argv, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(POLL_S)
        raise AssertionError("etcd did not start")

    def kill(self) -> None:
        """`kill -9`."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()
        self.wait()

    def freeze(self) -> None:
        """It keeps its connections and says nothing any more, from when this returns."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "etcd ended instead"

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def control(self, *words: str) -> str:
        """Run etcdctl against it."""
        argv = [str(CONTROL), "--endpoints", self.endpoint, *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout


@contextmanager
def etcd_server(directory: Path, **how: str | Sequence[str]) -> Iterator[EtcdServer]:
    """One member that listens while the context is open."""
    server = EtcdServer(directory, **how)  # type: ignore[arg-type]
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@contextmanager
def etcd_cluster(directory: Path, members: int = 3) -> Iterator[list[EtcdServer]]:
    """A cluster, all of whose members listen."""
    peers = {f"m{i}": port for i, port in enumerate(free_ports(members))}
    servers = [EtcdServer(directory, name=name, peers=peers) for name in peers]
    with ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.kill)
        for server in servers:
            server.wait()
        yield servers
