"""Texts that say the same in nearly the same letters, found one by one with MinHash and LSH in bounded memory."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any, Literal

import numpy as np

from opengcl.query_text import normalised

Unit = Literal["character", "word"]
UNITS: tuple[Unit, ...] = ("character", "word")

_CERTAINTY = 0.99
"""Chance, at the least, that a pair at the threshold is looked at."""


def shingles(text: str, unit: Unit = "character", size: int = 3) -> frozenset[str]:
    """All runs of ``size`` characters or words of the normalised text; the whole text where it is shorter.

    Characters are taken from the text with one blank at either end, so that the first and last letters count too.
    """
    found = normalised(text)
    parts: list[str] | str = f" {found} " if unit == "character" else found.split()
    joint = "" if unit == "character" else " "
    runs = max(1, len(parts) - size + 1)
    return frozenset(joint.join(parts[start : start + size]) for start in range(runs))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    r"""|left ∩ right| / |left ∪ right|; 1 for two empty sets."""
    together = len(left | right)
    return len(left & right) / together if together else 1.0


class NearDuplicates:
    """Remembers texts, and finds one that is nearly the same as a new one.

    A text is the set of its shingles, and two texts are near duplicates if the Jaccard similarity of their sets is at
    least ``threshold``. MinHash signatures in bands (Broder 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive
    Datasets", chapter 3) name the candidates, and each candidate is compared exactly: a text is never dropped by
    chance, and a pair at the threshold is missed with a probability of 1% or less where ``hashes`` allow it, of a
    pair far above it hardly ever. The same texts in the same order give the same answers on every machine.

    Args:
        threshold: Jaccard similarity from which on two texts are near duplicates, in (0, 1].
        unit: What a shingle is made of. Words of size 1 take "shoes red" and "red shoes" for the same.
        size: Characters or words of a shingle, >= 1.
        hashes: Length of a signature, >= 1; the more, the surer and the slower.
        capacity: Texts remembered, at about 4 KB each; beyond it the oldest is forgotten.
        seed: Of the hash functions.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        threshold: float = 0.8,
        *,
        unit: Unit = "character",
        size: int = 3,
        hashes: int = 128,
        capacity: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold: found {threshold}; allowed: more than 0, up to 1")
        if unit not in UNITS:
            raise ValueError(f"unit: found {unit!r}; allowed: {', '.join(UNITS)}")
        for name, value in (("size", size), ("hashes", hashes), ("capacity", capacity)):
            if value < 1:
                raise ValueError(f"{name}: found {value}; allowed: 1 or more")
        self.threshold = threshold
        self.unit = unit
        self.size = size
        self.capacity = capacity
        self.bands, self.rows = bands_for(threshold, hashes)
        draw = np.random.default_rng(seed)
        count = self.bands * self.rows
        self._factor = draw.integers(1, 2**63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._offset = draw.integers(0, 2**63, count, dtype=np.uint64)
        self._texts: OrderedDict[int, tuple[str, list[bytes]]] = OrderedDict()
        self._buckets: dict[bytes, list[int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> str | None:
        """Remembers a text unless a near duplicate is remembered already.

        Returns:
            The most similar remembered text if it is a near duplicate, of equals the oldest; None if there is
            none, and the text is now remembered.
        """
        own = shingles(text, self.unit, self.size)
        keys = self._keys(own)
        nearest = self._nearest(own, keys)
        if nearest is None:
            self._remember(text, keys)
        return nearest

    def find(self, text: str) -> str | None:
        """The most similar remembered text if it is a near duplicate, of equals the oldest; else None."""
        own = shingles(text, self.unit, self.size)
        return self._nearest(own, self._keys(own))

    def _nearest(self, own: frozenset[str], keys: list[bytes]) -> str | None:
        candidates = sorted({number for key in keys for number in self._buckets.get(key, ())})
        best, found = self.threshold, None
        for number in candidates:
            text = self._texts[number][0]
            similarity = jaccard(own, shingles(text, self.unit, self.size))
            if similarity > best or (found is None and similarity == best):
                best, found = similarity, text
        return found

    def _keys(self, own: frozenset[str]) -> list[bytes]:
        """The name of this text's bucket in each band."""
        hashed = [hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=8).digest() for one in own]
        values = np.frombuffer(b"".join(hashed), "<u8")
        mixed = values[:, None] * self._factor + self._offset  # modulo 2^64
        signature = (mixed ^ (mixed >> np.uint64(29))).min(axis=0)
        rows: np.ndarray[Any, np.dtype[np.uint64]] = signature.reshape(self.bands, self.rows)
        return [
            hashlib.blake2b(row.astype("<u8").tobytes(), digest_size=8, key=band.to_bytes(4, "little")).digest()
            for band, row in enumerate(rows)
        ]

    def _remember(self, text: str, keys: list[bytes]) -> None:
        if len(self._texts) == self.capacity:
            self._forget()
        self._texts[self._next] = (text, keys)
        for key in keys:
            self._buckets.setdefault(key, []).append(self._next)
        self._next += 1

    def _forget(self) -> None:
        number, (_, keys) = self._texts.popitem(last=False)
        for key in keys:
            self._buckets[key].remove(number)
            if not self._buckets[key]:
                del self._buckets[key]


def bands_for(threshold: float, hashes: int) -> tuple[int, int]:
    """The most selective division of a signature that still finds a pair at the threshold with 99%.

    A pair of Jaccard similarity s shares a bucket with the probability 1 - (1 - s^rows)^bands.

    Returns:
        (bands, rows), with ``bands * rows <= hashes``; one row a band where no division reaches 99%.
    """
    for rows in range(hashes, 1, -1):
        bands = hashes // rows
        if 1 - (1 - threshold**rows) ** bands >= _CERTAINTY:
            return bands, rows
    return hashes, 1
