"""A cross-encoder as teacher: it reads query and title together, on this machine, free of charge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opengcl.curate.config import TeacherOptions
from opengcl.curate.errors import CurateError
from opengcl.curate.journal import Journal, request_key
from opengcl.curate.scores import Values, query_range_scores, sigmoid_scores
from opengcl.data.problems import shown


class Teacher:
    """Scores a query's products; outputs are kept in the journal, so that a killed run goes on where it was.

    Args:
        options: Which model, and how its outputs become scores.
        journal: Where outputs are kept.

    Raises:
        CurateError: If the model cannot be loaded, or has more than one output.
    """

    def __init__(self, options: TeacherOptions, journal: Journal) -> None:
        self.options = options
        self.version = _version(options.model)
        self._journal = journal
        self._model: Any = None

    def scores(self, query: str, titles: Sequence[str]) -> Values:
        """Scores from 0 to 100, (titles,)."""
        asked = {
            "service": "teacher",
            "model": self.version,
            "max_length": self.options.max_length,
            "query": query,
            "titles": list(titles),
        }
        key = request_key(asked)
        kept = self._journal.find(key)
        if kept is None:
            kept = json.dumps(self._outputs(query, titles))
            self._journal.reply(key, asked, kept, 0.0)
        outputs = np.array(json.loads(kept), np.float64)
        return sigmoid_scores(outputs) if self.options.scale == "sigmoid" else query_range_scores(outputs)

    def _outputs(self, query: str, titles: Sequence[str]) -> list[float]:
        """What the model says before any activation."""
        import torch

        if self._model is None:
            self._model = _load(self.options)
        found = self._model.predict(
            [(query, title) for title in titles],
            batch_size=self.options.batch_size,
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
        )
        outputs = np.asarray(found, np.float64)
        if outputs.shape != (len(titles),):
            raise CurateError(
                f"{self.options.model}: found outputs of shape {outputs.shape}; allowed: one number a pair"
            )
        if not np.isfinite(outputs).all():
            raise CurateError(f"{self.options.model}: an output for the query {shown(query)} is not finite")
        return [float(one) for one in outputs]


def _load(options: TeacherOptions) -> Any:
    """The model: safetensors only, no code of its own run."""
    from sentence_transformers import CrossEncoder

    from opengcl.devices import check_device
    from opengcl.hub_models import find_on_hub
    from opengcl.model_files import check_model_files

    try:
        check_device(options.device)
        if Path(options.model).is_dir():
            check_model_files(Path(options.model))
        kept = not Path(options.model).is_dir() and find_on_hub(
            options.model, owner=CrossEncoder.default_huggingface_organization
        )
        return CrossEncoder(
            options.model,
            device=options.device,
            local_files_only=kept,
            max_length=options.max_length,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CurateError(f"scores.teacher.model: {options.model} cannot be loaded: {error}") from error


def _version(name: str) -> str:
    """A folder's weights by their hash, so that new ones are not taken for old; a hub's model by its name."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.json")]):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as content:
            while part := content.read(1 << 20):
                digest.update(part)
    return f"{folder.name}@{digest.hexdigest()}"
