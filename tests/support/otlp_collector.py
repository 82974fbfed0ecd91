"""A collector of OpenTelemetry: an HTTP server that decodes the protobuf of exported spans."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Span:
    """A span as it was received. Ids are hexadecimal; times are in seconds since 1970."""

    name: str
    trace: str
    id: str
    parent: str
    start: float
    end: float
    kind: int
    failed: bool
    attributes: dict[str, Any]
    events: list[tuple[str, float]]
    resource: dict[str, Any]
    schema: str


@dataclass
class Collector:
    """The spans received so far. `environment` lets a program export to here."""

    address: str
    spans: list[Span] = field(default_factory=list)
    received: bytes = b""

    @property
    def environment(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.address, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def add(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.received += body
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += [
                    Span(
                        name=span.name,
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        start=span.start_time_unix_nano / 1e9,
                        end=span.end_time_unix_nano / 1e9,
                        kind=span.kind,
                        failed=span.status.code == span.status.STATUS_CODE_ERROR,
                        attributes=_values(span.attributes),
                        events=[(event.name, event.time_unix_nano / 1e9) for event in span.events],
                        resource=_values(resource.resource.attributes),
                        schema=scope.schema_url,
                    )
                    for span in scope.spans
                ]

    def trace(self, trace: str) -> list[Span]:
        """The spans of a trace, in the order in which they started."""
        return sorted((span for span in self.spans if span.trace == trace), key=lambda span: span.start)


@contextmanager
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            assert self.headers["content-type"] == "application/x-protobuf"
            found.add(body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _values(attributes: Any) -> dict[str, Any]:
    values = {}
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        values[attribute.key] = (
            [getattr(one, one.WhichOneof("value")) for one in value.values] if kind == "array_value" else value
        )
    return values
