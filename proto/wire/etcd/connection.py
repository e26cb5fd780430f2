"""Calls to an etcd cluster: which endpoint, whose token, which errors are worth another try."""

from __future__ import annotations

import random
from asyncio import CancelledError, InvalidStateError, current_task
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import grpc
import grpc.aio
import msgspec

from proto.wire.errors import LeaseLost, StoreError, StoreRefused, StoreUnavailable
from proto.wire.etcd.protocol import messages, stubs

Headers = tuple[tuple[str, str], ...]

CLOSE_S = 2.0
LAST_EVENTS_S = 0.02
"""gRPC hands the ends of calls that a closing channel cancels to the event loop a moment later, and
raises in whichever loop runs by then if that one is closed."""
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 2.0

OPTIONS = (
    # All three are needed to notice a link that is silently dead: 8 s instead of over a minute.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    # etcd bears no pings where nothing is under way: it hangs up, and gRPC pings half as often.
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 64 << 20),
    # Otherwise a second channel to an address shares the first one's connection, frozen or not.
    ("grpc.use_local_subchannel_pool", 1),
)
LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
NOT_SENT = ("failed to connect", "errors resolving")
"""How gRPC begins to say that a call never left. Its status does not tell: a call whose connection
dies before the answer is UNAVAILABLE, too, and so is one that etcd had no time to finish."""
TOKEN_REFUSED = (
    "invalid auth token",
    # A token that is a JWT is good until anything about users or roles changes.
    "revision of auth store is old",
    "revision in header is old",
)
ENDED = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL})


class EtcdSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where etcd is and who we are. The password never shows in `repr`."""

    endpoints: tuple[str, ...] = ("127.0.0.1:2379",)
    user: str | None = None
    password: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    attempt_s: float = 2.0
    """How long one endpoint may take to answer one call."""
    call_s: float = 6.0
    """How long a call may take over all endpoints and attempts."""

    def __repr__(self) -> str:
        return f"EtcdSettings(endpoints={self.endpoints!r}, user={self.user!r})"


class Backoff:
    """Growing pauses with jitter, so that a thousand agents do not come back as one."""

    def __init__(self) -> None:
        self._next_s = BACKOFF_FIRST_S

    async def wait(self) -> None:
        await anyio.sleep(self._next_s * random.uniform(0.5, 1.5))
        self._next_s = min(2 * self._next_s, BACKOFF_MAX_S)

    def reset(self) -> None:
        self._next_s = BACKOFF_FIRST_S


class Connection:
    """One client's channels, of which one is in use; another is tried when it fails."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.settings = settings
        self._endpoint = random.randrange(len(settings.endpoints))
        self._channel: grpc.aio.Channel | None = None
        self._abandoned: list[grpc.aio.Channel] = []
        self._token: str | None = None
        self._authenticating = anyio.Lock()

    async def close(self) -> None:
        """Close every channel, within a deadline."""
        with anyio.move_on_after(CLOSE_S, shield=True):
            for channel in (*self._abandoned, self._channel):
                if channel is not None:
                    await channel.close()
            await anyio.sleep(LAST_EVENTS_S)
        self._channel, self._abandoned = None, []

    def channel(self) -> grpc.aio.Channel:
        """The channel in use; opened on demand."""
        if self._channel is None:
            endpoint = self.settings.endpoints[self._endpoint]
            credentials = self._credentials()
            self._channel = (
                grpc.aio.secure_channel(endpoint, credentials, options=OPTIONS)
                if credentials
                else grpc.aio.insecure_channel(endpoint, options=OPTIONS)
            )
        return self._channel

    async def abandon(self, channel: grpc.aio.Channel) -> None:
        """Stop using a channel that failed and go on to the next endpoint.

        A new channel is made even for the same endpoint: the old one may be frozen.
        """
        if channel is not self._channel:
            return  # somebody else has seen it fail as well
        self._channel = None
        self._endpoint = (self._endpoint + 1) % len(self.settings.endpoints)
        self._abandoned.append(channel)
        with anyio.move_on_after(CLOSE_S):
            await channel.close()
            self._abandoned.remove(channel)

    async def ready(self) -> tuple[grpc.aio.Channel, Headers]:
        """A channel, and a call's headers: refuse a member cut off from its leader; who we are.

        To be used before anything else is waited for: another task may give the channel up
        meanwhile, and a closed one takes no call. Raises gRPC's error or `StoreUnavailable`.
        """
        if self.settings.user is None:
            return self.channel(), (("hasleader", "true"),)
        async with self._authenticating:
            if self._token is None:
                request = messages.AuthenticateRequest(
                    name=self.settings.user, password=self.settings.password or ""
                )
                # etcd hashes passwords slowly, and a fleet that starts at once makes it slower.
                async with honest_cancellation():
                    reply = await stubs.AuthStub(self.channel()).Authenticate(
                        request, timeout=2 * self.settings.attempt_s
                    )
                self._token = str(reply.token)
            token = self._token
        return self.channel(), (("hasleader", "true"), ("token", token))

    def forget_token(self, error: grpc.aio.AioRpcError) -> bool:
        """True if the error says that our token is not good (any more)."""
        stale = self._token is not None and (
            error.code() == grpc.StatusCode.UNAUTHENTICATED
            or any(words in (error.details() or "") for words in TOKEN_REFUSED)
        )
        if stale:
            self._token = None
        return stale

    async def call(
        self, stub: Callable[[Any], Any], method: str, request: Any, *, repeat: bool = True
    ) -> Any:
        """Call until it succeeds, is refused, or `call_s` is over.

        With `repeat` False a call that may have been executed is not sent again. Raises
        `StoreUnavailable`, `StoreRefused`, `LeaseLost`.
        """
        backoff, tokens_refused = Backoff(), 0
        with anyio.move_on_after(self.settings.call_s):
            while True:
                channel, sent = self.channel(), False
                try:
                    channel, headers = await self.ready()
                    sent = True
                    async with honest_cancellation():
                        return await getattr(stub(channel), method)(
                            request, timeout=self.settings.attempt_s, metadata=headers
                        )
                except StoreUnavailable:
                    if sent and not repeat:
                        raise
                except grpc.aio.AioRpcError as error:
                    if self.forget_token(error):  # and etcd has looked at nothing else
                        tokens_refused += 1
                        if tokens_refused == 1:
                            continue
                    elif error.code() not in LOST:
                        raise translated(error) from error
                    else:
                        await self.abandon(channel)
                        if sent and not repeat and not never_left(error):
                            raise translated(error) from error
                await backoff.wait()
        raise StoreUnavailable(
            f"no answer from etcd at {', '.join(self.settings.endpoints)} "
            f"within {self.settings.call_s:g} s"
        )

    def _credentials(self) -> grpc.ChannelCredentials | None:
        settings = self.settings
        if settings.ca is None and settings.cert is None:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=settings.ca.read_bytes() if settings.ca else None,
            private_key=settings.key.read_bytes() if settings.key else None,
            certificate_chain=settings.cert.read_bytes() if settings.cert else None,
        )


@asynccontextmanager
async def honest_cancellation() -> AsyncIterator[None]:
    """grpc.aio raises a CancelledError of its own both when we are cancelled and, in whoever waits
    on a channel, when another task closes it. The first must be raised anew, for anyio to know it
    again; the second is a lost connection and would otherwise end the waiter's task group."""
    try:
        yield
    except CancelledError as error:
        await anyio.lowlevel.checkpoint_if_cancelled()
        task = current_task()
        if task is None or task.cancelling():
            raise
        raise StoreUnavailable("the connection to etcd was given up") from error


async def converse(call: Any, request: Any, *, within_s: float) -> Any:
    """Say one thing on an open stream and hear one. Raises `StoreUnavailable` when it has ended
    or is silent, and gRPC's own error when it breaks."""
    try:
        with anyio.fail_after(within_s):
            async with honest_cancellation():
                await call.write(request)
                reply = await call.read()
    except TimeoutError as error:
        raise StoreUnavailable(f"etcd was silent for {within_s:g} s") from error
    except InvalidStateError as error:  # grpc.aio's word for a stream that is over
        raise StoreUnavailable("the stream to etcd had ended") from error
    if reply is grpc.aio.EOF:
        raise StoreUnavailable("etcd ended the stream")
    return reply


def never_left(error: grpc.aio.AioRpcError) -> bool:
    """Whether there was no connection on which a call could have been sent."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and (error.details() or "").startswith(
        NOT_SENT
    )


def translated(error: grpc.aio.AioRpcError) -> StoreError:
    """A gRPC error as one of ours, by what the caller can do about it."""
    details = error.details() or error.code().name
    if error.code() is grpc.StatusCode.NOT_FOUND and "lease" in details:
        return LeaseLost(details)
    if error.code() in LOST or error.code() in ENDED:
        return StoreUnavailable(details)
    return StoreRefused(details)
