"""YAML without its traps: read by the core schema of YAML 1.2, with the line of every key, and written for any reader.

PyYAML finds the structure; what a plain scalar means is decided here. PyYAML follows YAML 1.1, where ``no`` is false,
``1e-5`` is a text, ``010`` is 8 and ``1:30`` is 90; by YAML 1.2 (section 10.3.2) they are a text, 0.00001, 10 and a
text.
"""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from opengcl.plain_files import open_plain

LARGEST_FILE = 1 << 20
"""Bytes of a file, at most."""
DEEPEST = 50
"""Mappings and lists inside each other, at most."""

Key = tuple[str, ...]
"""Where a value is: the keys that lead to it, and places in lists from 0, as texts."""

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_LONGEST_NUMBER = 400  # characters
_NOT_BOOLEANS = frozenset(("yes", "no", "on", "off", "y", "n"))
_MISSING = object()


class YamlError(ValueError):
    """A text that is not the YAML that is read here: where, what was found, and what is allowed."""


@dataclass(frozen=True)
class YamlFile:
    """What a file says, and where it says it.

    Attributes:
        name: What messages call it; may be empty.
        content: None, a bool, int, float or str, or lists and dictionaries of these, with texts as keys.
        lines: Line of each key and of each list's item, from 1.
    """

    name: str
    content: Any
    lines: Mapping[Key, int] = field(repr=False)

    def place(self, key: Collection[object] = ()) -> str:
        """``file, line 3``: where a key is, or the nearest one around it that is there; parts not there are skipped."""
        found: Key = ()
        for part in key:
            if (*found, str(part)) in self.lines:
                found = (*found, str(part))
        return _place(self.name, self.lines.get(found))

    def mapping(self, allowed: str = "a mapping of settings") -> dict[str, Any]:
        """The content, if it is a mapping.

        Raises:
            YamlError: It is anything else, or nothing.
        """
        if isinstance(self.content, dict):
            return self.content
        found = "nothing" if self.content is None else reprlib.repr(self.content)
        raise YamlError(f"{_place(self.name, None)}: found {found}; allowed: {allowed}".removeprefix(": "))


def read_yaml(path: Path | str, *, texts: Collection[str] = ()) -> YamlFile:
    """Read a YAML file, of at most `LARGEST_FILE` bytes; see `parse_yaml`.

    Raises:
        YamlError: It cannot be read, is too large, is not UTF-8, or is refused by `parse_yaml`.
    """
    try:
        with open_plain(path) as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise YamlError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a zero byte in the name
        raise YamlError(f"{reprlib.repr(str(path))}: cannot be read: {error}") from error
    if len(data) > LARGEST_FILE:
        raise YamlError(f"{path}: found more than {LARGEST_FILE:,} bytes; allowed: up to {LARGEST_FILE:,}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise YamlError(f"{path}, line {line}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    return parse_yaml(text, name=str(path), texts=texts)


def parse_yaml(text: str, *, name: str = "", texts: Collection[str] = ()) -> YamlFile:
    """Read one YAML document by the core schema of YAML 1.2.

    Keys are texts as they are written: ``1`` is ``"1"`` and ``no`` is ``"no"``. Dates are texts. Anchors, aliases,
    tags, repeated keys and a second document are refused.

    Args:
        text: The document.
        name: What messages call it.
        texts: Where a text is wanted, with ``*`` for any key: ``("name", "columns.*")``. There, ``2024``, ``1.50`` and
            ``true`` are texts as they are written; ``null`` and nothing are None.

    Raises:
        YamlError: It is not YAML, or not of this kind; the message names the line.
    """
    try:
        loader = yaml.SafeLoader(text)
        events = iter(loader.get_event, None)
        return _Reading(name, [tuple(wanted.split(".")) for wanted in texts]).document(events)
    except yaml.reader.ReaderError as error:
        place = _place(name, text.count("\n", 0, error.position) + 1)
        found = reprlib.repr(chr(error.character)) if isinstance(error.character, int) else "a byte"
        raise YamlError(f"{place}: found the character {found}, which YAML does not allow") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(name, mark.line + 1 if mark else None)
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise YamlError(f"{place}: not readable as YAML: {problem[:200]}".removeprefix(": ")) from error


def write_yaml(content: Any) -> str:
    """YAML that reads back equal, here and with readers of YAML 1.1 such as PyYAML: ambiguous texts get quotes.

    Raises:
        YamlError: A value is of another type than those of `YamlFile.content` (tuples count as lists), or a key is
            not a text.
    """
    _check_writable(content, ())
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def advice(value: object) -> str:
    """What may have gone wrong where a text came instead of a boolean or a number, for the end of a message; or ''."""
    if not isinstance(value, str) or len(value) > _LONGEST_NUMBER:
        return ""
    if value.lower() in _NOT_BOOLEANS:
        return f" ({value} is a text by YAML 1.2; booleans are true and false)"
    bare = value.replace("_", "").strip()
    if _INT.fullmatch(bare) or _FLOAT.fullmatch(bare):
        return " (a number is written without quotes and underscores)"
    return " (a decimal point, not a comma)" if re.fullmatch(r"[-+]?\d+,\d+", bare) else ""


@dataclass
class _Reading:
    """The events of one document, read into Python's values."""

    name: str
    texts: list[Key]
    lines: dict[Key, int] = field(default_factory=dict)

    def document(self, events: Iterator[yaml.Event]) -> YamlFile:
        content: Any = _MISSING
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if content is not _MISSING:
                    raise self.error(event, "found a second document; allowed: one in a file")
                if event.version is not None and event.version < (1, 2):
                    raise self.error(event, "found %YAML 1.1; allowed: YAML 1.2, where yes and no are texts")
                content = self.value(next(events), events, ())
        return YamlFile(self.name, None if content is _MISSING else content, self.lines)

    def value(self, event: yaml.Event, events: Iterator[yaml.Event], key: Key) -> Any:
        self.refuse_extras(event)
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, wanted=any(_matches(key, pattern) for pattern in self.texts))
        if len(key) >= DEEPEST:
            raise self.error(event, f"found more than {DEEPEST} levels; allowed: up to {DEEPEST}")
        return self.sequence(events, key) if isinstance(event, yaml.SequenceStartEvent) else self.mapping(events, key)

    def sequence(self, events: Iterator[yaml.Event], key: Key) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            inner = (*key, str(len(found)))
            self.lines[inner] = _line(event)
            found.append(self.value(event, events, inner))
        return found

    def mapping(self, events: Iterator[yaml.Event], key: Key) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            self.refuse_extras(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise self.error(event, "found a list or a mapping as a key; allowed: a text")
            name = self.text(event)
            if not name and event.style is None:
                raise self.error(event, "found a value without a key; allowed: key: value")
            inner = (*key, name)
            if name in found:
                first = f"it is on line {self.lines[inner]} too"
                raise self.error(event, f"found the key {reprlib.repr(name)} twice; allowed: once ({first})")
            self.lines[inner] = _line(event)
            found[name] = self.value(next(events), events, inner)
        return found

    def scalar(self, event: yaml.ScalarEvent, *, wanted: bool) -> Any:
        written = self.text(event)
        if event.style is not None or (wanted and not _NULL.fullmatch(written)):
            return written
        try:
            return _resolved(written)
        except OverflowError as error:
            raise self.error(event, f"found {reprlib.repr(written)}; allowed: {error}") from None

    @staticmethod
    def text(event: yaml.ScalarEvent) -> str:
        """The scalar as a text; JSON's pairs of escapes for one character are joined."""
        return str(event.value).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    def refuse_extras(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.AliasEvent):
            raise self.error(event, f"found the alias {reprlib.repr(f'*{event.anchor}')}; {_NO_ALIASES}")
        if (anchor := getattr(event, "anchor", None)) is not None:
            raise self.error(event, f"found the anchor {reprlib.repr(f'&{anchor}')}; {_NO_ALIASES}")
        if (tag := getattr(event, "tag", None)) is not None:
            told = reprlib.repr(tag.replace("tag:yaml.org,2002:", "!!"))
            raise self.error(event, f"found the tag {told}; allowed: none (quotes make a value a text)")

    def error(self, event: yaml.Event, message: str) -> YamlError:
        return YamlError(f"{_place(self.name, _line(event))}: {message}")


_NO_ALIASES = "allowed: none, write the value out (or, for a text that begins with & or *, use quotes)"


def _resolved(written: str) -> Any:
    """A plain scalar by the core schema.

    Raises:
        OverflowError: A number that no float holds, or of more digits than anybody means.
    """
    if _NULL.fullmatch(written):
        return None
    if _BOOL.fullmatch(written):
        return written.lower() == "true"
    if found := _NOT_FINITE.fullmatch(written):
        return float(f"{found[1] or ''}inf") if found[2] else float("nan")
    whole, decimal = _INT.fullmatch(written), _FLOAT.fullmatch(written)
    if (whole or decimal) and len(written) > _LONGEST_NUMBER:
        raise OverflowError(f"numbers of up to {_LONGEST_NUMBER} characters (quotes make a value a text)")
    if not (whole or decimal):
        return written
    number = int(written, {"0o": 8, "0x": 16}.get(written[:2], 10)) if whole else float(written)
    if abs(number) > sys.float_info.max:
        raise OverflowError("numbers up to 1.7e308 (quotes make a value a text)")
    return number


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as anything but a text, and repeats what is there twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        if kind is yaml.ScalarNode and implicit[0] and tag == _TEXT and _ambiguous(value):
            return "tag:yaml.org,2002:float"
        return tag


_TEXT = "tag:yaml.org,2002:str"
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Single quotes would turn the line ends that YAML 1.2 no longer knows into blanks; double quotes escape them."""
    return dumper.represent_scalar(_TEXT, text, style='"' if _LINE_ENDS.search(text) else None)


_Dumper.add_representer(str, _represent_text)


def _ambiguous(text: str) -> bool:
    try:
        return not isinstance(_resolved(text), str)
    except OverflowError:
        return True


def _check_writable(value: Any, key: Key) -> None:
    if len(key) > DEEPEST:
        raise YamlError(f"found more than {DEEPEST} levels; allowed: up to {DEEPEST}")
    if type(value) is dict:
        for name, inner in value.items():
            if type(name) is not str:
                raise YamlError(f"{'.'.join(key)}: found the key {reprlib.repr(name)}; allowed: a text")
            _check_writable(inner, (*key, name))
    elif type(value) in (list, tuple):
        for at, inner in enumerate(value):
            _check_writable(inner, (*key, str(at)))
    elif type(value) is int and abs(value) > sys.float_info.max:
        raise YamlError(f"{'.'.join(key)}: found an integer of {value.bit_length():,} bits; allowed: up to 1.7e308")
    elif value is not None and type(value) not in (bool, int, float, str):
        found = f"{reprlib.repr(value)}, a {type(value).__name__}"
        raise YamlError(f"{'.'.join(key)}: found {found}; allowed: texts, numbers, booleans, lists, dictionaries, None")


def _matches(key: Key, pattern: Key) -> bool:
    return len(key) == len(pattern) and all(want in ("*", part) for part, want in zip(key, pattern, strict=True))


def _line(event: yaml.Event) -> int:
    return int(event.start_mark.line) + 1 if event.start_mark else 1


def _place(name: str, line: int | None) -> str:
    return ", ".join(filter(None, (name, f"line {line}" if line else "")))
