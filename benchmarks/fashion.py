"""CLIP, the paper's form and ours on the fashion benchmark: the same model, data and budget, several seeds.

    python benchmarks/fashion.py run --jobs 2      # trains what is missing, resumes what was cut off
    python benchmarks/fashion.py table             # docs/results.md and the README get their tables and picture

A cell is one training run in runs/fashion/; what it scored goes to benchmarks/results/fashion.json. One thread a run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from opengcl.compare import bootstrap_interval, randomisation_p
from opengcl.data import SPLITS, RankedDataset
from opengcl.per_query import read_per_query
from opengcl.run_folder import read_lists
from opengcl.shown_queries import ideal_rows, judged_scores
from opengcl.strip import ranking_strip

ROOT = Path(__file__).resolve().parents[1]
DATA = Path("../shared/fashion")
RUNS = Path("runs/fashion")
RESULTS = Path("benchmarks/results/fashion.json")
PICTURE = Path("docs/images/before-after.png")
PAGE, FRONT = Path("docs/results.md"), Path("README.md")
METRICS = ("ndcg@10", "err", "rbp@0.9", "recall@100")

SIDES = {
    "clip": ("CLIP: diagonal, constant", ("constant", "diagonal")),
    "paper": ("paper: diagonal, exponential", ("exponential", "diagonal")),
    "ours": ("ours: full_row, exponential", ("exponential", "full_row")),
}
FIELDS = {
    "title": ("titles only", "title=1", 10, (0, 1, 2)),
    "both": ("pictures and titles", "image=0.5,title=0.5", 5, (0,)),
}


@dataclass(frozen=True)
class Cell:
    """One training run."""

    fields: str
    side: str
    seed: int

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return RUNS / f"{self.fields}-{self.side}-{self.seed}"

    def command(self) -> list[str]:
        """How it is trained."""
        weights, target = SIDES[self.side][1]
        _, fields, epochs, _ = FIELDS[self.fields]
        command = [sys.executable, "-m", "opengcl.cli", "train", "--data", str(DATA), "--model", "tiny"]
        command += ["--out", str(self.folder), "--fields", fields, "--weights", weights, "--target", target]
        command += ["--epochs", str(epochs), "--seed", str(self.seed), "--device", "cpu", "--set", "evaluations=5"]
        return command + (["--resume"] if (self.folder / "config.yaml").is_file() else [])


def cells() -> list[Cell]:
    """Every cell, seed by seed, so that a matrix that is cut off is even."""
    found = [Cell(fields, side, seed) for fields in FIELDS for seed in FIELDS[fields][3] for side in SIDES]
    return sorted(found, key=lambda cell: list(FIELDS).index(cell.fields))


def run(cell: Cell) -> None:
    """Train a cell unless it is done."""
    if (cell.folder / "metrics.json").is_file():
        return
    print(f"{cell.folder.name}: training", flush=True)
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    log = cell.folder.with_suffix(".log")
    with log.open("a", encoding="utf-8") as stream:
        process = subprocess.run(
            cell.command(),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=stream,
            check=False,
        )
    print(f"{cell.folder.name}: {'done' if process.returncode == 0 else f'failed, see {log}'}", flush=True)


def collect() -> dict[str, object]:
    """What every finished cell scored, and the paired differences to CLIP, query by query over the seeds' means."""
    scored = {}
    for cell in cells():
        file = cell.folder / "metrics.json"
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            kept = ("steps", "best_step", "training_seconds", "threads", "torch", "sentence_transformers")
            scored[cell.folder.name] = {
                "splits": content["splits"],
                **{name: content["provenance"][name] for name in kept},
            }
    differences = {
        f"{fields}: {side} - {other}": difference(fields, side, other)
        for fields in FIELDS
        for side, other in (("paper", "clip"), ("ours", "clip"), ("ours", "paper"))
        if all(f"{fields}-{name}-{seed}" in scored for name in (side, other) for seed in FIELDS[fields][3])
    }
    hardware = f"{platform.machine()}, {os.cpu_count()} cores, one thread a run"
    return {"hardware": hardware, "python": platform.python_version(), "cells": scored, "differences": differences}


def difference(fields: str, side: str, other: str) -> dict[str, dict[str, dict[str, float]]]:
    """Mean difference, 95% bootstrap interval and randomisation p, paired over test queries."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    one, two = mean_over_seeds(fields, side), mean_over_seeds(fields, other)
    for split in SPLITS:
        inside = one["split"] == split
        table[split] = {}
        for metric in METRICS:
            delta = (one[metric] - two[metric])[inside]
            low, high = (float(x) for x in np.ravel(bootstrap_interval(delta[:, None], seed=0)))
            p = float(np.ravel(randomisation_p(delta[:, None], seed=0))[0])
            base = float(two[metric][inside].mean())
            gain = float(delta.mean())
            table[split][metric] = {"gain": gain, "percent": 100 * gain / base, "low": low, "high": high, "p": p}
    return table


def mean_over_seeds(fields: str, side: str) -> dict[str, np.ndarray]:
    """Per-query values, averaged over the seeds, in one order."""
    tables: list[pa.Table] = []
    for seed in FIELDS[fields][3]:
        table = read_per_query(Cell(fields, side, seed).folder / "per_query.parquet")
        tables.append(table.sort_by([("split", "ascending"), ("query_id", "ascending")]))
    first = tables[0]
    assert all(table["query_id"].equals(first["query_id"]) for table in tables)  # noqa: S101 - same data, same splits
    values = {m: np.mean([table[m].to_numpy() for table in tables], axis=0) for m in METRICS}
    return {"split": first["split"].to_numpy(zero_copy_only=False), **values}


def tables(results: dict[str, object]) -> str:
    """The tables of docs/results.md."""
    scored: dict[str, dict] = results["cells"]  # type: ignore[assignment]
    differences: dict[str, dict] = results["differences"]  # type: ignore[assignment]
    lines: list[str] = []
    for fields, (title, written, epochs, seeds) in FIELDS.items():
        finished = done(scored, fields)
        if not finished:
            continue
        steps = scored[finished[0].folder.name]["steps"]
        lines += [f"### Fashion, {title} (`--fields {written}`), {epochs} epochs, {steps:,} steps", ""]
        lines += [f"NDCG@10 / recall@100 on test queries, {seeds_text(seeds)}.", ""]
        lines += [f"| side | {' | '.join(SPLITS)} | minutes |", f"| --- |{' ---: |' * (len(SPLITS) + 1)}"]
        for side, (label, _) in SIDES.items():
            runs = [scored[c.folder.name] for c in finished if c.side == side]
            if runs:
                lines.append(
                    f"| {label} | {' | '.join(cell_text(runs, split) for split in SPLITS)} | {minutes(runs)} |"
                )
        measured = "Differences in NDCG@10, paired over queries: percent, 95% interval of the difference, p."
        for heading, metric in ((measured, "ndcg@10"), ("The same for recall@100.", "recall@100")):
            lines += ["", heading, ""]
            lines += [f"| | {' | '.join(SPLITS)} |", f"| --- |{' ---: |' * len(SPLITS)}"]
            for name, table in differences.items():
                if name.startswith(f"{fields}: "):
                    shown = (difference_text(table[split][metric]) for split in SPLITS)
                    lines.append(f"| {name.partition(': ')[2]} | {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def seeds_text(seeds: tuple[int, ...]) -> str:
    """Which seeds stand behind a table."""
    named = ", ".join(map(str, seeds))
    return f"mean ± standard deviation of seeds {named}" if len(seeds) > 1 else f"seed {named} only"


def cell_text(runs: list[dict], split: str) -> str:
    """``.939 / .981``, with the spread over seeds where there are several."""
    parts = []
    for metric in ("ndcg@10", "recall@100"):
        values = np.array([r["splits"][split][metric] for r in runs])
        spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
        parts.append(f"{values.mean():.3f}{spread}")
    return " / ".join(parts)


def minutes(runs: list[dict]) -> str:
    """Training minutes, least to most."""
    times = sorted(r["training_seconds"] / 60 for r in runs)
    return f"{times[0]:.1f}" if len(times) == 1 else f"{times[0]:.1f} to {times[-1]:.1f}"


def difference_text(d: dict[str, float]) -> str:
    """``+30.8% [+.210, +.232] p = .0001``."""
    return f"{d['percent']:+.1f}% [{d['low']:+.3f}, {d['high']:+.3f}] p = {d['p']:.4f}"


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    asked = parser.parse_args()
    os.chdir(ROOT)
    if not (DATA / "dataset.yaml").is_file():
        sys.exit(f"the benchmark's data are not at {DATA}")
    if asked.what == "run":
        with ThreadPoolExecutor(asked.jobs) as pool:
            list(pool.map(run, cells()))
    results = collect()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    replace_between_markers(PAGE, tables(results))
    replace_between_markers(FRONT, short_table(results))
    picture("both", seed=0)


def short_table(results: dict[str, object]) -> str:
    """The table of the README: NDCG@10 and recall@100 on titles, and what is gained over CLIP."""
    scored: dict[str, dict] = results["cells"]  # type: ignore[assignment]
    differences: dict[str, dict] = results["differences"]  # type: ignore[assignment]
    lines: list[str] = []
    for fields, (title, _, epochs, seeds) in FIELDS.items():
        runs = {side: [scored[c.folder.name] for c in done(scored, fields) if c.side == side] for side in SIDES}
        if not all(len(found) == len(seeds) for found in runs.values()):
            continue
        lines += [f"fashion-small, {title}, {epochs} epochs, {len(seeds)} seed{'s' * (len(seeds) > 1)}:", ""]
        lines += [f"| NDCG@10 / recall@100 | {' | '.join(SPLITS)} |", f"| --- |{' ---: |' * len(SPLITS)}"]
        for side, (label, _) in SIDES.items():
            cells_ = []
            for split in SPLITS:
                ndcg, recall = (np.mean([r["splits"][split][m] for r in runs[side]]) for m in ("ndcg@10", "recall@100"))
                gain = "" if side == "clip" else f" ({percent(differences, fields, side, split):+.1f}%)"
                cells_.append(f"{ndcg:.3f}{gain} / {recall:.3f}")
            lines.append(f"| {label} | {' | '.join(cells_)} |")
        lines.append("")
    return "\n".join(lines)


def picture(fields: str, seed: int, split: str = "novel_query", k: int = 8) -> None:
    """One query before, after and ideal: of the split's test queries for shoes the one of median gain."""
    before, after = (Cell(fields, side, seed).folder for side in ("clip", "ours"))
    if not all((folder / "metrics.json").is_file() for folder in (before, after)):
        return
    values = [read_per_query(folder / "per_query.parquet").to_pylist() for folder in (before, after)]
    ndcg = [{row["query_id"]: row["ndcg@10"] for row in rows if row["split"] == split} for rows in values]
    dataset = RankedDataset.open(DATA)
    texts = dict(zip(ndcg[0], dataset.queries.texts("query", dataset.queries.find(list(ndcg[0]))), strict=True))
    gain = sorted((ndcg[1][query] - ndcg[0][query], query) for query in ndcg[0] if "shoes" in (texts[query] or ""))
    query = gain[len(gain) // 2][1]
    row = dataset.queries.row(query)
    ideal = ideal_rows(judged_scores(dataset, row), dataset.splits.document_rows(split), k=k)
    lists = [read_lists(folder, [(split, query)])[split, query][:k] for folder in (before, after)]
    labels = [f"{name}\nNDCG@10 {ndcg[n][query]:.2f}" for n, name in enumerate(("Plain CLIP", "OpenGCL"))]
    rows = {labels[0]: lists[0], labels[1]: lists[1], "Ideal\n ": dataset.documents.ids(np.array(ideal))}
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    ranking_strip(dataset, query, rows, PICTURE, title=f"“{texts[query]}”")


def percent(differences: dict[str, dict], fields: str, side: str, split: str) -> float:
    """Relative gain in NDCG@10 over CLIP."""
    return float(differences[f"{fields}: {side} - clip"][split]["ndcg@10"]["percent"])


def done(scored: dict[str, dict], fields: str) -> list[Cell]:
    """Finished cells on some fields."""
    return [cell for cell in cells() if cell.fields == fields and cell.folder.name in scored]


def replace_between_markers(page: Path, content: str) -> None:
    """Put generated text into a page, leaving the rest."""
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(f"{head}{begin}\n\n{content}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
