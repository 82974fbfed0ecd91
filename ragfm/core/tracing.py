"""Traces: spans of OpenTelemetry, if the program has set up its SDK, or `start_tracing` has.

Names of spans and attributes follow the GenAI semantic conventions, version 1.41.0, the last one before they moved to a
repository of their own; what these do not name is `ragfm.…`. No text of documents, questions or answers, and no name of
a document is recorded unless OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT is true.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.trace import Span as OtelSpan

SCHEMA = "https://opentelemetry.io/schemas/1.41.0"
_SDK = "opentelemetry.sdk.trace"
_CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_OPERATIONS = {"ask": "invoke_workflow", "embed": "embeddings", "generate": "chat", "search": "retrieval"}
"""The conventions' operation by the name of a span."""
_SUBJECTS = ("model", "workflow")  # the second word of such a span's name
_NAMES = {
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "collection": "gen_ai.data_source.id",
    "dimensions": "gen_ai.embeddings.dimension.count",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "input_tokens": "gen_ai.usage.input_tokens",
    "k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "method": "http.request.method",
    "model": "gen_ai.request.model",
    "output_tokens": "gen_ai.usage.output_tokens",
    "route": "http.route",
    "status_code": "http.response.status_code",
    "temperature": "gen_ai.request.temperature",
    "workflow": "gen_ai.workflow.name",
}
_CONTENT_NAMES = {"answer": "gen_ai.output.messages", "query": "gen_ai.retrieval.query.text", "uri": "ragfm.uri"}
_log = logging.getLogger(__name__)


def span(name: str, headers: Mapping[str, str] | None = None, **attributes: Any) -> Span:
    """A context manager for a part of the work; without tracing, one that does nothing.

    `headers` are those of a request that the span answers: their `traceparent` becomes the parent. Otherwise, this is
    the span of the current context; a thread needs a copy of it (`contextvars.copy_context`). An attribute that costs
    something may be a function, which is only called if the span is recorded.
    """
    return Span(name, headers, attributes)


class Span:
    """A part of the work. Until it is entered, and while tracing is off, its methods do nothing."""

    def __init__(
        self, name: str = "", headers: Mapping[str, str] | None = None, attributes: Mapping[str, Any] | None = None
    ) -> None:
        self._name, self._headers, self._attributes = name, headers, attributes or {}
        self._operation = _OPERATIONS.get(name)
        self._span: OtelSpan | None = None

    def __enter__(self) -> Span:
        if _SDK not in sys.modules:
            return self
        from opentelemetry import context, propagate, trace

        parent = None if self._headers is None else propagate.extract(self._headers, context.Context())
        kind = trace.SpanKind.INTERNAL if self._headers is None else trace.SpanKind.SERVER
        self._span = trace.get_tracer("ragfm", schema_url=SCHEMA).start_span(
            self._operation or self._name, parent, kind
        )
        self._token = context.attach(trace.set_span_in_context(self._span, parent))
        if self._operation:
            self._span.set_attribute("gen_ai.operation.name", self._operation)
            self._span.set_attribute("gen_ai.provider.name", "ragfm")
        self.set(**self._attributes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        from opentelemetry import context
        from opentelemetry.trace import get_current_span

        if kind is not None and issubclass(kind, Exception):  # others are the end of a stream or task
            self.fail(kind.__qualname__)
        self._span.end()
        if get_current_span() is self._span:  # not in the collector of an abandoned generator, or in another thread
            context.detach(self._token)

    def set(self, **attributes: Any) -> None:
        """Set attributes, by the names in this module."""
        if self._span is None or not self._span.is_recording():
            return
        for key, value in attributes.items():
            name = _NAMES.get(key, f"ragfm.{key}")
            if key in _CONTENT_NAMES:
                if os.environ.get(_CAPTURE, "").lower() != "true":
                    continue
                name = _CONTENT_NAMES[key]
            value = value() if callable(value) else value
            if key == "answer":
                parts = [{"type": "text", "content": value}]
                value = json.dumps([{"role": "assistant", "parts": parts}], ensure_ascii=False)
            if value is not None:
                self._span.set_attribute(name, value)
            if self._operation and key in _SUBJECTS:
                self.rename(f"{self._operation} {value}")

    def rename(self, name: str) -> None:
        """Change the name of the span."""
        if self._span is not None:
            self._span.update_name(name)

    def event(self, name: str) -> None:
        """Record that something has happened."""
        if self._span is not None:
            self._span.add_event(name)

    def fail(self, kind: str) -> None:
        """Mark the span as failed. Only the type of an error is recorded: its message may contain text of documents."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)
            self._span.set_attribute("error.type", kind)


def trace_headers() -> dict[str, str]:
    """The current span as headers for another process; empty without tracing."""
    headers: dict[str, str] = {}
    if _SDK in sys.modules:
        from opentelemetry import propagate

        propagate.inject(headers)
    return headers


def trace_id() -> str | None:
    """The id of the current trace, as 32 hexadecimal digits; None without one."""
    return trace_headers().get("traceparent", "--").split("-")[1] or None


def flush_traces() -> None:
    """Export the spans that have ended, for a process that may be killed."""
    if _SDK in sys.modules:
        from opentelemetry import trace

        if flush := getattr(trace.get_tracer_provider(), "force_flush", None):
            flush()


@cache
def start_tracing() -> None:
    """Export the spans of this process if OTEL_EXPORTER_OTLP_ENDPOINT, or that of traces, names a collector.

    The span that TRACEPARENT of the environment names, if any, becomes the parent.
    """
    endpoint = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", "TRACES_"))
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not endpoint or disabled or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return
    try:
        from opentelemetry import context, propagate, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        _log.warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but there are no traces: %s is not installed. Install the extra "
            "`tracing`, or set OTEL_SDK_DISABLED=true.",
            error.name,
        )
        return
    resource = Resource.create({} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "ragfm"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    context.attach(propagate.extract({key.lower(): value for key, value in os.environ.items()}))
