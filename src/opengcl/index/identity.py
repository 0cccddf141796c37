"""Which model made the vectors of an index."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Beside the model, but no part of it: `opengcl search` keeps its vectors there.
_NOT_THE_MODEL = {"vectors"}
# Added for models with prompts: an index that an earlier version built of them has vectors without their prompts.
_PROMPTS_BY_SIDE = b"prompts by side"


def model_fingerprint(run: str | Path) -> str:
    """A hash over the names and bytes of a model's files: the same wherever the folder lies.

    The model's prompts are in these files.

    Args:
        run: A run folder or model folder.

    Returns:
        32 hex digits.

    Raises:
        ModelError: There is no trained model.
    """
    from opengcl.model import trained_folder  # takes seconds, which a look into a store does not need
    from opengcl.prompts import saved_prompts

    folder = trained_folder(run)
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        place = file.relative_to(folder)
        if place.parts[0] in _NOT_THE_MODEL:
            continue
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "blake2b").digest()
        digest.update(hashlib.blake2b(place.as_posix().encode()).digest() + content)
    if saved_prompts(folder):
        digest.update(_PROMPTS_BY_SIDE)
    return digest.hexdigest()
