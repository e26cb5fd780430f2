"""`python -m handbook`: write every page that has changed."""

from __future__ import annotations

import sys

from handbook.pages import PAGES, ROOT


def main() -> None:
    """Write them, and say which."""
    for name, page in PAGES.items():
        path, text = ROOT / name, page()
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
