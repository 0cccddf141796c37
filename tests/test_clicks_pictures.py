"""Pictures of a catalogue beside a log: bytes, paths and URLs, those that cannot be had, and the options."""

from __future__ import annotations

import functools
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from opengcl.cli import app
from opengcl.clicks import PictureOptions, Report, ScoreOptions, from_logs
from opengcl.clicks.counts import query_id
from opengcl.data import DataSetError, RankedDataset, Schema, write_dataset
from opengcl.fetch import FetchOptions


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with two pictures and a log of one query, whose results d0 to d5 are all clicked now and then."""
    folder = tmp_path / "shop"
    (folder / "pics").mkdir(parents=True)
    (folder / "pics/red.png").write_bytes(picture("red"))
    (folder / "pics/blue.png").write_bytes(picture("blue"))
    (folder / "pics/text.png").write_text("no picture")
    rows = [
        {"session": f"s{session}", "query": "q", "doc_id": f"d{at}", "event": event, "position": at + 1}
        for session in range(12)
        for at in range(6)
        for event in (("impression", "click") if session % (at + 1) == 0 else ("impression",))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    return folder


def catalogue(shop: Path, cells: list[str], titles: list[str] | None = None) -> Path:
    """A CSV beside the pictures, with a column of their places."""
    columns = {"doc_id": [f"d{one}" for one in range(len(cells))], "pic": cells}
    pyarrow.csv.write_csv(pa.table(columns | ({"title": titles} if titles else {})), shop / "documents.csv")
    return shop / "documents.csv"


def run(shop: Path, documents: Path, **options: Any) -> tuple[Report, RankedDataset]:
    out = shop.parent / "out"
    scoring = ScoreOptions(position_bias="none")
    report = from_logs(shop.parent / "log.parquet", documents, out, scoring=scoring, progress=False, **options)
    return report, RankedDataset.open(out, cache_dir=shop.parent / "cache", progress=False)


def colours(data: RankedDataset) -> list[tuple[int, ...] | None]:
    """The first pixel of each document's picture."""
    found = data.documents.images("image", range(len(data.documents)))
    return [None if one is None else one.getpixel((0, 0)) for one in found]


RED, BLUE = (255, 0, 0), (0, 0, 255)
PLACES = ["pics/red.png", "pics/blue.png", "", "pics/none.png", "pics/text.png", "../outside.png"]


def test_paths_are_relative_to_the_catalogue(shop: Path) -> None:
    (shop.parent / "outside.png").write_bytes(picture("red"))
    report, data = run(shop, catalogue(shop, PLACES, ["t"] * 6), images={"image": "pic"})
    assert data.schema.documents == {"title": "text", "image": "image"}
    assert colours(data) == [RED, BLUE, None, None, None, None]
    assert report.pictures == {"pictures": 2, "picture_failures": 3, "documents_dropped": 0}
    assert data.schema.provenance["pictures"] == {"image_size": None, **report.pictures}
    told = pq.read_table(shop.parent / "out/picture_failures.parquet").to_pylist()
    assert {row["doc_id"]: row["where"] for row in told} == {"d3": PLACES[3], "d4": PLACES[4], "d5": PLACES[5]}
    assert "picture failures" in report.summary()
    assert {one.name for one in shop.parent.iterdir()} == {"shop", "outside.png", "log.parquet", "out", "cache"}


def test_a_folder_for_paths_can_be_named(shop: Path) -> None:
    table = shop.parent / "documents.csv"
    catalogue(shop, ["red.png"] * 6, ["t"] * 6).rename(table)
    _, data = run(shop, table, images={"image": "pic"}, pictures=PictureOptions(root=shop / "pics"))
    assert colours(data) == [RED] * 6


def test_a_document_of_which_nothing_is_left_goes_with_its_pairs(shop: Path) -> None:
    report, data = run(shop, catalogue(shop, PLACES), images={"image": "pic"})
    assert data.problems == []
    assert data.documents.ids(range(len(data.documents))) == ["d0", "d1"]
    assert report.pictures["documents_dropped"] == 4
    assert report.dropped_pairs["nothing left of the document"] == 4
    assert (report.documents, report.pairs) == (2, 2)
    assert pq.read_table(shop.parent / "out/qrels.parquet")["query_id"].to_pylist() == [query_id("q")] * 2


def test_no_picture_at_all_leaves_nothing(shop: Path) -> None:
    with pytest.raises(DataSetError, match=r"no document is left.*6 pictures could not be read.*no file"):
        run(shop, catalogue(shop, ["pics/none.png"] * 6), images={"image": "pic"})
    assert {one.name for one in shop.parent.iterdir()} == {"shop", "log.parquet"}, "something was left"


def test_a_data_set_may_hold_paths_and_bytes(shop: Path) -> None:
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": None, "path": "pics/red.png"}, {"bytes": picture("blue"), "path": "pics/red.png"}, None] * 2
    for image in (pa.array(cells, cell), pa.array(["pics/red.png", "pics/blue.png", None] * 2)):
        schema = Schema("shop", {"query": "text"}, {"title": "text", "image": "image"}, 0, 1)
        ids = [f"d{one}" for one in range(6)]
        made = write_dataset(
            shop.parent / "set",
            schema,
            pa.table({"query_id": ["q"], "query": ["q"]}),
            pa.table({"doc_id": ids, "title": ["t"] * 6, "image": image}),
            pa.table({"query_id": ["q"], "doc_id": ["d0"], "score": [1.0]}),
        )
        (shop / "pics").rename(made / "pics")
        _, data = run(shop, made)
        assert colours(data) == [RED, BLUE, None] * 2
        (made / "pics").rename(shop / "pics")
        made.rename(shop / f"set of {image.type}".replace("<", " ").replace(":", ""))
        (shop.parent / "out").rename(shop / f"out of {image.type}".replace("<", " ").replace(":", ""))


def test_large_pictures_are_made_smaller(shop: Path) -> None:
    (shop / "pics/red.png").write_bytes(picture("red", (400, 300)))
    table = catalogue(shop, ["pics/red.png"] * 6, ["t"] * 6)
    _, data = run(shop, table, images={"image": "pic"}, pictures=PictureOptions(image_size=100))
    (found,) = data.documents.images("image", [0])
    assert found is not None
    assert found.size == (100, 75)
    with pytest.raises(DataSetError, match="image_size: found 0; allowed: 1 to 8192 pixels"):
        PictureOptions(image_size=0)


@pytest.fixture
def web(shop: Path) -> Iterator[str]:
    """The shop's folder over HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(shop)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_urls_are_fetched_where_that_is_allowed(shop: Path, web: str) -> None:
    cells = [f"{web}/pics/{name}.png" for name in ("red", "blue", "none")] * 2
    table = catalogue(shop, cells, ["t"] * 6)
    allowed = PictureOptions(fetch=FetchOptions(allow_private=True, retries=0))
    report, data = run(shop, table, images={"image": "pic"}, pictures=allowed)
    assert colours(data) == [RED, BLUE, None] * 2
    assert report.pictures["picture_failures"] == 2
    (shop.parent / "out").rename(shop / "first")
    report, data = run(shop, table, images={"image": "pic"}, pictures=PictureOptions(fetch=FetchOptions(retries=0)))
    assert colours(data) == [None] * 6


def test_what_was_fetched_before_a_kill_is_not_fetched_again(shop: Path, web: str, monkeypatch: Any) -> None:
    table = catalogue(shop, [f"{web}/pics/red.png"] * 6, ["t"] * 6)
    allowed = PictureOptions(fetch=FetchOptions(allow_private=True, retries=0))

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("opengcl.clicks.build.write_dataset", stop)
        with pytest.raises(KeyboardInterrupt):
            run(shop, table, images={"image": "pic"}, pictures=allowed)
    (shop / "pics/red.png").unlink()
    _, data = run(shop, table, images={"image": "pic"}, pictures=allowed)
    assert colours(data) == [RED] * 6
    assert [one.name for one in shop.parent.iterdir() if one.name.startswith(".")] == []


def test_the_command_brings_pictures(shop: Path) -> None:
    table = catalogue(shop, ["red.png", "none.png"] * 3, ["t"] * 6)
    out = shop.parent / "out"
    words = ["data", "from-logs", str(shop.parent / "log.parquet"), "--documents", str(table), "--out", str(out)]
    words += ["--images", "photo=pic", "--pictures", str(shop / "pics"), "--image-size", "20"]
    result = CliRunner().invoke(app, [*words, "--position-bias", "none"])
    assert result.exit_code == 0, result.output
    assert Schema.read(out).documents == {"title": "text", "photo": "image"}
    assert "picture failures" in result.output
    assert "picture_failures.parquet" in result.output
    found = pq.read_table(out / "documents.parquet")["photo"].to_pylist()
    assert [one is None for one in found] == [False, True] * 3
    assert Image.open(io.BytesIO(found[0])).size == (20, 15)


def test_a_column_of_pictures_must_be_there_and_hold_some(shop: Path) -> None:
    table = catalogue(shop, ["x"] * 6, ["t"] * 6)
    with pytest.raises(DataSetError, match=r"no column 'photo'; it has doc_id, pic, title .*--images"):
        run(shop, table, images={"image": "photo"})
    numbers = pa.table({"doc_id": ["d0"], "title": ["t"], "pic": [3]})
    pq.write_table(numbers, shop / "documents.parquet")
    with pytest.raises(DataSetError, match="column 'image': found type int64; allowed: bytes, paths or URLs"):
        run(shop, shop / "documents.parquet", images={"image": "pic"})
