"""The page of a data set: what it says is what is there, it is safe, and it stands alone."""

from __future__ import annotations

import html
import html.parser
import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opengcl import cli, data_page
from opengcl.data import DataSetError, RankedDataset, Schema, write_dataset
from opengcl.data_page import write_data_page

HOSTILE = "<script>alert(1)</script>\"><img src=http://evil.example/x onerror=alert(2)> & 'quoted'"
DOCUMENTS = 60


def picture(seed: int, size: tuple[int, int] = (90, 120), quality: int = 90) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


class Markup(html.parser.HTMLParser):
    """The tags and attributes of a page, as a browser sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Documents 10 and 11 look like 0 and 1, document 20 is titled nearly like 21, document 30 has a broken picture."""
    titles: list[str | None] = [
        f"{word} number {word[::-1]}" for word in (f"{n * 7919 % 10**6:06d}" for n in range(DOCUMENTS))
    ]
    titles[20], titles[21], titles[22] = "Red running shoes for men, light", "Red running shoes for men, lights", None
    titles[23] = HOSTILE
    images: list[bytes | None] = [picture(n) for n in range(DOCUMENTS)]
    images[10], images[11], images[30], images[31] = picture(0, (45, 60), 80), picture(1), b"broken", None
    return write_dataset(
        tmp_path / "shop",
        Schema(HOSTILE, {"query": "text"}, {"title": "text", "image": "image"}, 0, 100, provenance={"source": HOSTILE}),
        pa.table({"query_id": ["q0", "q1", "q2"], "query": ["many", HOSTILE, "none judged"]}),
        pa.table({"doc_id": [f"d{n}" for n in range(DOCUMENTS)], "title": titles, "image": images}),
        pa.table(
            {
                "query_id": ["q0"] * 30 + ["q1"] * 3,
                "doc_id": [f"d{n}" for n in [*range(30), 23, 30, 31]],
                "score": [*np.arange(30, dtype=float), 100.0, 50.0, 0.0],
            }
        ),
    )


def page_of(folder: Path, **options: Any) -> str:
    return write_data_page(folder, folder.parent / "page.html", progress=False, **options).read_text()


def words(page: str) -> str:
    """The text of a page as a reader sees it."""
    return " ".join(
        html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(style|title)>.*?</\1>", "", page, flags=re.S))).split()
    )


def test_the_page_tells_the_counts(shop: Path) -> None:
    text = words(page_of(shop))
    counts = RankedDataset.open(shop, check_images=False).describe()
    relevant = "33 judged pairs, 2 of them judged not relevant (a score of 0 or below)"
    assert f"3 queries 60 documents {relevant} Scores from 0 to 100" in text
    for one in counts["splits"].values():
        assert f"{one['queries']} queries: {one['dev_queries']} dev, {one['test_queries']} test" in text
        assert f"{one['pairs']} judged pairs, {one['pairs'] / 33:.1%}" in text
    assert "title documents text 1 1.7%" in text
    assert "image documents image 1 1.7% \u2013" in text
    assert "None in the tables." in text


def test_near_duplicates_are_found_and_named(shop: Path) -> None:
    text = words(page_of(shop))
    assert "All 59 documents that have a title: 1 (1.7%) have one that is nearly the same" in text
    assert "Red running shoes for men, light Red running shoes for men, lights" in text
    assert "All 59 pictures in image: 2 (3.4%) look nearly like an earlier one" in text
    assert "1 could not be decoded." in text
    assert text.count("% different") + text.count("equal") == 2


def test_a_sample_is_told(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_page, "TITLES", 10)
    monkeypatch.setattr(data_page, "PICTURES", 20)
    text = words(page_of(shop, seed=1))
    assert "10 documents drawn from the 59 that have a title" in text
    assert re.search(r"(19|20) pictures drawn from the 59 in image", text)
    assert "In the whole data set the share is larger" in text


def test_queries_show_their_highest_and_lowest_in_order(shop: Path) -> None:
    page = page_of(shop)
    assert "2 queries and their judged documents" in words(page)
    first = page[page.index("“many”") :].split("</article>")[0]
    chips = re.findall(r'<span class="chip s(\d)">(\d+)</span>', first)
    assert [int(score) for _, score in chips] == [*range(29, 19, -1), *range(9, -1, -1)]
    assert {shade for shade, score in chips if int(score) >= 20} == {"2"}
    assert "30 judged" in first
    assert len(re.findall(r'src="data:image/jpeg;base64,', first)) == 20
    second = page[page.index("3 judged") :].split("</article>")[0]
    assert "Lowest" not in second
    assert [int(score) for score in re.findall(r"chip s\d\">(\d+)<", second)] == [100, 50, 0]
    assert "none judged" not in page


@pytest.mark.parametrize("queries", [0, 1, 500])
def test_as_many_queries_as_asked_and_there(queries: int, shop: Path) -> None:
    assert page_of(shop, queries=queries).count("<article") == min(queries, 2)


def test_the_seed_decides_what_is_drawn(shop: Path) -> None:
    pages = {seed: page_of(shop, queries=1, seed=seed) for seed in range(6)}
    assert page_of(shop, queries=1, seed=0) == pages[0]
    assert len({"“many”" in page for page in pages.values()}) == 2


def test_nothing_from_data_becomes_markup_and_nothing_is_loaded(shop: Path) -> None:
    page = page_of(shop)
    assert "<script" not in page
    assert html.escape("<script>alert(1)</script>") in page
    found = Markup()
    found.feed(page)
    assert "script" not in found.tags
    assert not any(name.startswith("on") for name in found.attributes)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(one.startswith(("data:image/jpeg;base64,", "#")) for one in sources)
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page


def test_problems_are_listed(shop: Path) -> None:
    qrels = pq.read_table(shop / "qrels.parquet")
    pq.write_table(qrels.set_column(2, "score", pa.array([101.0] + [1.0] * 32)), shop / "qrels.parquet")
    text = words(page_of(shop))
    assert "1 kind of problems; rows that have them are left out below." in text
    assert "score out of range in 1 row: row 0 (ids ('q0', 'd0')) holds 101.0" in text
    assert "32 judged pairs" in text


def test_a_data_set_of_pictures_alone_has_a_page(shop: Path, tmp_path: Path) -> None:
    tables = [pq.read_table(shop / f"{name}.parquet") for name in ("queries", "documents", "qrels")]
    folder = write_dataset(
        tmp_path / "only",
        Schema("only", {"query": "text"}, {"image": "image"}, 0, 100),
        *[
            table.filter(pa.array([one not in ("d30", "d31") for one in table["doc_id"].to_pylist()]))
            if "doc_id" in table.column_names
            else table
            for table in tables
        ],
    )
    text = words(page_of(folder))
    assert "All 58 pictures in image" in text
    assert "have one that is nearly the same" not in text


def test_the_command_writes_it(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.html"
    monkeypatch.setattr(sys, "argv", ["opengcl", "data", "show", str(shop), "--out", str(out), "--queries", "1"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "out.html: written" in capsys.readouterr().err
    assert out.read_text().count("<article") == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".html"] == ["shop"]


def test_what_is_no_data_set_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="no such folder"):
        write_data_page(tmp_path / "none", tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
