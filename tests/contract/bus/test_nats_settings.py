"""Settings of a bus on NATS: secrets stay inside, nonsense is told at once."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from proto.wire.nats.bus import NatsBus
from proto.wire.nats.settings import NatsSettings

SECRET = "only-for-this-test"


def test_no_secret_shows() -> None:
    settings = NatsSettings(
        servers=(f"nats://me:{SECRET}@one:4222", f"tls://{SECRET}@two:4222"),
        user="me",
        password=SECRET,
        token=SECRET,
    )
    assert settings.addresses == "nats://one:4222, tls://two:4222"
    for shown in (repr(settings), str(settings), str(settings.__rich_repr__())):
        assert SECRET not in shown
        assert "one:4222" in shown


@pytest.mark.parametrize(
    "server",
    [
        *("http://one:4222", "one:4222", f"ws://{SECRET}@one", f"nats://{SECRET}@one:port"),
        *(
            "nats://",
            f"me:{SECRET}@one:4222",
            f"nats://me:a/{SECRET}@one",
            f"nats://a {SECRET}@one",
        ),
        *(f"nats://me:a@{SECRET}@one", f"me:a://{SECRET}@one"),
    ],
)
def test_an_address_of_another_kind_is_misuse(server: str) -> None:
    with pytest.raises(ValueError, match="nats://host:port") as refused:
        NatsSettings(servers=(server,))
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("server", ["nats://one", "tls://[::1]:4222", "nats://u:p@10.0.0.1:1"])
def test_an_address_may_do_without_a_port_or_carry_a_login(server: str) -> None:
    assert NatsSettings(servers=(server,)).servers == (server,)


def test_no_address_is_misuse() -> None:
    with pytest.raises(ValueError, match="at least one"):
        NatsSettings(servers=())


def test_a_file_that_holds_no_credentials_is_misuse(tmp_path: Path) -> None:
    credentials = tmp_path / "empty.creds"
    credentials.write_text("nothing of that kind")

    async def connect() -> None:
        async with NatsBus(NatsSettings(credentials=credentials)):
            pass

    with pytest.raises(ValueError, match=r"empty\.creds"):
        anyio.run(connect)
