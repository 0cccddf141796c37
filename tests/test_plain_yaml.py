"""YAML by the core schema of YAML 1.2: what a scalar means, what is refused, and what is written reads back."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from opengcl.plain_yaml import (
    DEEPEST,
    LARGEST_FILE,
    YamlError,
    advice,
    parse_yaml,
    read_yaml,
    write_yaml,
)


# Values by hand from the YAML 1.2 specification, section 10.3.2, with its own examples.
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        *((one, None) for one in ("null", "Null", "NULL", "~", "")),
        *((one, True) for one in ("true", "True", "TRUE")),
        *((one, False) for one in ("false", "False", "FALSE")),
        *((one, one) for one in ("yes", "no", "on", "off", "y", "n", "NO", "nULL", "tRUE")),
        *(("0", 0), ("-19", -19), ("+12", 12), ("010", 10), ("0o7", 7), ("0x3A", 58), ("-0", 0)),
        *(("0o8", "0o8"), ("-0o7", "-0o7"), ("0b1", "0b1"), ("1_000", "1_000"), ("1.000,5", "1.000,5"), ("0xG", "0xG")),
        *(("1e-5", 1e-5), ("1E5", 1e5), (".5", 0.5), ("-0.0", 0.0), ("12e03", 12000.0), ("-2E+05", -2e5), ("5.", 5.0)),
        *(("+.5e-3", 5e-4), ("-.inf", -math.inf), (".Inf", math.inf), ("+.INF", math.inf), ("1.e2", 100.0)),
        *((one, one) for one in (".", "e5", "1e", "inf", "nan", "Infinity", "1.2.3", "1e5.5", "--1")),
        *((one, one) for one in ("1:30", "190:20:30", "2020-01-01", "2001-12-14 21:59:43.10", "<<", "=")),
        *(("'1'", "1"), ('"true"', "true"), ("'~'", "~"), ("a b", "a b")),
    ],
)
def test_scalars(written: str, expected: Any) -> None:
    found = parse_yaml(f"a: {written}\nb:\n- {written}").content
    assert found == {"a": expected, "b": [expected]}
    assert type(found["a"]) is type(expected)


def test_not_a_number() -> None:
    assert all(math.isnan(parse_yaml(one).content) for one in (".nan", ".NaN", ".NAN"))


def test_keys_are_texts_as_they_are_written() -> None:
    text = "0: a\n1: b\nyes: c\nno: d\n1.50: e\nnull: f\ntrue: g\n010: h\n2020-01-01: i\n<<: j\n'': k\n"
    keys = ["0", "1", "yes", "no", "1.50", "null", "true", "010", "2020-01-01", "<<", ""]
    assert parse_yaml(text).content == dict(zip(keys, "abcdefghijk", strict=True))


def test_where_texts_are_wanted_numbers_are_texts_as_they_are_written() -> None:
    text = "name: 007\ncolumns: {a: 1.50, b: yes, c: null}\nkeep: [1, true, ~]\nother: 1\n"
    read = parse_yaml(text, texts=("name", "columns.*", "keep.*"))
    assert read.content == {
        "name": "007",
        "columns": {"a": "1.50", "b": "yes", "c": None},
        "keep": ["1", "true", None],
        "other": 1,
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: &x 2", "f.yaml, line 2: found the anchor '&x'; allowed: none, write the value out"),
        ("a: 1\nb: *x", "f.yaml, line 2: found the alias '*x'; allowed: none"),
        ("&x a: 1", "found the anchor '&x'"),
        ("a: !!str 5", "line 1: found the tag '!!str'; allowed: none (quotes make a value a text)"),
        ("a: !!python/object/apply:os.system [ls]", "found the tag '!!python"),
        ("a: ! 5", "found the tag '!'"),
        ("!!set {a}", "found the tag '!!set'"),
        ("a: 1\nb: 2\na: 3", "line 3: found the key 'a' twice; allowed: once (it is on line 1 too)"),
        ("1: a\n'1': b", "line 2: found the key '1' twice"),
        ("{a: {b: 1, b: 2}}", "found the key 'b' twice"),
        ("--- a\n--- b", "line 2: found a second document; allowed: one in a file"),
        ("%YAML 1.1\n---\na: yes", "found %YAML 1.1; allowed: YAML 1.2"),
        ("? [a]\n: b", "line 1: found a list or a mapping as a key; allowed: a text"),
        ("{{a: b}: c}", "found a list or a mapping as a key"),
        ("?\n: 1", "found a value without a key; allowed: key: value"),
        ("a: [", "line 1: not readable as YAML: "),
        ("a: b: c", "line 1: not readable as YAML: mapping values are not allowed here"),
        ("a:\n\t- b", "line 2: not readable as YAML: "),
        ("a: @b", "not readable as YAML"),
        ("a: 1\nb: \x00", "f.yaml, line 2: found the character '\\x00', which YAML does not allow"),
        ("a: 1\n  b: 2", "not readable as YAML"),
        ("a: 1e999", "line 1: found '1e999'; allowed: numbers up to 1.7e308"),
        ("a: " + "9" * 5000, "allowed: numbers of up to 400 characters"),
        ("a: " + "9" * 350, "allowed: numbers up to 1.7e308"),
        ("a: 0x" + "f" * 300, "allowed: numbers up to 1.7e308"),
        ("[" * 100_000, f"found more than {DEEPEST} levels; allowed: up to {DEEPEST}"),
        ("a: " + "{a: " * 200, f"found more than {DEEPEST} levels"),
        ("- " * 10_000, f"found more than {DEEPEST} levels"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse_yaml(text, name="f.yaml")
    assert told in str(caught.value)
    assert str(caught.value).startswith("f.yaml, line ")
    assert len(str(caught.value)) < 400


def test_places_name_the_line_of_a_key_or_of_the_nearest_around_it() -> None:
    read = parse_yaml("a: 1\nb:\n  c:\n  - x\n  - y\n", name="f.yaml")
    assert read.place(("b", "c", "1")) == "f.yaml, line 5"
    assert read.place(("b", "c", 0)) == "f.yaml, line 4"
    assert read.place(("b", "missing")) == "f.yaml, line 2"
    assert read.place(("b", "kind", "c")) == "f.yaml, line 3"  # parts that are not in the file are skipped
    assert read.place() == "f.yaml"


def test_a_mapping_is_wanted() -> None:
    with pytest.raises(YamlError, match=r"f: found nothing; allowed: a mapping of settings"):
        parse_yaml("# all is commented out\n", name="f").mapping()
    with pytest.raises(YamlError, match=r"f: found 'a'; allowed: a mapping of columns"):
        parse_yaml("a", name="f").mapping("a mapping of columns")


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: \xc3\xa9\r\n")  # as some editors write it
    assert read_yaml(file).content == {"a": 1, "b": "é"}
    file.write_bytes(b"a: 1\nb: \xe9")
    with pytest.raises(YamlError, match=r"a\.yaml, line 2: byte 8 is not UTF-8; save the file as UTF-8"):
        read_yaml(file)
    file.write_bytes("a: 1".encode("utf-16"))
    with pytest.raises(YamlError, match=r"a\.yaml, line 1: byte 0 is not UTF-8"):
        read_yaml(file)
    file.write_bytes(b"a: 1\n" + b"#" * LARGEST_FILE)
    with pytest.raises(YamlError, match=r"found more than 1,048,576 bytes; allowed: up to 1,048,576"):
        read_yaml(file)
    with pytest.raises(YamlError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
    with pytest.raises(YamlError, match="cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(YamlError, match="cannot be read: embedded null byte"):
        read_yaml("a\0b")
    if Path("/dev/zero").exists():
        with pytest.raises(YamlError, match="cannot be read: not a plain file"):
            read_yaml("/dev/zero")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="rights do not bind this user")
def test_a_file_without_the_right_to_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1")
    (tmp_path / "a.yaml").chmod(0)
    with pytest.raises(YamlError, match="cannot be read: Permission denied"):
        read_yaml(tmp_path / "a.yaml")


def test_json_is_read_too() -> None:
    content = {"a": [1, 0.5, None, True, 'é😀\n"/'], "b": {"c": 1e-7}}
    assert parse_yaml(json.dumps(content)).content == content
    assert parse_yaml(json.dumps(content, indent=2).replace("/", "\\/")).content == content


TRAPS = st.sampled_from(
    [
        *("yes", "no", "On", "OFF", "y", "null", "~", "", "true", "False", "1", "010", "0o10", "0x1F", "0b1", "1_0"),
        *("1e-5", "1E5", "1e999", ".5", "5.", ".inf", ".nan", "1:30", "2020-01-01", "2020-01-01 10:00:00", "<<", "="),
        *("&a", "*a", "!a", "- a", "a: b", "a #b", "#", "? a", "{", "[", "|", ">", "%", "@", "`", "---", "...", "a:"),
        *(
            " a",
            "a ",
            "a\n",
            "\n",
            "\t",
            "\x85",
            "\u2028",
            "\ufeff",
            "\x07",
            "\udc80",
            "a'b",
            'a"b',
            "é",
            "😀",
            "9" * 500,
        ),
    ]
)
TEXTS = TRAPS | st.text(max_size=30) | st.from_regex(r"[-+0-9._eExo:]{1,8}", fullmatch=True)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from([1e-5, 1e16, 1e22, 5e-324, 1.7e308, -0.0])
    | TEXTS
)
CONTENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=15
)


def same(one: Any, other: Any) -> bool:
    """Equal, with equal types all the way down: 1, 1.0 and True are three values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(CONTENTS)
def test_what_is_written_reads_back_here_and_by_yaml_1_1(content: Any) -> None:
    written = write_yaml(content)
    assert same(parse_yaml(written).content, content)
    assert same(yaml.safe_load(written), content)


def test_what_is_there_twice_is_written_twice() -> None:
    shared = {"a": [1]}
    assert parse_yaml(write_yaml({"x": shared, "y": shared})).content == {"x": shared, "y": shared}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({1: "a"}, "found the key 1; allowed: a text"),
        ({"a": {"b": {1, 2}}}, r"a\.b: found \{1, 2\}, a set; allowed: texts"),
        ({"a": [Path("x")]}, r"a\.0: found "),
        ({"a": 10**400}, "a: found an integer of 1,329 bits"),
    ],
)
def test_what_cannot_be_written(content: Any, told: str) -> None:
    with pytest.raises(YamlError, match=told):
        write_yaml(content)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(YamlError, match="levels"):
        write_yaml(endless)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("yes", " (yes is a text by YAML 1.2; booleans are true and false)"),
        ("Off", " (Off is a text by YAML 1.2; booleans are true and false)"),
        ("1", " (a number is written without quotes and underscores)"),
        ("1_000", " (a number is written without quotes and underscores)"),
        ("0,5", " (a decimal point, not a comma)"),
        ("many", ""),
        (1, ""),
        (None, ""),
    ],
)
def test_advice(value: object, told: str) -> None:
    assert advice(value) == told
