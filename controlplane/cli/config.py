"""`tokenplane config list|get|set|unset|watch`: settings that change while a cluster runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controlplane.cli.run import run_interactive
from controlplane.client.config import Config, named, parsed
from controlplane.local.running import located
from controlplane.runtime.carriers import open_carriers
from controlplane.runtime.live import BadSetting
from controlplane.runtime.service import CannotServe
from controlplane.runtime.settings import CommonSettings
from proto.live import SettingsTold

PROG = "tokenplane config"
WORDS = {"list": 0, "get": 1, "set": 2, "unset": 1, "watch": 0}
"""How many words follow."""


class Refused(CannotServe):
    """A live setting cannot be that."""


class ConfigCommand(CommonSettings):
    """See and change settings of a running cluster: `list`, `get NAME`, `set NAME VALUE`, `unset
    NAME`, `watch`. A value is checked before it is written, and taken up without a restart."""

    action: CliPositionalArg[Literal["list", "get", "set", "unset", "watch"]] = Field(
        "list", description="what to do; `list` also asks every process which values are on"
    )
    words: CliPositionalArg[list[str]] = Field([], description="NAME, as in router.policy; VALUE")
    every: bool = Field(False, alias="all", description="list: settings that nobody set, too")
    wait_s: float = Field(0.5, gt=0, description="list: how long processes are given to answer")
    as_json: bool = Field(False, alias="json", description="JSON instead of tables")

    @model_validator(mode="after")
    def _enough_words(self) -> ConfigCommand:
        if len(self.words) != WORDS[self.action]:
            wanted = ("nothing", "NAME", "NAME VALUE")[WORDS[self.action]]
            raise ValueError(f"`{self.action}` takes {wanted} after it")
        return self


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    return run_interactive(PROG, ConfigCommand, config, argv)


async def config(settings: ConfigCommand) -> None:
    """Do it. Raises `Refused`, `StoreUnavailable`, `BusUnavailable`."""
    try:
        if settings.words:
            named(settings.words[0])
        async with open_carriers(located(settings), "config") as carriers:
            await do(settings, Config(carriers.bus, carriers.store, settings.cluster))
    except BadSetting as error:
        raise Refused(str(error)) from None


async def do(settings: ConfigCommand, cluster: Config) -> None:
    """The same on a cluster that is reached. Raises `Refused`, `BadSetting`, `StoreUnavailable`."""
    match settings.action, settings.words:
        case "get", [name]:
            value = await cluster.get(name)
            if value is None and not settings.as_json:
                raise Refused(f"{name} is not set: each process is as it was started")
            print(json.dumps({name: value and parsed(value)}) if settings.as_json else value)
        case "set", [name, value]:
            await cluster.set(name, parsed(value))
        case "unset", [name]:
            if not await cluster.unset(name):
                raise Refused(f"{name} was not set")
        case "watch", _:
            async with cluster.changes() as changes:
                async for change in changes:
                    print(json.dumps({change.name: change.value}), flush=True)
        case _:
            await _list(settings, cluster)


async def _list(settings: ConfigCommand, cluster: Config) -> None:
    wanted, told = await cluster.all(), await cluster.told(settings.wait_s)
    if settings.as_json:
        on = {each.service: {n: json.loads(v) for n, v in each.values.items()} for each in told}
        refused = {each.service: each.refused for each in told if each.refused}
        values = {name: parsed(value) for name, value in wanted.items()}
        print(json.dumps({"set": values, "on": on, "refused": refused}))
        return
    console = Console()
    console.print(_table(wanted, told, every=settings.every))
    if not told:
        console.print("[yellow]no process has answered[/]; is the cluster running?")


def _table(wanted: dict[str, str], told: Sequence[SettingsTold], *, every: bool) -> Table:
    """A row a setting: what is set, and how many processes are on it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("setting", "set", "on in"):
        table.add_column(head)
    names = set(wanted) | ({name for each in told for name in each.values} if every else set())
    for name in sorted(names):
        table.add_row(name, wanted.get(name, "-"), _on(name, wanted.get(name), told))
    if not names:
        table.add_row(Text("nothing is set; --all shows what may be", style="dim"), "", "")
    return table


def _on(name: str, wanted: str | None, told: Sequence[SettingsTold]) -> Text:
    cells = Text()
    for each in told:
        if why := each.refused.get(name):
            cells.append(f"{each.service} refuses: {why}  ", style="red")
        elif name in each.values:
            right = wanted is None or each.values[name] == wanted
            cells.append(f"{each.service} {each.values[name]}  ", style="green" if right else "red")
    return cells
