"""When two queries are the same: texts without what no reader would call a difference."""

from __future__ import annotations

import unicodedata

_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Soft hyphen, zero-width space, word joiner, byte order mark: nobody sees them, and copied texts are full of them."""


def normalised(text: str) -> str:
    """A text as it is compared with others: NFKC, case folded, white space single, invisible characters removed.

    Import, interaction logs, near duplicates and ``opengcl data check`` all compare texts so (Unicode, UAX 15 and 21).
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_INVISIBLE).split())
