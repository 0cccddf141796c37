"""OpenGCL: train one embedding model that ranks (Generalized Contrastive Learning, arXiv 2404.08535)."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# For type checkers and the API page; at run time each name is loaded when it is first used, so that `opengcl --help`
# and the metrics do not wait for torch.
if TYPE_CHECKING:
    from opengcl.clicks.build import from_logs
    from opengcl.client import Client, ServerError
    from opengcl.config import ConfigError, TrainConfig, load_config
    from opengcl.data.dataset import RankedDataset, write_dataset
    from opengcl.data.problems import DataSetError
    from opengcl.data.qrels import Qrels
    from opengcl.data.records import Records
    from opengcl.data.schema import Schema, SplitOptions
    from opengcl.data.splits import Splits
    from opengcl.data.synthetic import make_shop
    from opengcl.encoders import make_encoder
    from opengcl.evaluation import Evaluation, evaluate
    from opengcl.fetch import FetchOptions, fetch_pictures
    from opengcl.index.open import open_store
    from opengcl.loss import gcl_loss
    from opengcl.model import BiEncoder
    from opengcl.near_duplicates import NearDuplicates
    from opengcl.picture_store import PictureStore
    from opengcl.run_metrics import metrics_of_files
    from opengcl.sbert import GCLLoss, GradedRetrievalEvaluator, RankedPairs
    from opengcl.search import exact_top_k
    from opengcl.sources.formats import SourceOptions, open_source
    from opengcl.sources.importing import ImportOptions, import_dataset
    from opengcl.sources.mapping import TableMapping
    from opengcl.training import train
    from opengcl.weights import scale_scores, weight_function

_HOMES = {
    "BiEncoder": "opengcl.model",
    "Client": "opengcl.client",
    "ConfigError": "opengcl.config",
    "DataSetError": "opengcl.data.problems",
    "Evaluation": "opengcl.evaluation",
    "FetchOptions": "opengcl.fetch",
    "GCLLoss": "opengcl.sbert",
    "GradedRetrievalEvaluator": "opengcl.sbert",
    "ImportOptions": "opengcl.sources.importing",
    "NearDuplicates": "opengcl.near_duplicates",
    "PictureStore": "opengcl.picture_store",
    "Qrels": "opengcl.data.qrels",
    "RankedDataset": "opengcl.data.dataset",
    "RankedPairs": "opengcl.sbert",
    "Records": "opengcl.data.records",
    "Schema": "opengcl.data.schema",
    "ServerError": "opengcl.client",
    "SourceOptions": "opengcl.sources.formats",
    "SplitOptions": "opengcl.data.schema",
    "Splits": "opengcl.data.splits",
    "TableMapping": "opengcl.sources.mapping",
    "TrainConfig": "opengcl.config",
    "evaluate": "opengcl.evaluation",
    "exact_top_k": "opengcl.search",
    "fetch_pictures": "opengcl.fetch",
    "from_logs": "opengcl.clicks.build",
    "gcl_loss": "opengcl.loss",
    "import_dataset": "opengcl.sources.importing",
    "load_config": "opengcl.config",
    "make_encoder": "opengcl.encoders",
    "make_shop": "opengcl.data.synthetic",
    "metrics_of_files": "opengcl.run_metrics",
    "open_source": "opengcl.sources.formats",
    "open_store": "opengcl.index.open",
    "scale_scores": "opengcl.weights",
    "train": "opengcl.training",
    "weight_function": "opengcl.weights",
    "write_dataset": "opengcl.data.dataset",
}

__all__ = [
    "BiEncoder",
    "Client",
    "ConfigError",
    "DataSetError",
    "Evaluation",
    "FetchOptions",
    "GCLLoss",
    "GradedRetrievalEvaluator",
    "ImportOptions",
    "NearDuplicates",
    "PictureStore",
    "Qrels",
    "RankedDataset",
    "RankedPairs",
    "Records",
    "Schema",
    "ServerError",
    "SourceOptions",
    "SplitOptions",
    "Splits",
    "TableMapping",
    "TrainConfig",
    "__version__",
    "evaluate",
    "exact_top_k",
    "fetch_pictures",
    "from_logs",
    "gcl_loss",
    "import_dataset",
    "load_config",
    "make_encoder",
    "make_shop",
    "metrics_of_files",
    "open_source",
    "open_store",
    "scale_scores",
    "train",
    "weight_function",
    "write_dataset",
]

if not TYPE_CHECKING:  # a type checker that saw this would let any name pass

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            from importlib import import_module

            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'opengcl' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
