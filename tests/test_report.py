import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from opengcl.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, bar_chart, line_chart
from opengcl.data.dataset import RankedDataset, write_dataset
from opengcl.data.schema import Schema
from opengcl.data.splits import SPLITS
from opengcl.report import EN_DASH, MINUS, _bins, metric_name, write_report
from opengcl.run_folder import FILES, RunFolderError
from opengcl.shown_queries import ideal_rows, judged_scores, pick_queries
from opengcl.strip import CELL, HEADER, LABELS, MARGIN, ranking_strip

HOSTILE = "<script>alert(1)</script>\"><img src=http://evil.example/x onerror=alert(2)> & 'quoted'"


@dataclass
class World:
    """A data set of 12 queries and 8 documents, each query judging all documents with scores 100, 90, ... 30."""

    dataset: RankedDataset
    root: Path

    def write_run(self, name: str, *, value: float, shift: int = 0) -> Path:
        """Every test query ranks the documents of its half in order, rotated by `shift`."""
        run = self.root / name
        run.mkdir()
        per_query, results, splits = [], [], {}
        for split in SPLITS:
            queries = self.dataset.queries.ids(self.dataset.splits.query_rows(split, "all"))
            documents = np.roll(self.dataset.documents.ids(self.dataset.splits.document_rows(split)), shift)
            for i, query in enumerate(queries):
                pairs = 4 if split in ("in_domain", "novel_document") else 0
                row = {"split": split, "query_id": query, "pairs": pairs, "ndcg@10": value + i / 100, "err": 0.25}
                per_query.append(row)
                for rank, document in enumerate(documents, 1):
                    results.append({"split": split, "query_id": query, "rank": rank, "doc_id": str(document)})
            splits[split] = {"ndcg@10": value, "err": 0.25, "queries": len(queries)}
        history = [
            {"step": 10, "loss": 3.25, "epoch": 0.5},
            {"step": 20, "loss": 1.125, "epoch": 1.0},
            {"step": 20, "eval_zero_shot_ndcg@10": 0.417},
        ]
        (run / "config.yaml").write_text(yaml.safe_dump({"model": HOSTILE, "epochs": 1}))
        (run / "metrics.json").write_text(json.dumps({"splits": splits, "commit": "abc123"}))
        (run / "history.json").write_text(json.dumps(history))
        pq.write_table(pa.Table.from_pylist(per_query), run / "per_query.parquet")
        pq.write_table(pa.Table.from_pylist(results), run / "results.parquet")
        return run


def picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def world(tmp_path: Path) -> World:
    queries, documents = [f"q{i:02d}" for i in range(12)], [f"d{i}" for i in range(8)]
    titles = [HOSTILE, None, *(f"Product {i}" for i in range(2, 8))]
    images = [picture((200, 30 * i, 0)) if i != 3 else None for i in range(8)]
    write_dataset(
        tmp_path / "data",
        Schema("synthetic-shop", {"query": "text"}, {"title": "text", "image": "image"}, 1, 100),
        pa.table({"query_id": queries, "query": [f"{HOSTILE} {i}" for i in range(12)], "split": ["seen", "novel"] * 6}),
        pa.table({"doc_id": documents, "title": titles, "image": images, "split": ["seen"] * 4 + ["novel"] * 4}),
        pa.table(
            {
                "query_id": np.repeat(queries, 8),
                "doc_id": np.tile(documents, 12),
                "score": np.tile(np.arange(100.0, 20.0, -10.0), 12),
            }
        ),
    )
    return World(RankedDataset.open(tmp_path / "data", cache_dir=tmp_path / "cache", progress=False), tmp_path)


def page(world: World, *, baseline: bool = True) -> str:
    run = world.write_run("run-a", value=0.612)
    base = world.write_run("run-b", value=0.5, shift=1) if baseline else None
    out = write_report(run, world.dataset, baseline=base, note=HOSTILE)
    assert out == run / "report.html"
    return out.read_text(encoding="utf-8")


def test_everything_from_data_is_escaped(world: World) -> None:
    html = page(world)
    assert "<script" not in html
    assert "<img src=http" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert html.count("<img ") == len(
        re.findall(r'<img src="data:image/jpeg;base64,[A-Za-z0-9+/=]+" alt="[^"<>]*">', html)
    )


def test_the_page_loads_nothing(world: World) -> None:
    html = page(world)
    attributes = re.findall(r'<[^>]*?\s(?:src|href|action|data|srcset)="([^"]*)"', html)
    assert attributes
    assert all(value.startswith("data:") for value in attributes)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "<link" not in html
    assert "default-src 'none'" in html


def cells(html: str, metric: str) -> list[list[str]]:
    row = re.search(rf'<th scope="row">{metric}</th>(.*?)</tr>', html, re.S)
    assert row is not None
    return [
        re.findall(rf"[+{MINUS}±]?\d\.\d{{3}}", re.sub("<[^>]+>", " ", cell)) for cell in row[1].split("</td>")[:-1]
    ]


def test_numbers_with_and_without_a_baseline(world: World) -> None:
    html = page(world)
    assert cells(html, "NDCG@10") == [["0.612", "0.500", "+0.112"]] * 4
    assert cells(html, "ERR") == [["0.250", "0.250", "±0.000"]] * 4
    assert "Baseline <b>run-b</b>" in html
    alone = write_report(world.root / "run-a", world.dataset, out=world.root / "alone.html").read_text()
    assert cells(alone, "NDCG@10") == [["0.612"]] * 4
    assert "aseline" not in re.sub(r"<style>.*?</style>", "", alone, flags=re.S)


FIELDS = {"documents": 0.25, "first": 0.591, "ideal_first": 0.031, "top10": 0.3, "ideal_top10": 0.05}


def with_fields(run: Path, first: float) -> Path:
    file = run / "metrics.json"
    row = {**FIELDS, "first": first, "ndcg@10": 0.4321, "recall@100": None}
    content = json.loads(file.read_text())
    content["fields"] = {"zero_shot": {"image+title": row, HOSTILE: row}}
    file.write_text(json.dumps(content))
    return run


def test_results_by_field_set_are_shown_where_there_are_some(world: World) -> None:
    title = "Results by the fields that products have"
    assert title not in page(world)
    run = with_fields(world.root / "run-a", 0.591)
    base = with_fields(world.root / "run-b", 0.652)
    text = write_report(run, world.dataset, baseline=base).read_text(encoding="utf-8")
    shown = text[text.index(title) : text.index("<h2>Training</h2>")]
    assert "image + title" in shown
    assert HOSTILE not in text
    assert "<b>59.1%</b><small>65.2%</small>" in shown
    assert "<td>3.1%</td>" in shown
    assert "<b>0.432</b><small>0.432</small>" in shown
    assert f"<b>{EN_DASH}</b>" in shown  # no recall
    assert "image+title" not in text[text.index("Provenance</summary>") :]
    alone = write_report(run, world.dataset).read_text(encoding="utf-8")
    assert "<b>59.1%</b></td>" in alone


@pytest.mark.parametrize("written", [3, {"s": 3}, {"s": {"image": 3}}, {"s": {"image": {"first": 1}}}])
def test_malformed_results_by_field_set_are_named(world: World, written: object) -> None:
    run = world.write_run("run-a", value=0.5)
    content = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**content, "fields": written}))
    with pytest.raises(RunFolderError, match=r"metrics\.json: 'fields' is not as expected"):
        write_report(run, world.dataset)


def test_a_loss_is_marked_as_such(world: World) -> None:
    worse, better = world.write_run("worse", value=0.4), world.write_run("better", value=0.5)
    html = write_report(worse, world.dataset, baseline=better).read_text()
    assert cells(html, "NDCG@10") == [["0.400", "0.500", f"{MINUS}0.100"]] * 4
    assert f'<span class="gain down">{MINUS}0.100</span>' in html
    assert 'class="gain up"' not in html


def test_curves_frequency_and_provenance(world: World) -> None:
    html = page(world)
    assert "Training loss <b>1.125</b>" in html
    assert "Zero shot <b>0.417</b>" in html
    assert "0 (new)" in html
    assert html.count("6 queries</text>") == 4
    assert "synthetic)" in html
    assert "made by code" in html
    assert "commit: abc123" in html
    assert world.dataset.fingerprint in html


def test_ranked_lists_show_scores_order_and_missing_fields(world: World) -> None:
    html = page(world)
    articles = html.split("<article")[1:]
    assert len(articles) == 8
    seen_half = next(a for a in articles if ">In domain<" in a or ">Novel query<" in a)
    scores = [re.findall(r'class="chip s\d">([^<]+)<', part) for part in seen_half.split('<div class="ranked ')[1:]]
    assert scores == [["70", "100", "90", "80"], ["100", "90", "80", "70"], ["100", "90", "80", "70"]]
    assert re.findall(r'<div class="who">([^<]+)<b>', seen_half) == ["Baseline", "This model", "Ideal order"]
    assert '<div class="shot none"><span>Product 3</span></div>' in seen_half
    assert '<div class="name">(no title)</div>' in seen_half


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(world: World, name: str) -> None:
    run = world.write_run("run", value=0.5)
    (run / name).unlink()
    with pytest.raises(RunFolderError, match=re.escape(f"{run / name} is missing")):
        write_report(run, world.dataset)
    assert not (run / "report.html").exists()


def test_malformed_files_are_named(world: World) -> None:
    run = world.write_run("run", value=0.5)
    for name, content in (
        ("metrics.json", "{"),
        ("metrics.json", "{}"),
        ("history.json", "{}"),
        ("config.yaml", "- 1"),
    ):
        good = (run / name).read_text()
        (run / name).write_text(content)
        with pytest.raises(RunFolderError, match=name):
            write_report(run, world.dataset)
        (run / name).write_text(good)
    table = pq.read_table(run / "per_query.parquet")
    pq.write_table(pa.concat_tables([table, table]), run / "per_query.parquet")
    with pytest.raises(RunFolderError, match="a query is there twice"):
        write_report(run, world.dataset)
    pq.write_table(table.drop_columns("pairs"), run / "per_query.parquet")
    with pytest.raises(RunFolderError, match="no column 'pairs'"):
        write_report(run, world.dataset)


def test_a_baseline_of_other_queries_is_refused(world: World) -> None:
    run, base = world.write_run("run", value=0.5), world.write_run("base", value=0.5)
    table = pq.read_table(base / "per_query.parquet")
    strange = pa.array([f"x{i}" for i in range(len(table))])
    pq.write_table(
        table.set_column(table.column_names.index("query_id"), "query_id", strange), base / "per_query.parquet"
    )
    with pytest.raises(RunFolderError, match="shares no evaluated query"):
        write_report(run, world.dataset, baseline=base)


def test_picks_are_the_ends_and_the_middle_and_no_query_twice() -> None:
    gains = {("in_domain", f"q{i:02d}"): i / 10 for i in range(11)} | {("zero_shot", "q10"): 5.0}
    picks = pick_queries(gains, what="gain")
    assert [pick.key[1] for pick in picks] == ["q10", "q09", "q08", "q06", "q05", "q02", "q01", "q00"]
    assert picks[0].key == ("zero_shot", "q10")
    assert [pick.reason for pick in picks] == ["largest gain"] * 3 + ["median gain"] * 2 + ["smallest gain"] * 3
    assert len(pick_queries({("a", "q"): 1.0, ("b", "q"): 2.0}, what="gain")) == 1


def test_ideal_order_keeps_ties_and_the_half(world: World) -> None:
    assert ideal_rows({5: 1.0, 2: 3.0, 9: 3.0, 4: 8.0}, np.array([2, 5, 9]), k=2) == [2, 9]
    assert judged_scores(world.dataset, 3) == {i: 100.0 - 10 * i for i in range(8)}


def test_bins_cover_every_query_once() -> None:
    pairs = np.random.default_rng(0).integers(0, 60, 500)
    for counts in (pairs, np.array([0, 0]), np.array([7]), np.repeat([3, 4], 50), np.array([], dtype=int)):
        bins = _bins(counts)
        inside = np.array([(counts >= low) & (counts <= high) for low, high in bins]).reshape(len(bins), len(counts))
        assert (inside.sum(axis=0) == 1).all()
        assert inside.any(axis=1).all()
    assert _bins(np.array([0, 1, 1, 2, 3]))[0] == (0, 0)


def test_line_chart_places_points_in_proportion() -> None:
    chart = line_chart({"a": [(0, 1.0), (10, 3.0), (20, 2.0), (30, float("nan"))], "empty": []})
    assert chart is not None
    (line,) = chart.lines
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, p.split(","))) for p in line.points.split()]
    assert (x0, x1, x2) == (LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT)
    assert (y0, y1) == (HEIGHT - BOTTOM, TOP)
    assert y2 == pytest.approx((y0 + y1) / 2)
    assert line.last == 2.0
    assert line_chart({"a": []}) is None


def test_one_point_and_a_flat_curve_can_be_drawn() -> None:
    for points in ([(5, 0.3)], [(1, 0.0), (2, 0.0)]):
        chart = line_chart({"a": points})
        assert chart is not None
        assert "nan" not in chart.lines[0].points


def test_bars_have_heights_in_proportion() -> None:
    chart = bar_chart([("x", "", [0.5, 1.0]), ("y", "", [0.0, 0.25])], ["a", "b"])
    assert chart is not None
    heights = [bar.height for group in chart.groups for bar in group.bars]
    assert heights == pytest.approx([h * (HEIGHT - TOP - BOTTOM) for h in (0.5, 1.0, 0.0, 0.25)])
    assert bar_chart([], ["a"]) is None


def test_metric_names() -> None:
    assert [metric_name(n) for n in ("ndcg@10", "rbp@0.9", "mrr", "own@3")] == ["NDCG@10", "RBP@0.9", "MRR", "own@3"]


def test_strip_shows_each_list_in_order(world: World) -> None:
    out = ranking_strip(
        world.dataset, "q01", {"Before\n0.5": ["d4", "d5", "d3"], "Ideal": ["d0"]}, world.root / "s.png"
    )
    with Image.open(out) as sheet:
        colours = [
            sheet.getpixel((MARGIN + LABELS + column * (CELL + 14) + CELL // 2, MARGIN + HEADER + row + CELL // 2))
            for row, column in ((0, 0), (0, 1), (CELL + 54, 0))
        ]
        assert sheet.width == 2 * MARGIN + LABELS + 3 * CELL + 2 * 14
    assert colours == [(200, 120, 0), (200, 150, 0), (200, 0, 0)]
    with pytest.raises(ValueError, match="0 rows"):
        ranking_strip(world.dataset, "q01", {}, world.root / "s.png")


def test_without_ndcg_the_first_metric_leads_and_the_ideal_has_no_number(world: World) -> None:
    run = world.write_run("run", value=0.5)
    table = pq.read_table(run / "per_query.parquet")
    pq.write_table(table.drop_columns("ndcg@10"), run / "per_query.parquet")
    html = write_report(run, world.dataset).read_text()
    assert "<h2>ERR by query frequency</h2>" in html
    assert re.search(r"Ideal order<b>\u2013</b>", html)
