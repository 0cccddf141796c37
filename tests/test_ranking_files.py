"""Ranking files: every format there and back, mistakes with their place, and large files in pieces."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opengcl import ranking_files, text_files
from opengcl.ranking_files import (
    RankingFileError,
    pairs_from_rows,
    ranking_order,
    read_qrels,
    read_run,
    write_qrels,
    write_run,
)

FORMATS = ("file.parquet", "file.tsv", "file.trec")


def rows(pairs):
    queries, documents = pairs.query_ids.to_pylist(), pairs.doc_ids.to_pylist()
    names = [(queries[q], documents[d]) for q, d in zip(pairs.query_of_row(), pairs.document, strict=True)]
    return [(*name, value) for name, value in zip(names, pairs.value.tolist(), strict=True)]


def test_trec_qrels(tmp_path):
    path = tmp_path / "qrels.txt"
    path.write_text("q1 0 d1 2\nq1 0 d2 0.5\nq2 0 d1 0\n")
    assert rows(read_qrels(path)) == [("q1", "d1", 2.0), ("q1", "d2", 0.5), ("q2", "d1", 0.0)]


def test_trec_run_with_every_kind_of_blank(tmp_path):
    path = tmp_path / "run.txt"
    path.write_bytes(b"  q1\tQ0 d1  1 0.9 me\r\nq1 Q0\td2 2 -1e-3 me \r\n\r\nq2 Q0 d\xc3\xa9 1 +5 me")
    assert rows(read_run(path)) == [("q1", "d1", 0.9), ("q1", "d2", -0.001), ("q2", "dé", 5.0)]


def test_tsv_in_our_names_and_in_those_of_beir(tmp_path):
    ours, beir = tmp_path / "ours.tsv", tmp_path / "beir.tsv"
    ours.write_text('doc_id\tscore\tquery_id\nd "1"\t3\tred shoes\n')
    beir.write_bytes(b"\xef\xbb\xbfquery-id\tcorpus-id\tscore\r\nq1\td1\t1\r\n")
    assert rows(read_qrels(ours)) == [("red shoes", 'd "1"', 3.0)]
    assert rows(read_qrels(beir)) == [("q1", "d1", 1.0)]


def test_parquet_takes_whole_number_ids_and_prefers_relevance_in_qrels(tmp_path):
    path = tmp_path / "x.parquet"
    columns = {"query_id": pa.array([7, 7]), "doc_id": pa.array(["a", "b"]).dictionary_encode()}
    pq.write_table(pa.table({**columns, "score": pa.array([0.5, 0.25], pa.float32()), "relevance": [3, 1]}), path)
    assert rows(read_qrels(path)) == [("7", "a", 3.0), ("7", "b", 1.0)]
    assert rows(read_run(path)) == [("7", "a", 0.5), ("7", "b", 0.25)]


def test_ids_that_look_like_missing_values_or_numbers_stay_ids(tmp_path):
    path = tmp_path / "qrels.trec"
    path.write_text("NA 0 null 1\n007 0 1e5 1\n")
    assert rows(read_qrels(path)) == [("NA", "null", 1.0), ("007", "1e5", 1.0)]


def test_rows_of_a_query_may_lie_apart(tmp_path):
    path = tmp_path / "qrels.trec"
    path.write_text("q1 0 b 1\nq2 0 b 2\nq1 0 a 3\n")
    assert rows(read_qrels(path)) == [("q1", "b", 1.0), ("q1", "a", 3.0), ("q2", "b", 2.0)]


names = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=4)
triples = st.lists(st.tuples(names, names, st.floats(0, 1e9)), min_size=1, max_size=20, unique_by=lambda row: row[:2])


@settings(max_examples=40, deadline=None)
@given(triples)
def test_qrels_survive_every_format(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("formats")
    qrels = pairs_from_rows(*map(list, zip(*table, strict=True)))
    for name in FORMATS:
        write_qrels(folder / name, qrels)
        assert rows(read_qrels(folder / name)) == rows(qrels), name


@pytest.mark.parametrize("name", FORMATS)
def test_runs_are_written_best_first_and_survive(tmp_path, name):
    run = pairs_from_rows(["q", "q", "q", "r"], ["d1", "d3", "d2", "d1"], [0.1, 0.7, 0.7, -2.5])
    write_run(tmp_path / name, run)
    assert rows(read_run(tmp_path / name)) == [("q", "d2", 0.7), ("q", "d3", 0.7), ("q", "d1", 0.1), ("r", "d1", -2.5)]


def test_trec_run_lines_are_the_standard_ones(tmp_path):
    write_run(tmp_path / "run.trec", pairs_from_rows(["q", "q"], ["d1", "d2"], [0.5, 2.0]), tag="mine")
    assert (tmp_path / "run.trec").read_text() == "q Q0 d2 1 2.0 mine\nq Q0 d1 2 0.5 mine\n"


@pytest.mark.parametrize(("name", "bad"), [("x.trec", "red shoes"), ("x.tsv", "a\tb"), ("x.trec", "")])
def test_ids_that_a_format_cannot_hold_are_refused(tmp_path, name, bad):
    with pytest.raises(RankingFileError, match=f"x.*the id {bad!r} is empty or holds a blank".replace("\\", "\\\\")):
        write_qrels(tmp_path / name, pairs_from_rows([bad], ["d"], [1.0]))


MISTAKES = [
    ("q1 0 d1 1\n\nq1 0 d2\n", r"line 3: 3 columns, expected 4 \(query_id iteration doc_id relevance\): 'q1 0 d2'"),
    ("q1 0 d1 1\nq1 0 d2 high\n", "line 2, column 'relevance': 'high' is not a number"),
    ("q1 0 d1 nan\n", "line 1, column 'relevance': nan is not finite"),
    ("q1 0 d1 1e999\n", "line 1, column 'relevance': inf is not finite"),
    ("q1 0 d1 1\nq2 0 d1 1\nq1 0 d1 2\n", "query 'q1' has document 'd1' twice: line 1 and line 3, with 1.0 and 2.0"),
    ("", "no judgments in the file"),
    ("\n \n", "no judgments in the file"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_in_text_name_file_line_and_column(tmp_path, text, message):
    path = tmp_path / "bad.qrels"
    path.write_text(text)
    with pytest.raises(RankingFileError, match=rf"bad\.qrels: {message}"):
        read_qrels(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"query_id\tdoc\tscore\nq\td\t1\n", "no column 'doc_id' or 'corpus-id'; found: query_id, doc, score"),
        (b"query_id\tdoc_id\tscore\nq\td\t1\nq\t\t1\n", "line 3, column 'doc_id': empty"),
        (b"query_id\tdoc_id\tscore\nq\td\tx\n", "line 2, column 'score': 'x' is not a number"),
        (b"query_id\tdoc_id\tscore\nq\t\xff\t1\n", "line 2: not UTF-8"),
    ],
)
def test_mistakes_in_tsv(tmp_path, content, message):
    (tmp_path / "bad.tsv").write_bytes(content)
    with pytest.raises(RankingFileError, match=rf"bad\.tsv: {message}"):
        read_run(tmp_path / "bad.tsv")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query_id": ["q"], "score": [1.0]}, "no column 'doc_id' or 'corpus-id'; found: query_id, score"),
        ({"query_id": ["q", "q"], "doc_id": ["a", None], "score": [1.0, 1.0]}, "row 1, column 'doc_id': empty"),
        ({"query_id": ["q", "q"], "doc_id": ["a", "b"], "score": [1.0, np.inf]}, "row 1, column 'score': inf is not"),
        ({"query_id": ["q"], "doc_id": ["a"], "score": ["1"]}, "column 'score' is string; it must hold numbers"),
        ({"query_id": [0.5], "doc_id": ["a"], "score": [1]}, "column 'query_id' is double; it must hold strings"),
    ],
)
def test_mistakes_in_parquet(tmp_path, monkeypatch, columns, message):
    monkeypatch.setattr(ranking_files, "_PARQUET_ROWS", 1)  # the row number must count from the file's start
    pq.write_table(pa.table(columns), tmp_path / "bad.parquet")
    with pytest.raises(RankingFileError, match=rf"bad\.parquet: {message}"):
        read_qrels(tmp_path / "bad.parquet")


def test_missing_or_foreign_files_are_named(tmp_path):
    with pytest.raises(RankingFileError, match=r"none\.trec: no such file"):
        read_run(tmp_path / "none.trec")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(RankingFileError, match=r"text\.parquet: not a Parquet file"):
        read_run(tmp_path / "text.parquet")


@pytest.mark.parametrize("name", ["file.tsv", "file.trec", "file.parquet"])
def test_reading_in_pieces_changes_nothing(tmp_path, monkeypatch, name):
    table = [(f"q{i % 7}", f"d{i * 13 % 50}", i / 3) for i in range(200)]
    qrels = pairs_from_rows(*map(list, zip(*{row[:2]: row for row in table}.values(), strict=True)))
    write_qrels(tmp_path / name, qrels)
    whole = rows(read_qrels(tmp_path / name))
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 50)
    monkeypatch.setattr(ranking_files, "_PARQUET_ROWS", 3)
    assert rows(read_qrels(tmp_path / name)) == whole == rows(qrels)


def test_the_line_number_of_a_mistake_counts_from_the_files_start(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 20)
    (tmp_path / "x.tsv").write_text(
        "query_id\tdoc_id\tscore\n" + "".join(f"q\td{i}\t1\n" for i in range(30)) + "q\td\t?\n"
    )
    with pytest.raises(RankingFileError, match="line 32, column 'score'"):
        read_run(tmp_path / "x.tsv")


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(RankingFileError, match="2 query ids, 1 document ids and 1 values"):
        pairs_from_rows(["a", "b"], ["c"], [1.0])


def test_select_keeps_the_given_order():
    pairs = pairs_from_rows(["a", "b", "b", "c"], ["1", "2", "3", "1"], [1.0, 2.0, 3.0, 4.0])
    assert rows(pairs.select(np.array([2, 1]))) == [("c", "1", 4.0), ("b", "2", 2.0), ("b", "3", 3.0)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_ranking_order_is_a_sort(table):
    query, score = (np.array([row[i] for row in table], dtype=float) for i in (0, 1))
    tie = np.arange(len(table))[::-1]
    expected = sorted(range(len(table)), key=lambda row: (query[row], -score[row], tie[row]))
    assert ranking_order(query, score, tie).tolist() == expected
    done = np.array(expected, dtype=int)
    assert ranking_order(query[done], score[done], tie[done]).tolist() == list(range(len(table)))


ROWS = [("q1", "d1", 2.0), ("q1", "d2", 0.5), ("q2", "d1", 0.0)]
SAME: dict[str, str] = {
    "x.trec": "q1 0 d1 2\nq1 0 d2 .5\nq2 0 d1 0\n",
    "x.qrels.txt": "q1\t0\td1\t2\nq1\t0\td2\t.5\nq2\t0\td1\t0\n",
    "marco.tsv": "q1\t0\td1\t2\nq1\t0\td2\t.5\nq2\t0\td1\t0\n",
    "three.tsv": "q1\td1\t2\nq1\td2\t.5\nq2\td1\t0\n",
    "blanks.tsv": "q1 0 d1 2\nq1 0 d2 .5\nq2 0 d1 0\n",
    "beir.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t.5\nq2\td1\t0\n",
    "x.csv": '"query_id","doc_id","relevance"\r\n"q1","d1","2"\r\nq1,d2,.5\r\nq2,d1,0\r\n',
    "excel.csv": "sep=;\nquery_id;doc_id;score\nq1;d1;2\nq1;d2;0,5\nq2;d1;0\n",
    "x.jsonl": '{"query_id": "q1", "doc_id": "d1", "score": 2}\n\n{"query_id": "q1", "doc_id": "d2", "score": "0.5"}\n'
    '{"query_id": "q2", "doc_id": "d1", "score": 0}\n',
    "list.json": json.dumps([{"qid": q, "docid": d, "relevance": v} for q, d, v in ROWS], indent=1),
    "inside.json": json.dumps({"total": 3, "rows": [{"qid": q, "docid": d, "rel": v} for q, d, v in ROWS]}),
    "nested.json": json.dumps({"q1": {"d1": 2, "d2": 0.5}, "q2": {"d1": 0}}),
    "pretty.json": json.dumps({"q1": {"d1": 2, "d2": 0.5}, "q2": {"d1": 0}}, indent=2),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", SAME)
def test_the_same_judgments_in_every_layout(tmp_path, name, packed):
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(SAME[name].encode()) if packed else SAME[name].encode())
    assert rows(read_qrels(path)) == ROWS


@pytest.mark.parametrize("name", ["run.tsv", "run.txt"])
def test_a_run_as_ms_marco_has_them_ranks_by_its_third_column(tmp_path, name):
    path = tmp_path / name
    path.write_text("7\t300\t1\n7\t200\t2\n8\t300\t2\n8\t100\t1\n")
    run = read_run(path)
    assert rows(run) == [("7", "300", -1.0), ("7", "200", -2.0), ("8", "300", -2.0), ("8", "100", -1.0)]
    for wrong in ("7\t300\t0.5\n7\t200\t2\n", "7\t300\t2\n", "7\t300\t1\n7\t200\t1\n"):
        path.write_text(wrong)
        with pytest.raises(RankingFileError, match=f"{name}: found three columns without a header.*no ranks from 1"):
            read_run(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b'query_id,doc_id,score\nq,"a""b",1\nq,b,x\n', "line 3, column 'score': 'x' is not a number"),
        ("x.csv", b"query_id,doc_id,score\nq,,1\n", "line 2, column 'doc_id': empty"),
        ("x.csv", b'query_id,doc_id,score\nq,"a,1\n', "line 2: a double quote opens a field and does not close"),
        ("x.csv", b"query_id,doc_id,score\n\nq,a,1\nq,b,1\nq,a,2\n", "'a' twice: line 3 and line 5"),
        ("x.csv", b"doc_id,score\na,1\n", "no column 'query_id' or 'query-id'; found: doc_id, score"),
        ("x.json", b'{"q": {"d": "good"}}', "x.json: no judgments|line 1"),
        ("x.json", b'{"q": {"d": 1, "e": [2]}}', r"line 1: \[2\] is neither a text nor a number"),
        ("x.json", b'{"q": {"d": 1}, "r": 3}', "line 1: not JSON: found '3'; allowed: '{'"),
        ("x.json", b'{"q": {"d": 1},\n"r": {"d": 3},\n"q": {"e": 3}}', "line 3: found the key 'q' twice"),
        (
            "x.json",
            b'{"q": {"d": 1,\n"d": 3}}',
            "line 2: found the key 'd' twice in one object; allowed: each key once",
        ),
        (
            "x.jsonl",
            b'{"query_id": "q", "doc_id": "d", "score": 1, "score": 2}\n',
            "line 1: found the key 'score' twice",
        ),
        ("x.jsonl", b'{"query_id": "q", "doc_id": NaN, "score": 1}\n', "line 1, column 'doc_id': empty"),
        ("x.jsonl", b'{"query_id": "q", "doc_id": "d", "score": 1}\n\n{"query_id": "q"', "line 3: not JSON"),
        ("x.tsv", b"a\tb\n", "no header with query_id, doc_id and relevance, nor the 4 columns of TREC"),
        ("x.trec", b"PAR1....", "found a Parquet file, by its first bytes; name it .parquet"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        ("x.trec", b"<!DOCTYPE html>\n<html>", "found an HTML page"),
        ("x.trec.gz", gzip.compress(b"q 0 d 1\n" * 2000, mtime=0)[:30], "its gzip stream is broken"),
    ],
)
def test_mistakes_in_other_layouts_name_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RankingFileError, match=message):
        read_qrels(tmp_path / name)
