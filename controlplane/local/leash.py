"""Start a program that cannot outlive us: `leash.py PARENT_PID [--family] PROGRAM [ARG ...]`.

Asks the kernel to kill this process when its parent dies, then becomes the program. So even a
`kill -9` of the supervisor leaves nothing running. Linux only; elsewhere it just becomes the
program. Imports nothing of ours, to start fast.

With `--family` it stays beside the program instead: a real engine starts processes of its own,
which the kernel would leave behind, and which keep memory and ports. They are of our process group,
and all of it is killed when the parent dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    parent, program = int(argv[1]), argv[2:]
    family = program[0] == "--family"
    if family:
        signal.signal(signal.SIGUSR1, lambda *_: os.killpg(0, signal.SIGKILL))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGUSR1 if family else signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was asked
            sys.exit(1)
    if family:
        sys.exit(_stay_beside(program[1:]))
    os.execvp(program[0], program)


def _stay_beside(program: list[str]) -> int:
    """Run it, pass on what we are told, and return how it ended."""
    child = os.fork()
    if not child:
        os.execvp(program[0], program)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(child, number))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main(sys.argv)
