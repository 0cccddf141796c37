"""Pictures on disk: what is there, what failed, and what a wrong file says."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opengcl.picture_store import FILE, PictureStore

URL = "http://shop.example/1.jpg"


def test_what_was_put_is_there_after_opening_again(tmp_path: Path) -> None:
    with PictureStore(tmp_path / "pictures") as store:
        store.put(URL, b"one")
        store.put(URL + "?2", b"two")
        store.put(URL, b"another")
    with PictureStore(tmp_path / "pictures") as store:
        assert (store.get(URL), store.get(URL + "?2"), store.get("http://none")) == (b"another", b"two", None)
        assert len(store) == 2
        assert URL in store
        assert "http://none" not in store


def test_equal_pictures_are_kept_once(tmp_path: Path) -> None:
    picture = bytes(range(256)) * 4000
    with PictureStore(tmp_path) as store:
        for number in range(50):
            store.put(f"{URL}?{number}", picture)
        assert all(store.get(f"{URL}?{number}") == picture for number in range(50))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 3 * len(picture)


def test_failures_are_counted_over_runs_and_forgotten_on_success(tmp_path: Path) -> None:
    with PictureStore(tmp_path) as store:
        assert store.failures().num_rows == 0
        store.fail("http://b", "HTTP status 503", permanent=False, attempts=4)
        store.fail("http://b", "HTTP status 404", permanent=True, attempts=1)
        store.fail("http://a", "refused", permanent=True, attempts=1)
        found = store.failure("http://b")
        assert found is not None
        assert (found.reason, found.permanent, found.attempts) == ("HTTP status 404", True, 5)
        assert store.failures().to_pylist() == [
            {"url": "http://a", "reason": "refused", "attempts": 1},
            {"url": "http://b", "reason": "HTTP status 404", "attempts": 5},
        ]
        store.put("http://b", b"picture")
        assert store.failure("http://b") is None
        assert store.failures().column("url").to_pylist() == ["http://a"]


@pytest.mark.parametrize("url", ["http://a/\ud800", "http://a/\0b", "data:" + "x" * 3_000_000])
def test_any_text_can_be_a_url(url: str, tmp_path: Path) -> None:
    with PictureStore(tmp_path) as store:
        store.fail(url, "refused", permanent=True, attempts=1)
        store.fail(url + "y", "refused", permanent=True, attempts=1)
        assert store.failure(url) is not None
        names = store.failures().column("url").to_pylist()
        assert len(set(names)) == 2
        assert max(map(len, names)) < 300


def test_threads_share_a_store_and_processes_a_file(tmp_path: Path) -> None:
    with PictureStore(tmp_path) as one, PictureStore(tmp_path) as other, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: (one if i % 2 else other).put(f"http://{i}", b"%d" % i), range(200)))
        assert [one.get(f"http://{i}") for i in range(200)] == [b"%d" % i for i in range(200)]


def test_a_setting_is_kept_from_the_first_run(tmp_path: Path) -> None:
    with PictureStore(tmp_path) as store:
        assert store.settle("image_size", "256") == "256"
    with PictureStore(tmp_path) as store:
        assert store.settle("image_size", "512") == "256"


def test_a_file_that_is_no_store_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 1000)
    with pytest.raises(OSError, match=r"pictures\.sqlite: file is not a database"):
        PictureStore(tmp_path)


def test_what_was_not_committed_leaves_no_trace(tmp_path: Path) -> None:
    with PictureStore(tmp_path) as store:
        store.put(URL, b"one")
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("DELETE FROM stored")
    connection.close()
    with PictureStore(tmp_path) as store:
        assert store.get(URL) == b"one"
