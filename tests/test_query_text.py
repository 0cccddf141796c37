"""When two queries are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengcl.query_text import normalised


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red shoe", "red shoe"),
        ("RED SHOE", "red shoe"),
        ("red shoe ", "red shoe"),
        ("  \uff32ed\u00a0\tSHOES ", "red shoes"),
        ("Stra\u00dfe", "strasse"),
        ("\ufb01ne", "fine"),
        ("cafe\u0301", "caf\u00e9"),
        ("soft\u00adhyphen\u200b \ufeffend", "softhyphen end"),
        (" \u2003 ", ""),
        ("0.5 mm", "0.5 mm"),
        ("C++", "c++"),
    ],
)
def test_what_no_reader_calls_a_difference(text: str, expected: str) -> None:
    assert normalised(text) == expected


@given(st.text())
def test_it_is_the_same_twice(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert normalised(f" {text}\n") == once
