"""The HTTP server: search, documents and embeddings of one or two trained models, and the search page."""

from opengcl.serve.settings import ServeError, Settings

__all__ = ["ServeError", "Settings"]
