"""Addresses of servers, as people write them: which are good, and what of them nobody may see."""

from __future__ import annotations

import re

_HOST = r"([^@/:\[\]\s]+|\[[0-9a-fA-F:.]+\])"
_NATS = re.compile(rf"(nats|tls)://([^@/\s]*@)?{_HOST}(:\d{{1,5}})?/?")
_LOGIN = re.compile(r"(?<=://).*@")


def check_nats(address: str) -> str:
    """The same, if it is one. Raises ValueError, which does not show it: what is no address may be
    a piece of a password."""
    if not _NATS.fullmatch(address):
        raise ValueError(
            "a NATS server is nats://host:port or tls://host:port; where a user and password "
            "stand before the host they must do without / and @"
        )
    return address


def check_no_login(address: str) -> str:
    """The same, if it names nobody. Raises ValueError, which does not show it."""
    if "@" in address:
        raise ValueError("an address is host:port; user and password have settings of their own")
    return address


def without_login(address: str) -> str:
    """Without its user, password or token."""
    return _LOGIN.sub("", address)
