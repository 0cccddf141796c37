"""No text from outside steers a terminal or forges a line of a log: names, titles, errors, warnings, bars."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from opengcl.cli import app
from opengcl.progress import progress_bar
from opengcl.terminal import SafeFormatter, one_line, safe

SOURCES = Path(__file__).resolve().parents[1] / "src" / "opengcl"
HOSTILE = "\x1b[2J\x1b]0;title\x07\r\x9b31m\x7f\u202eevil\u2066\u200f\ud800"


@given(st.text(st.characters(codec=None)))
def test_nothing_that_steers_is_left_and_all_else_stays(text: str) -> None:
    for made, kept in ((safe(text), "\n\t"), (one_line(text), "")):
        for sign in made:
            steers = unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")
            turns = unicodedata.bidirectional(sign) in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
            assert sign in kept or not (steers or turns), (made, sign)
        made.encode("utf-8")
    assert safe(safe(text)) == safe(text)
    plain = "".join(sign for sign in text if sign.isprintable())
    assert safe(plain) == one_line(plain) == plain


def test_signs_are_written_as_python_writes_them() -> None:
    assert safe("a\x1b[31m\tb\nc\r\x9b\u202e") == "a\\x1b[31m\tb\nc\\r\\x9b\\u202e"
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    assert safe("naïve שלום 日本 👩\u200d👧") == "naïve שלום 日本 👩\u200d👧"


def test_only_one_place_writes_to_the_terminal() -> None:
    """Every command speaks through `arguments`, which escapes."""
    writes = re.compile(r"typer\.(echo|secho)\b|(?<![\w.])print\(|sys\.(stdout|stderr)\.write")
    files = {str(file.relative_to(SOURCES)): file.read_text(encoding="utf-8") for file in SOURCES.rglob("*.py")}
    assert sorted(name for name, text in files.items() if writes.search(text)) == ["cli/arguments.py", "progress.py"]


def test_columns_of_a_hostile_table_are_shown(tmp_path: Path) -> None:
    table = tmp_path / "t\x1b[31m.csv"
    table.write_text("\x1b[2Jquery,product_id,title,score,\u202ename\na,1,x,bad\x1b]0;t\x07\n", encoding="utf-8")
    command = [sys.executable, "-m", "opengcl.cli", "data", "import", str(table), "--out", str(tmp_path / "out")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert "\\x1b" in found.stderr
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", found.stderr + found.stdout)


def test_results_with_hostile_titles_are_one_line_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from opengcl import product_search

    class Search:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, query: str, k: int) -> list[product_search.Hit]:
            return [product_search.Hit(1, 0.5, f"d\n{HOSTILE}", f"{query}{k}\n   1  9.9  forged{HOSTILE}")]

    monkeypatch.setattr(product_search, "ProductSearch", Search)
    monkeypatch.setattr(sys.modules["opengcl.cli.main"], "_dataset_of", lambda *_: None)
    found = CliRunner().invoke(app, ["search", str(tmp_path), "red"])
    assert found.exit_code == 0, found.output
    assert len(found.output.splitlines()) == 1
    assert found.output == safe(found.output)


def test_logs_warnings_and_uncaught_errors_are_escaped() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "document %s", (HOSTILE,), None)
    assert SafeFormatter("%(message)s").format(record) == f"document {safe(HOSTILE)}"
    code = (
        "import warnings; from opengcl.terminal import guard_streams; guard_streams()\n"
        "warnings.warn('a\\x1b[31m'); raise RuntimeError('b\\x1b]0;t\\x07')\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "a\\x1b[31m" in found.stderr
    assert "b\\x1b]0;t\\x07" in found.stderr
    assert "\x1b" not in found.stderr


def test_bars_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("opengcl.progress.FIRST_LINE", 0.0)
    with progress_bar(desc=f"file{HOSTILE}", unit="rows", show=True, total=3) as bar:
        bar.note({"last": HOSTILE})
        bar.move_to(2, f"next{HOSTILE}")
    text = stream.getvalue()
    assert "next\\x1b" in text
    assert text == safe(text)
