"""Vectors that can be searched: one interface, a store a file, filters, building and checking."""

from opengcl.index.filters import Filter, FilterError, parse_filter, quoted
from opengcl.index.identity import model_fingerprint
from opengcl.index.open import open_store
from opengcl.index.protocol import (
    Hit,
    Index,
    IndexSpec,
    Row,
    Store,
    StoreError,
    UnknownIndex,
    VectorIndexError,
    require_live_model,
    require_model,
)
from opengcl.index.vectors import shorten

__all__ = [
    "Filter",
    "FilterError",
    "Hit",
    "Index",
    "IndexSpec",
    "Row",
    "Store",
    "StoreError",
    "UnknownIndex",
    "VectorIndexError",
    "model_fingerprint",
    "open_store",
    "parse_filter",
    "quoted",
    "require_live_model",
    "require_model",
    "shorten",
]
