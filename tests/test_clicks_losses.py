"""What a log loses: refused above a share, with the way out, as what is lost bends every rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opengcl.clicks import LogOptions, from_logs
from opengcl.clicks.losses import require_rows
from opengcl.data import DataSetError

LOOKS = np.array([1, 0.6, 0.4, 0.3])


def half_lost(folder: Path) -> tuple[Path, Path, int]:
    """40 queries of 8 results in random order, 4 shown; half of the clicks have lost their impression's row."""
    rng = np.random.default_rng(0)
    alpha = rng.beta(2, 2, (40, 8))
    order = rng.random((40, 500, 8)).argsort(axis=2)[:, :, :4]
    clicked = rng.random(order.shape) < LOOKS * np.take_along_axis(alpha[:, None], order, axis=2)
    lost = clicked & (rng.random(order.shape) < 0.5)
    columns: dict[str, list[Any]] = {name: [] for name in ("session", "query", "doc_id", "event", "position")}
    for event, kept in (("impression", ~lost), ("click", clicked)):
        query, session, place = np.nonzero(kept)
        columns["session"] += [f"s{one}" for one in (query * 500 + session).tolist()]
        columns["query"] += [f"query {one}" for one in query.tolist()]
        columns["doc_id"] += [f"d{one}" for one in (query * 8 + order[query, session, place]).tolist()]
        columns["event"] += [event] * len(query)
        columns["position"] += (place + 1).tolist()
    pq.write_table(pa.table(columns), folder / "log.parquet")
    names = [f"d{one}" for one in range(320)]
    pq.write_table(pa.table({"doc_id": names, "title": names}), folder / "documents.parquet")
    return folder / "log.parquet", folder / "documents.parquet", int(lost.sum())


def test_half_of_the_clicks_without_impression(tmp_path: Path) -> None:
    """Look rates are .6, .4 and .3, and come out far lower where those clicks are dropped."""
    log, documents, lost = half_lost(tmp_path)
    with pytest.raises(DataSetError, match=rf"found {lost:,} of [\d,]+ clicks without .*--imply-impressions if events"):
        from_logs(log, documents, tmp_path / "refused", progress=False)
    implied = LogOptions(imply_impressions=True)
    report = from_logs(log, documents, tmp_path / "implied", columns=implied, progress=False)
    assert report.propensities is not None
    np.testing.assert_allclose(report.propensities.theta, LOOKS, atol=0.02)
    assert (report.implied_impressions, report.unshown["click"]) == (lost, 0)
    assert report.events["impressions"] == 40 * 500 * 4
    dropped = from_logs(log, documents, tmp_path / "dropped", columns=LogOptions(most_lost=1), progress=False)
    assert dropped.propensities is not None
    assert (dropped.propensities.theta[1:] < LOOKS[1:] - 0.06).all()
    assert dropped.unshown["click"] == lost
    assert f"{lost:,}" in dropped.summary()


def counts(**reasons: dict[str, int]) -> dict[str | None, dict[str, int]]:
    found: dict[str | None, dict[str, int]] = {None: {"impressions": 1000, "clicks": 100, "carts": 0, "purchases": 10}}
    for reason, numbers in reasons.items():
        found[reason.replace("_", " ")] = {"impressions": 0, "clicks": 0, "carts": 0, "purchases": 0} | numbers
    return found


@pytest.mark.parametrize(
    "found",
    [
        counts(),
        counts(no_session={"impressions": 50, "clicks": 5}),
        counts(no_query={"impressions": 900, "clicks": 90, "purchases": 9}),  # lists that nobody searched for
        counts(unknown_event={"impressions": 0}, after_until={"impressions": 5000}),
    ],
)
def test_little_is_lost(found: dict[str | None, dict[str, int]]) -> None:
    require_rows(found, LogOptions())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (counts(no_session={"clicks": 10}), r"10 of 110 clicks with no session; .*--session names another"),
        (counts(no_query={"impressions": 500, "clicks": 90}), r"90 of 190 clicks with no query; .*from-impressions"),
        (counts(no_document={"purchases": 1}), r"1 of 11 purchases with no document"),
        (counts(impossible_position={"impressions": 300}), r"300 of 1,300 impressions with an impossible position"),
        (counts(impossible_time={"impressions": 300, "clicks": 30}), r"an impossible time; .*--time-unit ms"),
        (counts(impossible_propensity={"impressions": 300}), r"an impossible propensity; .*above 0, up to 1"),
    ],
)
def test_much_is_lost(found: dict[str | None, dict[str, int]], message: str) -> None:
    with pytest.raises(DataSetError, match=message):
        require_rows(found, LogOptions())
    require_rows(found, LogOptions(most_lost=1))
