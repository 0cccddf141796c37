"""The benchmark of search: its load generator, loops, made vectors, figures and pages, on small inputs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.ranking import cell_file
from benchmarks.search import __main__ as benchmark
from benchmarks.search import cells, direct, growth, load, made, processes, served, stages, tables

from opengcl.encode import encode_texts
from opengcl.index import open_store

from .serving import Shop, make_shop

SVG = "{http://www.w3.org/2000/svg}"


class Answers:
    """A server that answers every request after a moment, and remembers what came and how many at a time."""

    def __init__(self, seconds: float = 0.0, status: str = "200 OK") -> None:
        self.seconds, self.status = seconds, status
        self.bodies: list[str] = []
        self.at_once = self.most = self.connections = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            self.bodies.append((await reader.readexactly(size)).decode())
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            await asyncio.sleep(self.seconds)
            self.at_once -= 1
            writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: 11\r\n\r\n".encode() + b'{"hits":[]}')

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self.talk(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass  # the client has what it wanted
            finally:
                writer.transport.abort()

        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]
            await asyncio.sleep(0.05)  # until connections are closed


def asked(answers: Answers, bodies: list[str], *, clients: int, requests: int, pause: float = 0) -> load.Run:
    async def ask() -> load.Run:
        async with answers.listening() as port:
            return await load.run(load.Plan("127.0.0.1", port, bodies, clients, requests, pause))

    return asyncio.run(ask())


def test_clients_ask_again_as_soon_as_they_are_answered() -> None:
    answers = Answers(seconds=0.02)
    found = asked(answers, ["a", "bb", "ccc"], clients=4, requests=10)
    assert answers.most == answers.connections == 4
    assert sorted(answers.bodies) == ["a"] * 4 + ["bb"] * 3 + ["ccc"] * 3
    assert len(found.milliseconds) == 10
    assert min(found.milliseconds) >= 19
    assert 0.06 < found.seconds < sum(found.milliseconds) / 1000


def test_clients_pause_where_told_to() -> None:
    found = asked(Answers(), ["a"], clients=2, requests=40, pause=0.01)
    pauses = load.pauses_of(40, 0.01)
    assert pauses == load.pauses_of(40, 0.01)
    assert 0.005 < sum(pauses) / 40 < 0.02
    assert found.seconds > sum(pauses) / 2
    assert sum(found.milliseconds) / 1000 < found.seconds  # pauses are no one's latency


@pytest.mark.parametrize("status", ["503 Service Unavailable", "404 Not Found"])
def test_another_answer_than_200_is_no_figure(status: str) -> None:
    with pytest.raises(ValueError, match="expected 200"):
        asked(Answers(status=status), ["a"], clients=2, requests=4)


def test_a_server_that_goes_away_is_no_figure() -> None:
    class Closes(Answers):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")

    with pytest.raises(ConnectionError, match="ended the connection"):
        asked(Closes(), ["a"], clients=1, requests=2)


def test_percentiles_are_times_that_were_measured() -> None:
    times = np.random.default_rng(0).permutation(np.arange(1.0, 101.0)).tolist()
    assert [served.percentile(times, share) for share in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert served.percentile([7.0], 99) == 7.0


def test_figures_of_a_side() -> None:
    run = load.Run([1.0, 2.0, 3.0, 10.0], seconds=0.5)
    assert served.figures(run) == {"p50_ms": 2.0, "p99_ms": 10.0, "per_second": 8.0}
    assert served.medians([{"a": 1.0}, {"a": 5.0}, {"a": 2.0}]) == {"a": 2.0}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"))


def test_the_loop_has_the_batches_it_is_told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    index, batches = open_store(shop.store).open(), []

    def noted(model: Any, texts: list[str]) -> np.ndarray:
        batches.append(list(texts))
        return encode_texts(model, texts)

    monkeypatch.setattr(direct, "encode_texts", noted)
    found = direct.run(direct.Loop(["one", "two", "three"], k=5, requests=7, batch=3), shop.model, index)
    assert batches == [["one", "two", "three"], ["one", "two", "three"], ["one"]]
    assert len(found.milliseconds) == 7
    assert found.seconds > 0


def test_the_store_alone_searches_every_vector_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_store(shop.store).open()
    searched: list[tuple[int, ...]] = []
    search = index.search

    def noted(vectors: np.ndarray, k: int) -> Any:
        searched.append((*vectors.shape, k))
        return search(vectors, k)

    monkeypatch.setattr(index, "search", noted)
    loop = direct.Loop(["one", "two"], k=5, requests=9, batch=0, threads=3)
    assert len(direct.run(loop, shop.model, index).milliseconds) == 9
    assert searched == [(1, index.spec.dimension, 5)] * 9


def test_made_vectors_are_the_same_again_and_clustered(tmp_path: Path) -> None:
    clusters = made.Clusters.of(32, 5)
    few, again = (made.write_vectors(tmp_path / f"{n}.npy", made.Clusters.of(32, 5), n) for n in (10_500, 10_500))
    np.testing.assert_array_equal(few, again)
    np.testing.assert_array_equal(few[:400], clusters.chunk(0, 10_000)[:400])
    np.testing.assert_allclose(np.linalg.norm(few, axis=1), 1, atol=1e-5)
    near = np.sort(few[:1] @ few[1:].T)[0, ::-1]
    assert near[1000] > 0.4 > near[-5000]  # a fifth of all is of its cluster
    assert not (made.queries(clusters, 50)[:, None] == few[:50]).all(axis=2).any()
    with pytest.raises(ValueError, match="found 10,500 vectors; asked for 20"):
        made.write_vectors(tmp_path / "10500.npy", clusters, 20)


def test_about_35_directions_are_free() -> None:
    of_one_cluster = made.Clusters.of(centres=1).chunk(0, 4000)
    spread = np.linalg.eigvalsh(np.cov(of_one_cluster.T))
    assert 30 < spread.sum() ** 2 / (spread**2).sum() < 42


def test_the_best_rows_and_recall() -> None:
    vectors = made.Clusters.of(16, 3).chunk(0, 300)
    queries = made.queries(made.Clusters.of(16, 3), 4)
    best = made.best_rows(queries, vectors, 3)
    for query, rows in zip(queries, best, strict=True):
        assert rows.tolist() == sorted(range(300), key=lambda row: -float(vectors[row] @ query))[:3]
    assert growth.recall(best[:, ::-1], best) == 1
    assert growth.recall(np.array([[1, 2, -1], [7, 8, 9]]), np.array([[3, 2, 1], [4, 5, 6]])) == pytest.approx(1 / 3)
    assert [made.row_of(one) for one in made.MadeDocuments(30).ids(np.array([0, 29]))] == [0, 29]


def test_memory_and_time_of_a_process_and_its_child() -> None:
    child = "import sys; held = bytearray(b'x' * 60_000_000); sum(i * i for i in range(3_000_000))"
    child += "; print('ready', flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with processes.watched([process.pid], every=0.01) as peak:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.1)
            assert len(processes.family([process.pid])) == 2
            assert 60e6 < processes.memory_bytes([process.pid]) < 200e6
            assert 0.02 < processes.processor_seconds([process.pid]) < 30
        assert 60e6 < peak.bytes < 200e6
        process.communicate()
    assert processes.memory_bytes([process.pid]) == 0


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells and indexes in a temporary folder, of at most 600 documents."""
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(cells, "WORK", tmp_path / "work")
    monkeypatch.setattr(growth, "SIZES", (200, 600))
    monkeypatch.setattr(growth, "queries", lambda clusters: made.queries(clusters, 30))


@pytest.mark.usefixtures("small")
def test_an_index_is_built_and_searched_once() -> None:
    assert growth.missing("build") == [(kind, n) for n in (200, 600) for kind in ("lancedb", "pgvector")]
    assert growth.missing("search") == []
    built = growth.build("lancedb", 200, most=600)
    assert ("lancedb", 200) not in growth.missing("build")
    assert growth.missing("search") == [("lancedb", 200)]
    assert built["size_mb"] > 200 * 512 * 4 / 1e6
    assert built["peak_memory_mb"] >= built["memory_before_mb"] > 10
    assert built["load"]["seconds"] > 0
    searched = growth.search("lancedb", 200, most=600, rounds=2)
    assert searched["recall@10"] == 1  # LanceDB compares all of so few
    assert 0 < searched["p50_ms"] <= searched["p99_ms"]
    assert growth.missing("search") == []
    assert cells.read(growth.cell_name("lancedb", 200, "build"))["provenance"]["lancedb"]


def cell_of_growth(kind: str, documents: int, *, recall: float = 0.99, p50: float = 2.0) -> None:
    both = {"store": kind, "documents": documents}
    times = {"seconds": 3.0, "processor_seconds": 2.0}
    sizes = {"memory_before_mb": 400.0, "peak_memory_mb": 1500.0, "size_mb": 2600.0}
    cells.write(
        growth.cell_name(kind, documents, "build"), {**both, "dimension": 512, "load": times, "finish": times, **sizes}
    )
    found = {"recall@10": recall, "p50_ms": p50, "p99_ms": 2 * p50, "memory_mb": 700.0}
    cells.write(growth.cell_name(kind, documents, "search"), {**both, **found})


@pytest.mark.usefixtures("small")
def test_a_row_and_a_picture_of_growth() -> None:
    assert tables.growth_text() == tables.NOTHING == tables.sizing_block()
    cell_of_growth("lancedb", 200, p50=1.0)
    assert tables.growth_picture() is None  # one point is no line
    cell_of_growth("lancedb", 600, p50=4.0)
    assert "| LanceDB, 600 | 6 (4) | 1,500 | 2,600 | 0.9900 | 4.0 / 8.0 |" in tables.growth_text()
    assert "Aim met" in tables.growth_text()
    assert "| LanceDB | 600 | 0.0 | 2.6 | 1.5 | 0.7 |" in tables.sizing_block()
    picture = ET.fromstring(tables.growth_picture() or "")  # noqa: S314 - our own
    lines = [line.get("points", "").split() for line in picture.iter(f"{SVG}polyline")]
    heights = [[float(point.split(",")[1]) for point in line] for line in lines]
    assert [len(line) for line in lines] == [2, 2]
    assert heights[1][1] < heights[0][1] < heights[0][0]  # p99 above p50, and both higher with more documents
    cell_of_growth("pgvector", 600, recall=0.9)
    assert "Aim missed: recall@10 of at least 0.95; found 0.900 in pgvector with 600 documents." in tables.growth_text()


def figures(p50: float, per_second: float) -> dict[str, float]:
    return {"p50_ms": p50, "p99_ms": 2 * p50, "per_second": per_second}


@pytest.mark.usefixtures("small")
def test_rows_and_aims_of_the_server() -> None:
    assert tables.NOTHING in tables.served_text("lancedb")
    modes = {
        "vectors": {"1": {"raw": figures(2.0, 500), "served": figures(5.5, 300), "batch": 0.0}},
        "paused": {"8": {"raw": figures(3.0, 50), "served": figures(5.0, 50), "batch": 0.0}},
        "texts": {
            "1": {"raw": figures(8.0, 120), "served": figures(9.5, 110), "batch": 1.0},
            "8": {"raw": figures(8.0, 200), "served": figures(70, 160), "batch": 6.5},
        },
    }
    told = {"store": "lancedb", "documents": 44_000, "recall@10": 0.975, "k": 20, "rounds": 5, "model": "m"}
    cells.write("served/lancedb", {**told, **modes})
    text = tables.served_text("lancedb")
    assert "| 1 | 2.0 / 4.0 | 5.5 / 11.0 | +3.5 ms | 500 | 300 | 60% |" in text
    assert "| 8 | 3.0 / 6.0 | 5.0 / 10.0 | +2.0 ms | 50 | 50 | 100% |" in text
    assert "| 8 (batches of 6.5) | 8.0 / 16.0 | 70.0 / 140.0 | +62.0 ms | 200 | 160 | 80% |" in text
    assert "Aim met: under 3 ms more than the store at p50, with clients that pause" in text
    assert "at p50, with clients that never pause; found +3.5 ms at 1 clients." in text
    assert "Aim missed: at least 90% of the loop's throughput; found 80% at 8 clients." in text


def ranking_cell(side: str, ndcg: float, **more: Any) -> None:
    splits = {split: {"ndcg@10": ndcg} for split in ("in_domain", "novel_query", "novel_document", "zero_shot")}
    content = {"data": "fashion", "fields": "title", "side": side, "seed": 0, "splits": splits, **more}
    cell_file.write_json(cell_file.Place("fashion", "title", side).cell(0), content)


def test_stages_wait_for_the_cross_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cell_file, stages):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    ranking_cell("clip", 0.6)
    ranking_cell("ours", 0.8)
    assert stages.stages() == []
    assert stages.picture([]) is None
    assert "cross-encoder/seed-*.json` with a latency is not there: `python -m benchmarks" in stages.text([])
    latency = {"single_ms": {"p50": 5.0, "p99": 9.0}, "two_stage_ms": {"p50": 150.0, "p99": 200.0}, "ratio": 30.0}
    ranking_cell("cross-encoder", 0.75, latency=latency)
    found = stages.stages()
    assert [(one.side, one.ndcg, one.p50_ms, one.p99_ms) for one in found] == [
        ("clip", pytest.approx(0.6), 5.0, 9.0),
        ("ours", pytest.approx(0.8), 5.0, 9.0),
        ("cross-encoder", pytest.approx(0.75), 150.0, 200.0),
    ]
    picture = ET.fromstring(stages.picture(found) or "")  # noqa: S314 - our own
    dots = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in picture.iter(f"{SVG}circle")]
    places = sorted(dots)
    assert len(places) == 3
    assert places[0][0] == places[1][0] < places[2][0]  # the two single stages, then the pair
    assert {y for _, y in places[:2]} == {min(y for _, y in places), max(y for _, y in places)}


def test_pages_show_what_the_cells_hold() -> None:
    for file, text in tables.generated().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name}: run `python -m benchmarks.search tables`"


def test_every_cell_is_one_that_is_shown() -> None:
    known = {f"served/{kind}{placed}" for kind in tables.NAMES for placed in served.CORES}
    known |= {
        growth.cell_name(kind, size, what)
        for kind in tables.NAMES
        for size in growth.SIZES
        for what in ("build", "search")
    }
    found = {str(file.relative_to(cells.RESULTS).with_suffix("")) for file in cells.RESULTS.rglob("*.json")}
    assert found <= known
    assert found


def test_the_command_says_what_is_missing_or_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["stages"])
    told = capsys.readouterr().out
    assert told.startswith(("| side |", "Missing: "))
    with pytest.raises(SystemExit):
        benchmark.main(["build", "--store", "nothing"])


@pytest.mark.slow
def test_the_server_and_the_loop_run_in_turn(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round on a tiny shop, with real processes."""
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(cells, "WORK", tmp_path / "work")
    monkeypatch.setattr(served, "prepared_model", lambda: shop.run)
    monkeypatch.setattr(served, "dataset_folder", lambda _: shop.dataset.path)
    (tmp_path / "work").mkdir()
    found = served.measure("lancedb", rounds=1, clients={1: 20, 4: 40})
    for mode in ("vectors", "texts"):
        for clients in ("1", "4"):
            one = found[mode][clients]
            assert len(one["runs"]["served"]) == len(one["runs"]["raw"]) == 1
            assert one["served"]["p50_ms"] > 0
    assert list(found["paused"]) == ["4"]
    assert found["paused"]["4"]["served"]["per_second"] < found["vectors"]["4"]["raw"]["per_second"]
    assert found["vectors"]["4"]["batch"] == 0  # nothing is encoded
    assert found["texts"]["1"]["batch"] == 1
    assert 1 <= found["texts"]["4"]["batch"] <= 4
    assert json.loads((tmp_path / "results" / "served" / "lancedb.json").read_text())["documents"] == 40
