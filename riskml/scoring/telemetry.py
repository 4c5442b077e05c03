"""What the scorer counts about itself, readable as a dict or as Prometheus text.

Counting never raises and never blocks: a risk engine polls :meth:`Telemetry.snapshot`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from riskml.errors import Problem

KEPT_PROBLEMS = 100
"""Newest rejected rows that are kept with their reason."""


class Telemetry:
    """Counters, timers and the newest problems of one scorer."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._slowest: dict[str, float] = {}
        self.problems: deque[Problem] = deque(maxlen=KEPT_PROBLEMS)
        """Newest rejected rows, newest last."""

    def count(self, name: str, amount: int = 1, *, label: str = "") -> None:
        """Add ``amount`` to a counter; ``label`` is a table or a market."""
        if amount:
            self._counts[name, label] += amount

    def value(self, name: str, *, label: str | None = None) -> int:
        """A counter; without a label the sum over its labels."""
        if label is not None:
            return self._counts[name, label]
        return sum(amount for (found, _), amount in self._counts.items() if found == name)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure the enclosed block, wall time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._calls[name] += 1
            self._seconds[name] += seconds  # type: ignore[assignment]  # Counter holds floats too
            self._slowest[name] = max(self._slowest.get(name, 0.0), seconds)

    def snapshot(self) -> dict[str, float]:
        """Every figure by name: ``observed_rows{bars}``, ``close_bar_seconds_max`` ..."""
        figures: dict[str, float] = {
            f"{name}{{{label}}}" if label else name: amount
            for (name, label), amount in sorted(self._counts.items())
        }
        for name, calls in sorted(self._calls.items()):
            figures[f"{name}_calls"] = calls
            figures[f"{name}_seconds_sum"] = float(self._seconds[name])
            figures[f"{name}_seconds_max"] = self._slowest[name]
        return figures

    def to_prometheus(self) -> str:
        """The snapshot in the Prometheus text format, names prefixed with ``riskml_``."""
        lines = [
            f'riskml_{name}{{label="{label}"}} {amount}' if label else f"riskml_{name} {amount}"
            for (name, label), amount in sorted(self._counts.items())
        ]
        timers = {
            name: value
            for name, value in self.snapshot().items()
            if "_seconds_" in name or name.endswith("_calls")
        }
        lines += [f"riskml_{name} {value:.9g}" for name, value in timers.items()]
        return "\n".join(lines) + "\n"
