"""Free loopback ports, handed out so that no two parts of one cluster get the same."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from controlplane.runtime.service import CannotServe

LOOPBACK = "127.0.0.1"


class PortTaken(CannotServe):
    """Somebody else listens on the port that was asked for."""


def free_ports(count: int) -> Sequence[int]:
    """`count` different ports that nobody listens on now.

    All are held until all are chosen. Another program may still take one before we use it; the
    part that finds it taken then says so.
    """
    sockets = [socket.socket() for _ in range(count)]
    try:
        for held in sockets:
            held.bind((LOOPBACK, 0))
        return [int(held.getsockname()[1]) for held in sockets]
    finally:
        for held in sockets:
            held.close()


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
