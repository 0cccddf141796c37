"""What search costs: the server over its store, stores as they grow, one stage and two.

Builds may run beside other work, in a process of their own for hours; everything else wants a quiet machine. A cell
that is there is left alone.

    python -m benchmarks.search build [--store lancedb --documents 1000000]    # indexes that are missing, or one
    python -m benchmarks.search growth [--store pgvector --documents 1000000]  # recall and latency of what is built
    python -m benchmarks.search served [--store lancedb --rounds 5]            # the server over its store and encoder
    python -m benchmarks.search stages                                         # one stage and two, or what is missing
    python -m benchmarks.search tables                                         # docs/search-figures.md and its pictures
"""

from __future__ import annotations

import argparse

from . import growth, served, stages, tables
from .stores import STORES


def main(arguments: list[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("build", "indexes of growing size"), ("growth", "recall and latency of what is built")):
        added = commands.add_parser(name, help=what)
        added.add_argument("--store", choices=STORES)
        added.add_argument("--documents", type=int, choices=growth.SIZES)
    added = commands.add_parser("served", help="the server over its own store and encoder")
    added.add_argument("--store", choices=STORES, action="append", help="only this one; may be repeated")
    added.add_argument("--cores", type=int, choices=(1, 2), default=1, help="that the server and the loop may use")
    added.add_argument("--rounds", type=int, default=served.ROUNDS)
    commands.add_parser("stages", help="one stage and two, from the ranking benchmark's cells")
    commands.add_parser("tables", help="write the tables and pictures")
    asked = parser.parse_args(arguments)
    if asked.command == "stages":
        print(stages.text(stages.stages()))
        return
    if asked.command == "tables":
        tables.write_everything()
        return
    if asked.command == "served":
        for kind in asked.store or STORES:
            print(served.measure(kind, asked.rounds, placed="" if asked.cores == 1 else "-both-cores"), flush=True)
        return
    work = {"build": growth.build, "growth": growth.search}[asked.command]
    what = {"build": "build", "growth": "search"}[asked.command]
    for kind, documents in growth.missing(what):
        if asked.store in (None, kind) and asked.documents in (None, documents):
            print(work(kind, documents), flush=True)


if __name__ == "__main__":
    main()
