"""Metrics for Prometheus. Labels never name a key, collection or document: every key may read them."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)  # seconds


class Metrics:
    """The metrics of one server. `running` and `waiting` return the current number of requests."""

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        registry = self._registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self.requests = Counter("ragfm_requests", "Requests", labels, registry=registry)
        self.seconds = Histogram(
            "ragfm_request_seconds", "Duration of requests", ["route"], buckets=_BUCKETS, registry=registry
        )
        self.first_token = Histogram(
            "ragfm_first_token_seconds", "Time to the first piece of an answer", buckets=_BUCKETS, registry=registry
        )
        self.tokens = Counter("ragfm_tokens", "Tokens of prompts and completions", ["kind"], registry=registry)
        self.answers = Counter("ragfm_answers", "Answers", ["how"], registry=registry)
        self.uploads = Counter("ragfm_uploads", "Stored uploads", registry=registry)
        Gauge("ragfm_running", "Running answers and searches", registry=registry).set_function(running)
        Gauge("ragfm_waiting", "Requests waiting for a slot", registry=registry).set_function(waiting)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
