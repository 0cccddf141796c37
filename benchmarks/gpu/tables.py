"""``python -m benchmarks.gpu.tables`` writes what the result files say into docs/performance.md and docs/scale.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu import SECTIONS
from benchmarks.speed import cost_model

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
PERFORMANCE, SCALE = ROOT / "docs" / "performance.md", ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
NOTHING = (
    "No GPU has been measured yet. `python -m benchmarks.gpu` is the run that does it, and "
    "`python -m benchmarks.gpu.tables` puts what it finds here."
)
Row = dict[str, Any]
Results = dict[str, dict[str, Any]]


def read(folder: Path) -> Results:
    """Section -> its file, of those that are there.

    Raises:
        ValueError: A file is of a check, whose numbers are no figures.
    """
    found: Results = {}
    for section in SECTIONS:
        file = folder / f"{section.name}.json"
        if file.is_file():
            found[section.name] = json.loads(file.read_text(encoding="utf-8"))
            if found[section.name].get("size") != "full":
                raise ValueError(f"{file}: size is {found[section.name].get('size')!r}; allowed: full")
    return found


def performance(found: Results) -> str:
    """The generated part of docs/performance.md."""
    if not found:
        return NOTHING
    ceilings = _rates(found)
    parts = [_machine(found)]
    for section in SECTIONS:
        if section.name not in found:
            parts.append(f"**{section.title}**: not measured in this run.")
            continue
        parts.append(f"**{section.title}**{_ending(found[section.name])}")
        parts += _of_section(section.name, found[section.name], ceilings)
    return "\n\n".join(parts)


def scale(found: Results) -> str:
    """The generated part of docs/scale.md: the cost model's assumptions beside what was measured, and its tables."""
    measured = machine(found)
    if measured is None:
        return NOTHING
    assumed = cost_model.H100
    lines = [
        (
            "matrix products, bfloat16",
            f"{assumed.matrix_flops / 1e12:,.0f}",
            f"{measured.matrix_flops / 1e12:,.0f}",
            "TFLOP/s",
        ),
        ("share that the encoder reaches", f"{assumed.used:.0%}", f"{measured.used:.0%}", ""),
        (
            "products of the loss",
            f"{assumed.plain_flops / 1e12:,.0f}",
            f"{measured.plain_flops / 1e12:,.1f}",
            "TFLOP/s",
        ),
        ("bytes of AdamW", f"{assumed.memory_bytes / 1e12:.2f}", f"{measured.memory_bytes / 1e12:.2f}", "TB/s"),
    ]
    table = _table(("", "assumed", "measured", ""), [list(line) for line in lines], right=(1, 2))
    fitted = host(found)
    before = cost_model.fit()
    more = (
        f"One of its cores decodes a picture in {fitted.decode_seconds * 1e3:.2f} ms and reads it from the cache in "
        f"{fitted.gather_seconds * 1e3:.2f} ms; the tables above take {before.decode_seconds * 1e3:.1f} and "
        f"{before.gather_seconds * 1e3:.2f} ms. The model with what was measured in the place of what was assumed "
        "(links between GPUs, which one GPU cannot tell, as above):"
    )
    predicted = []
    for name, clip in cost_model.CLIPS.items():
        for gpus in (1, 8, 64):
            step = cost_model.predict(clip, cost_model.MARQO, measured, gpus, fitted)
            shown = [cost_model.figure(part * 1e3) for part in (step.encoder, step.loss, step.optimiser)]
            hours = [f"{cost_model.figure(step.hours(kept=kept))} h" for kept in (True, False)]
            predicted.append([name, str(gpus), *shown, *hours])
    head = ("model", "GPUs", "encoder, ms", "loss, ms", "AdamW, ms", "run, kept", "run, decoded")
    return "\n\n".join([_machine(found), table, more, _table(head, predicted, right=range(1, 7))])


def machine(found: Results) -> cost_model.Machine | None:
    """The card as the cost model takes it; None where one of the rates it needs was not measured."""
    rates = _rates(found)
    best = max((row["flop"] / _seconds(row) for row in _rows(found, "steps", "bare loop") if _bf16(row)), default=None)
    ours = [row for row in _rows(found, "loss", "ours, float32") if row["pairs"] == 16_384]
    adamw = next(iter(_rows(found, "steps", "AdamW")), None)
    if "bf16" not in rates or best is None or not ours or adamw is None:
        return None
    gpu = found["steps"]["machine"].get("gpu", {})
    return dataclasses.replace(
        cost_model.H100,
        name=str(gpu.get("name", "GPU")),
        matrix_flops=rates["bf16"],
        used=best / rates["bf16"],
        plain_flops=ours[0]["flop"] / _seconds(ours[0]),
        memory_bytes=adamw["parameters"] * cost_model.ADAMW_BYTES / _seconds(adamw),
        capacity_bytes=float(gpu.get("bytes", cost_model.H100.capacity_bytes)) * 0.9,
        cores=int(found["steps"]["machine"]["cores"]),
    )


def host(found: Results) -> cost_model.Fitted:
    """The rates of a core, those that were measured beside the GPU in the place of the others."""
    fitted = cost_model.fit()
    decoded = [_seconds(row) / row["documents"] * row["workers"] for row in _rows(found, "pictures", "decoding, ")]
    kept = [_seconds(row) / row["documents"] for row in _rows(found, "pictures", "reading the cache, 0")]
    return dataclasses.replace(
        fitted,
        decode_seconds=decoded[-1] if decoded else fitted.decode_seconds,
        gather_seconds=kept[0] if kept else fitted.gather_seconds,
    )


def _of_section(name: str, content: dict[str, Any], ceilings: dict[str, float]) -> Iterator[str]:
    rows = [row for row in content["rows"] if "seconds" in row or "error" in row or "out_of_memory" in row]
    if name == "truth":
        yield _table(("", "largest difference", "allowed", ""), [_truth(row) for row in content["rows"]], right=(1, 2))
        return
    if name == "fashion":
        yield from _fashion(content["rows"])
        return
    if rows:
        head = ("", "median", "of", "rate", "share of the ceiling", "GPU memory")
        yield _table(head, [_line(row, ceilings) for row in rows], right=range(1, 6))
    exact = [row for row in content["rows"] if "errors" in row]
    if exact:
        lines = [
            [
                row["name"].partition(", ")[2],
                side,
                *(f"{wrong[part]:.1e}" for part in ("loss", "queries", "documents", "scale")),
            ]
            for row in exact
            for side, wrong in row["errors"].items()
        ]
        head = ("at", "side", "loss", "queries' gradient", "documents' gradient", "scale's gradient")
        yield "Distance from float64, relative:"
        yield _table(head, lines, right=range(2, 6))
    for row in content["rows"]:
        if "operations" in row:
            busy = row["busy_seconds"] / row["profiled_seconds"]
            yield f"Where a step's time goes ({row['name']}; the device works for {busy:.0%} of it, profiled):"
        for kind in ("operations", "kernels"):
            calls = row.get(kind, [])[:12]
            if calls:
                lines = [[_cell(call["name"]), f"{call['share']:.1%}", f"{call['calls']:,}"] for call in calls]
                yield _table((kind, "share", "calls"), lines, right=(1, 2))
    if content.get("skipped"):
        yield "Not measured: " + "; ".join(f"{one['name']} ({one['why']})" for one in content["skipped"]) + "."


def _line(row: Row, ceilings: dict[str, float]) -> list[str]:
    if not row.get("seconds"):
        wrong = "out of memory" if "out_of_memory" in row else f"failed: {row['error'][:80]}"
        return [_cell(row["name"]), _cell(wrong), "", "", "", ""]
    seconds, rate, share = _seconds(row), "", ""
    if row.get("documents"):
        rate = f"{row['documents'] / seconds:,.0f} documents/s"
    elif row.get("bytes"):
        rate = f"{row['bytes'] / seconds / 1e9:,.0f} GB/s"
    elif row.get("flop"):
        rate = f"{row['flop'] / seconds / 1e12:,.1f} TFLOP/s"
    if row.get("flop"):
        ceiling = ceilings.get(_format(row))
        share = f"{row['flop'] / seconds / ceiling:.0%}" if ceiling else ""
    memory = f"{row['peak_bytes'] / 1e9:.2f} GB" if row.get("peak_bytes") else ""
    return [_cell(row["name"]), _time(seconds), str(len(row["seconds"])), rate, share, memory]


def _format(row: Row) -> str:
    """The number format whose ceiling bounds a row."""
    for part, name in (("TF32", "float32 by TF32"), ("bf16", "bf16"), ("fp16", "fp16")):
        if part in row["name"]:
            return name
    return "float32"


def _truth(row: Row) -> list[str]:
    name = _cell(row["name"])
    if "error" in row or "out_of_memory" in row:
        return [name, "", "", _cell(f"failed: {str(row.get('error', 'out of memory'))[:80]}")]
    if "equal_to_the_bit" in row:
        told = "equal to the bit" if row["equal_to_the_bit"] else "equal up to rounding"
        if row.get("scaler"):
            told += ", the scaler the same" if row["scaler"] == row["scaler_resumed"] else ", the scaler another"
        return [name, f"{row['largest_difference']:.1e}", "", told]
    if "largest" in row:
        return [name, f"{row['largest']:.1e}", f"{row['allowed']:.0e}", "met" if row["met"] else "missed"]
    return [name, "", "", "met" if row.get("met") else "missed"]


def _fashion(rows: Sequence[Row]) -> Iterator[str]:
    lines = []
    for row in rows:
        if "splits" in row:
            cells = [f"{row['splits'][split]['ndcg@10']:.4f}" for split in row["splits"]]
            lines.append([row["side"], str(row["seed"]), str(row["steps"]), *cells, _time(_seconds(row))])
    if not lines:
        yield "No run came to its end."
        return
    splits = next(list(row["splits"]) for row in rows if "splits" in row)
    head = ("side", "seed", "steps", *(f"NDCG@10, {split.replace('_', ' ')}" for split in splits), "run")
    yield _table(head, lines, right=range(1, len(head)))


def _machine(found: Results) -> str:
    content = next((one for one in found.values() if one["machine"].get("gpu")), next(iter(found.values())))
    about, cards = content["machine"], content.get("card") or [{}]
    gpu, versions = about.get("gpu", {}), about["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name in _NAMED)
    clocks = f", clocks {cards[-1]['clocks.sm']} of {cards[-1]['clocks.max.sm']}" if cards[-1].get("clocks.sm") else ""
    driver = f", driver {cards[-1]['driver_version']}" if cards[-1].get("driver_version") else ""
    return (
        f"`python -m benchmarks.gpu`, {content['started'][:10]}: {gpu.get('name', about['cpu'])}{driver}{clocks}; "
        f"{about['cores']} cores of {about['cpu']}; Python {about['python']}, CUDA {about['cuda']}, {named}. "
        "Medians; every repetition is in `benchmarks/results/gpu/`."
    )


_NAMED = ("torch", "sentence-transformers", "transformers")


def _ending(content: dict[str, Any]) -> str:
    ended = content.get("ended")
    return "" if ended == "complete" else f" ({ended}: {_cell(str(content.get('error') or 'cut off'))[:120]})"


def _rates(found: Results) -> dict[str, float]:
    """Number format -> operations a second of its best product."""
    return {
        row["name"].removeprefix("product, "): row["flop"] / _seconds(row)
        for row in _rows(found, "ceilings", "product, ")
    }


def _rows(found: Results, section: str, begins: str) -> list[Row]:
    rows = found.get(section, {}).get("rows", [])
    return [row for row in rows if row["name"].startswith(begins) and row.get("seconds")]


def _bf16(row: Row) -> bool:
    return bool(row.get("precision") == "bf16" and row.get("kept") == "all kept")


def _seconds(row: Row) -> float:
    return median(row["seconds"])


def _time(seconds: float) -> str:
    return (
        f"{seconds:.3g} s"
        if seconds >= 1
        else f"{seconds * 1e3:.3g} ms"
        if seconds >= 1e-3
        else f"{seconds * 1e6:.3g} µs"
    )


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _table(head: Iterable[str], lines: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    head, right = list(head), set(right)
    rule = ["---:" if place in right else "---" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def between_markers(page: Path, content: str) -> str:
    """A page's text with its generated part replaced.

    Raises:
        ValueError: The page has not one pair of markers.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page}: expected {BEGIN} and {END} once each, in this order")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def generated(folder: Path = RESULTS) -> dict[Path, str]:
    """Page -> its text with what the files say."""
    found = read(folder)
    return {
        PERFORMANCE: between_markers(PERFORMANCE, performance(found)),
        SCALE: between_markers(SCALE, scale(found)),
    }


def main() -> None:
    """Write both pages."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.tables", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    for page, text in generated(parser.parse_args().results).items():
        page.write_text(text, encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
