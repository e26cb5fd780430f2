"""`tokenplane COMMAND ...`: finds the command's module, imports only that, and runs it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

EXIT_OK, EXIT_USAGE = 0, 2


class Command(NamedTuple):
    """Where a command lives: `module` has a function `function(argv) -> exit code`."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "up": Command("controlplane.cli.up", "main", "start a whole cluster on this machine"),
    "demo": Command("controlplane.cli.demo", "main", "KV-aware routing against round robin, live"),
    "replay": Command("controlplane.cli.replay", "main", "replay a trace, in virtual time or live"),
    "generate": Command("controlplane.cli.generate", "main", "write a trace of conversations"),
    "bench": Command("controlplane.cli.bench", "main", "measure it beside a peer"),
    "explain": Command("controlplane.cli.explain", "main", "why a request went where it went"),
    "key": Command("controlplane.cli.key", "main", "make an API key for a tenant"),
    "gateway": Command("controlplane.compose", "gateway", "run the gateway service"),
    "router": Command("controlplane.compose", "router", "run the router service"),
    "registry": Command("controlplane.compose", "registry", "run the registry service"),
}


class Main(Protocol):
    """What a command's function looks like."""

    def __call__(self, argv: Sequence[str]) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage())
        return EXIT_OK if words else EXIT_USAGE
    name, rest = words[0], words[1:]
    command = COMMANDS.get(name)
    if command is None:
        print(f"tokenplane: there is no command {name!r}\n\n{usage()}", file=sys.stderr)
        return EXIT_USAGE
    run = cast(Main, getattr(importlib.import_module(command.module), command.function))
    return run(rest)


def usage() -> str:
    """One screen."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tokenplane COMMAND [options]",
            "",
            "A control plane for tokens: KV-aware routing over NATS and etcd.",
            "",
            *lines,
            "",
            "`tokenplane COMMAND --help` lists the options of one.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
