"""The users of a NATS server as a piece of its configuration. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from proto.access import SERVICES_PROTOCOL, Role, Words, inbox, words
from proto.ids import WorkerId
from proto.subjects import Subjects

ACCOUNT = "TOKENPLANE"
NOTHING = '{ deny: ">" }'
"""An empty list would allow everything."""
ANSWER_WITHIN = "2m"
"""An answer may be published so long after its question."""


def configuration(
    cluster: str, workers: Sequence[WorkerId] = (), *, own_routers: bool = False
) -> str:
    """An `accounts` block to be included. Passwords are the environment's: user `gateway` has
    `$GATEWAY_PASSWORD`. With `workers` each has a user of its own name and may speak for itself
    alone; without, agents share the user `agent`. With `own_routers` a gateway may decide.
    """
    subjects = Subjects(cluster)
    users = list(_users(subjects, workers, own_routers))
    flags = _flags(workers, own_routers)
    return "\n".join(
        [
            f"# Made by `tokenplane access nats --cluster {cluster}{flags}`",
            "# from proto/access.py.",
            "accounts {",
            f"  {ACCOUNT} {{",
            "    jetstream: enabled",
            "    users: [",
            *users,
            "    ]",
            "  }",
            "  SYS { users: [ { user: sys, password: $SYS_PASSWORD } ] }",
            "}",
            "system_account: SYS",
            "",
        ]
    )


def password_variable(user: str) -> str:
    """The environment variable that holds a user's password: `engine-0` has ENGINE_0_PASSWORD."""
    return f"{''.join(c if c.isalnum() else '_' for c in user.upper())}_PASSWORD"


def users_of(workers: Sequence[WorkerId]) -> list[str]:
    """The users there are: one a role; agents one each where `workers` are named."""
    return [r.value for r in Role if r is not Role.AGENT or not workers] + [*workers]


def _flags(workers: Sequence[WorkerId], own_routers: bool) -> str:
    named = f" --workers {','.join(workers)}" if workers else ""
    return f"{named}{' --own_routers' if own_routers else ''}"


def _users(subjects: Subjects, workers: Sequence[WorkerId], own_routers: bool) -> Iterator[str]:
    for name in users_of(workers):
        if name in workers:
            yield from _user(name, words(Role.AGENT, subjects, WorkerId(name)))
        else:
            yield from _user(name, words(Role(name), subjects, own_routers=own_routers))


def _user(name: str, may: Words) -> Iterator[str]:
    word = f"${password_variable(name)}"
    yield f"      {{ user: {json.dumps(name)}, password: {word}, permissions: {{"
    said = [*may.publish, *_jetstream(may)]
    yield f"        publish: {f'{{ allow: {json.dumps(said)} }}' if said else NOTHING}"
    listened = [*may.subscribe, f"{inbox(name)}.>"]
    if may.answers:
        listened.append(SERVICES_PROTOCOL)
        yield f'        allow_responses: {{ max: 1, expires: "{ANSWER_WITHIN}" }}'
    yield f"        subscribe: {{ allow: {json.dumps(listened)} }}"
    yield "      } }"


def _jetstream(may: Words) -> Iterator[str]:
    """What the carriers ask of JetStream to keep and to read a stream."""
    for stream in may.keeps:
        for verb in ("CREATE", "UPDATE", "INFO"):
            yield f"$JS.API.STREAM.{verb}.{stream}"
    for stream in may.reads:
        yield f"$JS.API.STREAM.INFO.{stream}"
        yield from _consume(stream)
    for bucket in may.buckets:
        yield f"$KV.{bucket}.>"
        for verb in ("CREATE", "UPDATE", "INFO", "PURGE", "MSG.GET"):
            yield f"$JS.API.STREAM.{verb}.KV_{bucket}"
        yield from _consume(f"KV_{bucket}")


def _consume(stream: str) -> Iterator[str]:
    for verb in ("CREATE", "DURABLE.CREATE", "INFO", "DELETE", "MSG.NEXT"):
        yield f"$JS.API.CONSUMER.{verb}.{stream}.>"
    yield f"$JS.ACK.{stream}.>"
