"""Arms: what is compared. A policy, how the router is set up for it, and how well it is informed.

An arm is written `policy:name=value:...`. A name is a router setting (`kv:prefill_weight=2`) or
one of

- `kv_delay_s`: how much later than the engine's step an agent hears what came of its cache;
- `kv_loss`: the share of KV batches, and of snapshots asked for, that get lost on their way;
- `roles`: who does what, as `2P2D`; the fleet then has as many workers;
- `moves`: 1 lets cached prefixes go from engine to engine (docs/transfer.md);
- `knowledge`: `events` (the rule), `approximate` (engines tell nothing of their caches) or
  `oracle` (no router at all; see `oracle`).

`approximate` and `oracle` alone are short for `kv:knowledge=approximate` and `kv:knowledge=oracle`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import ValidationError

from controlplane.replay.report import Targets
from controlplane.router.settings import RouterSettings
from proto.roles import parse_roles
from proto.workers import Role


class Knowledge(StrEnum):
    """Where what is known of the engines comes from."""

    EVENTS = "events"
    APPROXIMATE = "approximate"
    ORACLE = "oracle"


SHORT = {"approximate": "kv:knowledge=approximate", "oracle": "kv:knowledge=oracle"}


@dataclass(frozen=True)
class Arm:
    """One way to choose workers; the module says what the fields mean."""

    name: str
    settings: RouterSettings
    knowledge: Knowledge = Knowledge.EVENTS
    kv_delay_s: float = 0.0
    kv_loss: float = 0.0
    roles: tuple[Role, ...] = ()
    """Empty: every worker does all."""
    moves: bool = False

    def __post_init__(self) -> None:
        if not self.kv_delay_s >= 0:
            raise ValueError(f"{self.name}: kv_delay_s must not be below 0")
        if not 0 <= self.kv_loss < 1:
            raise ValueError(f"{self.name}: kv_loss must be at least 0 and below 1")


def arm(text: str, targets: Targets | None = None) -> Arm:
    """The arm that is written so; ValueError says what is wrong with it. Its router promises
    `targets` unless the text says otherwise."""
    policy, *options = SHORT.get(text, text).split(":")
    given = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"{text}: write name=value and not {option!r}")
        given[name] = value
    knowledge = Knowledge(given.pop("knowledge", Knowledge.EVENTS))
    roles = parse_roles(given.pop("roles")) if "roles" in given else ()
    if roles and knowledge is not Knowledge.EVENTS:
        raise ValueError(f"{text}: a split fleet needs knowledge=events")
    moves = given.pop("moves", "0") != "0"
    if moves and (roles or knowledge is not Knowledge.EVENTS):
        raise ValueError(f"{text}: moves are for fleets that do not split, with knowledge=events")
    kv_delay_s, kv_loss = float(given.pop("kv_delay_s", 0)), float(given.pop("kv_loss", 0))
    promised = {}
    if targets is not None:
        promised = {"slo_ttft_ms": targets.ttft_ms, "slo_tpot_ms": targets.tpot_ms}
    try:
        settings = RouterSettings.model_validate({"policy": policy, **promised, **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{text}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return Arm(text, settings, knowledge, kv_delay_s, kv_loss, roles, moves)
