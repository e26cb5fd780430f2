"""Where settings come from: flags, environment, file; and an error text that names the source."""

from __future__ import annotations

import difflib
import os
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
)
from pydantic_settings import SettingsError as SourceUnreadable
from rich_argparse import RawDescriptionRichHelpFormatter

ENV_PREFIX = "TOKENPLANE_"
ENV_DELIMITER = "__"
KNOWN_GROUPS = frozenset(
    {
        "admin",
        "agent",
        "console",
        "etcd",
        "gateway",
        "http",
        "nats",
        "planner",
        "registry",
        "router",
        "scaler",
        "telemetry",
        "transfer",
    }
)
"""Groups that some process has. One file and one environment may serve a whole cluster: a process
skips the groups of others, and refuses every other name it does not know."""
SECRET_FILES = ("secret_file", "password_file")
ERRORS_SHOWN_MAX = 6
WORDS = {
    "str": "TEXT",
    "SecretStr": "TEXT",
    "Path": "FILE",
    "int": "N",
    "float": "NUMBER",
    "tuple[str,...]": "A,B,...",
    "dict[str,str]": "X=1,Y=2",
}
"""What the help calls the types of settings."""

Values = Mapping[str, Any]
"""Setting names to raw values; groups nest."""


class SettingsError(Exception):
    """The settings are wrong; the text says which, from where, why, and what to do."""


@dataclass(frozen=True)
class Source:
    """What one source says, and how it spells the name of a setting."""

    kind: str
    values: Values

    def spelling(self, path: Sequence[str]) -> str:
        """For example `flag --nats.servers` or `environment TOKENPLANE_NATS__SERVERS`."""
        if self.kind == "flag":
            return f"flag --{'.'.join(path)}"
        if self.kind == "environment":
            return f"environment {ENV_PREFIX}{ENV_DELIMITER.join(path).upper()}"
        return f"{self.kind} {'.'.join(path)}"


def from_flags(settings_type: type[BaseSettings], prog: str, argv: Sequence[str]) -> Source:
    """What the command line says. `--help` prints and raises SystemExit."""
    try:
        cli: CliSettingsSource[Any] = CliSettingsSource(
            settings_type,
            cli_prog_name=prog,
            cli_exit_on_error=False,
            cli_avoid_json=True,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
            formatter_class=Help,
        )
        _polish(cli.root_parser)
        if "_ARGCOMPLETE" in os.environ:
            complete(cli.root_parser)
        return Source("flag", cli(args=list(argv))())
    except SourceUnreadable as error:
        raise SettingsError(
            f"{prog}: bad command line: {_without_values(str(error))}\n"
            f"`{prog} --help` lists the flags"
        ) from None


def complete(parser: ArgumentParser) -> None:
    """Tell the shell that asks (see `controlplane.cli.completion`) what may follow, and end the
    process."""
    import argcomplete

    for action in parser._actions:
        choices = str(action.metavar or "")
        if choices.startswith("{") and "," in choices:
            values = dict.fromkeys(choices.strip("{}").split(","), "")
            action.completer = argcomplete.ChoicesCompleter(values)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, exclude=["--help"])


def _polish(parser: ArgumentParser) -> None:
    """Say what a flag takes in a user's words, and of the flags in the first line only that there
    are some: a process has dozens."""
    for action in parser._actions:
        if isinstance(action.metavar, str):
            action.metavar = WORDS.get(action.metavar, action.metavar)
    rest = [f" {action.metavar}" for action in parser._actions if not action.option_strings]
    parser.usage = f"{parser.prog} [options]{''.join(rest)}"


class Help(RawDescriptionRichHelpFormatter):
    """Help as people read it: coloured on a terminal, flags before what they take."""

    group_name_formatter = str


def from_environment(settings_type: type[BaseSettings]) -> Source:
    """What TOKENPLANE_ variables say; a group's name and a setting's are joined by `__`."""
    values = _Variables(
        settings_type,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        env_ignore_empty=True,
    )()
    return Source("environment", {**values, **dict(_unknown_variables(settings_type))})


class _Variables(EnvSettingsSource):
    """Lists and mappings may be written as flags take them, too: `a,b` and `x=1,y=2`."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Never fails: what makes no sense is left to validation, which names the setting."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            pass
        parts = [part.strip() for part in value.split(",")]
        kind = get_origin(field.annotation)
        if kind in (tuple, list):
            return parts
        if kind is dict and all("=" in part for part in parts):
            return dict(part.split("=", 1) for part in parts)
        return value


def _unknown_variables(settings_type: type[BaseSettings]) -> Iterator[tuple[str, Any]]:
    """Variables that look like a group's setting where there is no such group.

    Others with our prefix are none of our business: Kubernetes makes `TOKENPLANE_NATS_PORT` of a
    service's name, and tools have variables of their own.
    """
    known = settings_type.model_fields.keys() | KNOWN_GROUPS
    for name, value in os.environ.items():
        group, delimiter, setting = name.removeprefix(ENV_PREFIX).lower().partition(ENV_DELIMITER)
        if name.startswith(ENV_PREFIX) and delimiter and group not in known:
            yield group, {setting: value}


def from_file(settings_type: type[BaseSettings], path: str | os.PathLike[str], prog: str) -> Source:
    """What a TOML file says: groups are tables."""
    others = KNOWN_GROUPS - settings_type.model_fields.keys()
    try:
        with Path(path).open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise SettingsError(
            f"{prog}: cannot read the settings file {path}: {error.strerror}\n"
            "check --config or TOKENPLANE_CONFIG"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{prog}: {path} is not valid TOML: {error}") from error
    return Source(f"file {path}:", {k: v for k, v in values.items() if k not in others})


def secret_files(values: Values, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a `secret_file` or `password_file` is set: the place of the secret itself."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from secret_files(value, (*path, name))
        elif name in SECRET_FILES and value:
            yield (*path, name.removesuffix("_file"))


def from_secret_file(values: Values, place: Sequence[str], prog: str) -> Source:
    """The secret that is to be at `place`, from the file that is named beside it."""
    *group, name = place
    if lookup(values, place)[0]:
        both = f"{'.'.join(place)} and {name}_file"
        raise SettingsError(f"{prog}: both {both} are set; keep one of them")
    path = lookup(values, [*group, f"{name}_file"])[1]
    try:
        secret: Any = Path(path).read_text().strip()
    except OSError as error:
        raise SettingsError(f"{prog}: cannot read {name}_file {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SettingsError(f"{prog}: {name}_file {path} is not text") from None
    for step in reversed(place):
        secret = {step: secret}
    return Source(f"file {path}:", secret)


def _without_values(complaint: str) -> str:
    """A parser's complaint without what follows a flag: it may be a secret."""
    text = complaint.removeprefix("error parsing CLI: ")
    head, found, words = text.partition("unrecognized arguments: ")
    if not found:
        return text
    flags = [word.partition("=")[0] for word in words.split() if word.startswith("-")]
    return (
        f"{head}unknown flag{'s' if len(flags) > 1 else ''} {' '.join(flags)}"
        if flags
        else (f"{head}every setting needs a flag before it")
    )


def merge(sources: Sequence[Source]) -> dict[str, Any]:
    """One set of values; an earlier source wins over a later one, setting by setting."""
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        _lay_over(merged, source.values)
    return merged


def _lay_over(base: dict[str, Any], values: Values) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            group = base.get(name)
            base[name] = group = dict(group) if isinstance(group, Mapping) else {}
            _lay_over(group, value)
        else:
            base[name] = value


def lookup(values: Values, path: Sequence[str]) -> tuple[bool, Any]:
    """Whether there is something at `path`, and what."""
    here: Any = values
    for name in path:
        if not isinstance(here, Mapping) or name not in here:
            return False, None
        here = here[name]
    return True, here


def explain(
    error: ValidationError,
    settings_type: type[BaseModel],
    sources: Sequence[Source],
    prog: str,
) -> str:
    """One screen about everything that is wrong; never the value of a secret."""
    details = error.errors(include_url=False)
    lines = [f"{prog}: {len(details)} bad setting{'s' if len(details) > 1 else ''}"]
    for detail in details[:ERRORS_SHOWN_MAX]:
        lines += _explain_one(detail, settings_type, sources)
    if len(details) > ERRORS_SHOWN_MAX:
        lines.append(f"  ... and {len(details) - ERRORS_SHOWN_MAX} more")
    lines.append(
        f"`{prog} --help` lists every setting; docs/settings.md tells where they come from"
    )
    return "\n".join(lines)


def _explain_one(
    detail: ErrorDetails, settings_type: type[BaseModel], sources: Sequence[Source]
) -> Iterator[str]:
    path = [part for part in detail["loc"] if isinstance(part, str)]
    source = next((s for s in sources if path and lookup(s.values, path)[0]), None)
    where = f" ({source.spelling(path)})" if source else ""
    if detail["type"] == "extra_forbidden":
        yield f"  {'.'.join(path)}{where}"
        yield f"    is not a setting{_suggestion(path, settings_type)}"
        return
    found, value = lookup(source.values, path) if source else (False, None)
    shown = f" = {value!r}" if found and _may_be_shown(settings_type, path, value) else ""
    if path:
        yield f"  {'.'.join(path)}{shown}{where}"
    yield f"    {detail['msg'].removeprefix('Value error, ')}"


def _suggestion(path: Sequence[str], settings_type: type[BaseModel]) -> str:
    group = _model_at(settings_type, path[:-1])
    close = difflib.get_close_matches(path[-1], group.model_fields if group else (), n=1)
    return f"; did you mean {'.'.join([*path[:-1], close[0]])}?" if close else ""


def _may_be_shown(settings_type: type[BaseModel], path: Sequence[str], value: Any) -> bool:
    """Not so a secret, nor what may hold one: a whole group, an address with a login."""
    group = _model_at(settings_type, path[:-1])
    field = group.model_fields.get(path[-1]) if group and path else None
    return (
        field is not None
        and "@" not in str(value)
        and SecretStr.__name__ not in str(field.annotation)
        and _model_at(settings_type, path) is None
    )


def _model_at(settings_type: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    here = settings_type
    for name in path:
        field = here.model_fields.get(name)
        if field is None or not isinstance(field.annotation, type):
            return None
        if not issubclass(field.annotation, BaseModel):
            return None
        here = field.annotation
    return here
