"""Shell completion: `tokenplane completion bash|zsh|fish` prints what a shell is to source.

The shell then runs `tokenplane` itself with `_ARGCOMPLETE` set. The front door answers for the
names of commands; for the flags of one it runs that command, whose settings answer when they are
about to be parsed (`controlplane.runtime.sources`). So a new command is completed without a word
about it here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

import argcomplete
from argcomplete.shell_integration import shellcode

from controlplane.cli.main import Command, function_of

PROG = "tokenplane completion"
SHELLS = ("bash", "zsh", "fish")
HINTS = {
    "bash": "tokenplane completion bash > ~/.local/share/bash-completion/completions/tokenplane",
    "zsh": "source <(tokenplane completion zsh)   # in ~/.zshrc",
    "fish": "tokenplane completion fish > ~/.config/fish/completions/tokenplane.fish",
}


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = _parser()
    shell = parser.parse_args(argv).shell
    print(shellcode(["tokenplane"], shell=shell))
    if sys.stdout.isatty():
        print(f"\n# to keep it: {HINTS[shell]}", file=sys.stderr)
    return 0


def complete(commands: Mapping[str, Command]) -> None:
    """Answer the shell that asks in the environment, and end the process."""
    words = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")
    words = [word for word in words[:-1] if word] + words[-1:]
    command = commands.get(words[1]) if len(words) > 2 else None
    if command is None:
        argcomplete.autocomplete(_front_door(commands), always_complete_options=False)
    elif command.module == __name__:
        os.environ["_ARGCOMPLETE"] = "2"
        argcomplete.autocomplete(_parser())
    else:
        os.environ["_ARGCOMPLETE"] = "2"
        function_of(command)([])


def _front_door(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tokenplane")
    names = parser.add_subparsers()
    for name, command in commands.items():
        names.add_parser(name, help=command.summary)
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Print what makes a shell complete commands and flags.",
        epilog="\n".join(["to keep it:", *(f"  {hint}" for hint in HINTS.values())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser
