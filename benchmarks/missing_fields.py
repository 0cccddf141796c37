"""Products without a picture: left out of the mean, or filled in; `python -m benchmarks.missing_fields --out FILE`.

Pictures are taken at random from a share of the products, seen and novel alike. GCL and CLIP are trained on what is
left, and each model is evaluated three times: with missing fields left out, with them filled in, and on the products
as they were before, as a bound. What is done already is read from the file and not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from opengcl import BiEncoder, RankedDataset, TrainConfig, evaluate, make_shop, train
from opengcl.data import SPLITS
from opengcl.evaluation import Evaluation
from opengcl.training import make_batches

SHARES = (0.3, 0.05)
SIDES: dict[str, dict[str, Any]] = {
    "clip": {"weights": "constant", "target": "diagonal", "direction": "both", "queries_per_doc": 0},
    "gcl": {},
}
METRICS = ("ndcg@10", "recall@100")


@dataclass(frozen=True)
class Data:
    """A data set with all pictures, and how long to train on it."""

    name: str
    folder: Path
    batch_size: int
    steps: int
    settings: dict[str, Any]


def main() -> None:
    """Run what the file lacks, a cell at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of results")
    parser.add_argument("--fashion", type=Path, help="folder of fashion-small; without it only the synthetic shop")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--queries", default="test", help="dev while something is chosen")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.is_file() else []
    done = {(row["data"], row["missing"], row["side"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        for data in _data(Path(folder), asked.fashion):
            for seed in range(asked.seeds):
                for share in SHARES:
                    for side in SIDES:
                        if (data.name, share, side, seed) not in done:
                            rows += _cell(data, share, side, seed, asked.queries, Path(folder))
                            asked.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _data(folder: Path, fashion: Path | None) -> Iterator[Data]:
    shop = make_shop(folder / "shop", products=800, queries=250, seed=0)
    yield Data("synthetic-shop", shop, 256, 120, {"learning_rate": 2e-3})
    if fashion is not None:
        yield Data("fashion-small", fashion, 1024, 100, {"learning_rate": 2e-3, "temperature": 0.03})


def _cell(data: Data, share: float, side: str, seed: int, queries: str, folder: Path) -> list[dict[str, Any]]:
    lacking, out = folder / "lacking", folder / "run"
    for old in (lacking, out):
        shutil.rmtree(old, ignore_errors=True)
    without_pictures(data.folder, lacking, share, seed)
    config = TrainConfig(
        data=str(lacking),
        model="tiny",
        out=str(out),
        fields={"image": 0.5, "title": 0.5},
        batch_size=data.batch_size,
        evaluations=0,
        seed=seed,
        device="cpu",
        **{**data.settings, **SIDES[side]},
    )
    dataset = RankedDataset.open(lacking, progress=False)
    steps = len(make_batches(config, dataset))
    train(replace(config, epochs=(data.steps - 0.5) / steps, final_queries="dev"), progress=False)
    filled, left_out = BiEncoder.load(out), BiEncoder.load(out)
    left_out.missing_fields, left_out.fill_in = "leave_out", None
    whole = RankedDataset.open(data.folder, progress=False)
    judged = (("leave_out", left_out, dataset), ("fill_in", filled, dataset), ("nothing missing", filled, whole))
    about = {"data": data.name, "missing": share, "side": side, "seed": seed, "steps": data.steps, "queries": queries}
    rows = []
    for treatment, model, documents in judged:
        found = evaluate(model, documents, part=queries, metrics=METRICS)  # type: ignore[arg-type] # checked there
        rows.append({**about, "treatment": treatment, **_figures(found, documents, dataset)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _figures(found: Evaluation, documents: RankedDataset, lacking: RankedDataset) -> dict[str, Any]:
    """Means by split, and how often products whose picture was taken come first, and would in an ideal list."""
    gone = ~lacking.documents.present("image", np.arange(len(lacking.documents)))
    first = found.results.filter(pc.equal(found.results["rank"], 1))
    lead = gone[documents.documents.find(first["doc_id"].to_pylist())]
    split = first["split"].to_numpy(zero_copy_only=False)
    shares = {name: float(lead[split == name].mean()) for name in SPLITS}
    means = {name: {metric: row[metric] for metric in METRICS} for name, row in found.splits().items()}
    ideal = None
    if found.by_fields is not None and documents is lacking:
        without = found.by_fields.filter(pc.equal(found.by_fields["fields"], "title"))
        ideal = float(np.nanmean(without["ideal_first"].to_numpy()))
    unjudged = pc.equal(first["relevance"], 0).to_numpy(zero_copy_only=False)[lead]
    return {
        "splits": means,
        "ndcg@10": float(np.mean([row["ndcg@10"] for row in means.values()])),
        "first_without_picture": float(np.mean(list(shares.values()))),
        "ideal_first_without_picture": ideal,
        "first_without_picture_unjudged": float(unjudged.mean()) if len(unjudged) else None,
    }


def without_pictures(folder: Path, out: Path, share: float, seed: int) -> None:
    """A copy of a data set in which a share of the documents that have a title lose their picture."""
    shutil.copytree(folder, out, copy_function=shutil.copyfile)
    table = pq.read_table(folder / "documents.parquet")
    titled = pc.is_valid(table["title"]).to_numpy(zero_copy_only=False)
    gone = titled & (np.random.default_rng(seed).random(len(table)) < share)
    image = table["image"].combine_chunks()
    kept = pc.if_else(pa.array(gone), pa.scalar(None, image.type), image)
    table = table.set_column(table.column_names.index("image"), "image", kept)
    (out / "documents.parquet").chmod(0o644)
    pq.write_table(table, out / "documents.parquet")


if __name__ == "__main__":
    main()
