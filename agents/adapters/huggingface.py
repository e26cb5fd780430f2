"""The tokenizer that lies beside a model's weights, as Hugging Face lays it out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import anyio

from agents.adapters.protocol import Tokenizer

log = logging.getLogger(__name__)

JSON_BYTES_MAX = 512 * 1024
"""A bigger `tokenizer.json` is named by its path: the registry refuses values over 1.5 MiB."""


async def find_tokenizer(set_by_operator: str | None, told: str | None) -> Tokenizer | None:
    """From the operator's directory or where the engine says that its model is, if that is a path
    on this machine; None, and a warning that says why, where there is none."""
    place = set_by_operator or (told if told and Path(told).is_absolute() else None)
    if place is None:
        says = f"names its model {told!r}, which is not a path" if told else "tells no path"
        log.warning("no tokenizer for routing: the engine %s; set agent.model_directory", says)
        return None
    return await anyio.to_thread.run_sync(read_tokenizer, Path(place))


def read_tokenizer(directory: Path) -> Tokenizer | None:
    """None, and a warning that says why, if there is none that can be read. Blocks."""
    path = directory / "tokenizer.json"
    try:
        size_bytes = path.stat().st_size
        content = path.read_text() if size_bytes <= JSON_BYTES_MAX else None
        config = _read_config(directory / "tokenizer_config.json")
        template = _read_template(directory, config)
    except (OSError, ValueError) as error:
        log.warning("no tokenizer for routing: %s", error)
        return None
    return Tokenizer(str(path.resolve()), content, template, _special_tokens(config))


def _read_config(path: Path) -> dict[str, Any]:
    config = json.loads(path.read_text()) if path.exists() else {}
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a JSON object")
    return config


def _read_template(directory: Path, config: dict[str, Any]) -> str | None:
    """A file of its own wins; of several named templates the default one is taken."""
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {each["name"]: each["template"] for each in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and the like; written as text, or as an object with its `content`."""
    tokens = {}
    for name, value in config.items():
        if isinstance(value, dict):
            value = value.get("content")
        if name.endswith("_token") and isinstance(value, str):
            tokens[name] = value
    return tokens
