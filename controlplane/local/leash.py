"""Start a program that cannot outlive us: `python leash.py PARENT_PID PROGRAM [ARG ...]`.

Asks the kernel to kill this process when its parent dies, then becomes the program. So even a
`kill -9` of the supervisor leaves nothing running. Linux only; elsewhere it just becomes the
program. Imports nothing of ours, to start fast.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    parent = int(argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was asked
            sys.exit(1)
    os.execvp(argv[2], argv[2:])


if __name__ == "__main__":
    main(sys.argv)
