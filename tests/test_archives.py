"""Archives from outside, made here: what leads out, is no plain file, or is a bomb is refused and leaves nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opengcl.data import DataSetError
from opengcl.sources import archives
from opengcl.sources.archives import unpack
from opengcl.sources.formats import SourceOptions, open_source

CORPUS = "shop/corpus_1.json"


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload] # the mode is a parameter
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def everything(_parts: tuple[str, ...]) -> bool:
    return True


def refused(path: Path, folder: Path, match: str) -> None:
    before = sorted(folder.rglob("*"))
    into = folder / "deep" / "into"
    into.mkdir(parents=True)
    with pytest.raises(DataSetError, match=match) as caught:
        unpack(path, into, everything)
    assert str(caught.value).startswith(f"{path}: cannot be unpacked: ")
    assert len(str(caught.value)) < 600
    assert not list(into.iterdir())
    assert [one for one in sorted(folder.rglob("*")) if one not in (into, into.parent)] == before


def escape_by_a_long_chain(path: Path) -> Path:
    """CVE-2025-4517: folder links that resolve to more than PATH_MAX, and a way up behind them."""
    step = "d" * 247
    members, place = [], ""
    for letter in "abcdefghijklmnop":
        members.append((entry(f"{place}{step}", tarfile.DIRTYPE), b""))
        members.append((entry(f"{place}{letter}", tarfile.SYMTYPE, step), b""))
        place = f"{place}{step}/"
    links = "/".join("abcdefghijklmnop")
    members.append((entry(links + "/" + "l" * 254, tarfile.SYMTYPE, "../" * 16), b""))
    members.append((entry("escape", tarfile.SYMTYPE, links + "/" + "l" * 254 + "/../.."), b""))
    members.append((entry("escape/escaped.txt"), b"bad"))
    return archive(path, *members)


def test_the_chain_of_links_does_not_get_out(tmp_path: Path) -> None:
    refused(escape_by_a_long_chain(tmp_path / "chain.tar"), tmp_path, "a link; allowed: plain files and folders")


@pytest.mark.parametrize(
    "name",
    ["../out", "a/../../out", "/etc/out", "a/..", "a\\..\\out", "a\x1bb", "a\nb", "a/" * 20 + "b", "n" * 256, ".", "/"],
)
def test_a_path_that_is_not_inside_is_refused(tmp_path: Path, name: str) -> None:
    refused(archive(tmp_path / "bad.tar", (entry(name), b"bad")), tmp_path, "path that is not allowed")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.FIFOTYPE, "neither a plain file nor a folder"),
        (tarfile.CHRTYPE, "neither a plain file nor a folder"),
        (tarfile.BLKTYPE, "neither a plain file nor a folder"),
        (tarfile.GNUTYPE_SPARSE, "neither a plain file nor a folder"),
    ],
)
@pytest.mark.parametrize("link", ["corpus_2.json", "../../secret", "/etc/passwd"])
def test_links_devices_and_sparse_files_are_refused(tmp_path: Path, kind: bytes, told: str, link: str) -> None:
    path = archive(tmp_path / "bad.tar", (entry(CORPUS), b"{}"), (entry("shop/x.jpg", kind, link), b""))
    refused(path, tmp_path, told)


def test_a_member_that_comes_twice_or_is_file_and_folder_is_refused(tmp_path: Path) -> None:
    refused(archive(tmp_path / "a.tar", (entry("x"), b"1"), (entry("./x"), b"2")), tmp_path, "comes twice")
    refused(
        archive(tmp_path / "b.tar", (entry("x"), b"1"), (entry("x/y"), b"2")), tmp_path / "b", "a file and a folder"
    )


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, mode: str) -> None:
    path = archive(tmp_path / "bomb.tar", (entry(CORPUS), bytes(40 << 20)), mode=mode)
    assert path.stat().st_size < 100_000
    refused(path, tmp_path, f"more than {archives.MAX_RATIO} times its size")


def test_a_bomb_in_a_member_that_is_not_wanted_is_refused_too(tmp_path: Path) -> None:
    path = archive(tmp_path / "bomb.tar", (entry("other.bin"), bytes(40 << 20)), mode="w:gz")
    with pytest.raises(DataSetError, match="times its size"):
        unpack(path, tmp_path / "into", lambda _: False)


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    refused(archive(tmp_path / "many.tar", *((entry(f"f{i}"), b"") for i in range(4))), tmp_path, "more than 3 members")


def header(size: bytes, kind: bytes = b"0", name: bytes = b"x.jpg") -> bytes:
    """A tar header with a size field of its own."""
    start = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0") + b"00000000000\0"
    rest = kind + bytes(100) + b"ustar\x0000" + bytes(247)
    total = sum(start) + 8 * 32 + sum(rest)
    return start + f"{total:06o}\0 ".encode() + rest


@pytest.mark.parametrize("size", [-512, -1024, -(1 << 40)])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"g"])
def test_a_size_below_zero_does_not_loop(tmp_path: Path, size: int, kind: bytes) -> None:
    path = tmp_path / "loop.tar"
    path.write_bytes(header(b"\xff" + size.to_bytes(11, "big", signed=True), kind) * 3 + bytes(1024))
    refused(path, tmp_path, "below 0|sends its reader back|a header of more|damaged")


def test_an_extended_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "pax.tar.gz"
    path.write_bytes(gzip.compress(header(b"77777777777", b"x") + bytes(8 << 20), 1))
    refused(path, tmp_path, "a header of more than")


def test_a_chain_of_extended_headers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chain.tar"
    path.write_bytes(header(b"00000000000", b"x") * 4000 + bytes(1024))
    refused(path, tmp_path, "damaged")


@pytest.mark.parametrize("cut", [1, 300, 600, 1100])
def test_a_cut_archive_is_refused(tmp_path: Path, cut: int) -> None:
    path = archive(tmp_path / "cut.tar", (entry("a.jpg"), b"x" * 400), (entry("b.jpg"), b"y" * 4000))
    path.write_bytes(path.read_bytes()[: 1024 + 512 + cut])
    refused(path, tmp_path, "it ends inside|damaged")


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.write_bytes(os.urandom(4096)), lambda path: path.mkdir()]
)
def test_what_is_no_archive_is_one_sentence(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    path = tmp_path / "no.tar"
    make(path)
    with pytest.raises(DataSetError):
        open_source("marqo", str(path), SourceOptions(work=tmp_path / "work")).describe()


def test_files_of_the_format_come_out_as_they_are_and_others_are_counted(tmp_path: Path) -> None:
    query = "query,product_id,score_linear\nred,p1,100\n"
    members = {CORPUS: "{}", "shop/corpus_2.json": "{}", "shop/query_0_product_id_0.csv": query}
    members |= {"shop/images/p1": "image", "shop/p2.JPG": "image", "shop/setup.py": "code", "shop/README.md": "text"}
    files = [(entry(f"./{name}"), text.encode()) for name, text in members.items()]
    files[0][0].mode = 0o7777
    path = archive(tmp_path / "good.tar.xz", (entry("shop/", tarfile.DIRTYPE), b""), *files, mode="w:xz")
    source = open_source("marqo", str(path), SourceOptions(work=tmp_path / "work"))
    folder = source.describe().picture_root
    assert folder is not None
    found = {str(one.relative_to(folder)): one.read_text() for one in folder.rglob("*") if one.is_file()}
    assert found == {name.removeprefix("shop/"): text for name, text in members.items() if text not in ("code", "text")}
    assert (folder / "corpus_1.json").stat().st_mode & 0o7111 == 0
    assert any("2 files of the archive left out" in note for note in source.describe().notes)


def test_a_second_archive_never_meets_the_members_of_a_first(tmp_path: Path) -> None:
    """A failed import leaves nothing that the next one could take for its own."""
    work = tmp_path / "work"
    good = json.dumps({"p1": {"title": "old"}}).encode()
    first = archive(tmp_path / "1.tar", (entry("a/corpus_1.json"), good), (entry("a/x", tarfile.SYMTYPE, "/"), b""))
    with pytest.raises(DataSetError, match="a link"):
        open_source("marqo", str(first), SourceOptions(work=work))
    assert not list(work.iterdir())
    second = archive(tmp_path / "2.tar", (entry("b/corpus_2.json"), b"{}"))
    with pytest.raises(DataSetError, match=r"no corpus_1\.json"):
        open_source("marqo", str(second), SourceOptions(work=work))
    assert not list(work.iterdir())


def test_the_header_made_here_is_one() -> None:
    assert tarfile.TarInfo.frombuf(header(b"00000000017"), "utf-8", "strict").size == struct.calcsize("15s")
