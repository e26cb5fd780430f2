"""Free loopback ports, handed out so that no two parts of one cluster get the same."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from controlplane.runtime.service import CannotServe

LOOPBACK = "127.0.0.1"

DEALT = range(20_000, 32_768)
"""Linux gives outgoing connections ports from 32,768 on, others from 49,152 on."""


class PortTaken(CannotServe):
    """Somebody else listens on the port that was asked for."""


def free_ports(count: int) -> Sequence[int]:
    """`count` different ports that nobody listens on now, in ascending order of their turn.

    They lie below what operating systems deal out to outgoing connections, so no connection made
    before we listen can sit on one; and every process of this user on this machine deals from one
    turn, so two clusters that start together get different ones. A program that asks for one of
    them by number may still take it; the part that finds it taken then says so.
    """
    chosen: list[int] = []
    with _turn() as turn:
        for port in _from(turn.next):
            if _can_listen(port):
                chosen.append(port)
            if len(chosen) == count:
                turn.next = port + 1
                return chosen
    raise CannotServe(
        f"no {count} ports between {DEALT.start} and {DEALT.stop - 1} are free; "
        f"stop something that listens there"
    )


@dataclass
class _Turn:
    next: int
    """The port to look at first."""


@contextmanager
def _turn() -> Iterator[_Turn]:
    """Whose turn it is, kept between processes in a small file that one of them holds at a time."""
    path = Path(tempfile.gettempdir(), f"tokenplane-ports-{os.getuid()}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        written = file.read()
        turn = _Turn(int(written) if written.isdecimal() else DEALT.start)
        yield turn
        file.seek(0)
        file.truncate()
        file.write(str(turn.next))


def _from(first: int) -> Iterator[int]:
    """All ports that are dealt, beginning with `first`."""
    start = first if first in DEALT else DEALT.start
    yield from range(start, DEALT.stop)
    yield from range(DEALT.start, start)


def _can_listen(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def check_free(port: int, what: str) -> int:
    """Return `port` if it can be listened on, else raise `PortTaken` naming the way out."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise PortTaken(
                f"port {port} for the {what} cannot be had ({error.strerror}); "
                f"stop what listens there or choose another port"
            ) from error
    return port
