"""What is kept of a run: a count, a sum and a few rows per feature, and the time without the reading.

Every engine hands its values over as they are produced and may forget them. The counts and sums make it
read each value once; the rows are compared between engines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np


# Sums may be reordered here: the digest must not cost more than reading a value does.
@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})
def _tally(values: np.ndarray, counts: np.ndarray, sums: np.ndarray) -> None:
    """Add the finite values of [n_features, n_rows, n_markets] to counts and sums [n_features]."""
    for place in range(values.shape[0]):
        count, total = 0, 0.0
        for row in range(values.shape[1]):
            for market in range(values.shape[2]):
                value = values[place, row, market]
                finite = value - value == 0.0
                count += 1 if finite else 0
                total += value if finite else 0.0
        counts[place] += count
        sums[place] += total


class Digest:
    """Counts [n_features], sums [n_features] and sampled rows [n_samples, n_markets, n_features]."""

    def __init__(self, n_bars: int, n_markets: int, n_features: int, n_samples: int = 64) -> None:
        rng = np.random.default_rng(1)
        drawn = rng.choice(n_bars, min(n_bars, n_samples) - 1, replace=False)
        self.rows = np.unique(np.append(drawn, n_bars - 1))
        self.counts = np.zeros(n_features, dtype=np.int64)
        self.sums = np.zeros(n_features)
        self.samples = np.full((len(self.rows), n_markets, n_features), np.nan)
        self._begun = time.perf_counter()
        self._paused = 0.0
        _tally(np.zeros((1, 1, 1)), np.zeros(1, dtype=np.int64), np.zeros(1))

    def start(self) -> None:
        """Begin to count the time."""
        self._begun, self._paused = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Time since :meth:`start`, less what was paused."""
        return time.perf_counter() - self._begun - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For reading and laying out inputs, which no engine is charged for."""
        begun = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begun

    def add(self, feature: int, values: np.ndarray, market: int | None = None) -> None:
        """A whole feature [n_markets, n_bars], or that of one market [n_bars]."""
        place = slice(feature, feature + 1)
        _tally(np.atleast_2d(values)[np.newaxis], self.counts[place], self.sums[place])
        if market is None:
            self.samples[:, :, feature] = values[:, self.rows].T
        else:
            self.samples[:, market, feature] = values[self.rows]

    def add_block(self, values: np.ndarray, begin: int) -> None:
        """All features of some bars [n, n_markets, n_features], the first of them bar ``begin``."""
        # A stream stores its result feature by feature; seen that way it lies in order.
        _tally(np.moveaxis(values, 2, 0), self.counts, self.sums)
        here = np.flatnonzero((self.rows >= begin) & (self.rows < begin + len(values)))
        self.samples[here] = values[self.rows[here] - begin]
