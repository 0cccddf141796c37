"""Secrets: read from the environment, sent to their service, and kept out of every other place."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, quote_plus

from opengcl.curate.errors import CurateError

_SHORTEST = 4
"""Shorter values are not looked for in texts: they would be found in ordinary words."""

# A filter holds for one logger, not for those below it, so each that writes about requests is named.
_LOGGERS = ("httpx2", "httpcore2.connection", "httpcore2.http11", "httpcore2.http2", "httpcore2.proxy")
_CLIENT_LOGGERS = ("openai", "openai._base_client", "openai._response", "openai._legacy_response")


class Keys:
    """The secrets of a run, and the only place that knows them all."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def read(self, name: str) -> str:
        """The value of an environment variable, remembered as a secret.

        Raises:
            CurateError: If it is not set or empty; the message names the variable.
        """
        value = os.environ.get(name, "").strip()
        if not value:
            raise CurateError(f"the environment variable {name} is not set; it must hold the service's key")
        self._values[name] = value
        return value

    def scrub(self, text: str) -> str:
        """The text with every secret replaced by the name of its variable."""
        for name, value in self._values.items():
            if len(value) >= _SHORTEST:
                for form in {value, quote(value, safe=""), quote_plus(value)}:
                    text = text.replace(form, f"${{{name}}}")
        return text

    @contextmanager
    def out_of_logs(self) -> Iterator[None]:
        """While it lasts, the HTTP libraries' log messages, which quote whole addresses, are scrubbed."""
        loggers = [logging.getLogger(name) for name in (*_LOGGERS, *_CLIENT_LOGGERS)]
        for logger in loggers:
            logger.addFilter(self._scrub_record)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(self._scrub_record)

    def _scrub_record(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.scrub(record.getMessage()), ()
        return True
