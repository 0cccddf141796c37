"""Tar archives from outside: only the regular files that a format has are copied out, into a folder of their own."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from opengcl.data.problems import DataSetError, shown

MAX_RATIO = 200
"""Bytes that may come out of one byte of an archive, beyond `FREE_BYTES`: JSON packs to a tenth, images hardly."""

FREE_BYTES = 16 << 20
"""Bytes that may come out whatever the archive's size."""

MAX_MEMBERS = 50_000_000
"""Members that an archive may have; the largest public one of its kind has ten million images."""

_MAX_HEADER = 1 << 20
_MAX_DEPTH = 16
_MAX_NAME = 255
_BLOCK = 1 << 20
_PACKED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda raw: gzip.GzipFile(fileobj=raw)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)


def unpack(archive: Path, into: Path, wanted: Callable[[tuple[str, ...]], bool]) -> tuple[Path, int]:
    """Copies an archive's files into a new folder; on any error the folder is removed.

    Nothing is extracted as it is described: the members' owners, modes and times are not taken over, no member may be a
    link or a device, and each file is made new, so that none is written through or over another one.

    Args:
        archive: A tar file, plain or packed by gzip, bzip2 or xz.
        into: Where the new folder is made.
        wanted: Whether a file belongs to the format, by the parts of its path.

    Returns:
        The new folder, and how many regular files were left out since they do not belong to the format.

    Raises:
        DataSetError: It is no such archive or is damaged, has a link, a device or a path that leads out or comes twice,
            or unpacks to far more than its size.
    """
    into.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="archive-", dir=into))
    try:
        return folder, _copied(archive, folder, wanted)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        raise DataSetError(f"{archive}: cannot be unpacked: {_told(error)}") from error


def _told(error: Exception) -> str:
    if isinstance(error, DataSetError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return f"it is damaged, or no tar archive ({type(error).__name__})"


def _copied(archive: Path, folder: Path, wanted: Callable[[tuple[str, ...]], bool]) -> int:
    left_out = members = 0
    with _opened(archive) as stream, tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined] # or it keeps all of them
            members += 1
            if members > MAX_MEMBERS:
                raise DataSetError(f"it has more than {MAX_MEMBERS:,} members")
            parts = _parts(member)
            if member.isdir():
                continue
            if wanted(parts):
                _copy(tar, member, folder.joinpath(*parts))
            else:
                left_out += 1
    return left_out


def _parts(member: tarfile.TarInfo) -> tuple[str, ...]:
    """The parts of a member's path.

    Raises:
        DataSetError: It is neither a folder nor a plain file, or its path is not one below the archive's own folder.
    """
    named = shown(member.name)
    if not (member.isdir() or member.isreg()) or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "neither a plain file nor a folder"
        raise DataSetError(f"the member {named} is {kind}; allowed: plain files and folders")
    if member.size < 0:
        raise DataSetError(f"the member {named} has a size below 0")
    parts = tuple(part for part in member.name.split("/") if part not in ("", "."))
    bad = member.name.startswith("/") or len(parts) > _MAX_DEPTH or not (parts or member.isdir())
    if bad or any(_is_bad(part) for part in parts):
        raise DataSetError(
            f"the member {named} has a path that is not allowed; allowed: paths inside the archive, without '..', "
            f"backslashes and control characters, of at most {_MAX_DEPTH} parts of {_MAX_NAME} bytes"
        )
    return parts


def _is_bad(part: str) -> bool:
    size = len(part.encode("utf-8", "surrogateescape"))
    return part == ".." or "\\" in part or size > _MAX_NAME or any(ord(sign) < 32 or ord(sign) == 127 for sign in part)


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    source = tar.extractfile(member)
    if source is None:
        raise DataSetError(f"the member {shown(member.name)} has no content")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataSetError(f"the member {shown(member.name)} comes twice, or is a file and a folder") from error
    with source, os.fdopen(handle, "wb") as file:
        left = member.size
        while left:
            block = source.read(min(left, _BLOCK))
            if not block:
                raise DataSetError(f"it ends inside the member {shown(member.name)}")
            file.write(block)
            left -= len(block)


@contextmanager
def _opened(archive: Path) -> Iterator[_Bounded]:
    with archive.open("rb") as raw:
        head = raw.read(8)
        raw.seek(0)
        unpacker = next((unpacker for mark, unpacker in _PACKED if head.startswith(mark)), None)
        most = FREE_BYTES + MAX_RATIO * os.fstat(raw.fileno()).st_size
        yield _Bounded(raw if unpacker is None else unpacker(raw), most)


class _Bounded:
    """An unpacked stream that only goes forward, ends with an error at its limit, and has no huge reads.

    `tarfile` goes where a header's size sends it and reads a whole extended header at once; a size below 0, which
    would send it back for ever, and one of gigabytes are refused here.
    """

    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._most = stream, most
        self._place, self._last = 0, b""
        self._again = False

    def tell(self) -> int:
        return self._place - self._again

    def seek(self, place: int) -> None:
        ahead = place - self.tell()
        if ahead == -1 and self._last:  # tarfile steps back by one byte, to see whether the last one is there
            self._again = True
            return
        if ahead < 0:
            raise DataSetError("a header sends its reader back")
        while ahead > 0:
            block = self.read(min(ahead, _BLOCK))
            if not block:
                return
            ahead -= len(block)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise DataSetError(f"a header of more than {_MAX_HEADER:,} bytes")
        if not size:
            return b""
        head, self._again = self._last if self._again else b"", False
        found: bytes = self._stream.read(size - len(head))
        self._place += len(found)
        if self._place > self._most:
            raise DataSetError(
                f"it unpacks to more than {MAX_RATIO} times its size; unpack it yourself and import the folder, if you "
                "trust it"
            )
        found = head + found
        self._last = found[-1:] or self._last
        return found
