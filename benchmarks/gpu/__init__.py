"""One prepared run that measures what a GPU can tell: ``python -m benchmarks.gpu --out FOLDER``.

A module of a section is called ``run(record, setting)``; it adds rows to its own JSON file and stops when its time is
up. Sections run one after the other, in order of worth, each in a process of its own, so that an error, a full memory
or a hang costs one section at most; each row is on the disk as soon as it is measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Size = Literal["full", "check"]


@dataclass(frozen=True)
class Section:
    """A part of the run.

    Attributes:
        name: Of its module and its result file.
        share: Of the whole time. What a section does not use is divided among those after it, in these proportions.
        title: What it measures.
    """

    name: str
    share: float
    title: str


SECTIONS = (
    Section("ceilings", 3, "Ceilings: matrix products and copies"),
    Section("loss", 12, "The loss, forward and backward"),
    Section("steps", 17, "Training steps of ViT-B/32's size"),
    Section("pictures", 16, "Decoding, the input of training, and bulk encoding"),
    Section("text", 10, "A text model fine-tuned on pairs"),
    Section("search", 7, "Exact search"),
    Section("truth", 11, "The same numbers on CPU and GPU, and after a kill"),
    Section("fashion", 24, "CLIP, the paper's form and ours on fashion-small"),
)
"""In order of worth. Their files are all that a run leaves, at most eight."""


@dataclass(frozen=True)
class Setting:
    """What a section is given.

    Attributes:
        device: ``cuda`` or ``cpu``.
        size: ``full`` for figures; ``check`` runs every line at sizes that take seconds on one core.
        deadline: When the section must have ended, on `time.monotonic`'s clock.
        scratch: A folder of its own, removed afterwards.
        fashion: The folder of fashion-small, where it is there.
    """

    device: str
    size: Size
    deadline: float
    scratch: Path
    fashion: Path | None = None

    @property
    def full(self) -> bool:
        """Whether figures are wanted."""
        return self.size == "full"

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device == "cuda"

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()
