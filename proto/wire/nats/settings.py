"""Where the NATS servers are, who we are to them, and how long to wait for what."""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec

from proto.access import inbox
from proto.addresses import check_nats, without_login


class NatsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a `NatsBus`. Secrets never show in `repr` nor in messages."""

    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    """`nats://host:port` or `tls://host:port`, of one cluster."""
    name: str = "tokenplane"
    """How the connection shows in the server's monitoring."""

    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: Path | None = None
    """A `.creds` file: JWT and seed."""
    nkey_seed: Path | None = None
    """A file with nothing but an nkey's seed."""

    ca: Path | None = None
    """Whom to trust, if not whom the system trusts."""
    cert: Path | None = None
    key: Path | None = None

    connect_s: float = 10.0
    """How long the first connection may take; later ones are tried for ever."""
    call_s: float = 5.0
    """For our own round trips: to subscribe, to have room again, to say goodbye."""
    ping_interval_s: float = 3.0
    """A server that leaves two pings unanswered is given up at the third."""
    outgoing_bytes: int = 8 << 20
    """What may wait to be sent, connected or not."""
    echo: bool = True
    """Whether the server sends us what we say ourselves, where we listen to it."""
    replicas: int = 1
    """Servers that each durable stream and bucket is kept on; at most 5, of a cluster."""
    ack_wait_s: float = 30.0
    """After this a message of a durable stream that was not acknowledged comes again."""

    def __post_init__(self) -> None:
        if not self.servers:
            raise ValueError("NATS servers: at least one is needed")
        for server in self.servers:
            check_nats(server)

    @property
    def addresses(self) -> str:
        """The servers, for people."""
        return ", ".join(map(without_login, self.servers))

    def tls_context(self) -> ssl.SSLContext | None:
        """What the TLS files say; None without any (the system's trust, if a server asks)."""
        if self.ca is None and self.cert is None:
            return None
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        return context

    @property
    def inbox(self) -> str:
        """Where answers to us come: a server that knows users may keep others from listening."""
        return inbox(self.user) if self.user else "_INBOX"

    def check_credentials(self) -> None:
        """Raise a ValueError if that file is none: nats-py would go on reading it for ever."""
        if self.credentials is None:
            return
        text = self.credentials.read_text()
        if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:
            raise ValueError(f"{self.credentials} is no NATS credentials file")

    def __repr__(self) -> str:
        return f"NatsSettings(servers={self.addresses!r}, name={self.name!r})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("servers", self.addresses), ("name", self.name)]
