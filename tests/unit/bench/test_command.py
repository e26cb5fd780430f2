from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.catalogue import NAMES, benchmark
from bench.report import BEGIN, END, NoPlace, refresh, write
from bench.rows import row
from controlplane.cli.bench import main


def test_without_a_name_it_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert all(len(line.split()) > 3 for line in lines)


def test_an_unknown_name_is_refused_with_those_that_are_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["no-such"]) == 2
    said = capsys.readouterr().err
    assert "there is no 'no-such'" in said
    assert all(name in said for name in NAMES)


def test_without_a_checkout_it_says_where_benchmarks_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("controlplane.__file__", str(tmp_path / "site" / "__init__.py"))
    assert main(["hash"]) == 1
    assert "make bench" in capsys.readouterr().err


def test_a_run_writes_rows_and_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "hash.json"
    assert main(["hash", "--quick", "--json", str(out)]) == 0
    machine, *rows = json.loads(out.read_text())
    assert machine["unit"] == "cores"
    assert [row["case"] for row in rows] == [
        f"{tokens} tokens, {form}"
        for tokens in ("8,192", "65,536")
        for form in ("in words", "in a list")
    ]
    for each in (machine, *rows):
        assert list(each) == ["case", "ours", "peer", "ratio", "unit"]
        assert each["ours"] > 0
    assert "65,536 tokens" in capsys.readouterr().out


def test_the_page_gets_the_tables_of_what_has_been_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{BEGIN}\nold\n{END}\n\nmore\n")
    rows = [row("machine: a fine one", "cores", 2), row("8,192 tokens", "us", 30.0, 100.0)]
    write(tmp_path / "hash.json", rows)
    assert refresh(page, tmp_path) == 1
    text = page.read_text()
    assert "old" not in text
    assert "On a fine one, 2 cores." in text
    assert "| 8,192 tokens | 30 | 100 | us | 0.30 | ratio ≤ 0.5 | met |" in text
    assert text.endswith("more\n")
    assert (refresh(page, tmp_path), page.read_text()) == (1, text)


def test_a_page_without_a_place_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    with pytest.raises(NoPlace, match="bench: begin"):
        refresh(page, tmp_path)
    assert page.read_text() == "# Page\n"


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_what_it_measures_and_what_it_is_held_to(name: str) -> None:
    measured = benchmark(name)
    assert (measured.__doc__ or "").startswith(f"{name}: ")
    assert measured.BARS
