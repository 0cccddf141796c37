"""A picture as an encoder reads it, in two steps: 8-bit pixels, and the float that stands for each of them.

The usual image processors resize and crop 8-bit pixels, and then rescale and normalise each pixel by itself. So the
pixels can be kept in a byte each, and a table of 256 floats a channel gives the encoder's own values back, bit for bit.
Whether an encoder's processor is of that kind, and its table, is found by asking it; no list of processors is kept.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import Float, UInt8
from PIL import Image, features
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension

Pixels = UInt8[np.ndarray, "channels height width"]
# Of noise, any two ways to resize and crop make something different: wide, tall, square, small, one pixel.
_TRIAL_SIZES = ((97, 61), (61, 97), (333, 256), (256, 256), (30, 500), (5, 4), (1, 1))
_LEVELS_AT_ONCE = 32
logger = logging.getLogger(__name__)


class NotPixelsError(ValueError):
    """An encoder whose picture features are not 8-bit pixels through a table; the message says in which way."""


class PixelForm:
    """What an encoder's image processor does.

    Attributes:
        shape: Channels, height and width of every picture's features.
        identity: Changes with what the processor makes of a few pictures, and with what decodes pictures: 24 hex
            digits.
        rest: What the encoder's ``preprocess`` gives beside ``pixel_values``.
    """

    def __init__(self, encoder: SentenceTransformer, *, task: str | None = None) -> None:
        """Learns it from some three hundred small pictures, in less than a second.

        Args:
            encoder: Whose processor it is.
            task: ``query`` or ``document``, for an encoder that has a route for each; its default when not given.

        Raises:
            NotPixelsError: The features are not of that kind.
        """
        self._encoder, self._task = encoder, {} if task is None else {"task": task}
        self.rest, self.shape = self._ask_form()
        self._table = self._ask_table()
        self._order = np.argsort(self._table, axis=1)
        trials = list(_trial_pictures())
        expected = [self._through_the_processor(trial) for trial in trials]
        self._quick = self._quick_way(trials, expected)
        decoders = [PIL.__version__, *(str(features.version(name)) for name in ("libjpeg_turbo", "jpg", "zlib"))]
        digest = hashlib.blake2b("\n".join(decoders).encode(), digest_size=12)
        for part in (self._table, *expected):
            digest.update(part.tobytes())
        self.identity = digest.hexdigest()

    def pixels(self, picture: Image.Image) -> Pixels:
        """The bytes to keep of an RGB picture.

        Raises:
            NotPixelsError: The processor made something else of this picture than of those it was learnt from.
        """
        return self._quick(picture) if self._quick is not None else self._through_the_processor(picture)

    def floats(self, pixels: UInt8[np.ndarray, "rows channels height width"]) -> Float[Tensor, "rows c h w"]:
        """What the encoder's ``preprocess`` gives as ``pixel_values``, float32, bit for bit."""
        values = np.empty(pixels.shape, dtype=np.float32)
        # NumPy's, a channel at a time, takes a quarter of the time of torch's index_select, which wants wide indices.
        for picture, into in zip(pixels, values, strict=True):
            for channel, table in enumerate(self._table):
                np.take(table, picture[channel], out=into[channel], mode="clip")  # no byte is out of range
        return torch.from_numpy(values)

    def _ask_form(self) -> tuple[dict[str, Any], tuple[int, int, int]]:
        made = dict(self._encoder.preprocess([Image.new("RGB", (64, 64))], **self._task))
        tensors = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        values = tensors.get("pixel_values")
        if values is None or len(tensors) > 1 or values.ndim != 4 or len(values) != 1:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items()) or "no tensor"
            raise NotPixelsError(f"features are {shapes}; expected pixel_values (1, channels, height, width)")
        if values.dtype != torch.float32:
            raise NotPixelsError(f"pixel_values are {values.dtype}; expected torch.float32")
        channels, height, width = values.shape[1:]
        return {name: made[name] for name in made if name not in tensors}, (channels, height, width)

    def _values(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "rows c h w"]:
        values = self._encoder.preprocess(list(pictures), **self._task)["pixel_values"].numpy()
        if values.shape[1:] != self.shape:
            raise NotPixelsError(f"pixel_values have shape {values.shape[1:]} and {self.shape}; expected one for all")
        return np.asarray(values)

    def _ask_table(self) -> Float[np.ndarray, "channels levels"]:
        """What each of the 256 levels becomes, from pictures of one level."""
        table = []
        for start in range(0, 256, _LEVELS_AT_ONCE):
            levels = range(start, start + _LEVELS_AT_ONCE)
            values = self._values([Image.new("RGB", self.shape[:0:-1], (level,) * 3) for level in levels])
            table.append(values[:, :, self.shape[1] // 2, self.shape[2] // 2])  # not the border, which may be padding
        found = np.ascontiguousarray(np.concatenate(table).T)
        if any(len(np.unique(channel)) < 256 for channel in found):
            raise NotPixelsError("two of the 256 levels of a channel get the same pixel_values")
        return found

    def _through_the_processor(self, picture: Image.Image) -> Pixels:
        """The levels that the encoder's own values stand for."""
        values = self._values([picture])[0]
        levels = np.empty(self.shape, dtype=np.uint8)
        for channel, (order, table) in enumerate(zip(self._order, self._table, strict=True)):
            place = np.searchsorted(table[order], values[channel]).clip(max=255)
            levels[channel] = order[place]
            if not np.array_equal(table[levels[channel]], values[channel]):
                raise NotPixelsError("pixel_values are not among those of the 256 levels")
        return levels

    def _quick_way(self, trials: list[Image.Image], expected: list[Pixels]) -> Callable[[Image.Image], Pixels] | None:
        """The same without the detours through arrays, where it gives the same on every trial picture."""
        processor = _image_processor(self._encoder)
        if processor is None:
            return None
        quick = _Resize(processor)
        for trial, right in zip(trials, expected, strict=True):
            if not quick.knows or not np.array_equal(quick(trial), right):
                logger.info("%s is asked picture by picture: no shorter way to its pixels", type(processor).__name__)
                return None
        return quick


class _Resize:
    """Resizes and crops as Transformers' `PilBackend` does, on the picture itself."""

    def __init__(self, processor: PilBackend) -> None:
        self._processor, size = processor, processor.size
        self._edge = size.shortest_edge if size and not size.longest_edge else None
        self._fixed = (size.width, size.height) if size and not size.shortest_edge and size.width else None
        self.knows = bool(processor.do_resize and not processor.do_pad and (self._edge or self._fixed))

    def __call__(self, picture: Image.Image) -> Pixels:
        resized = picture.resize(self._size(picture), resample=self._processor.resample)
        pixels = np.asarray(resized).transpose(2, 0, 1)
        if self._processor.do_center_crop:
            pixels = self._processor.center_crop(pixels, self._processor.crop_size)
        return np.ascontiguousarray(pixels)

    def _size(self, picture: Image.Image) -> tuple[int, int]:
        if self._fixed is not None:
            return self._fixed
        shape = np.broadcast_to(np.uint8(0), (3, picture.height, picture.width))  # takes no memory
        height, width = get_resize_output_image_size(
            shape, size=self._edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )
        return width, height


def _image_processor(encoder: SentenceTransformer) -> PilBackend | None:
    """The one Pillow processor of an encoder, if nothing but its settings makes it differ from `PilBackend`."""
    processors = [getattr(module, "processor", None) for module in encoder.modules()]
    processors = [getattr(processor, "image_processor", processor) for processor in processors]
    found = list({id(processor): processor for processor in processors if isinstance(processor, PilBackend)}.values())
    own = ("preprocess", "_preprocess", "process_image", "resize", "center_crop")
    if len(found) != 1 or any(getattr(type(found[0]), name) is not getattr(PilBackend, name) for name in own):
        return None
    return found[0]


def _trial_pictures() -> Iterator[Image.Image]:
    generator = np.random.default_rng(0)
    for width, height in _TRIAL_SIZES:
        yield Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
