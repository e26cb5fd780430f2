"""Plays schedules by the number, on every core, or one of them word by word."""

from __future__ import annotations

import argparse
import sys
import time

from tests.schedules.player import GROUPS, WORLDS, Failure, play_many, told, turns


def main() -> int:
    """0 if nothing went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.schedules", description=__doc__)
    parser.add_argument("--group", choices=GROUPS, default="cores", help="worlds that take turns")
    parser.add_argument("--world", choices=sorted(WORLDS), help="one world instead")
    parser.add_argument("--seed", type=int, help="play this one alone, word by word")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--count", type=int, default=10_000, help="how many, of all worlds together"
    )
    options = parser.parse_args()
    if options.seed is not None:
        if not options.world:
            parser.error("which --world does the seed belong to?")
        sys.stdout.write(told(options.world, options.seed))
        return 0
    worlds = [options.world] if options.world else turns(options.group)
    began_s = time.monotonic()

    def progress(played: int) -> None:
        pace = played / max(time.monotonic() - began_s, 1e-9)
        sys.stderr.write(f"\r{played:,} of {options.count:,} schedules, {pace:,.0f} a second ")
        sys.stderr.flush()

    failure = play_many(worlds, options.first, options.count, progress)
    sys.stderr.write("\n")
    if isinstance(failure, Failure):
        sys.stdout.write(failure.text)
        return 1
    seconds = time.monotonic() - began_s
    sys.stdout.write(
        f"{options.count:,} schedules of {', '.join(sorted(set(worlds)))}"
        f" from seed {options.first:,} on: nothing went wrong, in {seconds:,.0f} s\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
