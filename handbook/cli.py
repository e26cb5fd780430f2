"""docs/cli.md: every command with its own options, as its `--help` shows them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from controlplane.cli.main import COMMANDS, Command, Topic, function_of

COMMON = ("nats", "etcd", "telemetry", "admin")
"""Groups of options that every process has; settings.md lists them once."""
VARIANTS = {"replay": "--ladder"}
"""Flags that make a command another one, with options of its own."""
GROUP = re.compile(r"\n\n(?=[\w.]+ options:\n)")
WIDTH = "92"

HEAD = """\
# The command line

`tokenplane COMMAND [options]`. Written by `make docs` from the commands themselves.

Options come from flags, the environment or a file, see [settings.md](settings.md); the groups
`nats`, `etcd`, `telemetry` and `admin`, which every process has, are described there and left out
here. Commands that ask a cluster find the one that `tokenplane up` runs on this machine by its
name (`--cluster`), and any other by `--nats.servers` and `--etcd.endpoints`.

Where a command prints tables, `--json` prints the same as JSON instead, for programs. Exit codes:
0 done; 1 failed, and the last line says why; 2 wrong options or settings, and the text says which.

`tokenplane completion bash` (or `zsh`, `fish`) prints what makes a shell complete commands, flags
and their values; its `--help` says where to put it.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for topic in Topic:
        parts.append(f"## {topic}\n")
        parts += [_command(n, c) for n, c in COMMANDS.items() if c.topic is topic]
    return "\n".join(parts)


def _command(name: str, command: Command) -> str:
    summary = command.summary[0].upper() + command.summary[1:]
    said = f"### tokenplane {name}\n\n{summary}.\n\n```text\n{_help(command)}\n```\n"
    if flag := VARIANTS.get(name):
        said += f"\n### tokenplane {name} {flag}\n\n```text\n{_help(command, flag)}\n```\n"
    return said


def _help(command: Command, *flags: str) -> str:
    printed = StringIO()
    with _plain_terminal(), redirect_stdout(printed):
        try:
            function_of(command)([*flags, "--help"])
        except SystemExit as ended:
            assert not ended.code, f"{command}: --help failed"
    groups = GROUP.split(printed.getvalue().rstrip())
    own = [group for group in groups if not group.startswith(COMMON)]
    return "\n".join(line.rstrip() for line in "\n\n".join(own).splitlines())


@contextmanager
def _plain_terminal() -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= {"COLUMNS": WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    os.environ.pop("FORCE_COLOR", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
