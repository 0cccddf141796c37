"""Data sets from nothing but categories: queries by a language model, results of a shopping search, scores.

Needs the extra ``curate``.
"""

from opengcl.curate.config import CurateConfig, load_config
from opengcl.curate.errors import BudgetReachedError, CallError, CurateError, RefusedError
from opengcl.curate.estimate import Estimate, estimate
from opengcl.curate.pipeline import Curated, curate
from opengcl.curate.products import Product
from opengcl.curate.search_source import Hit, SearchResult, SearchSource

__all__ = [
    "BudgetReachedError",
    "CallError",
    "CurateConfig",
    "CurateError",
    "Curated",
    "Estimate",
    "Hit",
    "Product",
    "RefusedError",
    "SearchResult",
    "SearchSource",
    "curate",
    "estimate",
    "load_config",
]
