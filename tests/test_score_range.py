"""The range of imported scores: 0 is its floor and means judged not relevant, unless told otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from opengcl.batches import Relations
from opengcl.cli import app
from opengcl.data import DataSetError, RankedDataset
from opengcl.sources.formats import SourceOptions, open_source
from opengcl.sources.importing import Imported, ImportOptions, import_dataset
from opengcl.sources.mapping import TableMapping
from opengcl.weights import weight_function


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def imported(kind: str, location: Path, given: SourceOptions | None = None, **options: Any) -> Imported:
    source = open_source(kind, str(location), given or SourceOptions())
    return import_dataset(source, location.parent / "out", ImportOptions(**options), progress=False)


def range_of(found: Imported) -> tuple[float, float]:
    content = yaml.safe_load((found.folder / "dataset.yaml").read_text())
    return content["score"]["min"], content["score"]["max"]


def csv(folder: Path, scores: list[float]) -> Path:
    rows = "".join(f"lamp,d{number},title {number},{score}\n" for number, score in enumerate(scores))
    return written(folder / "in" / "judged.csv", f"query,product_id,title,score\n{rows}")


def trec(folder: Path, grades: list[int]) -> tuple[Path, SourceOptions]:
    """Two queries a grade, as a TREC file with its tables."""
    rows = "".join(f"q{number % 2} 0 d{number} {grade}\n" for number, grade in enumerate(grades))
    queries = written(folder / "in" / "q.tsv", "query_id\tquery\nq0\tred lamp\nq1\tblue lamp\n")
    documents = "".join(f"d{number}\ttitle {number}\n" for number in range(len(grades)))
    documents = written(folder / "in" / "d.tsv", f"doc_id\ttitle\n{documents}")
    return written(folder / "in" / "qrels.txt", rows), SourceOptions(queries=queries, documents=documents)


def test_grades_1_to_4_have_0_as_their_floor(tmp_path: Path) -> None:
    """Their range was 1 to 4, so that grade 1 weighed as nothing does: now linearly (1 + 99 / 4) / 100."""
    qrels, options = trec(tmp_path, [1, 2, 3, 4, 2, 1])
    found = imported("trec", qrels, options, splits=_all_seen())
    assert range_of(found) == (0, 4)
    data = RankedDataset.open(found.folder, cache_dir=tmp_path / "cache", progress=False)
    relation = Relations(data, weight_function("linear"), "dataset").of(np.arange(len(data.qrels)))
    by_grade = dict(zip(data.qrels.score.tolist(), relation.pair_weight.tolist(), strict=True))
    assert by_grade == pytest.approx({1: 0.2575, 2: 0.505, 3: 0.7525, 4: 1.0})
    assert "score range 0 to 4, from 0, which means judged not relevant (--score-range sets it); found: 1 to 4" in (
        found.notes
    )
    told = data.schema.provenance["scores"]
    assert (told["found"], told["range"]) == ([1, 4], [0, 4])


def _all_seen() -> Any:
    from opengcl.data import SplitOptions

    return SplitOptions(seen_queries=1.0, seen_documents=1.0)


@pytest.mark.parametrize(
    ("scores", "expected"), [([1, 2, 3], (0, 3)), ([-1, 0, 2], (-1, 2)), ([0, 1], (0, 1)), ([0.7, 0.9], (0, 0.9))]
)
def test_the_floor_of_a_column_of_scores(tmp_path: Path, scores: list[float], expected: tuple[float, float]) -> None:
    found = imported("csv", csv(tmp_path, scores))
    assert range_of(found) == expected
    lowest = [score for score in scores if score <= 0]
    assert found.counts["pairs_judged_not_relevant"] == len(lowest)
    assert found.counts["pairs_with_scores_below_0"] == sum(score < 0 for score in lowest)


def test_a_range_that_is_told_counts(tmp_path: Path) -> None:
    found = imported("csv", csv(tmp_path, [1, 2, 3]), score_range=(1, 5))
    assert range_of(found) == (1, 5)
    assert found.notes[-1:] == ("score range 1 to 5, as given; found: 1 to 3",)


def test_beir_and_labels_have_0_as_their_floor(tmp_path: Path) -> None:
    beir = tmp_path / "beir"
    written(beir / "corpus.jsonl", "".join(json.dumps({"_id": f"d{n}", "text": f"text {n}"}) + "\n" for n in range(2)))
    written(beir / "queries.jsonl", json.dumps({"_id": "q", "text": "lamp"}) + "\n")
    written(beir / "qrels/test.tsv", "query-id\tcorpus-id\tscore\nq\td0\t1\nq\td1\t2\n")
    assert range_of(imported("beir", beir)) == (0, 2)
    wands = tmp_path / "second" / "wands"
    written(wands / "query.csv", "query_id\tquery\n1\tlamp\n")
    fields = "product_name\tproduct_description\tproduct_features"
    written(wands / "product.csv", f"product_id\t{fields}\n7\tStar lamp\tA lamp\tnone\n8\tMoon lamp\tA lamp\tnone\n")
    written(wands / "label.csv", "query_id\tproduct_id\tlabel\n1\t7\tExact\n1\t8\tPartial\n")
    gains = SourceOptions(mapping=TableMapping(label="label", gains={"Exact": 3, "Partial": 2, "Irrelevant": 1}))
    assert range_of(imported("wands", wands, gains)) == (0, 3)


def test_esci_with_gains_above_0_has_0_as_its_floor(tmp_path: Path) -> None:
    examples = {"query": ["lamp"] * 2, "query_id": [1, 1], "product_id": ["a", "b"], "product_locale": ["us"] * 2}
    examples |= {"esci_label": ["E", "I"], "split": ["train"] * 2, "small_version": [1, 1]}
    folder = tmp_path / "esci"
    folder.mkdir()
    pq.write_table(pa.table(examples), folder / "shopping_queries_dataset_examples.parquet")
    products = {"product_id": ["a", "b"], "product_locale": ["us"] * 2, "product_title": ["Star", "Moon"]}
    pq.write_table(pa.table(products), folder / "shopping_queries_dataset_products.parquet")
    gains = {"E": 4.0, "S": 3.0, "C": 2.0, "I": 1.0}
    given = SourceOptions(mapping=TableMapping(label="esci_label", gains=gains))
    assert range_of(imported("esci", folder, given)) == (0, 4)


def test_positions_keep_their_range(tmp_path: Path) -> None:
    path = written(tmp_path / "in" / "x.csv", "query,product_id,title,position\nlamp,a,Star,1\nlamp,b,Moon,3\n")
    found = imported("csv", path)
    assert range_of(found) == (1, 100)
    assert found.counts["pairs_judged_not_relevant"] == 0
    with pytest.raises(DataSetError, match="found 3, but the scores of csv are places in lists"):
        import_dataset(
            open_source("csv", str(path), SourceOptions()), tmp_path / "no", ImportOptions(score_zero=3), progress=False
        )


def test_logits_are_kept_by_naming_their_zero(tmp_path: Path) -> None:
    """Of a cross-encoder's logits most are below 0: they would all be not relevant, and the import says so."""
    path = csv(tmp_path, [-11.5, -8, -4, 3.25])
    lost = "3 of 4 scores are below 0, and a score of 0 or below means judged not relevant"
    assert any(lost in note and "--score-zero" in note for note in imported("csv", path).notes)
    source = open_source("csv", str(path), SourceOptions())
    found = import_dataset(source, tmp_path / "kept", ImportOptions(score_zero=-12), progress=False)
    assert pq.read_table(tmp_path / "kept/qrels.parquet")["score"].to_pylist() == [0.5, 4, 8, 15.25]
    assert range_of(found) == (0, 15.25)
    assert found.counts["pairs_judged_not_relevant"] == 0
    given = ImportOptions(score_zero=-12, score_range=(-20, 20))
    assert range_of(import_dataset(source, tmp_path / "told", given, progress=False)) == (-8, 32)


def test_scores_that_are_all_0_or_below_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"all 2 scores lie between -7 and -1, .*--score-zero .* a number below -7"):
        imported("csv", csv(tmp_path, [-7, -1]))
    with pytest.raises(DataSetError, match="all 2 scores lie between 1 and 2, and 2 or below was said to mean"):
        imported("csv", csv(tmp_path, [1, 2]), score_zero=2)
    with pytest.raises(DataSetError, match=r"score_zero \(--score-zero\): found nan; allowed: a finite number"):
        imported("csv", csv(tmp_path, [1, 2]), score_zero=float("nan"))
    with pytest.raises(DataSetError, match=r"score_range \(--score-range\): found \(5, 1\); allowed: two numbers"):
        imported("csv", csv(tmp_path, [1, 2]), score_range=(5, 1))


def test_the_command_shows_the_range_and_takes_the_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENGCL_CACHE", str(tmp_path / "cache"))
    asked = ["data", "import", str(csv(tmp_path, [1, 2, 3, 4, 5])), "--score-zero", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "score range 0 to 4" in result.output
    assert "pairs judged not relevant" in result.output
    assert yaml.safe_load((tmp_path / "out/dataset.yaml").read_text())["provenance"]["options"]["score_zero"] == 1
