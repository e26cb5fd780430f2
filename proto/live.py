"""Live settings: which are on, as each process says itself.

They are kept in the store, a key each, as JSON; a process follows them and goes on with the new
ones at once. What makes no sense to it, it refuses, and goes on as before.
"""

from __future__ import annotations

import msgspec


class SettingsQuestion(msgspec.Struct, frozen=True):
    """To every process that has live settings: which are on?"""


class SettingsTold(msgspec.Struct, frozen=True):
    """One process's answer."""

    service: str
    """The process, such as `router-7f3a`."""
    values: dict[str, str]
    """All of its live settings, `group.setting` to JSON."""
    overridden: tuple[str, ...] = ()
    """Those that come from the store, and not from its own start."""
    refused: dict[str, str] = {}
    """What it was told and cannot do, and why."""
