"""Near duplicates against a loop over all pairs, and the closed form of the bands."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opengcl.near_duplicates import NearDuplicates, bands_for, jaccard, shingles
from opengcl.query_text import normalised

WORDS = ["red", "blue", "shoe", "shoes", "running", "for", "men", "women", "size", "ten", "cheap", "leather"]


def phrases(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randrange(2, 7))) for _ in range(count)]


def kept_by_loop(texts: list[str], threshold: float) -> list[str]:
    """Every text against every kept one."""
    kept: list[str] = []
    for text in texts:
        own = shingles(text)
        if all(jaccard(own, shingles(other)) < threshold for other in kept):
            kept.append(text)
    return kept


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_nothing_is_dropped_by_chance_and_hardly_anything_missed(threshold: float) -> None:
    texts = phrases(600, seed=1)
    index = NearDuplicates(threshold)
    kept = [text for text in texts if index.add(text) is None]
    expected = kept_by_loop(texts, threshold)
    assert len(expected) < len(texts)
    # A missed pair keeps one text more, which may then stand for others; without one the lists are equal.
    assert len(set(kept) ^ set(expected)) <= 0.02 * len(texts)
    assert len(index) == len(kept)


def test_the_nearest_of_several_is_named() -> None:
    index, kept, right, found = NearDuplicates(0.5), [], 0, 0
    for text in phrases(400, seed=4):
        near = {other: jaccard(shingles(text), shingles(other)) for other in kept}
        nearest = index.add(text)
        if nearest is None:
            kept.append(text)
        else:
            found += 1
            right += near[nearest] == max(near.values())
    assert found > 100
    assert right >= 0.98 * found


def test_case_and_spaces_make_no_difference() -> None:
    index = NearDuplicates(1.0)
    assert index.add("red running shoes") is None
    assert index.add("a green tent") is None
    assert index.add(" Red  RUNNING shoes") == "red running shoes"


def test_a_found_text_is_near_by_the_definition() -> None:
    index = NearDuplicates(0.6, size=4)
    for text in phrases(300, seed=2):
        other = index.add(text)
        assert other is None or jaccard(shingles(text, size=4), shingles(other, size=4)) >= 0.6


def test_words_make_the_order_irrelevant() -> None:
    letters, words = NearDuplicates(0.9), NearDuplicates(0.9, unit="word", size=1)
    for index in (letters, words):
        assert index.add("shoes red") is None
    assert letters.add("red shoes") is None
    assert words.add("red shoes") == "shoes red"
    assert shingles("a b c", "word", 2) == {"a b", "b c"}
    assert shingles("ab") == {" ab", "ab "}
    assert shingles("") == {"  "}


@given(st.floats(0.05, 1.0), st.integers(1, 256))
@settings(deadline=None)
def test_bands_are_the_most_selective_that_are_sure(threshold: float, hashes: int) -> None:
    def chance(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (hashes // rows)

    bands, rows = bands_for(threshold, hashes)
    assert bands * rows <= hashes
    assert rows == 1 or chance(rows) >= 0.99
    assert all(chance(more) < 0.99 for more in range(rows + 1, hashes + 1))


def test_memory_is_bounded_by_forgetting_the_oldest() -> None:
    index = NearDuplicates(0.9, capacity=3)
    texts = ["red shoe", "blue lamp", "green tent", "black coat"]
    assert [index.add(text) for text in texts] == [None] * 4
    assert len(index) == 3
    assert index.add("black coat") == "black coat"
    assert index.add("red shoe") is None, "forgotten"
    assert index.add("green tent") == "green tent"
    assert sum(map(len, index._buckets.values())) == 3 * index.bands


def test_every_process_finds_the_same() -> None:
    script = "from opengcl.near_duplicates import NearDuplicates as N; n = N(0.6)\n"
    script += f"print([n.add(text) for text in {phrases(200, seed=3)!r}])"
    run = [sys.executable, "-c", script]
    said = {
        subprocess.run(run, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_letters_that_look_alike_to_a_reader_are_alike() -> None:
    assert normalised("\u00a0\uff32\uff25\uff24\tShoes \ufb01ne\n") == "red shoes fine"
    assert NearDuplicates().add("\ud800") is None, "a lone surrogate is a text too"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold: found 0; allowed: more than 0, up to 1"),
        ({"threshold": 1.1}, "threshold: found 1.1"),
        ({"unit": "letter"}, "unit: found 'letter'; allowed: character, word"),
        ({"size": 0}, "size: found 0; allowed: 1 or more"),
        ({"hashes": 0}, "hashes: found 0"),
        ({"capacity": 0}, "capacity: found 0"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NearDuplicates(**options)
