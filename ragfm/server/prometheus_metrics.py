"""Metrics for Prometheus. Labels name collections and servers, never a key or a document."""

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
        self.failures = Counter("ragfm_failures", "Requests that failed, by code", ["code"], registry=registry)
        self.seconds = Histogram(
            "ragfm_request_seconds", "Duration of requests", ["route"], buckets=_BUCKETS, registry=registry
        )
        self.first_token = Histogram(
            "ragfm_first_token_seconds", "Time to the first piece of an answer", buckets=_BUCKETS, registry=registry
        )
        self.tokens = Counter("ragfm_tokens", "Tokens of prompts, completions and drafts", ["kind"], registry=registry)
        self.answers = Counter("ragfm_answers", "Answers", ["how"], registry=registry)
        self.uploads = Counter("ragfm_uploads", "Stored uploads", registry=registry)
        per_collection, per_server = ["collection"], ["server"]
        self.database_up = Gauge("ragfm_database_up", "Whether it answers", per_collection, registry=registry)
        self.reader_server_up = Gauge("ragfm_reader_server_up", "Whether it answers", per_server, registry=registry)
        self.generation = Gauge("ragfm_generation", "Newest commit", per_collection, registry=registry)
        age = "Age of the oldest upload or deletion that is not indexed"
        self.index_lag = Gauge("ragfm_index_lag_seconds", age, per_collection, registry=registry)
        self.index_failing = Gauge("ragfm_index_failing", "Whether indexing fails", per_collection, registry=registry)
        failing = "Sources whose last sync failed"
        self.sources_failing = Gauge("ragfm_sources_failing", failing, per_collection, registry=registry)
        Gauge("ragfm_running", "Running answers and searches", registry=registry).set_function(running)
        Gauge("ragfm_waiting", "Requests waiting for a slot", registry=registry).set_function(waiting)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
