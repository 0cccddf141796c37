"""Delimited text: dialects, quotes, lines, decimal commas; differential tests against Python's csv."""

from __future__ import annotations

import csv
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opengcl import delimited_text, text_files
from opengcl.data import DataSetError
from opengcl.sources.table_files import TableFile

LAMPS = (
    "query\tproduct_id\ttitle\tscore\n"
    'lamp\tA1\t"Star lamp\t3\nlamp\tA2\tplain\t2\nlamp\tA3\t"Moon lamp\t1\nlamp\tA4\tlast\t1\n'
)


def file(folder: Path, data: bytes | str, name: str = "t.csv", **options: Any) -> TableFile:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return TableFile(path, **options)


def rows(table: TableFile) -> list[tuple[Any, ...]]:
    """All rows with their lines in front."""
    found = []
    for part in table.read(table.columns, progress=False):
        assert part.lines is not None
        found += [(int(line), *row.values()) for line, row in zip(part.lines, part.batch.to_pylist(), strict=True)]
    return found


def refused(table: TableFile) -> str:
    with pytest.raises(DataSetError) as caught:
        rows(table)
    return str(caught.value)


# Quotes


def test_quotes_that_join_rows_are_refused_with_their_line_and_read_when_told(tmp_path: Path) -> None:
    told = refused(file(tmp_path, LAMPS, "lamps.tsv"))
    assert told.startswith("lamps.tsv, line 2: a double quote opens a field and closes before the field ends")
    assert "--no-quotes" in told
    assert rows(file(tmp_path, LAMPS, "lamps.tsv", quoted=False)) == [
        (2, "lamp", "A1", '"Star lamp', "3"),
        (3, "lamp", "A2", "plain", "2"),
        (4, "lamp", "A3", '"Moon lamp', "1"),
        (5, "lamp", "A4", "last", "1"),
    ]


def test_a_quote_that_never_closes_names_the_line_where_it_opened(tmp_path: Path) -> None:
    text = 'id,title\n0,fine\n1,"never\n' + "".join(f"{n},x\n" for n in range(2, 50))
    assert refused(file(tmp_path, text)).startswith("t.csv, line 3: a double quote opens a field and does not close")


def test_twenty_stray_quotes_among_two_thousand_rows(tmp_path: Path) -> None:
    """The quoted reading is regular here: each stray quote is closed by an inch mark in a later title."""
    titles = {100 * n + 3: '"Star lamp' for n in range(20)} | {100 * n + 53: 'lamp 12"' for n in range(20)}
    lines = [f"lamp\tA{n}\t{titles.get(n, 'plain')}\t1\n" for n in range(2000)]
    text = "query\tproduct_id\ttitle\tscore\n" + "".join(lines)
    told = refused(file(tmp_path, text, "t.tsv"))
    assert told.startswith("t.tsv, line 5: a double quote opens a field that ends in a later line")
    assert "as 20 fields do, and each line in it is a row by itself" in told
    assert len(rows(file(tmp_path, text, "t.tsv", quoted=False))) == 2000


def test_one_field_alone_with_line_ends_is_asked_about(tmp_path: Path) -> None:
    text = 'id,title,score\n1,"two\nlines",3\n2,x,1\n'
    told = refused(file(tmp_path, text))
    assert told.startswith("t.csv, line 2: a double quote opens a field that ends in a later line, as no other field")
    assert "--quotes" in told
    assert rows(file(tmp_path, text, quoted=True)) == [(2, "1", "two\nlines", "3"), (4, "2", "x", "1")]


def test_fields_with_line_ends_where_there_are_several(tmp_path: Path) -> None:
    text = 'id,title\r\n1,"two\r\nlines"\r\n\r\n2,"and, a\nb ""c"" d"\r\n3,x\r\n'
    assert rows(file(tmp_path, text)) == [(2, "1", "two\r\nlines"), (5, "2", 'and, a\nb "c" d'), (7, "3", "x")]


def test_a_header_of_two_lines_is_no_such_field(tmp_path: Path) -> None:
    assert rows(file(tmp_path, 'id,"a\ntitle"\n1,x\n')) == [(3, "1", "x")]


def test_quotes_inside_plain_fields_are_text(tmp_path: Path) -> None:
    text = 'id,title\n1,12" lamp\n2,The "Star" lamp\n3,""\n4,"a ""b"", c"\n5,5\'\n'
    assert [row[2] for row in rows(file(tmp_path, text))] == ['12" lamp', 'The "Star" lamp', "", 'a "b", c', "5'"]


@pytest.mark.parametrize("field", ['"Star" lamp', '"a"b"', '"a" '])
def test_text_after_a_closing_quote_is_refused(tmp_path: Path, field: str) -> None:
    assert "t.csv, line 3: a double quote opens a field and closes before" in refused(
        file(tmp_path, f"id,title\n1,x\n2,{field}\n3,y\n")
    )


cells = st.text(st.sampled_from('ab ,;\t"\n\r|0é'), max_size=6)
tables = st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), max_size=6))


@settings(max_examples=60, deadline=None)
@given(tables, st.sampled_from(",;\t|"), st.booleans(), st.sampled_from([1, 7, 1 << 20]))
def test_what_pythons_csv_writes_comes_back(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]], delimiter: str, every: bool, block: int
) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL)
    width = len(table[0]) if table else 1
    writer.writerow([f"h{n}" for n in range(width)])
    lines, line = [], 2
    for row in table:
        start = out.tell()
        writer.writerow(row)
        lines.append(line)
        line += out.getvalue()[start:].count("\n")
    folder = tmp_path_factory.mktemp("csv")
    found = file(folder, out.getvalue(), quoted=True, delimiter=delimiter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block)
        assert rows(found) == [(line, *row) for line, row in zip(lines, table, strict=True)]


@settings(max_examples=120, deadline=None)
@given(st.text(st.sampled_from('a,"\n'), max_size=24), st.sampled_from([1, 3, 1 << 20]))
def test_any_text_is_read_as_the_standard_says_or_refused(
    tmp_path_factory: pytest.TempPathFactory, body: str, block: int
) -> None:
    """The oracle reads one character after the other, as RFC 4180 and quotes in plain fields have it."""
    folder = tmp_path_factory.mktemp("any")
    found = file(folder, "x,y\n" + body, quoted=True, delimiter=",")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block)
        try:
            expected = _by_hand(body)
        except ValueError:
            refused(found)
        else:
            assert rows(found) == expected


def _by_hand(body: str) -> list[tuple[Any, ...]]:
    found, place, line = [], 0, 2
    while place < len(body):
        if body[place] == "\n":
            place, line = place + 1, line + 1
            continue
        fields, first = [], line
        while True:
            text = ""
            if body[place : place + 1] == '"':
                place += 1
                while True:
                    if place == len(body):
                        raise ValueError("does not close")
                    if body[place : place + 2] == '""':
                        text, place = text + '"', place + 2
                    elif body[place] == '"':
                        place += 1
                        break
                    else:
                        text, line, place = text + body[place], line + (body[place] == "\n"), place + 1
                if place < len(body) and body[place] not in ",\n":
                    raise ValueError("text after the closing quote")
            else:
                while place < len(body) and body[place] not in ",\n":
                    text, place = text + body[place], place + 1
            fields.append(text)
            if place < len(body) and body[place] == ",":
                place += 1
                continue
            break
        place, line = place + 1, line + 1
        if len(fields) != 2:
            raise ValueError("columns")
        found.append((first, *fields))
    return found


# Dialects


ROWS = [("lamp", "A1", "Star, wide", "3.5"), ("lamp", "A2", "plain", "2")]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_dialect_is_found(tmp_path: Path, delimiter: str, encoding: str, end: str, name: str) -> None:
    table = [("query", "product_id", "title", "score"), *ROWS]
    text = end.join(delimiter.join(f'"{cell}"' if "," in cell else cell for cell in row) for row in table) + end
    found = file(tmp_path, text.encode(encoding), name)
    assert [row[1:] for row in rows(found)] == ROWS
    dialect = found.dialect
    assert dialect is not None
    assert (dialect.delimiter, dialect.decimal, dialect.header_line) == (delimiter, ".", 1)
    assert {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}[str(dialect).split()[0]] == delimiter


@pytest.mark.parametrize(
    ("before", "line"),
    [
        ("sep=;\n", 2),
        ('"sep=;"\r\n', 2),
        ("# exported; by hand\n", 2),
        ("Search terms\nJan 1, 2026\n\n", 4),
        ("\n\n", 3),
        ("# a\nsep\n", 3),
        ("Report\n", 2),
    ],
)
def test_lines_before_the_header_are_left_out(tmp_path: Path, before: str, line: int) -> None:
    found = file(tmp_path, before + "query;product_id;title;score\nlamp;A1;Star;3,5\nlamp;A2;plain;2\n")
    assert rows(found) == [(line + 1, "lamp", "A1", "Star", "3,5"), (line + 2, "lamp", "A2", "plain", "2")]
    assert str(found.dialect) == f"semicolon between fields, decimal comma, header in line {line}"


def test_a_header_with_fewer_columns_than_its_rows_is_no_preamble(tmp_path: Path) -> None:
    told = refused(file(tmp_path, "a,b\n1,2,3\n4,5,6\n"))
    assert told.startswith("t.csv, line 2: found 3 columns; allowed: 2, as in the header: '1,2,3'")
    assert "--skip-lines" in told
    assert rows(file(tmp_path, "x,y\na,b,c\n1,2,3\n", skip_lines=1)) == [(3, "1", "2", "3")]


def test_decimal_commas_are_no_delimiters(tmp_path: Path) -> None:
    """Every row has one comma, the header none."""
    for before in ("", "Report\n"):
        found = file(tmp_path, before + "id;score\na;3,5\nb;2,25\n")
        assert [row[1:] for row in rows(found)] == [("a", "3,5"), ("b", "2,25")]
        assert str(found.dialect).startswith("semicolon between fields, decimal comma")


def test_a_column_of_texts_with_commas_is_one_column(tmp_path: Path) -> None:
    assert rows(file(tmp_path, "query\nred shoe\n", "q.tsv")) == [(2, "red shoe")]
    assert "line 3: found 2 columns; allowed: 1" in refused(file(tmp_path, "query\nred\nblue, dress\nlamp\n"))


@pytest.mark.parametrize(
    ("cells", "decimal"),
    [
        (["3,5", "2"], ","),
        (["0,125", "1"], ","),
        (["-,5", "1,234"], ","),
        (["2,5e-3", "1"], ","),
        (["1,234", "2"], "."),  # thousands or decimals: it is left to the user
        (["1.234,5", "2,5"], "."),
        (["3.5", "2,5"], "."),
        (["3.5", "2"], "."),
        (["3", "2"], "."),
    ],
)
def test_the_decimal_comma_is_found_where_it_can_be_nothing_else(
    tmp_path: Path, cells: list[str], decimal: str
) -> None:
    dialect = file(tmp_path, "id;score\n" + "".join(f"a, b;{cell}\n" for cell in cells)).dialect
    assert dialect is not None
    assert dialect.decimal == decimal


def test_options_that_are_not_allowed(tmp_path: Path) -> None:
    for options, told in (
        ({"decimal": "x"}, "decimal: found 'x'; allowed: '.' or ','"),
        ({"delimiter": ",", "decimal": ","}, "allowed: two different characters"),
        ({"skip_lines": -1}, "skip_lines: found -1; allowed: 0 or more"),
        ({"delimiter": "¦"}, "found delimiter '¦'; allowed: one character (ASCII"),
    ):
        with pytest.raises(DataSetError) as caught:
            file(tmp_path, "a\n1\n", **options)  # type: ignore[arg-type]
        assert told in str(caught.value)
    assert [row[1:] for row in rows(file(tmp_path, "a|b\n1|2\n", delimiter="pipe"))] == [("1", "2")]


def test_headers_that_are_there_twice_matter_where_they_are_read(tmp_path: Path) -> None:
    table = file(tmp_path, "id,note,note,,\n1,a,b,,\n")
    assert table.columns == ["id", "note", ""]
    assert [part.batch.to_pylist() for part in table.read(["id"], progress=False)] == [[{"id": "1"}]]
    with pytest.raises(DataSetError, match="column 'note': found more than once in the header"):
        list(table.read(["note"], progress=False))


def test_a_carriage_return_alone_within_a_line(tmp_path: Path) -> None:
    told = refused(file(tmp_path, "id,title\n1,a\n2,b\rc\n3,d\n"))
    assert told.startswith("t.csv, line 3: found a carriage return within a line")
    assert rows(file(tmp_path, 'id,title\n1,"a\rb"\n')) == [(2, "1", "a\rb")]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("a,b\n1,x\n\n2,\0\n", "line 4: found a NUL character"),
        ("a,b\n1,ä\n2,ö\n".encode("cp1252"), "line 2: not utf-8 text"),
        ("a,b\n1,x\n".encode("utf-16-le"), "line 1: found a NUL character, which no text has; if it is UTF-16, say"),
        (("a,b\n1,x\n" * 3).encode("utf-16")[:-1], "line 6: not utf-16 text"),
        ("\n \n", "the file is empty"),
    ],
)
def test_what_is_no_text_of_the_encoding(tmp_path: Path, data: bytes | str, told: str) -> None:
    assert told in refused(file(tmp_path, data))


# Limits


@pytest.mark.parametrize("quoted", ['"', ""])
def test_a_row_that_is_too_long_is_named_and_takes_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quoted: str
) -> None:
    for module in (text_files, delimited_text):
        monkeypatch.setattr(module, "LONGEST_LINE", 1 << 20)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 16)
    table = file(tmp_path, f"id,title\n1,x\n2,{quoted}" + "a b\n" * (quoted != "") + "x" * (5 << 20) + f"{quoted}\n")
    tracemalloc.start()
    told = refused(table)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert told.startswith("t.csv, line 3: over 1,048,576 bytes, the limit of a row")
    assert peak < 16 << 20


def test_a_long_line_of_utf_16_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LONGEST_LINE", 1 << 20)
    path = tmp_path / "t.jsonl"
    path.write_bytes(('{"a": 1}\n{"a": "' + "x" * (4 << 20) + '"}\n').encode("utf-16"))
    with pytest.raises(DataSetError, match=r"t\.jsonl, line 2: over 1,048,576 bytes, the limit of a line"):
        list(TableFile(path, encoding="utf-16").read(["a"], progress=False))
