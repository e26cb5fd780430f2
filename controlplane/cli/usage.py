"""The help of `tokenplane` itself: one screen, commands under what people come for."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from controlplane.cli.main import Command, Topic

HEAD = "A control plane for tokens: KV-aware routing over NATS and etcd."
FOOT = "`tokenplane COMMAND --help` lists the options of one; docs/cli.md has all of them."


def show_usage(commands: Mapping[str, Command], console: Console | None = None) -> None:
    """Print it; plain where the terminal is."""
    width = max(map(len, commands)) + 2
    (console or Console()).print(
        Text("usage: tokenplane COMMAND [options]\n"),
        HEAD,
        *(_topic(topic, commands, width) for topic in Topic),
        Text(f"\n{FOOT}", style="dim"),
        sep="\n",
    )


def _topic(topic: Topic, commands: Mapping[str, Command], width: int) -> Group:
    grid = Table.grid(padding=(0, 0, 0, 2))
    grid.add_column(width=width, style="bold cyan", no_wrap=True)
    grid.add_column()
    for name, command in commands.items():
        if command.topic is topic:
            grid.add_row(name, command.summary)
    return Group(Text(f"\n{topic}", style="bold"), grid)
