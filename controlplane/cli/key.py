"""`tokenplane key TENANT`: make an API key, and the lines that let its owner in."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from pydantic import Field
from pydantic_settings import CliPositionalArg

from controlplane.gateway.tenants import key_hash, new_key
from controlplane.runtime.process import EXIT_BAD_SETTINGS, EXIT_OK
from controlplane.runtime.settings import CommandSettings, SettingsError, load
from proto.ids import BadName, check_name

PROG = "tokenplane key"


class KeySettings(CommandSettings):
    """Make an API key; it is shown once, and only its hash is to be kept."""

    tenant: CliPositionalArg[str] = Field(description="whose key it is")
    as_json: bool = Field(False, alias="json", description="key and hash as JSON")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    try:
        settings = load(KeySettings, argv, prog=PROG)
        tenant = check_name(settings.tenant, "tenant")
    except (SettingsError, BadName) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_SETTINGS
    key = new_key()
    if settings.as_json:
        print(json.dumps({"tenant": tenant, "key": key, "hash": key_hash(key)}))
        return EXIT_OK
    print(f"The key, for {tenant}; it is not shown again:\n\n  {key}\n", file=sys.stderr)
    print("For the gateway's tenants file (--gateway.tenants FILE):\n", file=sys.stderr)
    print(f'[tenants.{tenant}]\nkeys = ["{key_hash(key)}"]')
    return EXIT_OK
