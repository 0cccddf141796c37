"""What can be wrong with a data set, and how it is told."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

EXAMPLES = 5
"""Examples listed for each kind of problem; the count is always of all of them."""


NO_FIELD = "no field present"
"""The kind of problem of a row that lacks all fields: nothing is broken, there is only nothing to read."""


class DataSetError(ValueError):
    """A data set that cannot be used as it is: what was found, what is allowed, and where.

    Attributes:
        key: Where in a YAML file the value is, if it came from one.
    """

    def __init__(self, message: str, *, key: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one column, over the whole file.

    Attributes:
        file: Name of the file inside the data set's folder.
        column: The column.
        kind: What is wrong, in words, such as ``"duplicate id"``.
        allowed: What the format allows there.
        count: Rows that have the problem.
        examples: Up to five of them, each naming its row (from 0, in the file) and id.
    """

    file: str
    column: str
    kind: str
    allowed: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = f"; and {self.count - len(self.examples):,} more" if self.count > len(self.examples) else ""
        rows = number_of(self.count, "row")
        listed = "; ".join(self.examples)
        return f"{self.file}, column '{self.column}': {self.kind} in {rows}: {listed}{more}. Allowed: {self.allowed}"


@dataclass
class ProblemLog:
    """Collects problems, merged by (file, column, kind), in the order of their first appearance.

    Attributes:
        found: The problems so far.
        most: Examples kept of each kind.
    """

    found: dict[tuple[str, str, str], Problem] = field(default_factory=dict)
    most: int = EXAMPLES

    def add(self, file: str, column: str, kind: str, allowed: str, count: int, examples: Iterable[str]) -> None:
        """Adds `count` rows of one kind; `examples` is read only as far as there is room for examples."""
        if count == 0:
            return
        key = (file, column, kind)
        before = self.found.get(key)
        listed = before.examples if before else ()
        listed += tuple(islice(examples, self.most - len(listed)))
        total = count + (before.count if before else 0)
        self.found[key] = Problem(file, column, kind, allowed, total, listed)

    def problems(self) -> list[Problem]:
        """All problems so far."""
        return list(self.found.values())

    def stop(self) -> None:
        """Raises all problems as one error, if there are any.

        Raises:
            DataSetError: With one line for each problem.
        """
        if self.found:
            raise DataSetError("\n".join(str(problem) for problem in self.found.values()))


def not_relevant_note(pairs: int, below: int) -> str | None:
    """A sentence for data in which most scores are below 0, as a cross-encoder's logits are; None for all other data.

    Args:
        pairs: How many judged pairs there are.
        below: How many of them have a score below 0.
    """
    if 2 * below <= pairs:
        return None
    return (
        f"{below:,} of {pairs:,} scores are below 0, and a score of 0 or below means judged not relevant: what these "
        "say about order is lost"
    )


def shown(value: object) -> str:
    """A value as an error message quotes it: shortened, so that a megabyte stays one line."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"


def listed(names: Sequence[str], most: int = 50) -> str:
    """Names with commas between them, as many of them, and of each as much, as a message can hold."""
    shortened = ", ".join(one if len(one) <= 100 else shown(one) for one in names[:most])
    return shortened if len(names) <= most else f"{shortened} and {len(names) - most:,} more"


def number_of(count: int, noun: str, plural: str | None = None) -> str:
    """``1 row``, ``2,000 rows``, ``3 queries``."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def place(row: int, identifier: object) -> str:
    """How messages name a row: its number from 0 in the file, and its id."""
    return f"row {row} (id {shown(identifier)})"
