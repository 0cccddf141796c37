"""Pictures as the world sends them: every odd kind is read right or refused with a reason, whatever the bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from opengcl.data import images
from opengcl.data.images import PictureError, fault, load

# Pillow warns of broken EXIF data, which does not matter here; as an error it would be taken for a broken picture.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HERE = Path()
RED, BLUE = (230, 10, 10), (10, 10, 230)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def halves(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    return encoded(halves(), "JPEG", exif=exif, quality=95)


def broken_exif() -> bytes:
    return encoded(halves(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", quality=95)


def png_of(width: int, height: int) -> bytes:
    """The header of a PNG of any size, and one row of data: a decompression bomb in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(b"\0" * (3 * min(width, 1000) + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


READ: dict[str, tuple[Callable[[], bytes], tuple[int, int]]] = {
    "jpeg": (lambda: encoded(halves(), "JPEG", quality=95), (40, 20)),
    "cmyk": (lambda: encoded(halves().convert("CMYK"), "JPEG", quality=95), (40, 20)),
    "palette": (lambda: encoded(halves().quantize(2), "PNG"), (40, 20)),
    "palette gif": (lambda: encoded(halves(), "GIF"), (40, 20)),
    "alpha": (lambda: encoded(halves().convert("RGBA"), "PNG"), (40, 20)),
    "animated": (
        lambda: encoded(halves(), "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 20))], lossless=True),
        (40, 20),
    ),
    "rotated": (rotated, (20, 40)),
    "broken exif": (broken_exif, (40, 20)),
    "jpeg 2000": (lambda: encoded(halves(), "JPEG2000"), (40, 20)),
    "tiff, bottom up": (lambda: encoded(halves(), "TIFF", compression="tiff_lzw"), (40, 20)),
}


@pytest.mark.parametrize("kind", READ)
def test_odd_kinds_are_read_right(kind: str) -> None:
    make, size = READ[kind]
    picture = load(make(), HERE)
    assert (picture.mode, picture.size) == ("RGB", size)
    assert fault(make(), HERE) is None
    first, last = (0, 0), (size[0] - 1, size[1] - 1)
    assert np.abs(np.array(picture.getpixel(first)) - RED).max() < 40
    assert np.abs(np.array(picture.getpixel(last)) - BLUE).max() < 40


def test_sixteen_bits_become_eight() -> None:
    levels = np.array([[0, 255, 256, 30000, 65535]], dtype=np.uint16)
    picture = load(encoded(Image.fromarray(levels), "PNG"), HERE)
    np.testing.assert_array_equal(np.asarray(picture)[0, :, 0], levels[0] >> 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_one_pixel(kind: str) -> None:
    assert load(encoded(Image.new("RGB", (1, 1), RED), kind), HERE).size == (1, 1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "not a picture"),
        (lambda: b"<html>404</html>", "not a picture"),
        (lambda: encoded(halves((400, 300)), "JPEG")[:900], "cannot be decoded"),
        (lambda: encoded(Image.effect_noise((99, 99), 50), "PNG")[:900], "cannot be decoded"),
        (lambda: png_of(100_000, 100_000), "allowed: up to 50,000,000 pixels"),
        (lambda: png_of(2**31 - 1, 1), "allowed: up to 50,000,000 pixels"),
        (lambda: png_of(0, 10), "not a picture|cannot be decoded"),
        (lambda: encoded(halves(), "PNG") + b"\0" * (33 << 20), "over 33,554,432 bytes"),
        (lambda: encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    ],
    ids=["empty", "html", "cut jpeg", "cut png", "bomb", "wide", "no pixels", "many bytes", "float", "eps"],
)
def test_what_cannot_be_used_is_refused_with_the_reason(make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        load(make(), HERE)
    assert fault(make(), HERE) is not None


SEEDS = [make() for make, _ in READ.values()]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.sampled_from(SEEDS), data=st.data())
def test_spoilt_pictures_are_read_or_refused(seed: bytes, data: st.DataObject) -> None:
    """Bytes of real pictures, overwritten and cut: a picture within the limits or a `PictureError`, nothing else."""
    spoilt = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(spoilt) - 1))
        spoilt[place : place + 2] = data.draw(st.binary(min_size=1, max_size=4))
    spoilt = spoilt[: data.draw(st.integers(0, len(spoilt)))] if data.draw(st.booleans()) else spoilt
    check(bytes(spoilt))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF", b"BM", b"II*\0"]), st.binary()
)
def test_any_bytes_are_read_or_refused(magic: bytes, rest: bytes) -> None:
    check(magic + rest)


def check(data: bytes) -> None:
    told = fault(data, HERE)
    try:
        picture = load(data, HERE, max_pixels=1_000_000)
    except PictureError:
        return
    assert picture.mode == "RGB"
    assert 0 < picture.width * picture.height <= 1_000_000
    assert np.asarray(picture).shape == (picture.height, picture.width, 3)
    assert told is None or isinstance(told, str)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_no_path_leads_out_of_the_folder(path: str) -> None:
    root = Path(__file__).parent
    try:
        found = images.inside(path, root)
    except PictureError:
        return
    assert found.is_relative_to(root.resolve())


def test_the_stamp_changes_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    before = images.stamp("a.png", tmp_path)
    assert before == images.stamp({"bytes": None, "path": "a.png"}, tmp_path) != 0
    (tmp_path / "a.png").write_bytes(b"22")
    assert images.stamp("a.png", tmp_path) != before
    assert images.stamp("gone.png", tmp_path) == images.stamp("../a.png", tmp_path) == images.stamp(b"1", tmp_path) == 0
    assert images.stamp({"bytes": b"1", "path": "a.png"}, tmp_path) == 0
