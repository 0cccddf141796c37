"""What training and encoding cost on other machines: ``python -m benchmarks.speed.cost_model``.

A step takes as long as the slower of its computing and its input. Computing is the encoder's and the loss's operations
over the rate of those, the optimiser's bytes over the memory's, and what is sent over the links' bandwidth; nothing of
it is taken to overlap. Rates are fitted to what `benchmarks.speed` measured on a CPU, and checked on measurements that
the fit has not seen. For GPUs, of which none was measured, the rates are stated assumptions (`Machine`), while what the
host does for a picture and a pair is as measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.loss_ranks import LARGE, STRONG, WEAK, WIDTH
from benchmarks.speed.pictures import DOCUMENTS as PICTURES

RESULTS = Path(__file__).parents[1] / "results" / "speed"
BACKWARD = 2.0  # times the forward pass
ADAMW_BYTES = 28.0  # a parameter: weight, gradient and two moments read; weight and moments written; float32
KEPT_FROM = 2**25  # logits of a rank up to which they are kept: three products, above it four


@dataclass(frozen=True)
class Tower:
    """A transformer of a CLIP."""

    width: int
    layers: int
    tokens: int
    patch: int = 0  # pixels of a patch's side; 0 for text
    inner: int = 4  # how many times as wide a layer is inside

    def forward(self, tokens: float | None = None) -> float:
        """Operations of one row: (8 + 4 inner) w^2 + 4 w t a token and layer, t tokens of width w, and the patches."""
        t, w = tokens or self.tokens, self.width
        return self.layers * t * ((8 + 4 * self.inner) * w * w + 4 * w * t) + 2 * t * w * 3 * self.patch**2

    def activations(self, tokens: float | None = None) -> float:
        """Bytes kept of one row for the backward pass, in 16 bits (34 w a token and layer, Korthikanti et al. 2022)."""
        return 34.0 * self.layers * (tokens or self.tokens) * self.width


@dataclass(frozen=True)
class Clip:
    """Both towers, the parameters of all, and the width of the vectors."""

    image: Tower
    text: Tower
    parameters: float
    vector: int


TINY = Clip(Tower(128, 2, 17, 16, inner=2), Tower(128, 1, 32, inner=2), 0.6e6, 128)
VIT_B32 = Clip(Tower(768, 12, 50, 32), Tower(512, 12, 77), 151e6, 512)
VIT_L14 = Clip(Tower(1024, 24, 257, 14), Tower(768, 12, 77), 428e6, 768)
CLIPS = {"ViT-B/32": VIT_B32, "ViT-L/14": VIT_L14}


@dataclass(frozen=True)
class Fitted:
    """Rates of one core of the machine that was measured."""

    encoder_flops: float  # operations a second of the encoder, forward and backward
    loss_flops: float  # of the loss's products
    memory_bytes: float  # bytes a second of AdamW
    link_bytes: float  # bytes a second between ranks (gloo over loopback)
    pair_seconds: float  # the host's work for a judged pair: batch, relation, Trainer
    decode_seconds: float  # a picture of 800 pixels to 224, decoded
    gather_seconds: float  # the same from the cache


@dataclass(frozen=True)
class Machine:
    """A GPU and its share of the host; assumed, not measured."""

    name: str
    matrix_flops: float  # peak, bfloat16
    used: float  # share of the peak that the encoder reaches
    plain_flops: float  # of float32 products, in which the loss is
    memory_bytes: float  # a second
    capacity_bytes: float
    near_bytes: float  # a second, to GPUs of the same machine
    far_bytes: float  # to those of others
    in_a_machine: int
    cores: int  # of the host, that prepare input


H100 = Machine("H100", 989e12, 0.35, 50e12, 3.35e12 * 0.8, 70e9, 300e9, 40e9, 8, 12)


@dataclass(frozen=True)
class Run:
    """A training run on pairs whose documents have a picture and a title."""

    pairs: float
    epochs: float
    batch: int
    queries_per_document: int
    query_tokens: float
    title_tokens: float
    documents: float  # distinct ones, whose pictures are decoded once where they are kept


MARQO = Run(3.93e6, 10, 16_384, 4, 8, 24, 2.5e6)  # GSFull-10M in domain: pairs of seen queries and seen products


def fit(folder: Path = RESULTS) -> Fitted:
    """The rates behind the result files.

    Raises:
        ValueError: A result is missing.
    """
    big, small = _row(folder, "steps", "ViT-B/32"), _row(folder, "steps", "tiny")
    adamw = _row(folder, "options", "AdamW, ViT-B/32, fused")
    strong = _row(folder, "loss_ranks", "strong scaling, 2 ranks")
    optimiser = median(adamw["ours"])
    one_step = median(big["peer"]) / big["about"]["steps"] - optimiser
    alone, shared = median(strong["peer"]), median(strong["ours"])
    host = (median(small["ours"]) - median(small["peer"])) / small["about"]["steps"] / small["about"]["pairs"]
    first, later = (_row(folder, "pictures", f"{which} epoch, each document once, 0") for which in ("first", "second"))
    return Fitted(
        encoder_flops=step_flops(VIT_B32, big["about"]) / one_step,
        loss_flops=loss_flops(STRONG, STRONG, WIDTH, 1) / alone,
        memory_bytes=big["about"]["parameters"] * ADAMW_BYTES / optimiser,
        link_bytes=sent_bytes(STRONG, WIDTH, 2) / max(1e-9, shared - alone / 2),
        pair_seconds=max(0.0, host),
        decode_seconds=median(first["ours"]) / PICTURES,
        gather_seconds=median(later["ours"]) / PICTURES,
    )


def step_flops(clip: Clip, encoded: dict[str, float]) -> float:
    """Forward and backward of what a step encodes: pictures, texts, and their tokens with padding."""
    tokens = encoded["tokens"] / encoded["texts"]
    forward = encoded["pictures"] * clip.image.forward() + encoded["texts"] * clip.text.forward(tokens)
    return (1 + BACKWARD) * forward


def loss_flops(queries: float, documents: float, width: int, ranks: int) -> float:
    """A rank's products: its logits three times or, where they are too many to be kept, four."""
    logits = queries * documents / ranks
    return (3 if logits <= KEPT_FROM else 4) * 2 * width * logits


def sent_bytes(documents: float, width: int, ranks: int) -> float:
    """What a rank receives for the loss: others' vectors twice and the gradient of all its own once, float32."""
    return 3 * 4 * documents * width * (ranks - 1) / ranks


def checks(folder: Path = RESULTS) -> Iterator[tuple[str, float, float]]:
    """Measurements that the fit has not seen: what, seconds measured, seconds by the model."""
    fitted, cores = fit(folder), 2
    for name, pairs in (("strong", lambda _: STRONG), ("weak", lambda ranks: round(WEAK * ranks**0.5))):
        for ranks in (2, 4):
            if (name, ranks) == ("strong", 2):
                continue
            row, n = _row(folder, "loss_ranks", f"{name} scaling, {ranks} ranks"), pairs(ranks)
            turns = max(1, ranks / cores)
            compute = turns * loss_flops(n, n, WIDTH, ranks) / fitted.loss_flops
            sent = turns * sent_bytes(n, WIDTH, ranks) / fitted.link_bytes
            yield f"loss, {name} scaling, {ranks} ranks", median(row["ours"]), compute + sent
    row = _row(folder, "loss_ranks", f"{LARGE:,} pairs")
    yield f"loss, {LARGE:,} pairs", median(row["ours"]), loss_flops(LARGE, LARGE, WIDTH, 1) / fitted.loss_flops
    row = _row(folder, "steps", "tiny")
    yield (
        "a step of tiny",
        median(row["peer"]) / row["about"]["steps"],
        step_flops(TINY, row["about"]) / fitted.encoder_flops,
    )


@dataclass(frozen=True)
class Predicted:
    """Seconds of a step by part, and of the whole run."""

    encoder: float
    loss: float
    optimiser: float
    sent: float
    input_kept: float  # the host's part where pictures are kept decoded
    input_decoded: float  # and where they are decoded for every batch
    recomputed: bool
    steps: float
    filling: float  # decoding all pictures once

    @property
    def computing(self) -> float:
        """All but the input."""
        return self.encoder + self.loss + self.optimiser + self.sent

    def hours(self, *, kept: bool) -> float:
        """The run, pictures kept or decoded again and again."""
        if kept:
            return (self.steps * max(self.computing, self.input_kept) + self.filling) / 3600
        return self.steps * max(self.computing, self.input_decoded) / 3600


def predict(clip: Clip, run: Run, machine: Machine, gpus: int, fitted: Fitted) -> Predicted:
    """A training run on so many GPUs."""
    documents, queries = run.batch / run.queries_per_document, float(run.batch)
    forward = documents * (clip.image.forward() + clip.text.forward(run.title_tokens))
    forward += queries * clip.text.forward(run.query_tokens)
    kept = documents * (clip.image.activations() + clip.text.activations(run.title_tokens))
    kept += queries * clip.text.activations(run.query_tokens)
    recomputed = kept / gpus > machine.capacity_bytes - clip.parameters * 16
    passes = 1 + BACKWARD + recomputed
    link = machine.near_bytes if gpus <= machine.in_a_machine else machine.far_bytes
    sent = sent_bytes(documents, clip.vector, gpus) + 2 * 4 * clip.parameters * (gpus - 1) / gpus
    cores = machine.cores * gpus
    host = run.batch * fitted.pair_seconds
    return Predicted(
        encoder=passes * forward / gpus / (machine.matrix_flops * machine.used),
        loss=loss_flops(queries, documents, clip.vector, gpus) / machine.plain_flops,
        optimiser=clip.parameters * ADAMW_BYTES / machine.memory_bytes,
        sent=sent / link,
        input_kept=host / machine.cores + documents * fitted.gather_seconds / cores,
        input_decoded=host / machine.cores + documents * fitted.decode_seconds / cores,
        recomputed=recomputed,
        steps=run.epochs * (run.pairs // run.batch),
        filling=run.documents * fitted.decode_seconds / cores,
    )


def encode_hours(
    clip: Clip, documents: float, tokens: float, machine: Machine, gpus: int, fitted: Fitted
) -> tuple[float, float]:
    """Hours to encode documents with picture and title: by computing, and by decoding the pictures."""
    flops = documents * (clip.image.forward() + clip.text.forward(tokens))
    computing = flops / gpus / (machine.matrix_flops * machine.used)
    return computing / 3600, documents * fitted.decode_seconds / machine.cores / gpus / 3600


def tables(folder: Path = RESULTS) -> str:
    """The page's tables: the fit, how well it holds, and what it predicts."""
    return "\n\n".join(
        "\n".join(table)
        for table in (_fit_table(folder), _check_table(folder), _run_table(folder), _encode_table(folder))
    )


def figure(value: float) -> str:
    """Two digits, or all of a whole number's."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.2g}"


def _fit_table(folder: Path) -> list[str]:
    fitted = fit(folder)
    return [
        "| rate of one core | fitted to | value |",
        "| --- | --- | ---: |",
        f"| encoder, forward and backward | steps of ViT-B/32 | {fitted.encoder_flops / 1e9:.0f} GFLOP/s |",
        f"| products of the loss | 16,384 pairs, one rank | {fitted.loss_flops / 1e9:.0f} GFLOP/s |",
        f"| AdamW | its step alone, ViT-B/32 | {fitted.memory_bytes / 1e9:.1f} GB/s |",
        f"| between ranks | 16,384 pairs, two ranks | {fitted.link_bytes / 1e9:.2f} GB/s |",
        f"| the host's work for a pair | Trainer beside bare loop, tiny | {fitted.pair_seconds * 1e6:.1f} µs |",
        f"| a picture decoded | first epoch | {fitted.decode_seconds * 1e3:.1f} ms |",
        f"| a picture from the cache | second epoch | {fitted.gather_seconds * 1e3:.2f} ms |",
    ]


def _check_table(folder: Path) -> list[str]:
    return [
        "| not part of the fit | measured | by the model | model / measured |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {name} | {seen:.2f} s | {said:.2f} s | {said / seen:.2f} |" for name, seen, said in checks(folder)),
    ]


def _run_table(folder: Path) -> list[str]:
    fitted, lines = fit(folder), []
    for name, clip in CLIPS.items():
        for gpus in (1, 8, 64):
            found = predict(clip, MARQO, H100, gpus, fitted)
            parts = (found.encoder, found.loss, found.optimiser, found.sent, found.input_kept, found.input_decoded)
            recomputed = " (recomputed)" if found.recomputed else ""
            shown = " | ".join(figure(part * 1e3) for part in parts)
            hours = " | ".join(f"{figure(found.hours(kept=kept))} h" for kept in (True, False))
            lines.append(f"| {name}{recomputed} | {gpus} | {shown} | {hours} |")
    return [
        "| model | GPUs | encoder | loss | AdamW | sent | input, kept | input, decoded | run, kept | run, decoded |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *lines,
    ]


def _encode_table(folder: Path) -> list[str]:
    fitted, lines = fit(folder), []
    for name, clip in CLIPS.items():
        for gpus in (1, 8, 64):
            computing, decoding = encode_hours(clip, 1e9, MARQO.title_tokens, H100, gpus, fitted)
            hours = " | ".join(f"{figure(part)} h" for part in (computing, decoding, max(computing, decoding)))
            lines.append(f"| {name} | {gpus} | {hours} |")
    return [
        "| a billion documents | GPUs | computing | decoding | the slower |",
        "| --- | ---: | ---: | ---: | ---: |",
        *lines,
    ]


def _row(folder: Path, subject: str, name: str) -> dict[str, Any]:
    file = folder / f"{subject}.json"
    if not file.is_file():
        raise ValueError(f"{file}: no such file; python -m benchmarks.speed {subject} --json {file} writes it")
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    found = [row for row in rows if name in row["name"]]
    if not found:
        raise ValueError(f"{file}: no row named {name!r}; it has {', '.join(row['name'] for row in rows)}")
    return found[0]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="The cost model's tables, from the files of benchmarks.speed --json.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    print(tables(parser.parse_args().results))


if __name__ == "__main__":
    main()
