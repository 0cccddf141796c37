"""Ranks that something else than ``torchrun`` has already brought together, as Ray Train does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

WORKER = textwrap.dedent(
    """
    import sys, torch, torch.distributed as dist
    meeting, place = f"file://{sys.argv[1]}", int(sys.argv[2])
    dist.init_process_group("gloo", init_method=meeting, rank=place, world_size=2)
    from opengcl.distributed import gather_rows, join_ranks, leave_ranks, rank, world_size
    join_ranks(cpu=True)
    print(rank(), world_size(), gather_rows(torch.tensor([rank()]), 2).tolist())
    leave_ranks()
    """
)
MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # launchers set them; nobody connects here


def test_ranks_that_have_met_already_stay_together(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "meeting"), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **MASTER, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=120)[0].strip() for process in ranks]
    assert told == ["0 2 [0, 1]", "1 2 [0, 1]"]
