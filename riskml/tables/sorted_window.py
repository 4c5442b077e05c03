"""The kernel of rolling quantiles: a sorted window in buckets, so that a change moves little.

A window of 10,000 bars kept in one sorted array would move a third of it at every bar. Buckets of
at most :data:`_CAPACITY` values move one bucket; a bucket that overflows has the window laid out
afresh, which happens once in thousands of bars.
"""

from __future__ import annotations

import numpy as np

from riskml.arrays import Float1D, Float2D, Int1D, Int2D
from riskml.tables.kernels import is_finite, jit

_FILL, _CAPACITY = 64, 192
"""Values per bucket of a sorted window after it was laid out, and at most."""


@jit
def roll_quantile(
    raw: Float2D,
    start: Int2D,
    latest: Int1D,
    cut: bool,
    bar: int,
    place: int,
    ring: Float2D,
    ordered: Float2D,
    counts: Int1D,
    enough: int,
    level: float,
    out: Float2D,
) -> None:
    """One column at a time, its window in sorted buckets: a move shifts one bucket only."""
    size, n_columns = ring.shape
    n_buckets = size // _FILL + 1
    buckets = np.empty((n_buckets, _CAPACITY))
    held = np.zeros(n_buckets, dtype=np.int64)
    tops = np.empty(n_buckets)
    for j in range(n_columns):
        n = counts[j]
        _lay_out(ordered[j], n, buckets, held, tops)
        at = place
        for t in range(raw.shape[0]):
            alive, kept = True, True
            if cut:
                if start[t, j] == bar + t:
                    n = 0
                    _lay_out(ordered[j], 0, buckets, held, tops)
                alive = start[t, j] <= bar + t
                kept = start[t, j] <= bar + t - size
            if kept and is_finite(ring[at, j]):
                _take(ring[at, j], buckets, held, tops)
                n -= 1
            if alive and is_finite(raw[t, j]):
                if not _put(raw[t, j], buckets, held, tops):
                    _collect(buckets, held, ordered[j])
                    _lay_out(ordered[j], n, buckets, held, tops)
                    _put(raw[t, j], buckets, held, tops)
                n += 1
            ring[at, j] = raw[t, j]
            at = at + 1 if at + 1 < size else 0
            out[t, j] = _select(buckets, held, n, level) if alive and n >= enough else np.nan
        _collect(buckets, held, ordered[j])
        counts[j] = n


@jit
def _lay_out(ordered: Float1D, n: int, buckets: Float2D, held: Int1D, tops: Float1D) -> None:
    """Spread a sorted window evenly; ``tops`` say which bucket a value belongs to."""
    n_buckets = len(held)
    share = n // n_buckets + 1
    first = 0
    for b in range(n_buckets):
        last = min(first + share, n)
        held[b] = last - first
        for k in range(first, last):
            buckets[b, k - first] = ordered[k]
        tops[b] = ordered[last - 1] if last < n else np.inf
        first = last


@jit
def _collect(buckets: Float2D, held: Int1D, ordered: Float1D) -> None:
    n = 0
    for b in range(len(held)):
        for k in range(held[b]):
            ordered[n] = buckets[b, k]
            n += 1


@jit
def _take(value: float, buckets: Float2D, held: Int1D, tops: Float1D) -> None:
    """Remove one occurrence; equal values may reach into the buckets that follow."""
    for b in range(np.searchsorted(tops, value), len(held)):
        n = held[b]
        place = np.searchsorted(buckets[b, :n], value)
        if place < n and buckets[b, place] == value:
            for k in range(place, n - 1):
                buckets[b, k] = buckets[b, k + 1]
            held[b] = n - 1
            return


@jit
def _put(value: float, buckets: Float2D, held: Int1D, tops: Float1D) -> bool:
    """Insert; False when the bucket is full."""
    b = np.searchsorted(tops, value)
    n = held[b]
    if n == _CAPACITY:
        return False
    place = np.searchsorted(buckets[b, :n], value)
    for k in range(n, place, -1):
        buckets[b, k] = buckets[b, k - 1]
    buckets[b, place] = value
    held[b] = n + 1
    return True


@jit
def _select(buckets: Float2D, held: Int1D, n: int, level: float) -> float:
    """Linear between the order statistics on both sides of the level."""
    where = (n - 1) * level
    below = int(np.floor(where))
    rank, b = below, 0
    while rank >= held[b]:
        rank -= held[b]
        b += 1
    low = buckets[b, rank]
    high = low
    if below + 1 < n:
        rank += 1
        while rank >= held[b]:
            rank -= held[b]
            b += 1
        high = buckets[b, rank]
    return low + (high - low) * (where - below)
