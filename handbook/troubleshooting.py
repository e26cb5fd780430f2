"""docs/troubleshooting.md, from what the doctor can find."""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.doctor.findings import AILMENTS, Level

HEAD = """# Troubleshooting

<!-- Written by `make docs` from controlplane/doctor/findings.py. -->

    tokenplane doctor                     # the cluster that `tokenplane up` runs here
    tokenplane doctor --config node.toml --json
    tokenplane doctor --ports             # also: can a gateway have its ports on this machine?

Give it the settings that a process would be started with. It greets every NATS and etcd server,
reads and writes as that process would, listens for load reports (`--listen_s`), and looks at
records, ports, disk and settings. It changes nothing but a key that is gone at once. Exit code 0:
nothing, or warnings alone; 1: something does not work; 2: bad settings, which it explains.

Where NATS and etcd have users, visit as `operator` (docs/security.md): other users may not see
everything, and what may not be seen is not found.
"""

TITLES = {
    Level.ERROR: "What does not work",
    Level.WARNING: "What works, and not as well as it could",
}


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(line for level in Level for line in _section(level))])


def _section(level: Level) -> Iterator[str]:
    yield f"## {TITLES[level]}\n"
    yield "| finding | what helps |\n|---|---|"
    for code, ailment in AILMENTS.items():
        if ailment.level is level:
            yield f"| `{code}` | {ailment.fix} |"
    yield ""
