"""The log: one JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

__all__ = ["log_as_json"]


class _JsonLines(logging.Formatter):
    """One JSON object a line. What a record has in `fields` stands beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_as_json(*, debug: bool) -> None:
    """Log a line for each request, warnings, and with `debug` all, words of documents included."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[output], force=True)
    logging.getLogger("ragfm.server").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a warning for each request that can't be read
