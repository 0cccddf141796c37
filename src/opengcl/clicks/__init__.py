"""Scores from interaction logs: what users did, freed of where they saw it."""

from opengcl.clicks.build import Report, from_logs, read_propensities
from opengcl.clicks.catalogue_pictures import PictureOptions
from opengcl.clicks.counts import SupportOptions
from opengcl.clicks.log import LogOptions, aggregate
from opengcl.clicks.model import fit_position_model, randomised_propensities
from opengcl.clicks.rates import expected_rates
from opengcl.clicks.scores import ScoreOptions

__all__ = [
    "LogOptions",
    "PictureOptions",
    "Report",
    "ScoreOptions",
    "SupportOptions",
    "aggregate",
    "expected_rates",
    "fit_position_model",
    "from_logs",
    "randomised_propensities",
    "read_propensities",
]
