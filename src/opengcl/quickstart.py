"""The first run: a synthetic shop, plain CLIP against GCL with the same budget, a report, a search."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from opengcl.compare import compare, format_table
from opengcl.config import TrainConfig, load_config
from opengcl.data import RankedDataset
from opengcl.data.synthetic import make_shop
from opengcl.only_writer import only_writer
from opengcl.product_search import ProductSearch
from opengcl.report import write_report
from opengcl.terminal import one_line
from opengcl.training import train

QUERY = "red backpack"
_SHOWN = ("ndcg@10", "recall@100")


def quickstart(
    out: Path, *, seed: int = 0, products: int = 800, epochs: float = 10, say: Callable[[str], None] = print
) -> Path:
    """Make the shop, train both models, compare them, write the report and search once.

    Whatever an earlier call finished in ``out`` is kept and used; what it left half-done is done again.

    Args:
        out: Folder for everything.
        seed: Of the shop and of both models.
        products: How many the shop has.
        epochs: Of each model.
        say: Where the story goes.

    Returns:
        The report of the GCL run.
    """
    with only_writer(out):
        return _quickstart(out, seed, products, epochs, say)


def _quickstart(out: Path, seed: int, products: int, epochs: float, say: Callable[[str], None]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    shop = out / "shop"
    if not (shop / "dataset.yaml").is_file():
        say(f"Drawing a synthetic shop into {shop}")
        make_shop(shop, products=products, seed=seed)
    baseline = TrainConfig(
        data=str(shop),
        model="tiny",
        out=str(out / "clip"),
        fields={"image": 0.5, "title": 0.5},
        weights="constant",
        target="diagonal",
        epochs=epochs,
        batch_size=256,
        evaluations=5,
        seed=seed,
    )
    gcl = replace(baseline, out=str(out / "gcl"), weights=TrainConfig.weights, target=TrainConfig.target)
    for name, config in (("plain CLIP (the baseline)", baseline), ("GCL", gcl)):
        if _finished(config):
            say(f"{name}: already trained in {config.out}")
        else:
            say(f"Training {name}: {config.epochs:g} epochs of {config.batch_size} pairs a batch")
            shutil.rmtree(config.out, ignore_errors=True)
            train(config, baseline=Path(baseline.out) if config is gcl else None)
    dataset = RankedDataset.open(shop)
    report = write_report(Path(gcl.out), dataset, baseline=Path(baseline.out))
    say("\nTest queries of the synthetic shop, GCL against the same model trained as plain CLIP:\n")
    say(format_table(compare([baseline.out, gcl.out], metrics=_SHOWN)))
    say(f'\nSearching the shop for "{QUERY}":\n')
    for hit in ProductSearch(gcl.out, dataset)(QUERY, k=5):
        say(f"{hit.rank:>3}  {hit.score:.3f}  {one_line(hit.doc_id)}  {one_line(hit.title)}")
    say(f"\nThe report with pictures: {report}")
    return report


def _finished(config: TrainConfig) -> bool:
    """Whether this very run has ended; another run in its folder is an error that the caller sees."""
    folder = Path(config.out)
    if not (folder / "metrics.json").is_file():
        return False
    found = load_config(folder / "config.yaml", {})
    if found != config:
        raise ValueError(f"{folder} holds a run with other settings; choose another --out")
    return True
