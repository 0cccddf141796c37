"""Reading pictures: from bytes, data URIs or files inside the data set's folder, always as upright RGB."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from opengcl.data.problems import shown

MAX_PIXELS = 50_000_000
"""Pictures with more pixels are refused from their header, before anything is decoded."""

MAX_BYTES = 32 << 20
"""Pictures with more bytes are refused before they are opened."""

# Formats that Pillow decodes itself. Left out on purpose: EPS and others that start an external program.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

_CHECK_SCALE = 8
_LONGEST_HEAD = 1000
_URL_SAFE = str.maketrans("-_", "+/")


class PictureError(ValueError):
    """A picture that cannot be used, with the reason; the caller adds which picture."""


Cell = bytes | str | dict[str, Any]
"""What an image column holds: a file's bytes, a path, a data URI, or Hugging Face's ``{"bytes": ..., "path": ...}``."""


def load(cell: Cell, root: Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes one picture.

    Rotated as its EXIF data says and converted to RGB: palettes and CMYK are resolved, 16 bits become 8,
    transparent parts are laid on white, and of an animation the first frame is taken.

    Args:
        cell: A value of an image column.
        root: The data set's folder, which paths are relative to.
        max_pixels: A lower limit of pixels, where many are decoded at once.

    Raises:
        PictureError: If it cannot be read, is not a picture, or is over ``max_pixels`` or `MAX_BYTES`.
    """
    data = read(cell, root)
    try:
        with _open(data, max_pixels) as image:
            image.load()
            return _to_rgb(_upright(image))
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on broken data
        raise PictureError(_reason(error)) from error


def fault(cell: Cell, root: Path) -> str | None:
    """Why a picture cannot be used, or None: `load` at a fraction of its cost.

    JPEG files are decoded at an eighth of their size, which still reads the whole file.
    """
    try:
        with _open(read(cell, root)) as image:
            if image.mode == "F":
                return _FLOAT_PIXELS
            small = (max(1, image.width // _CHECK_SCALE), max(1, image.height // _CHECK_SCALE))
            image.draft(None, small)
            image.load()
    except Exception as error:
        return _reason(error)
    return None


def stamp(cell: Cell, root: Path) -> int:
    """Changes with the size or time of the file that a cell names: 64 bits; 0 for bytes, and where there is no file."""
    path = cell if isinstance(cell, str) else None
    if isinstance(cell, dict) and not cell.get("bytes"):
        path = cell.get("path")
    if path is None or is_data_uri(path):
        return 0
    try:
        found = inside(path, root).stat()
    except (PictureError, OSError):
        return 0
    digest = hashlib.blake2b(f"{found.st_size} {found.st_mtime_ns}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def read(cell: Cell, root: Path) -> bytes:
    """The bytes of a picture's file.

    Raises:
        PictureError: If a path leaves `root`, a file or a data URI cannot be read, or it is over `MAX_BYTES`.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path") or b""
    if isinstance(cell, str):
        data = _of_data_uri(cell) if is_data_uri(cell) else _read_file(inside(cell, root))
    else:
        data = cell
    if len(data) > MAX_BYTES:
        raise PictureError(f"over {MAX_BYTES:,} bytes, the limit")
    return data


def is_data_uri(text: str) -> bool:
    """Whether a text holds a picture itself, ``data:image/png;base64,...`` (RFC 2397)."""
    return text.lstrip()[:5].lower() == "data:"


def _of_data_uri(text: str) -> bytes:
    """The bytes in a data URI, base64 or percent-encoded.

    Raises:
        PictureError: It is over `MAX_BYTES`, says that it is no picture, or cannot be decoded.
    """
    if len(text) > 3 * MAX_BYTES + _LONGEST_HEAD:  # percent signs take three characters a byte
        raise PictureError(f"a data URI of over {MAX_BYTES:,} bytes, the limit")
    head, comma, body = text.strip().partition(",")
    kind, *parameters = head[5:].lower().split(";")
    if not comma or len(head) > _LONGEST_HEAD:
        raise PictureError(f"{shown(head)} is no data URI; allowed: data:image/png;base64,... and the like")
    if kind and not kind.strip().startswith("image/"):
        raise PictureError(f"a data URI of type {shown(kind)}; allowed: image/png, image/jpeg and the like")
    if "base64" not in [one.strip() for one in parameters]:
        return unquote_to_bytes(body)
    if len(body) > MAX_BYTES * 3 // 2:
        raise PictureError(f"a data URI of over {MAX_BYTES:,} bytes, the limit")
    try:
        whole = "".join(unquote(body).split()).translate(_URL_SAFE)
        return base64.b64decode(whole + "=" * (-len(whole) % 4), validate=True)
    except ValueError as error:
        raise PictureError(f"a data URI whose base64 is broken: {error}") from error


def inside(path: str, root: Path) -> Path:
    """The file that a relative path names, once it is sure that it lies inside `root`.

    Raises:
        PictureError: If the path is absolute, has a ``..``, or leads outside through a link.
    """
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor:
        raise PictureError(f"path {shown(path)} is absolute; allowed: relative to the data set's folder")
    if ".." in PurePosixPath(path).parts or ".." in PureWindowsPath(path).parts:
        raise PictureError(f"path {shown(path)} has a '..'; allowed: inside the data set's folder")
    if path.lstrip()[:8].lower().startswith(("http://", "https://")):
        raise PictureError(f"{shown(path)} is a URL; allowed: a path (opengcl data import fetches pictures)")
    try:
        real = (root / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise PictureError(f"path {shown(path)} cannot be followed: {reason}") from error
    if not real.is_relative_to(root.resolve()):
        raise PictureError(f"path {shown(path)} leaves the data set's folder through a link; allowed: inside it")
    return real


def _read_file(path: Path) -> bytes:
    """At most one byte over the limit, so that a wrong path to a huge file costs nothing."""
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a name is too long
        raise PictureError(f"no file {str(path)[:500]}")
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PictureError(f"file {path} cannot be read: {os.strerror(error.errno or 0)}") from error


def _open(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads a picture's header only, and refuses too many pixels."""
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{error}; allowed: up to {max_pixels:,} pixels") from error
    if image.width * image.height > max_pixels:
        raise PictureError(f"{image.width} x {image.height} pixels; allowed: up to {max_pixels:,} pixels")
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # broken EXIF data says nothing about the picture itself
        ImageOps.exif_transpose(image, in_place=True)
    return image


_FLOAT_PIXELS = "floating-point pixels; allowed: 8 or 16 bits a channel"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise PictureError(_FLOAT_PIXELS)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray(_high_byte(image)).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_byte(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """16-bit grey levels as 8 bits. Pillow would clip them at 255 instead."""
    return (np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, PictureError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture in a known format ({', '.join(_formats())})"
    return f"cannot be decoded: {error or type(error).__name__}"
