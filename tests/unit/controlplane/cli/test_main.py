"""The front door: finds commands, helps, and completes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import pytest
from rich.console import Console

from controlplane.cli.completion import SHELLS
from controlplane.cli.completion import main as completion
from controlplane.cli.main import COMMANDS, Topic, function_of, main
from controlplane.cli.usage import show_usage
from controlplane.gateway.tenants import key_hash
from handbook.pages import ROOT


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_the_table_says(name: str) -> None:
    assert callable(function_of(COMMANDS[name]))


def test_the_help_names_every_command_once() -> None:
    written = StringIO()
    show_usage(COMMANDS, Console(file=written, width=100))
    first = [line.split()[0] for line in written.getvalue().splitlines() if line.strip()]
    assert sorted(word for word in first if word in COMMANDS) == sorted(COMMANDS)


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_not_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    assert "usage: tokenplane" in capsys.readouterr().out
    assert main(["--help"]) == 0


def test_a_misspelt_command_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rooter"]) == 2
    assert "did you mean 'router'?" in capsys.readouterr().err


def test_who_reads_no_further_is_no_failure_to_be_told_of() -> None:
    unread, written = os.pipe()
    os.close(unread)
    ended = subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", "completion", "bash"],
        stdout=written,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(written)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["up", "--name", "a b"], 2, "cluster 'a b' must be 1 to"),
        (["trace", "x", "--cluster", "a b"], 2, "cluster 'a b' must be 1 to"),
        (["demo", "--out", "/dev/null/x"], 1, "cannot make the folder /dev/null/x"),
        (["plan", "--replay", "noise", "--policy", "nonsense"], 2, "there is no policy 'nonsense'"),
        (["plan", "--replay", "noise", "--plot", "out.foo"], 2, "out.foo is none of: .png"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_begins(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, why: str
) -> None:
    assert main(words) == code
    told = capsys.readouterr()
    assert why in told.err and not told.out


@contextmanager
def listening_to_interrupts() -> Iterator[None]:
    """For children, too: who is started in the background by a shell is deaf to them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_command_has_nothing_to_say() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, listening_to_interrupts():
        store = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "controlplane.cli.main", "trace", "x", "--store", store]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as running:
            silent.settimeout(60)
            asked, _ = silent.accept()
            running.send_signal(signal.SIGINT)
            said = running.communicate(timeout=60)[1]
            asked.close()
    assert (running.returncode, said) == (130, b"")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert completion([shell]) == 0
    assert "tokenplane" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tokenplane re", {"replay", "registry"}),
        ("tokenplane registry --telemetry.l", {"--telemetry.log_format", "--telemetry.log_level"}),
        ("tokenplane registry --telemetry.log_format ", {"console", "json"}),
        ("tokenplane completion z", {"zsh"}),
    ],
)
def test_a_shell_is_told_what_may_follow(line: str, expected: set[str]) -> None:
    assert complete(line) == expected


def complete(line: str) -> set[str]:
    """What the command answers when a shell asks, as argcomplete's scripts do."""
    program = (
        "import os, sys; os.dup2(1, 8); from controlplane.cli.main import main; sys.exit(main([]))"
    )
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **asked, "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return set(answer.stdout.split())


SPEAKS_NO_JSON = {name for name, command in COMMANDS.items() if command.topic is Topic.RUN} | {
    "console",
    "completion",
}
"""They serve until they are stopped, and log; or print what a shell reads."""


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - SPEAKS_NO_JSON))
def test_every_command_that_tells_something_tells_it_as_json_too(name: str) -> None:
    """By the page that `make docs` writes from each command's own help; a test keeps it so."""
    page = (ROOT / "docs/cli.md").read_text()
    section = page.split(f"### tokenplane {name}\n", 1)[1].split("\n### ")[0]
    assert re.search(r"^ +--json\b", section, re.MULTILINE)


def test_a_key_as_json_is_the_one_whose_hash_it_tells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "acme", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tenant"] == "acme" and told["hash"] == key_hash(told["key"])


def test_passwords_as_json_are_as_many_as_on_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["access", "passwords"]) == 0
    names = [line.partition("=")[0] for line in capsys.readouterr().out.splitlines()]
    assert main(["access", "passwords", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == names
