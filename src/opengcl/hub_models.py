"""Whether a name that is no folder can be a model on the hub, found with one question.

sentence-transformers asks the hub for every file, and for each five times where nobody answers: a mistyped path takes
minutes, and its message speaks of the network.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from sentence_transformers.util import ORIGINAL_TRANSFORMER_MODELS

from opengcl.named_folders import no_such_folder

_FOLDERS = ("run", "runs", "model", "models", "checkpoint", "checkpoints", "out", "output", "outputs", "results")
"""First or last parts of names that people give to folders, and owners of models do not have."""
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_SECONDS = 10.0


class NoSuchModelError(ValueError):
    """A name that is neither a folder with a model nor a model on the hub."""


def find_on_hub(name: str, *, owner: str | None = "sentence-transformers") -> bool:
    """Makes sure that a name that is no folder is a model on the hub.

    Args:
        name: As ``--model`` has it.
        owner: Put before a name that has no owner; None for names that the hub knows without one.

    Returns:
        Whether only the files of earlier downloads are to be used, as the hub does not answer.

    Raises:
        NoSuchModelError: It looks like a path, the hub has no such model, or it cannot be asked and the model was not
            downloaded before.
    """
    bare = owner is None or "/" in name or name.lower() in ORIGINAL_TRANSFORMER_MODELS
    repository = name if bare else f"{owner}/{name}"
    kept = _REPOSITORY.fullmatch(name) is not None and _is_kept(repository)
    if not kept and (looks_like_a_path(name) or not _REPOSITORY.fullmatch(name)):
        raise NoSuchModelError(no_such_folder(name))
    if constants.HF_HUB_OFFLINE:
        if kept:
            return True
        raise NoSuchModelError(f"{no_such_folder(name)}, nor a downloaded model; the hub is off (HF_HUB_OFFLINE)")
    try:
        HfApi().model_info(repository, timeout=_SECONDS)
    except RepositoryNotFoundError:
        raise NoSuchModelError(f"{no_such_folder(name)}, and no model {repository!r} on the hub") from None
    except HfHubHTTPError as error:
        return _without_the_hub(name, kept, error)
    except Exception as error:  # whatever the HTTP library raises where there is no network
        return _without_the_hub(name, kept, error)
    return False


def looks_like_a_path(name: str) -> bool:
    """Whether a name that is no folder was meant as one: ``./x``, ``a/b/c``, ``runs/x``, or inside a folder here."""
    parts = Path(name).parts
    if name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name or len(parts) > 2:
        return True
    return len(parts) == 2 and (any(part.lower() in _FOLDERS for part in parts) or Path(parts[0]).is_dir())


def _without_the_hub(name: str, kept: bool, error: Exception) -> bool:
    if kept:
        return True
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    raise NoSuchModelError(f"{no_such_folder(name)}; and the hub, {constants.ENDPOINT}, cannot be asked ({reason})")


def _is_kept(repository: str) -> bool:
    """Whether an earlier download left the model's first files."""
    folder = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    try:
        found = [try_to_load_from_cache(repository, file, cache_dir=folder) for file in ("modules.json", "config.json")]
    except HFValidationError:
        return False
    return any(isinstance(file, str) for file in found)
