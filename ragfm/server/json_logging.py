"""Logging as one JSON object per line on standard error, or as text: time, level, the name of an event, and its fields.

A line that is logged while a request is handled has the request's id, its key, and the id of its trace, if it has one.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from ragfm.core.tracing import trace_id

request_fields: ContextVar[Mapping[str, str]] = ContextVar("request_fields", default={})  # noqa: B039  never changed
"""Id and key of the request that is being handled."""


class _Formatter(logging.Formatter):
    """Adds a record's `event` and `fields` to its line. Records of libraries have neither: their event is `log`.

    The line is a JSON object or, for people, text: `12:30:01 INFO request status=200 ms=41`.
    """

    def __init__(self, form: Literal["json", "text"]) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            **request_fields.get(),
            **({"trace_id": trace} if (trace := trace_id()) else {}),
            **getattr(record, "fields", {"logger": record.name}),
        }
        if message := record.getMessage():
            line["message"] = message
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        if self._form == "json":
            return json.dumps(line, ensure_ascii=False)
        start = f"{line.pop('time')[11:19]} {line.pop('level').upper()} {line.pop('event')}"
        trace = line.pop("traceback", "")
        fields = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in line.items()]
        return " ".join([start, *fields]) + (f"\n{trace}" if trace else "")


def log_event(logger: logging.Logger, level: int, event: str, message: str = "", **fields: Any) -> None:
    """Log an event by its name, which never changes, with fields for programs and a message for people."""
    logger.log(level, "%s", message, extra={"event": event, "fields": fields})


def configure_logging(*, debug: bool, form: Literal["json", "text"] = "json") -> None:
    """Log requests and warnings. With `debug` log everything, which may include the text of documents."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form))
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("ragfm.server").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns about each malformed request
