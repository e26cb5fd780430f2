"""What is written from the code is what the code would write now."""

from __future__ import annotations

import pytest

from handbook.pages import PAGES, ROOT


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    assert (ROOT / name).read_text() == PAGES[name](), f"{name} is old: run `make docs`"
