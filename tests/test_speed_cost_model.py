"""The cost model finds the rates behind measurements that were made from them, and its page shows what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.speed import cost_model as model
from benchmarks.speed.loss_ranks import LARGE, STRONG, WEAK, WIDTH

RATES = model.Fitted(90e9, 80e9, 10e9, 2e9, 5e-6, 8e-3, 3e-4)
ENCODED = {"pictures": 10.0, "texts": 50.0, "tokens": 400.0}
ROOT = Path(__file__).parents[1]


def row(name: str, ours: float, peer: float = 1.0, **about: Any) -> dict[str, Any]:
    return {"name": name, "ours": [ours] * 3, "peer": [peer] * 3, "about": about}


def ranks_seconds(pairs: int, ranks: int) -> float:
    """On two cores, of which each rank has one, or shares one with another."""
    turns = max(1, ranks // 2)
    compute = model.loss_flops(pairs, pairs, WIDTH, ranks) / RATES.loss_flops
    return turns * (compute + model.sent_bytes(pairs, WIDTH, ranks) / RATES.link_bytes)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Files as ``benchmarks.speed`` would write them on a machine with these rates."""
    optimiser = 151e6 * model.ADAMW_BYTES / RATES.memory_bytes
    vit = model.step_flops(model.VIT_B32, ENCODED) / RATES.encoder_flops + optimiser
    tiny = model.step_flops(model.TINY, ENCODED) / RATES.encoder_flops
    alone = ranks_seconds(STRONG, 1)
    found = {
        "steps": [
            row("2 optimiser steps, ViT-B/32", 2 * vit, 2 * vit, steps=2, pairs=64, parameters=151e6, **ENCODED),
            row("4 optimiser steps, tiny", 4 * (tiny + 1e-3), 4 * tiny, steps=4, pairs=200, **ENCODED),
        ],
        "options": [row("AdamW, ViT-B/32, fused", optimiser)],
        "loss_ranks": [
            *(row(f"loss, strong scaling, {r} ranks", ranks_seconds(STRONG, r), alone) for r in (2, 4)),
            *(row(f"loss, weak scaling, {r} ranks", ranks_seconds(round(WEAK * r**0.5), r)) for r in (2, 4)),
            row(f"loss, {LARGE:,} pairs", ranks_seconds(LARGE, 1)),
        ],
        "pictures": [
            row("first epoch, each document once, 0 workers", RATES.decode_seconds * model.PICTURES),
            row("second epoch, each document once, 0 workers", RATES.gather_seconds * model.PICTURES),
        ],
    }
    for subject, rows in found.items():
        (tmp_path / f"{subject}.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return tmp_path


def test_the_fit_finds_the_rates_and_the_checks_hold(results: Path) -> None:
    assert vars(model.fit(results)) == pytest.approx(vars(RATES), rel=1e-6)
    checked = list(model.checks(results))
    assert len(checked) == 5
    for name, measured, said in checked:
        assert said == pytest.approx(measured, rel=1e-6), name


def test_operations_are_those_of_the_known_models() -> None:
    assert model.VIT_B32.image.forward() == pytest.approx(2 * 4.4e9, rel=0.02)  # 4.4 G multiply-adds
    assert model.VIT_L14.image.forward() == pytest.approx(2 * 81e9, rel=0.02)
    assert model.VIT_B32.text.forward() == pytest.approx(2 * 2.95e9, rel=0.03)


def test_what_more_gpus_change() -> None:
    one, eight, many = (model.predict(model.VIT_B32, model.MARQO, model.H100, gpus, RATES) for gpus in (1, 8, 64))
    assert one.recomputed
    assert not eight.recomputed
    assert one.encoder == pytest.approx(8 * eight.encoder * 4 / 3)
    assert eight.encoder == pytest.approx(8 * many.encoder)
    assert one.sent == 0 < eight.sent < many.sent
    assert one.optimiser == many.optimiser
    assert one.filling == pytest.approx(64 * many.filling)
    assert eight.hours(kept=True) < eight.hours(kept=False)
    assert one.steps == 10 * (3_930_000 // 16_384)


def test_encoding_takes_the_longer_of_computing_and_decoding() -> None:
    computing, decoding = model.encode_hours(model.VIT_L14, 1e6, 24, model.H100, 2, RATES)
    assert decoding == pytest.approx(1e6 * RATES.decode_seconds / 12 / 2 / 3600)
    assert computing == pytest.approx(1e6 * 169e9 / (989e12 * 0.35) / 2 / 3600, rel=0.03)


def test_a_missing_measurement_is_named(results: Path) -> None:
    (results / "options.json").write_text('{"rows": [{"name": "something"}]}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"no row named 'AdamW, ViT-B/32, fused'; it has something"):
        model.fit(results)
    (results / "steps.json").unlink()
    with pytest.raises(ValueError, match=r"python -m benchmarks.speed steps --json .* writes it"):
        model.fit(results)


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cost_model"])
    model.main()
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in page
