"""Tables and pictures of the matrix, on made-up cells whose figures are known."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from benchmarks.ranking import cell_file, plots, tables
from benchmarks.ranking.cell_file import Place, write_cell, write_json
from benchmarks.ranking.sides import SIDES

from opengcl.data import SPLITS

QUERIES = 40


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cell_file, "RESULTS", tmp_path)
    return tmp_path


def cell(
    side: str,
    ndcg: float,
    recall: float,
    *,
    seed: int = 0,
    curve: Mapping[int, float] | None = None,
    latency: Mapping[str, object] | None = None,
    queries: int = QUERIES,
    fields: str = "title",
) -> None:
    """A cell whose every split has these means; values of single queries spread around them."""
    spread = np.linspace(-0.05, 0.05, queries)
    rows: dict[str, list[object]] = {name: [] for name in ("split", "query_id", "ndcg@10", "recall@100")}
    for split in SPLITS:
        rows["split"] += [split] * queries
        rows["query_id"] += [f"q{i:03d}" for i in range(queries)]
        rows["ndcg@10"] += (ndcg + spread).tolist()
        rows["recall@100"] += (recall + spread[::-1]).tolist()
    figures = {"ndcg@10": ndcg, "recall@100": recall, "err": ndcg / 2, "rbp@0.9": ndcg / 3, "queries": queries}
    dev = [
        {"step": 10 * documents, "documents_encoded": documents, **{split: {"ndcg@10": value} for split in SPLITS}}
        for documents, value in (curve or {}).items()
    ]
    content: dict[str, object] = {
        "label": f"the side {side}",
        "settings": {"model": "static"},
        "steps": 100,
        "queries_encoded": 777,
        "documents_encoded": max(curve or {0: 0}),
        "training_seconds": 60.0,
        "splits": dict.fromkeys(SPLITS, figures),
        "dev": dev,
    }
    if latency is not None:
        content["latency"] = latency
    write_cell(Place("fashion", fields, side), seed, content, pa.table(rows))


def read(fields: str = "title") -> tables.Results:
    return tables.Results.read("fashion", fields)


def found_aims() -> dict[str, tables.Aim]:
    return {aim.what: aim for aim in tables.aims(read())}


def test_without_cells_nothing_is_claimed() -> None:
    assert tables.all_results() == []
    assert tables.page_block([]) == tables.front_block([]) == tables.NOTHING


def test_means_and_spread_over_seeds() -> None:
    cell("clip", 0.50, 0.90, seed=0)
    cell("clip", 0.54, 0.92, seed=1)
    cell("paper", 0.60, 0.80)
    table = tables.quality(read())
    assert "| `clip` the side clip | 2 | 0.520 ± 0.028 / 0.910 ± 0.014 |" in table
    assert "| `paper` the side paper | 1 | 0.600 / 0.800 |" in table
    assert table.endswith("| 60 | 777 | - |")
    assert table.index("`clip`") < table.index("**paper**") < table.index("`paper`")
    assert "0.260" in tables.other_metrics(read())  # ERR of clip: the mean of .25 and .27


def test_differences_are_paired_and_relative_to_the_base() -> None:
    cell("clip", 0.50, 0.90)
    cell("paper", 0.60, 0.80)
    found = tables.differences(read())
    row = found["clip", "ndcg@10"]["paper"]["in_domain"]
    assert row.gain == pytest.approx(0.1, abs=1e-6)
    assert row.percent == pytest.approx(20, abs=1e-3)
    assert row.low == pytest.approx(0.1, abs=1e-6)  # every query gains the same
    assert row.high == pytest.approx(0.1, abs=1e-6)
    assert row.p < 0.01
    assert "clip" not in found["clip", "ndcg@10"]
    assert found["clip", "recall@100"]["paper"]["zero_shot"].gain == pytest.approx(-0.1, abs=1e-6)


def test_other_queries_cannot_be_paired() -> None:
    cell("clip", 0.5, 0.9)
    cell("paper", 0.6, 0.8, queries=QUERIES - 1)
    with pytest.raises(ValueError, match="paper has 39 test queries and clip 40"):
        tables.differences(read())


def test_aims_met_and_missed() -> None:
    cell("clip", 0.50, 0.90, curve={100: 0.4, 1000: 0.5})
    cell("ours", 0.60, 0.89, curve={150: 0.55, 900: 0.6})
    cell("bixse", 0.61, 0.90)
    cell("paper", 0.55, 0.80)
    aims = found_aims()
    gain = aims["NDCG@10 of `ours` over `clip`, in_domain"]
    assert (gain.measured, gain.margin, gain.met) == ("+20.0%", "-9.3 points", False)
    assert aims["NDCG@10 of `ours` over `clip`, zero_shot"].met
    assert not aims["recall@100 not below CLIP's, in_domain"].met
    assert not aims["NDCG@10 ahead of the best published loss, novel_query"].met
    assert aims["NDCG@10 ahead of the best of the paper's form, novel_query"].met
    encoded = aims["documents that `ours` encodes until CLIP's last dev NDCG@10 (0.500)"]
    assert (encoded.measured, encoded.met) == ("15.0%", True)
    published = sum(side.family == "published" for side in SIDES.values())
    rival = aims["NDCG@10 ahead of the best published loss, novel_query"]
    assert rival.aim == f"more than 0.610 (`bixse`, best of the 1 run of {published})"
    table = tables.aims_table(read())
    assert "| +20.0% | -9.3 points | **missed** |" in table
    assert "two stages" not in table


def test_two_stages_and_clicks_have_aims_where_they_were_run() -> None:
    cell("ours", 0.60, 0.89)
    latency = {"single_ms": {"p50": 2.0, "p99": 3.0}, "two_stage_ms": {"p50": 50.0, "p99": 60.0}, "ratio": 25.0}
    cell("cross-encoder", 0.58, 0.80, latency=latency)
    cell("clicks-clip", 0.40, 0.8)
    cell("clicks-ours", 0.44, 0.8)
    aims = found_aims()
    assert aims["NDCG@10 not below two stages, in_domain"].met
    assert aims["latency of two stages over one, median"].measured == "25.0 times"
    assert not aims["NDCG@10 of `clicks-ours` over `clicks-clip`, in_domain"].met  # +10.0%, aimed at +11.2%
    assert aims["NDCG@10 of `clicks-ours` over `clicks-clip`, zero_shot"].met
    assert {name for name, _, _ in tables.pictures(read())} == {
        "order-recall-fashion-title.svg",
        "latency-fashion-title.svg",
    }


def test_the_front_page_shows_four_sides_of_the_titles() -> None:
    cell("clip", 0.50, 0.90)
    cell("paper", 0.55, 0.80)
    cell("bixse", 0.56, 0.85)
    cell("x-clr", 0.52, 0.86)
    cell("ours", 0.60, 0.91)
    cell("clip", 0.10, 0.10, fields="image")
    block = tables.front_block(tables.all_results())
    assert "| best published: the side bixse | 0.560 (+12.0%) / 0.850 |" in block
    assert "| ours: the side ours | 0.600 (+20.0%) / 0.910 |" in block
    assert "x-clr" not in block
    assert "1 seed," in block
    assert "0.100" not in block


def test_what_the_grid_chose() -> None:
    point = {"learning_rate": 0.03, "temperature": 0.1, "weights": "exponential:decay=10"}
    tried = [{**point, "ndcg@10": 0.8}, {"learning_rate": 0.01, "temperature": 0.1, "ndcg@10": 0.7}]
    cell("paper", 0.55, 0.80)
    write_json(Place("fashion", "title", "paper").tuning, {"chosen": point, "tried": tried})
    assert "| `paper` | 0.03 | 0.1 | decay=10 | 2 | 0.800 |" in tables.chosen(read())
    more = [*tried, {"learning_rate": 0.001, "temperature": 0.1, "ndcg@10": 0.1}]
    write_json(Place("fashion", "title", "paper").tuning, {"chosen": point, "tried": more})
    assert "| `paper` | 0.03* | 0.1 | decay=10 | 3 | 0.800 |" in tables.chosen(read())
    write_json(Place("fashion", "title", "paper").tuning, {"chosen": tried[1] | {}, "tried": tried})
    assert tables.own_constants("paper", {"learning_rate": 0.01}) == "decay=20"


def test_pictures_are_svg_with_every_name() -> None:
    cell("clip", 0.50, 0.90, curve={100: 0.4, 1000: 0.5})
    cell("ours", 0.60, 0.95, curve={150: 0.55, 900: 0.6})
    cell("minilm", 0.30, 0.30)
    for name, title, svg in tables.pictures(read()):
        tree = ET.fromstring(svg)  # noqa: S314 - our own
        texts = [element.text for element in tree.iter() if element.tag.endswith("text")]
        assert title in texts
        assert any("ours" in (text or "") for text in texts), name
        assert ("minilm" in " ".join(map(str, texts))) == name.startswith("order-recall")


def test_intervals_cover_the_difference_between_sides_of_several_seeds() -> None:
    for seed in (0, 1):
        cell("clip", 0.50 + 0.02 * seed, 0.90, seed=seed)
    cell("sycl", 0.40, 0.95)
    table = tables.differences(read())["clip", "recall@100"]["sycl"]
    assert all(row.low - 1e-6 <= 0.05 <= row.high + 1e-6 for row in table.values())
    row = tables.differences(read())["clip", "ndcg@10"]["sycl"]["novel_query"]
    assert (row.gain, row.percent) == pytest.approx((-0.11, -100 * 0.11 / 0.51), abs=1e-4)
    assert ("paper", "ndcg@10") not in tables.differences(read())
    assert "`paper`" not in tables.section(read())
    assert "| `sycl` | 1 and 2 | -21.6% [-0.110, -0.110] p < .001 |" in tables.section(read())


def test_holm_goes_over_all_sides_and_splits_of_a_table() -> None:
    difference = tables.Difference(0.1, 10.0, 0.0, 0.2, 0.01)
    table = {side: dict.fromkeys(SPLITS, difference) for side in ("paper", "sycl")}
    corrected = tables._corrected(table)
    assert [row.p for of in corrected.values() for row in of.values()] == pytest.approx([0.08] * 8)


def test_a_name_beyond_the_axes_is_listed_and_one_on_them_is_not() -> None:
    dots = [plots.Dot(f"side-{i}", "other", 0.80 + 0.01 * i, 0.7 + 0.01 * (i % 5)) for i in range(12)]
    dots += [plots.Dot("clip", "clip", 0.85, 0.6), plots.Dot("lost & far", "other", 0.1, 0.1)]
    svg = plots.order_and_recall([("zero_shot", dots)], title="t")
    assert svg is not None
    tree = ET.fromstring(svg)  # noqa: S314 - our own
    texts = [element.text or "" for element in tree.iter() if element.tag.endswith("text")]
    assert [text for text in texts if "lost" in text] == ["below: lost & far\u00a0(0.10,\u00a00.10)"]
    assert {dot.name for dot in dots[:-1]} <= set(texts)
    circles = [element for element in tree.iter() if element.tag.endswith("circle")]
    assert len(circles) == len(dots) - 1


def test_in_a_crowd_only_the_named_sides_keep_their_names() -> None:
    dots = [plots.Dot(f"quite-a-long-name-{i}", "other", 0.8, 0.7 + 0.0002 * i) for i in range(30)]
    dots += [plots.Dot("clip", "clip", 0.7, 0.6), plots.Dot("ours", "ours", 0.8, 0.703)]
    svg = plots.order_and_recall([("zero_shot", dots)], title="t")
    assert svg is not None
    tree = ET.fromstring(svg)  # noqa: S314 - our own
    texts = [element.text or "" for element in tree.iter() if element.tag.endswith("text")]
    named = sum(text.startswith("quite") for text in texts)
    assert {"clip", "ours"} <= set(texts)
    assert 0 < named < 15
    assert f"{30 - named} dots in the crowd have no name here; the table has all" in texts
    assert len([element for element in tree.iter() if element.tag.endswith("circle")]) == len(dots)


def test_names_do_not_cover_each_other_or_their_dots() -> None:
    scale = plots.Scale(0.0, 1.0, 0.0, 400.0)
    frame = plots.Frame(scale, plots.Scale(0.0, 1.0, 400.0, 0.0))
    taken = [(200.0, 200.0, 210.0, 210.0)]
    for _ in range(12):
        taken.append(plots._free_box(frame, 205, 205, 60, taken))
    pairs = [(one, two) for i, one in enumerate(taken) for two in taken[:i]]
    assert max(plots._overlap(one, two) for one, two in pairs) == 0


def test_labels_that_would_touch_are_spread() -> None:
    heights = plots.spread_labels([100.0, 101.0, 300.0, 99.0], gap=15)
    assert sorted(heights) == pytest.approx([85, 100, 115, 300])
    assert np.argsort(heights).tolist() == np.argsort([100.0, 101.0, 300.0, 99.0]).tolist()


def test_only_what_is_between_the_markers_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    assert tables.between_markers(page, "new") == f"before\n{tables.BEGIN}\n\nnew\n\n{tables.END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="expected <!-- results:begin -->"):
        tables.between_markers(page, "new")


def test_step_costs_are_medians_beside_clip() -> None:
    cell("clip", 0.5, 0.9)
    cell("ours", 0.7, 0.9)
    timed = {"queries": 900.4, "documents": 960.0}
    content = {"sides": {"clip": {"seconds": [0.1, 0.9, 0.2], **timed}, "ours": {"seconds": [0.3, 0.3, 0.3], **timed}}}
    write_json(cell_file.cost_file("fashion", "title"), content)
    table = tables.step_costs(tables.Results.read("fashion", "title"))
    assert "| `clip` | 0.200 | 1.00 | 900 | 960 |" in table
    assert "| `ours` | 0.300 | 1.50 | 900 | 960 |" in table
    assert "Seconds of a training step" in tables.section(tables.Results.read("fashion", "title"))


def test_no_cost_no_table() -> None:
    cell("clip", 0.5, 0.9)
    assert tables.step_costs(tables.Results.read("fashion", "title")) == ""


def test_each_field_has_its_own_recommended_side() -> None:
    for fields in ("title", "image"):
        cell("clip", 0.50, 0.90, fields=fields)
        cell("ours", 0.60, 0.95, fields=fields)
        cell("ours-annealed", 0.70, 0.95, fields=fields)
    assert "NDCG@10 of `ours` over `clip`, in_domain" in {aim.what for aim in tables.aims(read())}
    assert "NDCG@10 of `ours-annealed` over `clip`, in_domain" in {aim.what for aim in tables.aims(read("image"))}
    assert tables.tone(read("image"), "ours-annealed") == "ours"
    assert tables.tone(read(), "ours-annealed") == "other"
    front = tables.front_block(tables.all_results())
    assert "| Fashion-small, pictures | 1 | 0.700 (+40.0%) / 0.950 |" in front
    assert front.count("ours: ") == 1


def test_the_side_that_encodes_a_fifth_has_its_own_row() -> None:
    cell("clip", 0.50, 0.90, curve={100: 0.4, 1000: 0.5}, fields="image")
    cell("ours-annealed", 0.60, 0.95, curve={150: 0.45, 360: 0.55}, fields="image")
    cell("ours-fifth", 0.55, 0.92, curve={100: 0.45, 190: 0.51}, fields="image")
    rows = {aim.what: aim for aim in tables.aims(read("image")) if aim.what.startswith("documents")}
    told = [(f"{aim.measured} {aim.margin}", aim.met) for aim in rows.values()]
    assert told == [("36.0% -16.0 points", False), ("19.0% +1.0 points", True)]
    learning = next(svg for name, _, svg in tables.pictures(read("image")) if name.startswith("learning"))
    assert "ours-fifth 0.510" in learning
    assert "documents that `ours-fifth` encodes until CLIP's last dev NDCG@10 (0.500)" in rows
    cell("ours-fifth", 0.55, 0.92, curve={100: 0.45, 190: 0.49}, fields="image")
    assert next(aim for aim in tables.aims(read("image")) if "ours-fifth" in aim.what).measured == "not reached"
