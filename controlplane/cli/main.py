"""`tokenplane COMMAND ...`: finds the command's module, imports only that, and runs it."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol, cast

EXIT_OK, EXIT_UNREAD, EXIT_USAGE = 0, 1, 2


class Topic(StrEnum):
    """What people come for; the help shows commands under these."""

    TRY = "Try it, and measure it"
    ASK = "Ask a running cluster"
    CHANGE = "Change a running cluster"
    RUN = "Run one service"
    SHELL = "Your shell"


class Command(NamedTuple):
    """Where a command lives: `module` has a function `function(argv) -> exit code`."""

    module: str
    function: str
    summary: str
    topic: Topic = Topic.RUN


COMMANDS = {
    "up": Command(
        "controlplane.cli.up", "main", "start a whole cluster on this machine", Topic.TRY
    ),
    "demo": Command(
        "controlplane.cli.demo", "main", "KV-aware routing against round robin, live", Topic.TRY
    ),
    "replay": Command(
        "controlplane.cli.replay", "main", "replay a trace, in virtual time or live", Topic.TRY
    ),
    "compare": Command(
        "controlplane.cli.compare", "main", "the same trace on other hardware", Topic.TRY
    ),
    "speculation": Command(
        "controlplane.cli.speculation", "main", "where speculative decoding helps", Topic.TRY
    ),
    "plan": Command("controlplane.cli.plan", "main", "our planner against other rules", Topic.TRY),
    "profile": Command(
        "controlplane.cli.profile", "main", "measure an engine for planners", Topic.TRY
    ),
    "generate": Command(
        "controlplane.cli.generate", "main", "write a trace of conversations", Topic.TRY
    ),
    "bench": Command("controlplane.cli.bench", "main", "measure it beside a peer", Topic.TRY),
    "explain": Command(
        "controlplane.cli.explain", "main", "why a request went where it went", Topic.ASK
    ),
    "conformance": Command(
        "agents.conformance.command",
        "main",
        "does an engine do what we suppose it does?",
        Topic.ASK,
    ),
    "trace": Command("controlplane.cli.trace", "main", "all spans of one request", Topic.ASK),
    "workers": Command("controlplane.cli.workers", "main", "who is there, and how busy", Topic.ASK),
    "console": Command(
        "controlplane.compose", "console", "a web page that shows a cluster live", Topic.ASK
    ),
    "config": Command(
        "controlplane.cli.config", "main", "see and change settings while it runs", Topic.CHANGE
    ),
    "drain": Command(
        "controlplane.cli.drain", "main", "let a worker finish, and send it nothing", Topic.CHANGE
    ),
    "key": Command("controlplane.cli.key", "main", "make an API key for a tenant", Topic.CHANGE),
    "doctor": Command(
        "controlplane.cli.doctor", "main", "what is wrong with a cluster, and the fix", Topic.ASK
    ),
    "certs": Command(
        "controlplane.cli.certs", "main", "certificates for development", Topic.CHANGE
    ),
    "access": Command(
        "controlplane.cli.access", "main", "users of NATS and etcd, and what each may", Topic.CHANGE
    ),
    "gateway": Command("controlplane.compose", "gateway", "run the gateway service"),
    "router": Command("controlplane.compose", "router", "run the router service"),
    "transfer": Command("controlplane.compose", "transfer", "run the KV-transfer coordinator"),
    "planner": Command("controlplane.compose", "planner", "run the planner service"),
    "registry": Command("controlplane.compose", "registry", "run the registry service"),
    "completion": Command(
        "controlplane.cli.completion", "main", "make your shell complete commands", Topic.SHELL
    ),
}


class Main(Protocol):
    """What a command's function looks like."""

    def __call__(self, argv: Sequence[str]) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code."""
    if "_ARGCOMPLETE" in os.environ:
        from controlplane.cli.completion import complete

        complete(COMMANDS)
        return EXIT_OK
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help", "help"}:
        from controlplane.cli.usage import show_usage

        show_usage(COMMANDS)
        return EXIT_OK if words else EXIT_USAGE
    name, rest = words[0], words[1:]
    command = COMMANDS.get(name)
    if command is None:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        print(
            f"tokenplane: there is no command {name!r}{meant}\n`tokenplane --help` lists them",
            file=sys.stderr,
        )
        return EXIT_USAGE
    try:
        code = function_of(command)(rest)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNREAD
    return code


def function_of(command: Command) -> Main:
    """The function of a command; imports its module."""
    return cast(Main, getattr(importlib.import_module(command.module), command.function))


if __name__ == "__main__":
    sys.exit(main())
