r"""Filters: ``price < 50 and brand in ("x", "y") and stock = true``, read into a tree that each store translates.

The text is never passed on. What a store gets are the tree's values, as parameters or as literals that its own library
writes. A comparison with a field that a document lacks is false, whatever the comparison, as in SQL; ``not`` is worked
into the comparisons as they are read (``not price < 50`` is ``price >= 50``), so this holds for it too.

    filter     := all ("or" all)*
    all        := one ("and" one)*
    one        := "not" one | "(" filter ")" | comparison
    comparison := field ("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
                | field ["not"] "in" "(" value ("," value)* ")"
                | field "is" ["not"] "null"
    field      := letters, digits and _, or anything between backquotes
    value      := a number (a whole one is exact), "text" or 'text' with the escapes of JSON and \', true or false

Keywords are read in any case.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

FieldType = Literal["text", "integer", "number", "boolean"]
"""``integer`` is a whole number of 64 bits, kept exactly; ``number`` is a float64."""


FIELD_TYPES: tuple[FieldType, ...] = get_args(FieldType)
Operator = Literal["=", "!=", "<", "<=", ">", ">="]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
Value = str | int | float | bool

SMALLEST, LARGEST = -(2**63), 2**63 - 1
"""What an ``integer`` can be."""

EXACT = 2**53
"""Whole floats below this size stand for themselves; from here on, one float stands for several integers."""

LONGEST_FILTER = 20_000
"""Characters of a filter's text."""

MOST_PARTS = 200
"""Comparisons of one filter."""

DEEPEST_FILTER = 16
"""Levels of ``and`` and ``or`` inside each other, and of parentheses; LanceDB reads no more than 20."""

MOST_VALUES = 1000
"""Values of one ``in``."""

_OPPOSITE: dict[Operator, Operator] = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_SPELLINGS: dict[str, Operator] = {"==": "=", "<>": "!="}


class FilterError(ValueError):
    """A filter that cannot be read, or does not fit the fields."""


@dataclass(frozen=True)
class Compare:
    """``field operator value``; ``=`` and ``!=`` for all types, the others for integers and numbers."""

    field: str
    operator: Operator
    value: Value


@dataclass(frozen=True)
class In:
    """``field in (values)``, or ``not in``."""

    field: str
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True)
class Missing:
    """``field is null``, or ``is not null``."""

    field: str
    negated: bool = False


@dataclass(frozen=True)
class And:
    """All of the parts, of which there is at least one."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Or:
    """Any of the parts, of which there is at least one."""

    parts: tuple[Filter, ...]


Filter = Compare | In | Missing | And | Or


def parse_filter(text: str, fields: Mapping[str, FieldType]) -> Filter:
    """Reads a filter.

    Args:
        text: As the module's description says.
        fields: The fields that there are, with their types.

    Raises:
        FilterError: At which character, what was found and what is allowed there; an unknown field, with those that
            there are; a value or comparison that doesn't fit the field's type.
    """
    if len(text) > LONGEST_FILTER:
        raise FilterError(f"filter of {len(text):,} characters; allowed: up to {LONGEST_FILTER:,}")
    found = _Parser(text).whole()
    check_filter(found, fields)
    return found


def fit_filter(where: Filter, fields: Mapping[str, FieldType]) -> Filter:
    """The same filter with values of the fields' own types, which every store compares exactly.

    Integers are compared with integers: ``year < 2020.5`` becomes ``year <= 2020``, and what no 64-bit integer can be
    becomes a comparison that is never true, or true of every document that has the field.

    Raises:
        FilterError: As `check_filter`.
    """
    check_filter(where, fields)
    return _fitted(where, fields)


def _fitted(where: Filter, fields: Mapping[str, FieldType]) -> Filter:
    if isinstance(where, And | Or):
        return type(where)(tuple(_fitted(part, fields) for part in where.parts))
    kind = fields[where.field]
    if isinstance(where, Missing) or kind not in ("integer", "number"):
        return where
    if isinstance(where, In):
        return _fitted_in(where, kind)
    value = cast(int | float, where.value)  # as was checked
    if kind == "number":
        return Compare(where.field, where.operator, float(value))
    return _of_integers(where.field, where.operator, value)


def _fitted_in(where: In, kind: FieldType) -> Filter:
    if kind == "number":
        return In(where.field, tuple(map(float, where.values)), where.negated)
    numbers = cast(tuple[int | float, ...], where.values)  # as was checked
    values = tuple(int(value) for value in numbers if _is_integer(value))
    return In(where.field, values, where.negated) if values else _always(where.field, where.negated)


def _of_integers(field: str, operator: Operator, value: int | float) -> Filter:
    if operator in ("=", "!="):
        if not _is_integer(value):
            return _always(field, operator == "!=")
        return Compare(field, operator, int(value))
    if operator == "<":  # less than 2.5 is up to 2, less than 2 is up to 1
        operator, value = "<=", math.ceil(value) - 1
    elif operator == ">":
        operator, value = ">=", math.floor(value) + 1
    value = math.floor(value) if operator == "<=" else math.ceil(value)
    if operator == "<=":
        return Compare(field, "<=", value) if SMALLEST <= value <= LARGEST else _always(field, value > 0)
    return Compare(field, ">=", value) if SMALLEST <= value <= LARGEST else _always(field, value < 0)


def _is_integer(value: int | float) -> bool:
    """Whether a number's value is one of the 64-bit integers."""
    return value == math.floor(value) and SMALLEST <= value <= LARGEST


def _always(field: str, holds: bool) -> Filter:
    """What is true of every document that has the field, or of none."""
    present = Missing(field, negated=True)
    return present if holds else And((present, Missing(field)))


def check_filter(where: Filter, fields: Mapping[str, FieldType]) -> None:
    """Makes sure that a filter fits the fields; every store does so before it translates one.

    Raises:
        FilterError: As `parse_filter`.
    """
    left, parts = [(where, 1)], 0
    while left:
        one, depth = left.pop()
        parts += 1
        if isinstance(one, And | Or) and depth > DEEPEST_FILTER:
            raise _too_deep()
        if parts > 2 * MOST_PARTS:
            raise FilterError(f"filter with more than {MOST_PARTS} comparisons; allowed: up to {MOST_PARTS}")
        if isinstance(one, And | Or):
            if not one.parts:
                raise FilterError("filter: an 'and' or 'or' of nothing; allowed: at least one part")
            left.extend((part, depth + 1) for part in one.parts)
        else:
            _check_comparison(one, fields)


def _too_deep() -> FilterError:
    return FilterError(
        "filter with more levels of and, or and parentheses inside each other than every store can read; "
        f"allowed: up to {DEEPEST_FILTER} levels"
    )


def _check_comparison(one: Compare | In | Missing, fields: Mapping[str, FieldType]) -> None:
    if one.field not in fields:
        there = ", ".join(f"{name} ({kind})" for name, kind in fields.items()) or "none"
        raise FilterError(f"filter: unknown field {one.field!r}; allowed: {there}")
    kind = fields[one.field]
    if isinstance(one, Compare):
        allowed = OPERATORS if kind in ("integer", "number") else OPERATORS[:2]
        if one.operator not in allowed:
            raise FilterError(
                f"filter: {one.field} is {kind}, which has no {one.operator!r}; allowed: {' '.join(allowed)}"
            )
        _check_value(one.field, kind, one.value)
    elif isinstance(one, In):
        if not 1 <= len(one.values) <= MOST_VALUES:
            raise FilterError(f"filter: {one.field} in {len(one.values)} values; allowed: 1 to {MOST_VALUES}")
        for value in one.values:
            _check_value(one.field, kind, value)


def _check_value(field: str, kind: FieldType, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "text": isinstance(value, str),
        "integer": is_number and (isinstance(value, int) or _is_finite(value)),
        "number": is_number and _is_finite(value),
        "boolean": isinstance(value, bool),
    }[kind]
    if not fits:
        allowed = {
            "text": 'text in quotes, as "red"',
            "integer": "a finite number, as 9",
            "number": "a finite number, as 9.5",
            "boolean": "true or false",
        }
        raise FilterError(f"filter: {field} is {kind}, found {_shown(value)}; allowed: {allowed[kind]}")
    if kind == "integer" and isinstance(value, float) and value.is_integer() and EXACT <= abs(value) <= 2.0**63:
        raise FilterError(
            f"filter: {field} is integer, found {_shown(value)}, which may be rounded; allowed: all digits of a whole "
            "number, without point and exponent"
        )
    if kind == "number" and isinstance(value, int) and int(float(value)) != value:
        raise FilterError(
            f"filter: {field} is number, which is a float64 and cannot be {_shown(value)}; the nearest is "
            f"{float(value):.0f}. Fields of whole numbers are exact in an index that is built from an integer column"
        )
    if isinstance(value, str) and ("\0" in value or (not value.isprintable() and _lone_surrogates(value))):
        raise FilterError(f"filter: {field}: found {_shown(value)}; allowed: text without NUL and lone surrogates")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _lone_surrogates(value: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in value)


def quoted(value: Value) -> str:
    """A value as a filter's text has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**60:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to write very long ones
    text = json.dumps(value) if isinstance(value, str | int | float | bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<word>[^\W\d]\w*)
      | `(?P<name>[^`]+)`
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<sign><=|>=|!=|<>|==|[=<>(),])
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", "\\": "\\", '"': '"', "'": "'"}
_LONGEST_INTEGER = 300  # characters; float64 ends at 309 digits
_KEYWORDS = ("and", "or", "not", "in", "is", "null", "true", "false")


@dataclass(frozen=True)
class _Token:
    kind: str  # number, word, name, text, sign, end
    value: str
    at: int  # character, from 1


class _Parser:
    """Recursive descent over the tokens; what is negated is turned round at once."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0
        self._parts = 0

    def whole(self) -> Filter:
        found = self._any(negated=False, depth=0)
        if self._token.kind != "end":
            raise self._unexpected("and, or, or the end")
        return found

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _took(self, *values: str) -> bool:
        """Whether the next token is one of these signs or keywords; it is then taken."""
        token = self._token
        found = token.kind in ("sign", "word") and token.value.lower() in values
        self._next += found
        return found

    def _unexpected(self, allowed: str) -> FilterError:
        token = self._token
        found = "the end" if token.kind == "end" else _shown(token.value)
        return FilterError(f"filter, character {token.at}: found {found}; allowed: {allowed}")

    def _expect(self, sign: str) -> None:
        if not self._took(sign):
            raise self._unexpected(repr(sign))

    def _any(self, *, negated: bool, depth: int) -> Filter:
        parts = [self._all(negated=negated, depth=depth)]
        while self._took("or"):
            parts.append(self._all(negated=negated, depth=depth))
        return parts[0] if len(parts) == 1 else (And if negated else Or)(tuple(parts))

    def _all(self, *, negated: bool, depth: int) -> Filter:
        parts = [self._one(negated=negated, depth=depth)]
        while self._took("and"):
            parts.append(self._one(negated=negated, depth=depth))
        return parts[0] if len(parts) == 1 else (Or if negated else And)(tuple(parts))

    def _one(self, *, negated: bool, depth: int) -> Filter:
        self._parts += 1
        if depth > DEEPEST_FILTER:
            raise _too_deep()
        if self._parts > MOST_PARTS:
            raise FilterError(f"filter with more than {MOST_PARTS} comparisons; allowed: up to {MOST_PARTS}")
        while self._took("not"):
            negated = not negated
        if not self._took("("):
            return self._comparison(negated=negated)
        found = self._any(negated=negated, depth=depth + 1)
        self._expect(")")
        return found

    def _comparison(self, *, negated: bool) -> Filter:
        field = self._field()
        if self._took("is"):
            negated ^= self._took("not")
            if not self._took("null"):
                raise self._unexpected("null, or not null")
            return Missing(field, negated)
        if self._took("not"):
            negated = not negated
            if self._token.value.lower() != "in":
                raise self._unexpected("in")
        if self._took("in"):
            return In(field, self._values(), negated)
        operator = self._operator()
        return Compare(field, _OPPOSITE[operator] if negated else operator, self._value())

    def _field(self) -> str:
        token = self._token
        if token.kind == "name" or (token.kind == "word" and token.value.lower() not in _KEYWORDS):
            return self._take().value
        raise self._unexpected("a field's name, not, or '('")

    def _operator(self) -> Operator:
        found = _SPELLINGS.get(self._token.value, self._token.value)
        for operator in OPERATORS:
            if self._token.kind == "sign" and found == operator:
                self._take()
                return operator
        raise self._unexpected(f"{' '.join(OPERATORS)}, in, not in, is null, or is not null")

    def _values(self) -> tuple[Value, ...]:
        self._expect("(")
        values = [self._value()]
        while self._took(","):
            values.append(self._value())
        self._expect(")")
        return tuple(values)

    def _value(self) -> Value:
        token = self._token
        if token.kind == "number":
            return _number(self._take().value)
        if token.kind == "text":
            self._take()
            return _unescaped(token)
        if token.kind == "word" and token.value.lower() in ("true", "false"):
            return self._take().value.lower() == "true"
        raise self._unexpected("a number, text in quotes, true or false")


def _number(written: str) -> int | float:
    """Digits alone are an integer, which is exact; one that is too long to be either type is an infinite float."""
    whole = len(written) <= _LONGEST_INTEGER and written.lstrip("+-").isdigit()
    return int(written) if whole else float(written)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while not tokens or tokens[-1].kind != "end":
        found = _TOKEN.match(text, at)
        if found is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise FilterError(
                f"filter, character {at + 1}: cannot read {_shown(text[at : at + 20])}; allowed: fields, numbers, text "
                f"in quotes, {' '.join(OPERATORS)} ( ) , and the words {', '.join(_KEYWORDS)}"
            )
        kind = found.lastgroup or "end"
        tokens.append(_Token(kind, found[kind], found.start(kind) + 1))
        at = found.end()
    return tokens


def _unescaped(token: _Token) -> str:
    def one(found: re.Match[str]) -> str:
        code = found[1]
        if len(code) == 5:
            return chr(int(code[1:], 16))
        if code not in _ESCAPES:
            raise FilterError(
                f"filter, character {token.at}: unknown escape \\{code}; allowed: \\" + " \\".join(_ESCAPES)
            )
        return _ESCAPES[code]

    text = _ESCAPE.sub(one, token.value[1:-1])
    # JSON writes characters beyond the first plane as two surrogates
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
