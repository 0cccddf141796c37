"""Ranked data sets: the folder format, its checks, and the splits."""

from opengcl.data.dataset import RankedDataset, write_dataset
from opengcl.data.problems import DataSetError, Problem
from opengcl.data.qrels import Qrels
from opengcl.data.records import Records
from opengcl.data.schema import FieldType, Schema, SplitOptions
from opengcl.data.splits import SPLITS, Splits

__all__ = [
    "SPLITS",
    "DataSetError",
    "FieldType",
    "Problem",
    "Qrels",
    "RankedDataset",
    "Records",
    "Schema",
    "SplitOptions",
    "Splits",
    "write_dataset",
]
