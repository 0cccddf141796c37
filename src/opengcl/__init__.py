"""OpenGCL: train one embedding model that ranks (Generalized Contrastive Learning, arXiv 2404.08535)."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from opengcl.client import Client
    from opengcl.config import TrainConfig
    from opengcl.data import RankedDataset
    from opengcl.data.synthetic import make_shop
    from opengcl.evaluation import evaluate
    from opengcl.loss import gcl_loss
    from opengcl.model import BiEncoder
    from opengcl.sbert import GCLLoss, GradedRetrievalEvaluator, RankedPairs
    from opengcl.training import train

# Loaded when first used, so that `opengcl --help` and the metrics do not wait for torch.
_HOMES = {
    "BiEncoder": "opengcl.model",
    "Client": "opengcl.client",
    "GCLLoss": "opengcl.sbert",
    "GradedRetrievalEvaluator": "opengcl.sbert",
    "RankedDataset": "opengcl.data",
    "RankedPairs": "opengcl.sbert",
    "TrainConfig": "opengcl.config",
    "evaluate": "opengcl.evaluation",
    "gcl_loss": "opengcl.loss",
    "make_shop": "opengcl.data.synthetic",
    "train": "opengcl.training",
}

__all__ = [
    "BiEncoder",
    "Client",
    "GCLLoss",
    "GradedRetrievalEvaluator",
    "RankedDataset",
    "RankedPairs",
    "TrainConfig",
    "__version__",
    "evaluate",
    "gcl_loss",
    "make_shop",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'opengcl' has no attribute {name!r}")
