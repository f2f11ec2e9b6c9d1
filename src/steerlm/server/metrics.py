"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from steerlm.server.admission import Admission
from steerlm.server.logs import Entry

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
# Labels must not grow with what clients make up.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Metrics:
    """Counters of one server, in a registry of its own, so that several may live in a process."""

    def __init__(self, admission: Admission, scoring: Admission) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "steerlm_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "steerlm_request_seconds", "Time of a request", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._errors = Counter("steerlm_errors", "Errors and refusals, by code", ["code"], registry=self.registry)
        self._left = Counter("steerlm_clients_left", "Clients gone before the answer was", registry=self.registry)
        self._prompt = Counter("steerlm_prompt_tokens", "Tokens of prompts", registry=self.registry)
        self._cached = Counter(
            "steerlm_cached_prompt_tokens", "Tokens of prompts that were not computed again", registry=self.registry
        )
        self._completion = Counter("steerlm_completion_tokens", "Tokens generated", registry=self.registry)
        self._scored = Counter("steerlm_scored_tokens", "Tokens that the attribute model read", registry=self.registry)
        self._queue = Histogram(
            "steerlm_queue_seconds", "Time in the queue", buckets=(0.0, *_SECONDS), registry=self.registry
        )
        self._first = Histogram(
            "steerlm_time_to_first_token_seconds",
            "From leaving the queue to the first token",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._each = Histogram(
            "steerlm_time_per_output_token_seconds",
            "Between tokens of a sequence",
            buckets=_TOKEN_SECONDS,
            registry=self.registry,
        )
        self._steering = Counter(
            "steerlm_steering_values", "Settings asked for", ["attribute", "level"], registry=self.registry
        )
        running = Gauge("steerlm_sequences_running", "Sequences computed now", registry=self.registry)
        running.set_function(lambda: admission.running)
        waiting = Gauge("steerlm_sequences_waiting", "Sequences in the queue", registry=self.registry)
        waiting.set_function(lambda: admission.waiting)
        read = Gauge("steerlm_scoring_running", "Requests scored or measured now", registry=self.registry)
        read.set_function(lambda: scoring.running)
        unread = Gauge("steerlm_scoring_waiting", "Requests that wait to be scored or measured", registry=self.registry)
        unread.set_function(lambda: scoring.waiting)

    def request(self, entry: Entry) -> None:
        """Count a request that has ended."""
        route = entry.route or "none"
        method = entry.method if entry.method in _METHODS else "other"
        self._requests.labels(method, route, str(entry.status)).inc()
        self._seconds.labels(route).observe(entry.seconds)
        if entry.code:
            self._errors.labels(entry.code).inc()
        if entry.left:
            self._left.inc()
        self._scored.inc(entry.scored_tokens)
        if not entry.sequences:
            return
        self._queue.observe(entry.waited)
        self._prompt.inc(entry.prompt_tokens)
        self._cached.inc(entry.cached_tokens)
        self._completion.inc(entry.completion_tokens)
        for seconds in entry.first_token:
            self._first.observe(seconds)
        for seconds in entry.per_token:
            self._each.observe(seconds)
        # Names and levels were checked against the model's schema before they were noted.
        for values in entry.values:
            for attribute, level in values.items():
                self._steering.labels(attribute, str(level)).inc()

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)
