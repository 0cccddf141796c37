"""OpenGCL: train one embedding model that ranks (Generalized Contrastive Learning, arXiv 2404.08535)."""

__version__ = "0.1.0"
