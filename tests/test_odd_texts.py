"""Texts that are empty, huge, not Unicode or full of control characters: refused, or trained around and told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opengcl import BiEncoder, RankedDataset, TrainConfig, make_shop, train
from opengcl.data import DataSetError
from opengcl.data.tables import MAX_TEXT_BYTES
from opengcl.encode import encode
from opengcl.training import TrainError

HUGE = b"word " * (2 << 20)  # 10 MB
ODD = {
    1: b"",
    2: b" \t\n\xc2\xa0",
    3: b"\xff\xfe not unicode",
    4: b"\xed\xa0\x80 half a pair",
    5: HUGE,
    6: b"nul \x00 inside",
    7: b"\x1b[2J\x07\x7f\xe2\x80\xae bells and arrows",
    8: "e\u0301 \U0001f9e5 \u05e9\u05dc\u05d5\u05dd \ufdfa".encode(),
    9: b"w" * MAX_TEXT_BYTES,  # one word, as long as a text may be
}
UNUSABLE = {1, 2, 3, 4, 5}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = make_shop(tmp_path_factory.mktemp("odd") / "shop", products=60, queries=40, image_size=32)
    rows = pq.read_table(out / "documents.parquet")
    titles = [(title or "a thing").encode() for title in rows["title"].to_pylist()]
    for row, text in ODD.items():
        titles[row] = text
    column = pa.array(titles, pa.binary()).view(pa.string())
    pq.write_table(rows.set_column(rows.column_names.index("title"), "title", column), out / "documents.parquet")
    return out


def test_strictly_opened_all_are_told_by_id(shop: Path) -> None:
    with pytest.raises(DataSetError) as caught:
        RankedDataset.open(shop, progress=False)
    lines = str(caught.value).splitlines()
    assert lines == [
        "documents.parquet, column 'title': text that is not UTF-8 in 2 rows: "
        "row 3 (id 'p000003') holds b'\\xff\\xfe not unicode'; "
        "row 4 (id 'p000004') holds b'\\xed\\xa0\\x80 half a pair'. Allowed: UTF-8 text",
        "documents.parquet, column 'title': text too long in 1 row: row 5 (id 'p000005') holds 10,485,760 bytes. "
        "Allowed: up to 1,000,000 bytes",
    ]


def test_leniently_they_count_as_missing(shop: Path) -> None:
    dataset = RankedDataset.open(shop, strict=False, progress=False)
    present = dataset.documents.present("title", np.arange(60))
    assert set(np.flatnonzero(~present).tolist()) == UNUSABLE
    assert dataset.documents.texts("title", [6, 8]) == [ODD[6].decode(), ODD[8].decode()]
    assert [(one.kind, one.count) for one in dataset.problems] == [("text that is not UTF-8", 2), ("text too long", 1)]


def test_training_goes_around_them(shop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"dim": 16, "batch_size": 64, "epochs": 1, "evaluations": 1, "device": "cpu", "strict": False}
    config = TrainConfig(data=str(shop), model="tiny", out=str(tmp_path / "run"), max_unreadable=0.05, **settings)  # type: ignore[arg-type]
    out = train(config, progress=False)
    assert "row 5 (id 'p000005') holds 10,485,760 bytes" in caplog.text
    scores = json.loads((out / "metrics.json").read_text())["splits"]
    assert all(np.isfinite(list(row.values())).all() for row in scores.values())
    dataset = RankedDataset.open(shop, strict=False, progress=False)
    vectors = encode(BiEncoder.load(out), dataset.documents, "document", np.array(sorted(ODD)))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_too_many_of_them_stop_the_run(shop: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=str(shop), model="tiny", out=str(tmp_path / "run"), strict=False, device="cpu")
    with pytest.raises(TrainError, match=r"not UTF-8 in 2 rows: row 3 \(id 'p000003'\).*allowed: 0\.01 \(max_unread"):
        train(config, progress=False)
    assert not (tmp_path / "run").exists()
