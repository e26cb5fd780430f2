"""Durable streams on JetStream: made, and appended to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import anyio
import msgspec
import nats.errors
from nats.js.api import Header, RetentionPolicy, StreamConfig
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from proto.wire.errors import BusTimeout, BusUnavailable, NoResponder, StreamMissing
from proto.wire.nats.connection import Connection
from proto.wire.ports import Headers, StreamSpec

APPEND_S = 1.0
"""For one attempt; the next carries the same id, so that it is stored once."""
NO_STREAM_S = 0.5
"""So long nobody may answer for a stream: one that changes its leader, or is being loaded."""
PAUSE_S = 0.1
NOT_NOW = 503
"""JetStream's word for what passes: no quorum, no leader, no room on its disk."""


class Stored(msgspec.Struct, frozen=True):
    """JetStream's acknowledgement, as far as we read it."""

    seq: int = 0
    error: Trouble | None = None


class Trouble(msgspec.Struct, frozen=True):
    """Why it refuses what it was asked: a code like HTTP's, and one of its own."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class _NotNow(Exception):
    """The stream has not stored it, and may do so a moment later."""


async def ensure_stream(connection: Connection, spec: StreamSpec, timeout_s: float) -> None:
    """See the port."""
    config = StreamConfig(
        name=spec.name,
        subjects=list(spec.subjects),
        retention=RetentionPolicy.LIMITS,
        max_age=spec.max_age_s,
        max_bytes=spec.max_bytes,
        num_replicas=connection.settings.replicas,
    )
    left_s = await connection.until_up(timeout_s)
    manager = connection.client.jsm(timeout=left_s)
    with jetstream_errors(f"stream {spec.name}"), anyio.fail_after(left_s):
        try:
            await manager.update_stream(config)
        except NotFoundError:
            await manager.add_stream(config)


async def append(
    connection: Connection, subject: str, data: bytes, timeout_s: float, headers: Headers
) -> int:
    """See the port. Tries again until the deadline, through a restart of the server and whatever
    else passes."""
    headers = {**headers, Header.MSG_ID.value: uuid4().hex}
    began_s = anyio.current_time()
    failure: BusTimeout | BusUnavailable | None = None
    refusal: _NotNow | None = None
    while (spent_s := anyio.current_time() - began_s) < timeout_s:
        try:
            answer = await connection.ask(
                subject, data, min(APPEND_S, timeout_s - spent_s), headers
            )
            return _sequence(subject, answer.data)
        except NoResponder as error:
            if spent_s >= min(NO_STREAM_S, timeout_s):
                raise StreamMissing(f"no stream keeps {subject}") from error
            await anyio.sleep(PAUSE_S)
        except BusTimeout as error:
            failure = error
        except BusUnavailable as error:
            failure = failure or error  # one attempt that may have arrived, and all may have
        except _NotNow as error:
            refusal = error
            await anyio.sleep(PAUSE_S)
    if refusal is not None and failure is None:
        raise StreamMissing(str(refusal)) from refusal
    if isinstance(failure, BusUnavailable):
        raise failure
    raise BusTimeout(f"not known to be stored within {timeout_s:g} s: {subject}") from failure


def _sequence(subject: str, answer: bytes) -> int:
    try:
        stored = msgspec.json.decode(answer, type=Stored)
    except msgspec.DecodeError as error:
        raise StreamMissing(f"somebody answers on {subject}, but it is no stream") from error
    if stored.error is not None:
        said = f"the stream refused {subject}: {stored.error.description}"
        raise _NotNow(said) if stored.error.code == NOT_NOW else StreamMissing(said)
    return stored.seq


@contextmanager
def jetstream_errors(what: str) -> Iterator[None]:
    """What JetStream's interface raises, in the words of the port."""
    try:
        yield
    except ServiceUnavailableError as error:
        raise StreamMissing(
            f"{what}: {error.description}"
            if error.description
            else f"{what}: this server has no JetStream; start it with `nats-server --jetstream`"
        ) from error
    except APIError as error:
        raise StreamMissing(f"{what}: {error.description}") from error
    except (TimeoutError, nats.errors.Error) as error:
        raise BusUnavailable(f"{what}: {str(error) or 'no answer in time'}") from error
