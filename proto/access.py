"""Who may say and hear what on the bus, and read and write what in the store.

One role a kind of process. `tokenplane access` turns these into the configuration of a NATS server
and the users of etcd; nothing else grants anything. Subjects and keys come from `proto.subjects`,
so a new one that nobody is granted fails a test and not a deployment.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from proto.ids import WorkerId
from proto.subjects import Keys, Subjects

SERVICES_PROTOCOL = "$SRV.>"
"""Where every service answers `nats micro ls`."""


class Role(StrEnum):
    """What a process is to the cluster; also the name of its user, but for agents of one worker."""

    AGENT = "agent"
    GATEWAY = "gateway"
    ROUTER = "router"
    REGISTRY = "registry"
    TRANSFER = "transfer"
    PLANNER = "planner"
    CONSOLE = "console"
    OPERATOR = "operator"
    """People and their commands: hears everything, asks, and keeps the live settings."""


SETTABLE = frozenset({Role.GATEWAY, Role.ROUTER, Role.TRANSFER, Role.PLANNER, Role.CONSOLE})
"""Processes that say which live settings they are on, and show as a service by that alone."""


def inbox(user: str) -> str:
    """Where answers to a user come; nobody else may listen there."""
    return f"_INBOX.{user}"


class Words(NamedTuple):
    """Subjects, and the durable streams that a role keeps or reads."""

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    answers: bool = False
    """It serves requests, and may publish to the inbox of who asked."""
    keeps: tuple[str, ...] = ()
    """Streams that it makes, and appends to by `publish`."""
    reads: tuple[str, ...] = ()
    """Streams that it consumes."""
    buckets: tuple[str, ...] = ()
    """Buckets that it keeps, reads and writes."""


class Rights(NamedTuple):
    """Keys and prefixes; a prefix ends in `/`."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    """Read as well."""


def words(
    role: Role, subjects: Subjects, worker: WorkerId | None = None, *, own_routers: bool = False
) -> Words:
    """What a role says and hears; an agent without `worker` may be that of any. With `own_routers`
    a gateway is a router, too."""
    may = _at_work(role, subjects, worker)
    if own_routers and role is Role.GATEWAY:
        deciding = _at_work(Role.ROUTER, subjects, None)
        may = may._replace(
            publish=(*may.publish, *deciding.publish),
            subscribe=(*may.subscribe, *deciding.subscribe),
        )
    if role not in SETTABLE:
        return may
    return may._replace(
        publish=(*may.publish, subjects.every_settings),
        subscribe=(*may.subscribe, subjects.settings, subjects.every_settings_asked),
        answers=True,
    )


def _at_work(role: Role, subjects: Subjects, worker: WorkerId | None) -> Words:
    match role:
        case Role.AGENT:
            return Words(
                publish=(
                    subjects.kv(worker) if worker else subjects.every_kv,
                    subjects.load(worker) if worker else subjects.every_load,
                ),
                subscribe=(
                    subjects.every_command(worker),
                    subjects.progress(worker) if worker else subjects.every_progress,
                ),
                answers=True,
            )
        case Role.GATEWAY:
            return Words(
                publish=(
                    subjects.route,
                    subjects.every_progress,
                    subjects.withdrawn,
                    subjects.requests,
                    subjects.every_transfer,
                ),
                keeps=(subjects.requests_stream,),
            )
        case Role.ROUTER:
            return Words(
                publish=(
                    subjects.every_ledger,
                    subjects.bookings,
                    subjects.decisions,
                    subjects.every_explained,
                    subjects.every_snapshot,
                ),
                subscribe=(
                    subjects.every_kv,
                    subjects.every_load,
                    subjects.every_progress,
                    subjects.every_ledger,
                    subjects.withdrawn,
                    subjects.route,
                    subjects.bookings,
                    subjects.explain,
                ),
            )
        case Role.REGISTRY:
            return Words(subscribe=(subjects.registry_workers,), answers=True)
        case Role.TRANSFER:
            return Words(
                publish=(subjects.every_command(), subjects.transitions),
                subscribe=(subjects.every_transfer, subjects.every_load),
                buckets=(subjects.tickets_bucket,),
            )
        case Role.PLANNER:
            return Words(
                publish=(subjects.plan,),
                subscribe=(subjects.every_load,),
                keeps=(subjects.plan_stream,),
                reads=(subjects.requests_stream,),
            )
        case Role.CONSOLE:
            return Words(
                publish=(subjects.explain,),
                subscribe=(
                    subjects.every_load,
                    subjects.every_progress,
                    subjects.requests,
                    subjects.decisions,
                    subjects.transitions,
                    subjects.plan,
                    subjects.every_explained,
                ),
            )
        case Role.OPERATOR:
            return Words(
                publish=(
                    subjects.explain,
                    subjects.settings,
                    subjects.every_settings_asked,
                    subjects.every_drain,
                    subjects.registry_workers,
                    subjects.transfer("list"),
                    subjects.every_command(),
                    SERVICES_PROTOCOL,
                    "$JS.API.INFO",
                ),
                subscribe=(subjects.everything,),
                reads=(subjects.requests_stream, subjects.plan_stream),
            )


def rights(role: Role, keys: Keys, worker: WorkerId | None = None) -> Rights:
    """What a role reads and writes in the store."""
    match role:
        case Role.AGENT:
            record = keys.worker(worker) if worker else keys.workers
            return Rights(read=(keys.workers,), write=(record, keys.models))
        case Role.PLANNER:
            own = (keys.desired, keys.planner_leader, keys.planner_state, keys.scaled)
            return Rights(read=(keys.everything,), write=own)
        case Role.OPERATOR:
            return Rights(write=(keys.everything,))
        case _:
            return Rights(read=(keys.everything,))
