"""The language of filters: what is read, and what is said of what cannot be."""

from __future__ import annotations

import contextlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengcl.index.filters import (
    DEEPEST_FILTER,
    LONGEST_FILTER,
    MOST_PARTS,
    MOST_VALUES,
    OPERATORS,
    And,
    Compare,
    FieldType,
    Filter,
    FilterError,
    In,
    Missing,
    Operator,
    Or,
    check_filter,
    fit_filter,
    parse_filter,
    quoted,
)
from tests.index_stores import matches

FIELDS: dict[str, FieldType] = {
    "price": "number",
    "brand": "text",
    "stock": "boolean",
    "größe": "text",
    "made in": "text",
    "sku": "integer",
    "not": "text",
}
CHEAP = Compare("price", "<", 50.0)
STOCK = Compare("stock", "=", True)
BRAND = In("brand", ("x", "y"))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("price < 50", CHEAP),
        ("price<50", CHEAP),
        ("  PRICE < 5".replace("PRICE", "price") + "0 ", CHEAP),
        ('price < 50 and brand in ("x", "y") and stock = true', And((CHEAP, BRAND, STOCK))),
        ("price < 50 AND stock == TRUE or brand In ('x','y')", Or((And((CHEAP, STOCK)), BRAND))),
        ("price < 50 and (stock = true or brand in ('x', 'y'))", And((CHEAP, Or((STOCK, BRAND))))),
        ("not price >= 50", CHEAP),
        ("not not price < 50", CHEAP),
        ("not (price >= 50 or stock != true)", And((CHEAP, STOCK))),
        ("not (price >= 50 and not stock = true)", Or((CHEAP, STOCK))),
        ("not brand not in ('x', 'y')", BRAND),
        ("brand not in ('x')", In("brand", ("x",), negated=True)),
        ("price is null", Missing("price")),
        ("price is not null", Missing("price", negated=True)),
        ("not price is not null", Missing("price")),
        ("price <> -1.5e3", Compare("price", "!=", -1500.0)),
        ("price = .5", Compare("price", "=", 0.5)),
        ("größe = 'M'", Compare("größe", "=", "M")),
        ("`made in` = 'EU'", Compare("made in", "=", "EU")),
        ("`not` = 'x'", Compare("not", "=", "x")),
        (r"""brand = "say \"x\" \\ \n ü 😀 ' %" """, Compare("brand", "=", 'say "x" \\ \n ü 😀 \' %')),
        (r"brand = 'it\'s'", Compare("brand", "=", "it's")),
        ("((((price < 50))))", CHEAP),
    ],
)
def test_what_is_read(text: str, tree: Filter) -> None:
    assert parse_filter(text, FIELDS) == tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "character 1: found the end; allowed: a field's name"),
        ("price", "character 6: found the end; allowed: = != < <= > >=, in"),
        ("price < ", "found the end; allowed: a number, text in quotes, true or false"),
        ("price < 50 stock = true", 'character 12: found "stock"; allowed: and, or, or the end'),
        ("price < 50 and", "found the end"),
        ("(price < 50", r"allowed: '\)'"),
        ("price < 50)", r'found "\)"'),
        ("price < fifty", 'found "fifty"; allowed: a number'),
        ("price < 5x", "character 9: cannot read"),
        ("price < brand", 'found "brand"'),
        ("brand = x", 'found "x"'),
        ('brand = "x', "cannot read"),
        (r"brand = '\q'", r"unknown escape \\q"),
        ("brand in ()", "allowed: a number, text in quotes"),
        ("brand in ('x'", r"allowed: '\)'"),
        ("brand in 'x'", r"allowed: '\('"),
        ("brand is 'x'", "allowed: null, or not null"),
        ("brand not like 'x'", "allowed: in"),
        ("and price < 50", 'found "and"'),
        ("brand = 'x' -- a note", "cannot read"),
        ("brand = 'x'; drop", "cannot read"),
        ("size = 3", r"unknown field 'size'; allowed: price \(number\), brand \(text\)"),
        ("sku = 'x'", 'sku is integer, found "x"; allowed: a finite number'),
        ("sku = true", "sku is integer, found true"),
        ("sku < 1e999", "found Infinity; allowed: a finite number"),
        ("sku = 9007199254740993.0", "sku is integer.*may be rounded; allowed: all digits"),
        ("sku in (1, 9.1e15)", "may be rounded; allowed: all digits"),
        ("price = 9007199254740993", "cannot be 9007199254740993; the nearest is 9007199254740992"),
        ("price in (1, 9007199254740993)", "cannot be 9007199254740993"),
        (f"price < {'9' * 5000}", "found Infinity; allowed: a finite number"),
        (f"price < 1{'0' * 299}", "an integer of 994 bits"),
        ("price = 'x'", 'price is number, found "x"; allowed: a finite number'),
        ("price = true", "price is number, found true"),
        ("price < 1e999", "found Infinity; allowed: a finite number"),
        ("brand = 5", "brand is text, found 5; allowed: text in quotes"),
        ("brand in ('x', 5)", "brand is text, found 5\\b"),
        ("stock = 1", "stock is boolean, found 1; allowed: true or false"),
        ("brand < 'x'", "brand is text, which has no '<'; allowed: = !="),
        ("stock > false", "stock is boolean, which has no '>'"),
        (r"brand = '\u0000'", "without NUL"),
        (r"brand = '\ud800'", "lone surrogates"),
        ("(" * 300 + "price < 50" + ")" * 300, f"allowed: up to {DEEPEST_FILTER} levels"),
        ("(" * 10_000, f"allowed: up to {DEEPEST_FILTER} levels"),
        ("not (" * 300 + "price < 50" + ")" * 300, f"allowed: up to {DEEPEST_FILTER} levels"),
        (
            "price < 1 or price < 2 and (" * 9 + "price < 50" + ")" * 9,  # two levels in each pair of parentheses
            f"allowed: up to {DEEPEST_FILTER} levels",
        ),
        (" or ".join(["price < 50"] * 300), f"allowed: up to {MOST_PARTS}"),
        (f"price in ({', '.join(['1'] * (MOST_VALUES + 1))})", f"allowed: 1 to {MOST_VALUES}"),
        ("price < 50" + " " * LONGEST_FILTER, "allowed: up to 20,000"),
    ],
)
def test_what_is_wrong_is_told(text: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_filter(text, FIELDS)


def test_escapes_are_those_of_json() -> None:
    assert parse_filter(r"brand = '\u00fc\ud83d\ude00\t\/'", FIELDS) == Compare("brand", "=", "ü😀\t/")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (And(()), "at least one part"),
        (Or((CHEAP, Or(()))), "at least one part"),
        (In("brand", ()), "brand in 0 values"),
        (Compare("brand", "~", "x"), "which has no '~'"),  # type: ignore[arg-type]
        (Compare("price", "=", float("nan")), "a finite number"),
        (Compare("brand", "=", None), "found None"),  # type: ignore[arg-type]
    ],
)
def test_trees_made_by_hand_are_checked_too(tree: Filter, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        check_filter(tree, FIELDS)


def test_filters_as_deep_as_is_allowed_are_read() -> None:
    tree: Filter = CHEAP
    for level in range(DEEPEST_FILTER):
        tree = And((tree, STOCK)) if level % 2 else Or((STOCK, tree))
    check_filter(tree, FIELDS)
    assert fit_filter(tree, FIELDS) == tree
    with pytest.raises(FilterError, match=f"allowed: up to {DEEPEST_FILTER} levels"):
        check_filter(Or((tree, STOCK)), FIELDS)
    parentheses = "(" * DEEPEST_FILTER + "price < 50" + ")" * DEEPEST_FILTER
    assert parse_filter(parentheses, FIELDS) == CHEAP
    text = "price < 1 or price < 2 and (" * 8 + "price < 50" + ")" * 8
    assert parse_filter(text, FIELDS)


def test_a_deep_tree_is_refused_before_anything_recurses() -> None:
    tree: Filter = CHEAP
    for _ in range(100_000):
        tree = And((tree,))
    with pytest.raises(FilterError, match="allowed: up to"):
        check_filter(tree, FIELDS)


LARGEST = 2**63 - 1
ABSENT = And((Missing("sku", negated=True), Missing("sku")))
PRESENT = Missing("sku", negated=True)


@pytest.mark.parametrize(
    ("text", "fitted"),
    [
        ("sku = 9007199254740993", Compare("sku", "=", 9007199254740993)),
        (f"sku = {LARGEST}", Compare("sku", "=", LARGEST)),
        (f"sku = {-LARGEST - 1}", Compare("sku", "=", -LARGEST - 1)),
        ("sku != 2e3", Compare("sku", "!=", 2000)),
        ("sku < 2.5", Compare("sku", "<=", 2)),
        ("sku < 2", Compare("sku", "<=", 1)),
        ("sku <= 2.5", Compare("sku", "<=", 2)),
        ("sku > 2.5", Compare("sku", ">=", 3)),
        ("sku > 2", Compare("sku", ">=", 3)),
        ("sku >= -2.5", Compare("sku", ">=", -2)),
        (f"sku > {LARGEST}", ABSENT),
        (f"sku <= {LARGEST + 1}", PRESENT),
        ("sku < -1e30", ABSENT),
        ("sku > -1e30", PRESENT),
        ("sku = 2.5", ABSENT),
        ("sku != 2.5", PRESENT),
        (f"sku = {LARGEST + 1}", ABSENT),
        ("sku in (1, 2.5, 3.0)", In("sku", (1, 3))),
        ("sku in (2.5)", ABSENT),
        ("sku not in (2.5)", PRESENT),
        (f"sku > 1{'0' * 290}", ABSENT),
        ("not sku < 2 or price = 1", Or((Compare("sku", ">=", 2), Compare("price", "=", 1.0)))),
    ],
)
def test_values_become_those_of_the_fields_type(text: str, fitted: Filter) -> None:
    found = fit_filter(parse_filter(text, FIELDS), FIELDS)
    assert found == fitted
    assert repr(found) == repr(fitted)  # 2 is not 2.0 here


NUMBERS = st.integers(-(2**70), 2**70) | st.floats(1 - 2.0**53, 2.0**53 - 1) | st.sampled_from([2.5, -0.0, 0, LARGEST])


@given(
    st.sampled_from(OPERATORS),
    NUMBERS,
    st.lists(NUMBERS, min_size=1, max_size=3),
    st.booleans(),
    st.integers(-(2**63), LARGEST) | st.integers(-3, 3) | st.none(),
)
def test_fitted_filters_mean_the_same(
    operator: Operator, value: float, values: list[float], negated: bool, kept: int | None
) -> None:
    for given_filter in (Compare("sku", operator, value), In("sku", tuple(values), negated)):
        fitted = fit_filter(given_filter, FIELDS)
        assert matches(fitted, {"sku": kept}) == matches(given_filter, {"sku": kept})


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_can_be_quoted(text: str) -> None:
    assert parse_filter(f"brand = {quoted(text)}", FIELDS) == Compare("brand", "=", text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_can_be_quoted(number: float) -> None:
    assert parse_filter(f"price in ({quoted(number)})", FIELDS) == In("price", (number,))


@given(st.integers(-(2**63), LARGEST))
def test_any_integer_can_be_quoted(number: int) -> None:
    assert parse_filter(f"sku in ({quoted(number)})", FIELDS) == In("sku", (number,))


PIECES = [
    "price",
    "brand",
    "and",
    "or",
    "not",
    "in",
    "is",
    "null",
    "true",
    "(",
    ")",
    ",",
    "=",
    "<",
    "5",
    "'x'",
    '"y"',
    "`made",
    "in`",
    "\\",
    "--",
    "\x00",
]


@given(st.text(string.printable + "ü\ud800", max_size=40) | st.lists(st.sampled_from(PIECES)).map(" ".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(FilterError):
        check_filter(parse_filter(text, FIELDS), FIELDS)
