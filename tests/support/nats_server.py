"""A real nats-server of one's own: started, stopped, killed, frozen, and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

BINARY = Path(sys.executable).with_name("nats-server")
READY_S, STOP_S, POLL_S = 20.0, 10.0, 0.005
RANDOM_PORT = -1
LOG = "server.log"


class NatsServer:
    """One server on a loopback port that stays the same over restarts, as do its data."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int = RANDOM_PORT,
        jetstream: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self._options = [*options]
        if jetstream:
            self._options += ["--jetstream", "--store_dir", str(directory / "data")]
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        assert self._port != RANDOM_PORT, "the server has not been started yet"
        return f"nats://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns once the server listens."""
        for old in self._directory.glob("*.ports"):
            old.unlink()  # a killed server does not clean up
        argv = [str(BINARY), "--addr", "127.0.0.1", "--port", str(self._port)]
        where = ["--ports_file_dir", str(self._directory), "--log", str(self._directory / LOG)]
        self._process = subprocess.Popen([*argv, *where, *self._options])
        self._port = self._listening_port(self._process)

    def stop(self) -> None:
        """Ask it to end, as a deployment would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9`."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """`kill -9`, and again on the same port with the same data."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """It keeps its connections and says nothing any more, from when this returns."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the server ended instead"

    def thaw(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def reload(self) -> None:
        """Read the configuration file again."""
        self._running().send_signal(signal.SIGHUP)

    def close(self) -> None:
        """End it in whatever state it is."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server has not been started yet"
        return self._process

    def _end(self, how: signal.Signals) -> None:
        process = self._running()
        process.send_signal(how)
        process.wait(timeout=STOP_S)

    def _listening_port(self, process: subprocess.Popen[bytes]) -> int:
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s:
            assert process.poll() is None, self._log()
            for ports in self._directory.glob("*.ports"):
                if text := ports.read_text():
                    return int(urlsplit(json.loads(text)["nats"][0]).port or 0)
            time.sleep(POLL_S)
        process.kill()
        process.wait(timeout=STOP_S)
        raise AssertionError(f"nats-server did not start within {READY_S:g} s\n{self._log()}")

    def _log(self) -> str:
        log = self._directory / LOG
        return log.read_text(errors="replace") if log.exists() else "it left no log"


@contextmanager
def nats_server(
    directory: Path, *, jetstream: bool = True, options: Sequence[str] = ()
) -> Iterator[NatsServer]:
    """A running server that keeps everything below `directory`."""
    server = NatsServer(directory, jetstream=jetstream, options=options)
    try:
        server.start()
        yield server
    finally:
        server.close()
