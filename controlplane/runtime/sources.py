"""Where settings come from: flags, environment, file; and an error text that names the source."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
)
from pydantic_settings import SettingsError as SourceUnreadable

ENV_PREFIX = "TOKENPLANE_"
ENV_DELIMITER = "__"
ERRORS_SHOWN_MAX = 6

Values = Mapping[str, Any]
"""Setting names to raw values; groups nest."""


class SettingsError(Exception):
    """The settings are wrong; the text says which, from where, why, and what to do."""


@dataclass(frozen=True)
class Source:
    """What one source says, and how it spells the name of a setting."""

    kind: str
    values: Values

    def has(self, path: Sequence[str]) -> bool:
        return any(found for found, _ in [lookup(self.values, path)])

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
            cli_parse_args=list(argv),
            cli_exit_on_error=False,
            cli_avoid_json=True,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
        )
        return Source("flag", cli())
    except SourceUnreadable as error:
        why = str(error).removeprefix("error parsing CLI: ")
        raise SettingsError(
            f"{prog}: bad command line: {why}\n`{prog} --help` lists the flags"
        ) from None


def from_environment(settings_type: type[BaseSettings], prog: str) -> Source:
    """What TOKENPLANE_ variables say; a group's name and a setting's are joined by `__`."""
    try:
        return Source(
            "environment",
            EnvSettingsSource(
                settings_type, env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER
            )(),
        )
    except SourceUnreadable as error:
        raise SettingsError(f"{prog}: bad environment variable: {error}") from None


def from_file(path: str | os.PathLike[str], prog: str) -> Source:
    """What a TOML file says: groups are tables."""
    try:
        with Path(path).open("rb") as file:
            return Source(f"file {path}:", tomllib.load(file))
    except OSError as error:
        raise SettingsError(
            f"{prog}: cannot read the settings file {path}: {error.strerror}\n"
            "check --config or TOKENPLANE_CONFIG"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{prog}: {path} is not valid TOML: {error}") from error


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
    source = next((s for s in sources if path and s.has(path)), None)
    where = f" ({source.spelling(path)})" if source else ""
    if detail["type"] == "extra_forbidden":
        yield f"  {'.'.join(path)}{where}"
        yield f"    is not a setting{_suggestion(path, settings_type)}"
        return
    found, value = lookup(source.values, path) if source else (False, None)
    shown = f" = {value!r}" if found and not _is_secret(settings_type, path) else ""
    yield f"  {'.'.join(path) or 'together'}{shown}{where}"
    yield f"    {detail['msg'].removeprefix('Value error, ')}"


def _suggestion(path: Sequence[str], settings_type: type[BaseModel]) -> str:
    group = _model_at(settings_type, path[:-1])
    close = difflib.get_close_matches(path[-1], group.model_fields if group else (), n=1)
    return f"; did you mean {'.'.join([*path[:-1], close[0]])}?" if close else ""


def _is_secret(settings_type: type[BaseModel], path: Sequence[str]) -> bool:
    group = _model_at(settings_type, path[:-1])
    field = group.model_fields.get(path[-1]) if group and path else None
    return field is None or SecretStr.__name__ in str(field.annotation)


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
