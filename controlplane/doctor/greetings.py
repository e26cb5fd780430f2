"""How servers greet a stranger: whether anybody listens, what it speaks, and over TLS or not."""

from __future__ import annotations

import ssl
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

GREETING_S = 2.0
GREETING_BYTES = 64 << 10


class Contact(StrEnum):
    """What came of knocking at a port."""

    NOBODY = "nobody"
    """Nothing listens, or the name is not known."""
    PLAIN = "plain"
    TLS = "tls"


class NatsInfo(msgspec.Struct, frozen=True):
    """What a NATS server says of itself before anything is asked."""

    version: str = ""
    jetstream: bool = False
    auth_required: bool = False
    tls_required: bool = False


class NatsGreeting(NamedTuple):
    """`info` is None where somebody listens who is no NATS server."""

    contact: Contact
    info: NatsInfo | None = None


async def knock(host: str, port: int) -> Contact:
    """Whether somebody listens, and speaks TLS from the beginning."""
    try:
        with anyio.fail_after(GREETING_S):
            stream = await anyio.connect_tcp(host, port)
    except (OSError, TimeoutError):
        return Contact.NOBODY
    async with stream:
        return Contact.TLS if await _shakes_hands(stream, _trusting()) is None else Contact.PLAIN


async def distrust(host: str, port: int, ca: Path | None) -> str | None:
    """Why the server's certificate is not to be trusted, or None."""
    try:
        with anyio.fail_after(GREETING_S):
            stream = await anyio.connect_tcp(host, port)
    except (OSError, TimeoutError):
        return None
    async with stream:
        context = ssl.create_default_context(cafile=ca)
        error = await _shakes_hands(stream, context, host)
    return str(error) if isinstance(error, ssl.SSLCertVerificationError) else None


async def greet_nats(host: str, port: int) -> NatsGreeting:
    """What a NATS server says of itself."""
    try:
        with anyio.fail_after(GREETING_S):
            async with await anyio.connect_tcp(host, port) as stream:
                greeting = await _line(stream)
    except (OSError, TimeoutError, anyio.EndOfStream):
        contact = await knock(host, port)
        return NatsGreeting(contact)
    word, _, rest = greeting.partition(b" ")
    if word != b"INFO":
        return NatsGreeting(Contact.PLAIN)
    try:
        info = msgspec.json.decode(rest, type=NatsInfo)
    except msgspec.DecodeError:
        return NatsGreeting(Contact.PLAIN)
    return NatsGreeting(Contact.TLS if info.tls_required else Contact.PLAIN, info)


async def _line(stream: ByteStream) -> bytes:
    greeting = b""
    while b"\n" not in greeting and len(greeting) < GREETING_BYTES:
        greeting += await stream.receive()
    return greeting.partition(b"\n")[0]


async def _shakes_hands(
    stream: ByteStream, context: ssl.SSLContext, host: str | None = None
) -> Exception | None:
    """None if it does."""
    try:
        with anyio.fail_after(GREETING_S):
            await TLSStream.wrap(stream, server_side=False, hostname=host, ssl_context=context)
    except (ssl.SSLError, OSError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError) as e:
        return e
    return None


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
