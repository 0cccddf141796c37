"""What the card can do at best: matrix products by number format, and copies on the card and from the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from benchmarks.gpu import Setting
from benchmarks.gpu.measure import measure, tf32
from benchmarks.gpu.record import Record, Row

REPEATS = 7


def run(record: Record, setting: Setting) -> None:
    """Products of random numbers (zeros are faster), then copies of a block that no cache holds."""
    side = 8_192 if setting.full else 64
    for name, dtype, fast in (
        ("bf16", torch.bfloat16, False),
        ("float32", torch.float32, False),
        ("float32 by TF32", torch.float32, True),
        ("fp16", torch.float16, False),
    ):
        record.piece(f"product, {name}", _product(setting, side, dtype, fast), needs=1, side=side, flop=2 * side**3)
    # The shape of a tile of the loss: rows of a batch times the width of the vectors.
    rows, columns, width = (512, 32_768, 512) if setting.full else (16, 64, 32)
    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        record.piece(
            f"tile of the loss, {name}",
            _tile(setting, (rows, columns, width), dtype),
            needs=1,
            shape=[rows, columns, width],
            flop=2 * rows * columns * width,
        )
    numbers = 1 << 30 if setting.full else 1 << 16
    record.piece("copy on the device", _copy(setting, numbers), needs=1, bytes=2 * 4 * numbers)
    numbers = 1 << 28 if setting.full else 1 << 16
    for name, pinned in (("pageable", False), ("pinned", True)):
        if setting.on_gpu:
            record.piece(
                f"copy from the host, {name}", _from_host(numbers, pinned, setting), needs=1, bytes=4 * numbers
            )
        else:
            record.skip(f"copy from the host, {name}", "there is no GPU to copy to")
    record.piece("a launch", _launch(setting), needs=1)


def _product(setting: Setting, side: int, dtype: torch.dtype, fast: bool) -> Callable[[Row], None]:
    def work(row: Row) -> None:
        one, other = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
        into = torch.empty_like(one)
        with tf32(fast):
            measure(row, lambda: torch.mm(one, other, out=into), setting, repeats=REPEATS, warm_up=3, inner=5)

    return work


def _tile(setting: Setting, shape: tuple[int, int, int], dtype: torch.dtype) -> Callable[[Row], None]:
    def work(row: Row) -> None:
        rows, columns, width = shape
        one = torch.randn(rows, width, device=setting.device).to(dtype)
        other = torch.randn(columns, width, device=setting.device).to(dtype)
        into = torch.empty(rows, columns, device=setting.device, dtype=dtype)
        measure(row, lambda: torch.mm(one, other.T, out=into), setting, repeats=REPEATS, warm_up=3, inner=20)

    return work


def _copy(setting: Setting, numbers: int) -> Callable[[Row], None]:
    def work(row: Row) -> None:
        source = torch.randn(numbers, device=setting.device)
        into = torch.empty_like(source)
        measure(row, lambda: into.copy_(source), setting, repeats=REPEATS, warm_up=3, inner=3)

    return work


def _from_host(numbers: int, pinned: bool, setting: Setting) -> Callable[[Row], None]:
    def work(row: Row) -> None:
        source = torch.randn(numbers)
        source = source.pin_memory() if pinned else source
        into = torch.empty(numbers, device=setting.device)
        measure(row, lambda: into.copy_(source, non_blocking=pinned), setting, repeats=REPEATS)

    return work


def _launch(setting: Setting) -> Callable[[Row], None]:
    def work(row: Row) -> None:
        one = torch.ones(1, device=setting.device)
        measure(row, lambda: one.add_(1), setting, repeats=REPEATS, warm_up=20, inner=1_000)

    return work
