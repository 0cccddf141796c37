"""Pictures from requests, hostile until decoded; and small ones for the page."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from opengcl.data import images
from opengcl.serve.errors import ApiError

Made = TypeVar("Made")
_NOWHERE = Path("/nonexistent")  # bytes are decoded, never a path from a request


def decode_base64(text: str, field: str, limit: int) -> bytes:
    """The bytes of a picture's file, from base64 or a ``data:`` URL.

    Raises:
        ApiError: 413 over ``limit`` bytes, 422 where it is not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if len(text) * 3 // 4 > limit + 2:
        raise too_large(field, limit)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(422, "found something that is not base64; allowed: a picture's file in base64", field) from None
    if len(data) > limit:
        raise too_large(field, limit)
    return data


def too_large(field: str, limit: int) -> ApiError:
    """A picture with too many bytes."""
    return ApiError(413, f"the picture is over {limit:,} bytes, the limit", field)


class PictureThreads:
    """Decodes pictures off the event loop, a few at a time, so that memory holds few that are unpacked.

    Args:
        threads: How many at a time.
        max_pixels: Of a picture in a request.
    """

    def __init__(self, threads: int, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")

    async def decode(self, data: bytes, field: str, make: Callable[[Image.Image], Made]) -> Made:
        """What ``make`` makes of the decoded picture, in the same thread, so that only the result is kept.

        Raises:
            ApiError: 422 for bytes that are not a picture we read, or with too many pixels.
        """
        return await self._run(lambda: make(_decoded(data, field, self._max_pixels)))

    async def thumbnail(self, cell: images.Cell, root: Path, size: int) -> bytes:
        """A picture of a data set as JPEG, at most ``size`` pixels wide and high.

        Raises:
            ApiError: 404 where it cannot be read.
        """
        return await self._run(lambda: _thumbnail(cell, root, size))

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    async def _run(self, work: Callable[[], Made]) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def content_key(data: bytes) -> str:
    """Hash of a picture's file, by which its vector is kept."""
    return hashlib.sha256(data).hexdigest()


def _decoded(data: bytes, field: str, max_pixels: int) -> Image.Image:
    try:
        return images.load(data, _NOWHERE, max_pixels=max_pixels)
    except images.PictureError as error:
        raise ApiError(422, f"the picture cannot be used: {error}", field) from None


def _thumbnail(cell: Any, root: Path, size: int) -> bytes:
    try:
        picture = images.load(cell, root)
    except images.PictureError:
        raise ApiError(404, "this document's picture cannot be read") from None
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85, optimize=True)
    return out.getvalue()
