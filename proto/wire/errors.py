"""What can go wrong between us and a server, by the situation of the caller.

    WireError
    +-- BusError
    |   +-- BusUnavailable     not connected, and the outgoing buffer is full or the wait is over
    |   +-- NoResponder        nobody serves that subject now
    |   +-- BusTimeout         somebody may have got the request; no answer came in time
    |   +-- RequestRefused     the service answered with an error (code, description)
    |   +-- StreamMissing      the server has no JetStream, or the stream cannot be made
    |   +-- BucketFull         there is no room in the bucket, and nothing was written
    +-- StoreError
    |   +-- StoreUnavailable   no endpoint answered in time; a write may or may not have happened
    |   +-- StoreRefused       the server understood and said no (permission, bad argument)
    |   +-- LeaseLost          the lease is gone; what was under it is, or will be, deleted
    +-- HttpError
    |   +-- HttpUnreachable    no connection: the request was certainly not executed
    |   +-- HttpBroken         the connection died; the request may have been executed
    |   |   +-- HttpTooLong    by us, as the answer was longer than was to be read
    |   +-- HttpTimeout        `phase` ("connect" | "first_byte" | "first_piece" | "idle" |
    |   |                      "reading") took too long
    |   +-- HttpCannotListen   the port is taken, or not ours to have
    +-- FramesError            a ZeroMQ endpoint did not answer in time or answered nonsense

A carrier wraps its client library's errors in these at the border, with the cause attached.
Misuse (a closed carrier, a bad subject) is a ValueError or RuntimeError and stays outside.
"""

from __future__ import annotations


class WireError(Exception):
    """Any failure of a carrier; the root of the tree."""


class BusError(WireError):
    """A failure of the message bus."""


class BusUnavailable(BusError):
    """Not connected, and the outgoing buffer is full or the wait is over."""


class NoResponder(BusError):
    """Nobody serves that subject now."""


class BusTimeout(BusError):
    """No answer in time; somebody may have got the request."""


class RequestRefused(BusError):
    """The service answered with an error.

    Raised by a handler to refuse, and by `Bus.request` to tell the caller. `code` follows HTTP
    (400 the request is wrong, 404 unknown, 503 not now); `description` is for people.
    """

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{code}: {description}")
        self.code = code
        self.description = description


class StreamMissing(BusError):
    """The server has no JetStream, or the stream cannot be made."""


class BucketFull(BusError):
    """There is no room in the bucket, and nothing was written."""


class StoreError(WireError):
    """A failure of the registry's store."""


class StoreUnavailable(StoreError):
    """No endpoint answered in time; a write may or may not have happened."""


class StoreRefused(StoreError):
    """The server understood and said no."""


class LeaseLost(StoreError):
    """The lease is gone; what was under it is, or will be, deleted."""


class HttpError(WireError):
    """A failure of an HTTP exchange."""


class HttpUnreachable(HttpError):
    """No connection: the request was certainly not executed."""


class HttpBroken(HttpError):
    """The connection died; the request may have been executed."""


class HttpTooLong(HttpBroken):
    """The answer was longer than was to be read, so that we broke it off."""


class HttpTimeout(HttpError):
    """A phase of the exchange took too long."""

    def __init__(self, phase: str, seconds: float) -> None:
        super().__init__(f"no {phase} within {seconds:g} s")
        self.phase = phase
        self.seconds = seconds


class HttpCannotListen(HttpError):
    """The port is taken, or not ours to have."""


class FramesError(WireError):
    """A ZeroMQ endpoint did not answer in time or answered nonsense."""
