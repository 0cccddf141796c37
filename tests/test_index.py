"""One list of demands for every store: what is written is found, filters mean one thing, a swap is one step."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from opengcl.index import (
    Filter,
    Index,
    IndexSpec,
    Store,
    StoreError,
    UnknownIndex,
    VectorIndexError,
    lance,
    open_store,
    parse_filter,
    quoted,
    require_model,
)
from opengcl.index.filters import DEEPEST_FILTER, And, Compare, FieldType, FilterError, In, Missing, Or
from opengcl.index.lance import LanceStore
from opengcl.index.rows import checked_value
from tests.index_stores import (  # noqa: F401 - a fixture
    AWKWARD,
    FIELDS,
    KINDS,
    field_values,
    matches,
    names,
    postgres_server,
    spec,
    store_uri,
    unit_vectors,
)

ROWS = 120


@pytest.fixture(params=KINDS)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return store_uri(request.param, tmp_path, request)


@pytest.fixture
def store(uri: str) -> Iterator[Store]:
    opened = open_store(uri)
    yield opened
    opened.close()


def filled(store: Store, name: str = "a", *, rows: int = ROWS, dtype: str = "float32", seed: int = 0) -> Index:
    index = store.create(name, spec(dtype=dtype))
    index.upsert(names(rows), unit_vectors(rows, seed=seed), field_values(rows))
    return index


def ids_of(hits: list[list[Any]]) -> list[list[str]]:
    return [[hit.doc_id for hit in of_query] for of_query in hits]


def best(vectors: np.ndarray, query: np.ndarray, k: int, offset: int = 0) -> list[str]:
    return [f"d{row}" for row in np.argsort(-(vectors @ query))[offset : offset + k]]


def test_what_is_written_is_found_changed_and_removed(store: Store) -> None:
    index = filled(store)
    vectors, fields = unit_vectors(ROWS), field_values(ROWS)
    queries = unit_vectors(5, seed=1)
    assert index.count() == ROWS
    hits = index.search(queries, 7)
    assert ids_of(hits) == [best(vectors, query, 7) for query in queries]
    for query, of_query in zip(queries, hits, strict=True):
        for hit in of_query:
            row = int(hit.doc_id[1:])
            assert hit.score == pytest.approx(float(vectors[row] @ query), abs=1e-5)
            assert hit.fields == {name: values[row] for name, values in fields.items()}
    assert ids_of(index.search(queries, 4, offset=3)) == [best(vectors, query, 4, 3) for query in queries]
    assert ids_of(index.search(queries, 3, exact=True)) == [best(vectors, query, 3) for query in queries]
    assert index.search(queries[:0], 3) == []
    assert index.search(queries[:1], 5, offset=ROWS) == [[]]

    # d0 gets d1's place and other fields, a new one is added: found at once
    changed = {"brand": ["new", None], "price": [7, np.float32(2.5)], "in stock": [None, True]}
    index.upsert(["d0", "new"], queries[:2], changed)
    assert index.count() == ROWS + 1
    first, second = index.search(queries[:2], 1)
    assert (first[0].doc_id, first[0].fields) == ("d0", {"brand": "new", "price": 7.0, "in stock": None})
    assert (second[0].doc_id, second[0].fields) == ("new", {"brand": None, "price": 2.5, "in stock": True})
    found = index.get(["new", "nowhere", "d0", "new"])
    assert [None if row is None else row.doc_id for row in found] == ["new", None, "d0", "new"]
    assert found[2] is not None
    np.testing.assert_allclose(found[2].vector, queries[0], atol=1e-6)

    assert index.delete(["d0", "nowhere", "d0", "new"]) == 2
    assert index.count() == ROWS - 1
    assert "d0" not in ids_of(index.search(queries[:1], ROWS))[0]
    assert index.delete([]) == 0
    index.upsert([], np.empty((0, 8), np.float32), {name: [] for name in FIELDS})
    index.finish()
    assert index.count() == ROWS - 1
    assert len(index.search(queries[:1], ROWS)[0]) == ROWS - 1


def test_int8_keeps_a_hundredth_of_a_cosine(store: Store) -> None:
    index = filled(store, dtype="int8")
    vectors, queries = unit_vectors(ROWS), unit_vectors(5, seed=1)
    steps = np.rint(vectors * (127 / np.abs(vectors).max(1, keepdims=True)))
    kept = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    for query, hits in zip(queries, index.search(queries, 10), strict=True):
        assert len(hits) == 10
        for hit in hits:
            assert hit.score == pytest.approx(float(kept[int(hit.doc_id[1:])] @ query), abs=1e-3)
    row = index.get(["d3"])[0]
    assert row is not None
    np.testing.assert_allclose(row.vector, kept[3], atol=1e-6)


def test_opened_again_everything_is_there(store: Store, uri: str) -> None:
    filled(store)
    store.swap("a")
    store.close()
    again = open_store(uri)
    try:
        index = again.open()
        assert (index.name, index.spec, again.live(), again.names()) == ("a", spec(), "a", ["a"])
        assert index.count() == ROWS
        assert ids_of(index.search(unit_vectors(1, seed=1), 3)) == [
            best(unit_vectors(ROWS), unit_vectors(1, seed=1)[0], 3)
        ]
    finally:
        again.close()


def wrong_rows() -> dict[str, tuple[Callable[[], tuple[Any, Any, Any]], str]]:
    vectors, fields = unit_vectors(2), {"brand": ["x", "y"], "price": [1.0, 2.0], "in stock": [True, None]}
    spoiled = vectors.copy()
    spoiled[1, 3] = np.nan
    two = ["p", "q"]
    return {
        "duplicate": (lambda: (["p", "p"], vectors, fields), "row 1: id 'p' is that of row 0"),
        "nan": (lambda: (two, spoiled, fields), "row 1: found length nan"),
        "length": (lambda: (two, 2 * vectors, fields), "row 0: found length 2"),
        "width": (lambda: (two, unit_vectors(2, 7), fields), r"shape \(2, 7\); allowed: floats, \(rows, 8\)"),
        "integers": (lambda: (two, np.ones((2, 8), np.int64), fields), "found int64"),
        "number of ids": (lambda: (["p"], vectors, fields), "1 ids and 2 vectors"),
        "empty id": (lambda: (["p", ""], vectors, fields), "row 1: found the id ''"),
        "id not text": (lambda: ([1, 2], vectors, fields), "row 0: found the id 1"),
        "id with NUL": (lambda: (["p", "q\0"], vectors, fields), "row 1, id: .* without NUL"),
        "long id": (lambda: (["p", "é" * 600], vectors, fields), "1,200 bytes; allowed: up to 1,024"),
        "surrogate": (lambda: (["p", "\ud800"], vectors, fields), "lone surrogates"),
        "one text for ids": (lambda: ("pq", vectors, fields), "a list of texts"),
        "lacking field": (lambda: (two, vectors, {"brand": ["x", "y"]}), "required: brand, price, in stock"),
        "other field": (lambda: (two, vectors, {**fields, "size": [1, 2]}), "found .*size"),
        "number of values": (lambda: (two, vectors, {**fields, "price": [1.0]}), "'price': found 1 values"),
        "text for number": (lambda: (two, vectors, {**fields, "price": [1.0, "2"]}), "row 1, field 'price': found '2'"),
        "bool for number": (
            lambda: (two, vectors, {**fields, "price": [True, 1.0]}),
            "row 0, field 'price': found True",
        ),
        "infinite": (lambda: (two, vectors, {**fields, "price": [1.0, float("inf")]}), "found inf; allowed: a finite"),
        "number for text": (lambda: (two, vectors, {**fields, "brand": [1, "y"]}), "'brand': found 1"),
        "number for bool": (lambda: (two, vectors, {**fields, "in stock": [1, None]}), "'in stock': found 1"),
        "long text": (lambda: (two, vectors, {**fields, "brand": ["x" * 70_000, "y"]}), "70,000 bytes"),
    }


@pytest.mark.parametrize("case", wrong_rows())
def test_wrong_rows_are_refused_with_their_number(case: str, tmp_path: Path) -> None:
    make, message = wrong_rows()[case]
    with_rows = open_store(f"exact:{tmp_path}").create("a", spec())
    with pytest.raises(VectorIndexError, match=message):
        with_rows.upsert(*make())
    assert with_rows.count() == 0


def test_wrong_calls_change_nothing(store: Store) -> None:
    index = filled(store)
    make, message = wrong_rows()["text for number"]
    with pytest.raises(VectorIndexError, match=message):
        index.upsert(*make())
    assert index.get(["p", "q"]) == [None, None]
    assert index.count() == ROWS
    query = unit_vectors(1)
    for arguments, options, message in (
        ((query, 0), {}, "k: found 0"),
        ((query, 3), {"offset": -1}, "offset: found -1"),
        ((query, 9_999), {"offset": 2}, "up to 10,000"),
        ((unit_vectors(1, 7), 3), {}, r"allowed: floats, \(rows, 8\)"),
        ((query[0], 3), {}, r"shape \(8,\)"),
        ((query * np.nan, 3), {}, "length nan"),
        ((query, 3), {"where": Compare("size", "=", 1.0)}, "unknown field 'size'"),
        ((query, 3), {"where": Compare("brand", "=", 1.0)}, "brand is text, found 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            index.search(*arguments, **options)
    with pytest.raises(ValueError, match="unknown field 'size'"):
        index.count(Compare("size", "=", 1.0))


def test_versions_live_side_by_side(store: Store) -> None:
    with pytest.raises(UnknownIndex, match="no index is live; there: none"):
        store.open()
    assert (store.live(), store.names()) == (None, [])
    old, new = filled(store, "old"), filled(store, "new", seed=5)
    assert store.names() == ["new", "old"]
    with pytest.raises(UnknownIndex, match="no index is live; there: new, old"):
        store.open()
    for call in (store.open, store.swap, store.drop):
        with pytest.raises(UnknownIndex, match="no index 'other'; there: new, old"):
            call("other")
    with pytest.raises(VectorIndexError, match="'old' is there already"):
        store.create("old", spec())
    for name in ("Old", "9a", "a-b", "", "a" * 41, 'a"; DROP TABLE x', "../x"):
        with pytest.raises(VectorIndexError, match="index name: found"):
            store.create(name, spec())
    store.swap("old")
    assert store.open().name == store.live() == "old"
    query = unit_vectors(1, seed=1)
    assert ids_of(store.open().search(query, 3)) == [best(unit_vectors(ROWS), query[0], 3)]
    store.swap("new")
    store.swap("new")
    assert ids_of(store.open().search(query, 3)) == [best(unit_vectors(ROWS, seed=5), query[0], 3)]
    assert ids_of(old.search(query, 3)) == [best(unit_vectors(ROWS), query[0], 3)]
    with pytest.raises(VectorIndexError, match="'new' is live; swap to another one first"):
        store.drop("new")
    store.drop("old")
    assert store.names() == ["new"]
    for use in (lambda: old.search(query, 3), lambda: old.count(), lambda: old.get(["d1"])):
        with pytest.raises(UnknownIndex, match="'old' was dropped"):
            use()
    assert new.count() == ROWS
    assert store.create("old", spec(4, fields={})).count() == 0
    with pytest.raises(VectorIndexError, match="holds vectors of the model m, and the queries' model is n"):
        require_model(new, "n")
    require_model(new, "m")


def test_an_index_can_have_no_fields(store: Store) -> None:
    index = store.create("a", spec(fields={}))
    assert index.search(unit_vectors(1), 3) == [[]]
    index.upsert(names(5), unit_vectors(5), {})
    assert [hit.fields for hit in index.search(unit_vectors(1), 2)[0]] == [{}, {}]
    assert index.search(unit_vectors(1), 1)[0][0].doc_id == "d0"


# Filters


def leaf(field: str, kind: str) -> st.SearchStrategy[Filter]:
    value: st.SearchStrategy[Any] = {
        "text": st.sampled_from(AWKWARD)
        | st.text("'\"\\\\ a%{", max_size=6)
        | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        "number": st.integers(-3, 30).map(lambda number: number / 2) | st.floats(allow_nan=False, allow_infinity=False),
        "boolean": st.booleans(),
    }[kind]
    operators = ("=", "!=", "<", "<=", ">", ">=") if kind == "number" else ("=", "!=")
    return st.one_of(
        st.builds(Compare, st.just(field), st.sampled_from(operators), value),
        st.builds(In, st.just(field), st.lists(value, min_size=1, max_size=4).map(tuple), st.booleans()),
        st.builds(Missing, st.just(field), st.booleans()),
    )


filters = st.recursive(
    st.one_of(*(leaf(field, kind) for field, kind in FIELDS.items())),
    lambda inner: st.builds(
        lambda kind, parts: kind(tuple(parts)), st.sampled_from((And, Or)), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module", params=KINDS)
def searched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """An index that is only read."""
    opened = open_store(store_uri(request.param, tmp_path_factory.mktemp("filters"), request))
    yield filled(opened)
    opened.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=filters)
@example(where=Or((In("price", (0.0,), negated=True), In("price", (0.5,), negated=True))))
@example(where=Or((Compare("price", "!=", 0.0), Compare("price", "!=", 0.5))))
@example(where=And((In("price", (0.0, 0.5)), In("price", (0.5, 1.5)))))
def test_a_filter_means_the_same_in_every_store(searched: Index, where: Filter) -> None:
    fields = field_values(ROWS)
    rows = [{name: values[row] for name, values in fields.items()} for row in range(ROWS)]
    wanted = {f"d{number}" for number, row in enumerate(rows) if matches(where, row)}
    assert searched.count(where) == len(wanted)
    found = ids_of(searched.search(unit_vectors(1), ROWS, where=where))[0]
    assert (len(found), set(found)) == (len(wanted), wanted)


def test_awkward_texts_are_only_texts(searched: Index) -> None:
    brands = field_values(ROWS)["brand"]
    for text in AWKWARD:
        where = parse_filter(f"brand = {quoted(text)}", FIELDS)  # type: ignore[arg-type]
        assert searched.count(where) == brands.count(text), text
        row = brands.index(text)
        kept = searched.get([f"d{row}"])[0]
        assert kept is not None
        assert kept.fields["brand"] == text
    assert searched.count() == ROWS


def test_awkward_ids_are_only_ids(store: Store) -> None:
    index = store.create("a", spec(fields={}))
    ids = [one for one in AWKWARD if one] + ["x' or doc_id != '", 'x" or doc_id != "', "x\\' or doc_id != '"]
    vectors = unit_vectors(len(ids))
    index.upsert(ids, vectors, {})
    rows = index.get(ids)
    assert [row and row.doc_id for row in rows] == ids
    np.testing.assert_allclose([row.vector for row in rows if row], vectors, atol=1e-6)
    assert index.get(["y' or doc_id != '", 'y" or doc_id != "']) == [None, None]
    for number, one in enumerate(ids, start=1):
        assert index.delete([one]) == 1, one
        assert index.count() == len(ids) - number
    assert index.delete(["y' or doc_id != '"]) == 0


# Many at once


def in_threads(*works: Callable[[], None]) -> list[BaseException]:
    """Runs all at once, and returns what they raised."""
    raised: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_readers_see_whole_writes_and_nothing_is_lost(store: Store) -> None:
    index = store.create("a", spec(fields={"round": "number"}))
    vectors = unit_vectors(20)
    index.upsert(names(20), vectors, {"round": [0.0] * 20})
    done = threading.Event()

    def write() -> None:
        try:
            for number in range(1, 7):
                index.upsert(names(20), vectors, {"round": [float(number)] * 20})
                index.upsert([f"extra{number}"], unit_vectors(1, seed=number), {"round": [-1.0]})
        finally:
            done.set()

    def read() -> None:
        while not done.is_set():
            hits = index.search(vectors[:1], 40)[0]
            rounds = {hit.fields["round"] for hit in hits if hit.fields["round"] >= 0}
            assert len(rounds) == 1  # never half of a write
            assert sum(hit.fields["round"] >= 0 for hit in hits) == 20

    assert in_threads(write, read, read) == []
    assert index.count() == 26
    assert {row.fields["round"] for row in index.get(names(20)) if row is not None} == {6.0}


def test_a_swap_under_searches_is_old_or_new_and_never_none(store: Store) -> None:
    for name in ("old", "new"):
        store.create(name, spec(fields={"version": "text"}))
        store.open(name).upsert(names(30), unit_vectors(30), {"version": [name] * 30})
    store.swap("old")
    done = threading.Event()
    seen: list[str] = []

    def search() -> None:
        while not done.is_set():
            hits = store.open().search(unit_vectors(1), 30)[0]
            versions = {hit.fields["version"] for hit in hits}
            assert len(hits) == 30
            assert len(versions) == 1
            seen.append(versions.pop())

    def swap() -> None:
        try:
            for name in ("new", "old") * 5:
                store.swap(name)
                assert store.live() == name
        finally:
            done.set()

    assert in_threads(swap, search, search) == []
    assert set(seen) <= {"old", "new"}
    assert seen


@pytest.mark.parametrize("kind", ["exact", "lancedb", "postgres"])
def test_another_process_sees_writes_and_swaps_at_once(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    address = store_uri(kind, tmp_path, request)
    one, other = open_store(address), open_store(address)
    try:
        written, read = filled(one), other.open("a")
        assert read.count() == ROWS
        written.delete(names(10))
        assert read.count() == ROWS - 10
        assert len(read.search(unit_vectors(1), ROWS)[0]) == ROWS - 10
        one.swap("a")
        assert other.live() == "a"
    finally:
        one.close()
        other.close()


@pytest.mark.parametrize(
    ("kind", "value", "kept"),
    [
        ("integer", np.int64(2**53 + 1), 2**53 + 1),
        ("integer", np.uint8(7), 7),
        ("integer", 2024.0, 2024),
        ("integer", 2024.5, None),
        ("integer", 2.0**53, None),
        ("integer", 2**63, None),
        ("integer", float("nan"), None),
        ("integer", True, None),
        ("integer", "5", None),
        pytest.param("integer", 10**5000, None, id="long integer"),
        ("number", 2**53, 2.0**53),
        ("number", 2**53 + 1, None),
        ("number", np.int64(2**53 + 1), None),
        pytest.param("number", 10**5000, None, id="long number"),
    ],
)
def test_a_value_is_kept_exactly_or_refused(kind: FieldType, value: Any, kept: float | None) -> None:
    if kept is None:
        with pytest.raises(VectorIndexError, match=r"^found .*; allowed: |cannot hold exactly; allowed: .*--as-text"):
            checked_value(kind, value)
    else:
        found = checked_value(kind, value)
        assert (found, type(found)) == (kept, type(kept))


@pytest.mark.parametrize("kind", ["exact", "lancedb", "postgres", "milvus"])
def test_integers_stay_exact(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base = 9_223_372_036_854_775_000
    skus = [-(2**63), 2**63 - 1, 2**53, 2**53 + 1, -(2**53) - 1, None, 2024, *(base + row for row in range(128))]
    rows = len(skus)
    store = open_store(store_uri(kind, tmp_path, request))
    try:
        index = store.create("a", spec(fields={"sku": "integer"}))
        index.upsert(names(rows), unit_vectors(rows), {"sku": skus})
        assert [row.fields["sku"] for row in index.get(names(rows)) if row] == skus
        assert [type(row.fields["sku"]) for row in index.get(["d6"]) if row] == [int]
        for text in (
            *(f"sku {sign} {value}" for value in skus[:5] for sign in ("=", "<", ">=", "!=")),
            f"sku = {base + 64}",
            f"sku in ({base + 64}, {2**53 + 1}, {-(2**63)})",
            f"sku not in ({base + 64}, {2**53 + 1})",
            "sku < 2024.5",
            "sku = 2024.0",
            "sku = 2024.5",
            "sku != 2024.5",
            f"sku > {2**63}",
            "sku > -1e30",
            "sku is null",
        ):
            where = parse_filter(text, index.spec.fields)
            wanted = [f"d{row}" for row, value in enumerate(skus) if matches(where, {"sku": value})]
            found = index.search(unit_vectors(1), rows, where=where)[0]
            assert sorted(hit.doc_id for hit in found) == sorted(wanted), text
            assert all(hit.fields["sku"] == skus[int(hit.doc_id[1:])] for hit in found)
            assert index.count(where) == len(wanted), text
    finally:
        store.close()


@pytest.mark.parametrize("kind", ["exact", "lancedb", "postgres", "milvus"])
def test_every_store_reads_the_deepest_and_longest_filters(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = open_store(store_uri(kind, tmp_path, request))
    try:
        index = store.create("a", spec(fields={"brand": "text", "year": "integer"}))
        values = {"brand": ["x", "y", None], "year": [2024, None, 2020]}
        index.upsert(names(3), unit_vectors(3), values)
        leaves = (
            In("brand", ("x", "it's"), negated=True),
            Missing("brand"),
            Compare("year", "=", 2024.5),  # never true, which takes a level more
            Compare("year", ">", 2020),
        )
        for leaf in leaves:
            for right in (True, False):
                tree: Filter = leaf
                for level in range(DEEPEST_FILTER):
                    wide = (leaf,) * (11 if level < DEEPEST_FILTER - 1 else 1)
                    parts = (*wide, tree) if right else (tree, *wide)
                    tree = And(parts) if level % 2 else Or(parts)
                wanted = sum(
                    matches(tree, {"brand": brand, "year": year})
                    for brand, year in zip(values["brand"], values["year"], strict=True)
                )
                assert index.count(tree) == wanted
                assert len(index.search(unit_vectors(1), 3, where=tree)[0]) == wanted
                with pytest.raises(FilterError, match=f"allowed: up to {DEEPEST_FILTER} levels"):
                    index.count(Or((tree, leaf)))
                with pytest.raises(FilterError, match=f"allowed: up to {DEEPEST_FILTER} levels"):
                    index.search(unit_vectors(1), 3, where=Or((tree, leaf)))
    finally:
        store.close()


BUILT_ELSEWHERE = """
import sys
from opengcl.index import open_store
from tests.index_stores import field_values, names, spec, unit_vectors

store = open_store(sys.argv[1])
for name in ("a", "b"):
    index = store.create(name, spec())
    index.upsert(names(20), unit_vectors(20), field_values(20))
    index.finish()
store.swap("a")
store.close()
"""


@pytest.mark.parametrize("kind", ["exact", "lancedb", "postgres", "milvus"])
def test_an_index_outlives_the_process_that_built_it(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    address = store_uri(kind, tmp_path, request)
    command = [sys.executable, "-c", BUILT_ELSEWHERE, address]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], capture_output=True)
    store = open_store(address)
    try:
        assert (store.live(), store.names()) == ("a", ["a", "b"])
        assert [store.open(name).count() for name in store.names()] == [20, 20]
        index = store.open()
        assert index.search(unit_vectors(20)[3:4], 1)[0][0].doc_id == "d3"
        assert [row is not None for row in index.get(["d3", "d20"])] == [True, False]
        index.upsert(names(1, 20), unit_vectors(1, seed=1), field_values(1))
        assert (index.delete(["d3"]), index.count()) == (1, 20)
        store.swap("b")
        store.drop("a")
        assert (store.live(), store.names()) == ("b", ["b"])
    finally:
        store.close()


# The approximate index

MANY = 1500


def many_filled(opened: Store) -> Index:
    index = opened.create("a", spec(16, fields={"number": "number"}))
    index.upsert(names(MANY), unit_vectors(MANY, 16), {"number": [float(row) for row in range(MANY)]})
    index.finish()
    return index


@pytest.mark.parametrize("kind", ["lancedb", "postgres"])
def test_the_approximate_index(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    address = store_uri(kind, tmp_path, request)
    opened: Store = LanceStore(address, approximate_from=1000) if kind == "lancedb" else open_store(address)
    try:
        index = many_filled(opened)
        vectors, queries = unit_vectors(MANY, 16), unit_vectors(20, 16, seed=1)
        found, exact = index.search(queries, 10), index.search(queries, 10, exact=True)
        assert ids_of(exact) == [best(vectors, query, 10) for query in queries]
        shared = [len(set(a) & set(b)) for a, b in zip(ids_of(found), ids_of(exact), strict=True)]
        assert np.mean(shared) >= 9
        for query, hits in zip(queries, found, strict=True):
            for hit in hits:
                assert hit.score == pytest.approx(float(vectors[int(hit.doc_id[1:])] @ query), abs=1e-5)
        # A narrow filter still finds all that there are
        where = parse_filter("number in (3, 700, 1400) or number > 1497", {"number": "number"})
        for hits in index.search(queries, 10, where=where):
            assert {hit.doc_id for hit in hits} == {"d3", "d700", "d1400", "d1498", "d1499"}
        # What is added, changed and removed after it was built
        index.upsert(["late", "d7"], queries[:2], {"number": [None, -7.0]})
        index.delete([found[3][0].doc_id])
        assert ids_of(index.search(queries[:2], 1)) == [["late"], ["d7"]]
        assert index.search(queries[:1], 1)[0][0].score == pytest.approx(1, abs=1e-5)
        assert found[3][0].doc_id not in ids_of(index.search(queries[3:4], 10))[0]
        index.finish()
        assert ids_of(index.search(queries[:2], 1)) == [["late"], ["d7"]]
        assert [len(hits) for hits in index.search(queries[:2], 50, offset=400)] == [50, 50]
    finally:
        opened.close()


def test_small_writes_leave_no_heap_of_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """LanceDB makes files with every commit and puts none together by itself; a search reads every one."""
    opened = LanceStore(str(tmp_path / "lance"), approximate_from=1000)
    index = many_filled(opened)
    vectors = unit_vectors(MANY, 16)
    for number in range(150):
        vectors[number] = unit_vectors(1, 16, seed=number)[0]
        index.upsert([f"d{number}"], vectors[number : number + 1], {"number": [-1.0]})
    index.delete([f"d{number}" for number in range(1000, 1010)])
    table = opened._database.open_table("index_a")
    assert table.stats()["fragment_stats"]["num_fragments"] <= 64
    assert index.count() == MANY - 10
    assert index.count(parse_filter("number = -1", {"number": "number"})) == 150
    left = np.delete(np.arange(MANY), range(1000, 1010))
    queries = unit_vectors(20, 16, seed=1)
    found, exact = index.search(queries, 10), index.search(queries, 10, exact=True)
    assert ids_of(exact) == [[f"d{left[int(one[1:])]}" for one in best(vectors[left], query, 10)] for query in queries]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(ids_of(found), ids_of(exact), strict=True)]) >= 9
    rows = index.get(names(150))
    np.testing.assert_array_equal([row.vector for row in rows if row is not None], vectors[:150])
    assert caplog.text == ""


def test_caches_are_emptied_after_many_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(lance, "_FRESH_AFTER", 10)
    store = open_store(str(tmp_path))
    writer = store.create("a", spec(fields={}))
    reader = store.open("a")
    first = reader._database  # type: ignore[attr-defined]
    for number in range(25):
        writer.upsert([f"d{number}"], unit_vectors(1, seed=number), {})
        hits = reader.search(unit_vectors(1, seed=number), 1)
        assert ids_of(hits) == [[f"d{number}"]]
    assert reader._database is not first  # type: ignore[attr-defined]
    assert reader._database is writer._database  # type: ignore[attr-defined]
    assert store.open("a").count() == 25
    store.swap("a")
    store.create("b", spec(fields={}))
    store.swap("b")
    store.drop("a")
    with pytest.raises(UnknownIndex, match="'a' was dropped"):
        reader.count()


def test_a_write_stands_where_tidying_up_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = LanceStore(str(tmp_path)).create("a", spec(fields={}))

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(type(index._table), "optimize", full)
    for number in range(70):
        index.upsert([f"d{number}"], unit_vectors(1, seed=number), {})
    assert index.count() == 70
    assert caplog.text.count("index 'a' was not tidied up: No space left on device") == 1


# Addresses


@pytest.mark.parametrize(
    ("address", "message"),
    [("mysql://host/db", "found the address mysql://"), ("", "found ''"), ("  ", "allowed: FOLDER")],
)
def test_other_addresses_are_refused(address: str, message: str) -> None:
    with pytest.raises(VectorIndexError, match=message):
        open_store(address)


def test_a_password_is_never_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        open_store(f"postgresql://shop:verysecret@/shop?host={tmp_path}")
    assert "verysecret" not in str(caught.value)
    assert "shop@" in str(caught.value)


def test_a_file_that_is_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "exact.sqlite").write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        open_store(f"exact:{tmp_path}")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file"):
        open_store(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 0}, "dimension: found 0"),
        ({"dtype": "int4"}, "dtype: found 'int4'; allowed: float32, int8"),
        ({"fields": {"x": "date"}}, "field 'x': found type 'date'; allowed: text, integer, number, boolean"),
        ({"fields": {" ": "text"}}, "found the name ' '"),
        ({"model": 3}, "model: found 3"),
    ],
)
def test_a_wrong_spec_is_refused(change: dict[str, Any], message: str) -> None:
    right = {"model": "m", "dimension": 8, "dtype": "float32", "fields": {}, "data": "d", "created": "now"}
    with pytest.raises(VectorIndexError, match=message):
        IndexSpec(**{**right, **change})
    assert IndexSpec.from_json(IndexSpec(**right).to_json()) == IndexSpec(**right)
    with pytest.raises(VectorIndexError, match="not the description of an index"):
        IndexSpec.from_json("[1]")
