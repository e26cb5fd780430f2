"""Every query of every dashboard and alert, asked of a real Prometheus that has watched a real
cluster, and the dashboards drawn from the answers with Grafana's own components.

    make dashboards                                 # prometheus, npm and Chromium have to be there
    python -m tests.dashboards                      # asks, and draws nothing

Exit code 1 if a panel shows nothing, or Prometheus cannot make sense of an alert.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from handbook.pages import ROOT
from tests.dashboards.asked import DASHBOARDS, Asked, ask, firing_or_not, page
from tests.dashboards.stage import played, watched

WIDTH_PX, ROW_PX = 1560, 30


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="Ask every query of every dashboard.")
    parser.add_argument("--panels", type=Path, help="what `npm run build` has made; draws with it")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--prometheus", default="prometheus", help="the program")
    asked = parser.parse_args(argv)
    if shutil.which(asked.prometheus) is None:
        parser.error("there is no Prometheus: apt-get install prometheus, or --prometheus FILE")
    bad = False
    with tempfile.TemporaryDirectory(prefix="tokenplane-dashboards-") as temporary:
        home = Path(temporary)
        targets, began_s = home / "targets.json", time.time()
        with watched(asked.prometheus, targets, home) as prometheus, played(home, targets):
            states = firing_or_not(prometheus)
            found = {name: ask(prometheus, name, began_s, time.time()) for name in DASHBOARDS}
        for name, each in found.items():
            print(
                f"{name}: {len(each.dashboard['panels'])} panels, silent:"
                f" {', '.join(each.silent) or 'none'}; {each.queries} queries, without an answer:"
                f" {'; '.join(each.unanswered) or 'none'}"
            )
            bad |= bool(each.silent)
            if asked.panels:
                draw(each, asked.panels.resolve(), asked.pictures / f"dashboard-{name}.png", home)
    print("alerts:", ", ".join(f"{name} {state}" for name, state in sorted(states.items())))
    return int(bad or not states or "err" in states.values())


def draw(asked: Asked, built: Path, picture: Path, home: Path) -> None:
    """A screenshot of the page that Grafana's components make of it."""
    file = home / "page.html"
    file.write_text(page(asked, built))
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in asked.dashboard["panels"])
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    shot = (f"--window-size={WIDTH_PX},{rows * ROW_PX}", f"--screenshot={picture}")
    argv = ["chromium", *flags, *shot, "--virtual-time-budget=20000", file.as_uri()]
    subprocess.run(argv, check=True, capture_output=True, timeout=180)


if __name__ == "__main__":
    sys.exit(main())
