"""One writer a folder: between processes, between threads, after a kill, and where another one removed the lock."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opengcl.cli import app
from opengcl.data.synthetic import make_shop
from opengcl.only_writer import FolderBusyError, only_writer

HOLD = """
import sys, pathlib
from typer.testing import CliRunner

from opengcl.cli import app
from opengcl.data.synthetic import make_shop
from opengcl.only_writer import only_writer
with only_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=-1, stdout=-1, text=True)
    assert child.stdin
    assert child.stdout
    assert child.stdout.readline() == "held\n"
    link = tmp_path / "link"
    link.symlink_to(folder)
    for name in (folder, tmp_path / "x" / ".." / "shop", link):
        with (
            pytest.raises(FolderBusyError, match="another process is writing here; wait for its end"),
            only_writer(name),
        ):
            pass
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert (tmp_path / ".shop.lock").exists()  # it was killed; the lock ended with it
    with only_writer(folder):
        pass
    assert not (tmp_path / ".shop.lock").exists()


def test_another_thread_is_refused_and_the_same_one_is_not(tmp_path: Path) -> None:
    found: list[str] = []

    def other() -> None:
        try:
            with only_writer(tmp_path / "shop"):
                found.append("entered")
        except FolderBusyError:
            found.append("busy")

    def run() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with only_writer(tmp_path / "shop"):
        with only_writer(tmp_path / "shop"):
            run()
        run()
        with only_writer(tmp_path / "shop2"):
            pass
    run()
    assert found == ["busy", "busy", "entered"]


def test_only_one_of_many_threads_is_inside(tmp_path: Path) -> None:
    inside, most, entered = [0], [0], [0]

    def work() -> None:
        for _ in range(200):
            try:
                with only_writer(tmp_path / "shop"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    entered[0] += 1
                    inside[0] -= 1
            except FolderBusyError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert entered[0] > 0


def test_the_lock_is_no_link_to_another_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / ".shop.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"), only_writer(tmp_path / "shop"):
        pass
    assert victim.read_text() == "kept"


def test_every_command_that_writes_a_folder_takes_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shop_words: dict[str, list[str]]
) -> None:
    """Each is refused in a sentence and makes nothing while another process is at work."""
    monkeypatch.setenv("OPENGCL_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdin=-1, stdout=-1, text=True)
    assert child.stdin
    assert child.stdout
    assert child.stdout.readline() == "held\n"
    for name, words in shop_words.items():
        found = CliRunner().invoke(app, [word.replace("OUT", str(out)) for word in words])
        assert isinstance(found.exception, FolderBusyError), (name, found.output, found.exception)
        assert not out.exists(), name
    child.communicate("")


@pytest.fixture
def shop_words(tmp_path: Path) -> dict[str, list[str]]:
    """A command of each kind, on a small shop."""
    shop, table, log = tmp_path / "shop", tmp_path / "t.csv", tmp_path / "log.csv"
    make_shop(shop, products=60, queries=20, seed=0)
    table.write_text("query,product_id,title,score\na,1,x,1\nb,2,y,2\n")
    log.write_text("query,document,position,event,session\na,1,1,impression,s\n")
    return {
        "import": ["data", "import", str(table), "--out", "OUT"],
        "from-logs": ["data", "from-logs", str(log), "--documents", str(shop), "--out", "OUT"],
        "split": ["data", "split", str(shop), "--out", "OUT"],
        "sample": ["data", "sample", str(shop), "--out", "OUT", "--queries", "5"],
        "quickstart": ["quickstart", "--out", "OUT"],
        "encode": ["encode", "no-run", "--data", str(shop), "--out", "OUT"],
        "index build": ["index", "build", "no-run", "--data", str(shop), "--store", "exact:OUT"],
    }
