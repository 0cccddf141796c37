"""Pictures that look nearly the same: candidates by a 64-bit difference hash, each compared by its colours."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64
from PIL import Image

NEAR_BITS = 5
"""Bits, of 64, in which the hashes of candidates differ at most."""

NEAR_COLOURS = 0.15
"""How far near duplicates differ at most, as a share of the contrast of the plainer picture."""

SIDE = 16
_MARGIN = 2  # levels of grey: without one, noise decides in a white background
_BLOCK = 512
_LEVEL = 1.0  # of 255: what two plain pictures may differ by


def difference_hash(image: Image.Image) -> int:
    """64 bits: for each of 8 x 8 places whether the picture, in 9 x 8 grey pixels, gets brighter to the right.

    Much the same for other sizes and qualities of a picture. dHash, by Neal Krawetz: "Kind of Like That",
    hackerfactor.com, 2013-01-21; unlike there, brighter means by more than two levels of 255, since products stand on
    white.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1] + _MARGIN).tobytes(), "big")


@dataclass
class LookAlikes:
    """Collects pictures, about 800 bytes of each, and finds those that look nearly the same."""

    _hashes: list[int] = field(default_factory=list)
    _small: list[UInt8[np.ndarray, "values"]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, image: Image.Image) -> None:
        """Remembers a picture; its place is the number of pictures before."""
        self._hashes.append(difference_hash(image))
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        self._small.append(np.asarray(small, np.uint8).ravel())

    def pairs(self) -> tuple[Int[np.ndarray, "pairs 2"], Float[np.ndarray, "pairs"]]:
        """All pairs of near duplicates.

        Their hashes differ in `NEAR_BITS` bits at most, and, reduced to 16 x 16 pixels, the root mean square of their
        difference is at most `NEAR_COLOURS` of the standard deviation of the picture with the smaller one.

        Returns:
            int64 (pairs, 2): places, the smaller first, the most alike first; and (pairs,) that share.
        """
        if not self._hashes:
            return np.empty((0, 2), np.int64), np.empty(0)
        small = np.stack(self._small).astype(np.float32)
        contrast = small.std(axis=1)
        kept = [(np.empty((0, 2), np.int64), np.empty(0))]
        for pairs in _candidates(np.array(self._hashes, np.uint64)):
            left, right = pairs.T
            difference = np.sqrt(((small[left] - small[right]) ** 2).mean(axis=1))
            share = difference / (np.minimum(contrast[left], contrast[right]) + _LEVEL)
            kept.append((pairs[share <= NEAR_COLOURS], share[share <= NEAR_COLOURS]))
        found, shares = (np.concatenate(part) for part in zip(*kept, strict=True))
        order = np.argsort(shares, kind="stable")
        return found[order], shares[order].astype(np.float64)


def _candidates(hashes: UInt64[np.ndarray, "pictures"]) -> list[Int[np.ndarray, "pairs 2"]]:
    """Pairs whose hashes are near, each compared with each, in lists that are short enough to be looked at."""
    found = []
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK]
        near = np.bitwise_count(block[:, None] ^ hashes[None, start:]) <= NEAR_BITS
        pairs = np.stack(np.nonzero(np.triu(near, k=1)), axis=1) + start
        found += [pairs[at : at + _BLOCK] for at in range(0, len(pairs), _BLOCK)]
    return found
