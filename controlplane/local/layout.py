"""Where a local cluster keeps its things, and the lock that keeps two apart."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from controlplane.runtime.service import CannotServe
from proto.ids import check_name


class ClusterRunning(CannotServe):
    """A cluster of that name runs already."""


class DirectoryUnusable(CannotServe):
    """The cluster's directory cannot be made or written."""


@dataclass(frozen=True)
class Layout:
    """The directory of one local cluster."""

    directory: Path

    @staticmethod
    def of(name: str) -> Layout:
        """In the user's cache directory, or below TOKENPLANE_HOME where that is set."""
        home = os.environ.get("TOKENPLANE_HOME") or platformdirs.user_cache_dir("tokenplane")
        return Layout(Path(home) / "clusters" / check_name(name, "cluster"))

    @property
    def nats_data(self) -> Path:
        return self.directory / "nats"

    @property
    def etcd_data(self) -> Path:
        return self.directory / "etcd"

    @property
    def model(self) -> Path:
        return self.directory / "model"

    @property
    def secret(self) -> Path:
        return self.directory / "secret"

    @property
    def state(self) -> Path:
        """Addresses and process ids of the running cluster, as JSON; absent when none runs."""
        return self.directory / "cluster.json"

    def log(self, child: str) -> Path:
        return self.directory / "logs" / f"{child}.log"

    @contextmanager
    def locked(self, *, keep_data: bool) -> Iterator[None]:
        """Own the directory; starts empty unless `keep_data`. Raises `ClusterRunning`,
        `DirectoryUnusable`."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (self.directory / "lock").open("a+")
        except OSError as error:
            raise DirectoryUnusable(
                f"cannot use {self.directory} ({error.strerror}); "
                "set TOKENPLANE_HOME to a directory that can be written"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ClusterRunning(
                    f"cluster {self.directory.name!r} runs already; "
                    "stop it, or choose another name with --name"
                ) from error
            self._prepare(keep_data=keep_data)
            try:
                yield
            finally:
                self.state.unlink(missing_ok=True)

    def _prepare(self, *, keep_data: bool) -> None:
        stale = [self.directory / "logs", self.state]
        if not keep_data:
            stale += [self.nats_data, self.etcd_data, self.model]
        for path in stale:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if not self.secret.exists():
            self.secret.touch(mode=0o600)
            self.secret.write_text(secrets.token_hex(32))

    def write_state(self, state: Mapping[str, object]) -> None:
        """Replace the state file as a whole, so that a reader never sees half of it."""
        draft = self.state.with_suffix(".draft")
        draft.write_text(json.dumps(state, indent=2))
        draft.replace(self.state)

    def read_state(self) -> Mapping[str, Any] | None:
        """What `write_state` wrote last, None when no cluster runs here: a file that is no state is
        what a machine left that went down."""
        try:
            state = json.loads(self.state.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return state if isinstance(state, dict) else None
