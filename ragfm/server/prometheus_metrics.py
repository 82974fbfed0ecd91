"""Figures for Prometheus. Labels never name a key, a collection or a document: everybody with a key may read them."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The figures of one server."""

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("ragfm_requests", "Requests", ["method", "route", "status"], registry=own)
        self.seconds = Histogram("ragfm_request_seconds", "Their time", ["route"], buckets=_SECONDS, registry=own)
        self.first = Histogram("ragfm_first_token_seconds", "Time to the first piece of an answer", buckets=_SECONDS,
                               registry=own)  # fmt: skip
        self.tokens = Counter("ragfm_tokens", "Tokens of prompts and completions", ["kind"], registry=own)
        self.answers = Counter("ragfm_answers", "Answers", ["how"], registry=own)
        self.uploads = Counter("ragfm_uploads", "Uploads that were acknowledged", registry=own)
        Gauge("ragfm_running", "Answers and searches that run", registry=own).set_function(running)
        Gauge("ragfm_waiting", "Requests that wait for a turn", registry=own).set_function(waiting)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)
