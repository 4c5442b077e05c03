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
    buckets = np.empty(n_buckets * _CAPACITY)
    held = np.zeros(n_buckets, dtype=np.int64)
    tops = np.empty(n_buckets)
    for j in range(n_columns):
        n = counts[j]
        _lay_out(ordered, j, n, buckets, held, tops)
        at = place
        for t in range(raw.shape[0]):
            alive, kept = True, True
            if cut:
                if start[t, j] == bar + t:
                    n = 0
                    _lay_out(ordered, j, 0, buckets, held, tops)
                alive = start[t, j] <= bar + t
                kept = start[t, j] <= bar + t - size
            leaving, entering = ring[at, j], raw[t, j]
            if kept and is_finite(leaving):
                _take(leaving, buckets, held, tops)
                n -= 1
            if alive and is_finite(entering):
                if not _put(entering, buckets, held, tops):
                    _collect(buckets, held, ordered, j)
                    _lay_out(ordered, j, n, buckets, held, tops)
                    _put(entering, buckets, held, tops)
                n += 1
            ring[at, j] = entering
            at = at + 1 if at + 1 < size else 0
            out[t, j] = _select(buckets, held, n, level) if alive and n >= enough else np.nan
        _collect(buckets, held, ordered, j)
        counts[j] = n


@jit
def _lay_out(ordered: Float2D, j: int, n: int, buckets: Float1D, held: Int1D, tops: Float1D) -> None:
    """Spread a sorted window evenly; ``tops`` say which bucket a value belongs to."""
    n_buckets = len(held)
    share = n // n_buckets + 1
    first = 0
    for b in range(n_buckets):
        last = min(first + share, n)
        held[b] = last - first
        for k in range(first, last):
            buckets[b * _CAPACITY + k - first] = ordered[j, k]
        tops[b] = ordered[j, last - 1] if last < n else np.inf
        first = last


@jit
def _collect(buckets: Float1D, held: Int1D, ordered: Float2D, j: int) -> None:
    n = 0
    for b in range(len(held)):
        for k in range(held[b]):
            ordered[j, n] = buckets[b * _CAPACITY + k]
            n += 1


@jit
def _first_at_least(ordered: Float1D, first: int, n: int, value: float) -> int:
    """Place of the first of the ``n`` ordered values from ``first`` on that is not below ``value``."""
    length = n
    while length > 0:
        half = length // 2
        below = ordered[np.uint64(first + half)] < value
        # Without a branch: which way it goes cannot be foreseen.
        first += (half + 1) * below
        length = length - half - 1 if below else half
    return first


@jit
def _take(value: float, buckets: Float1D, held: Int1D, tops: Float1D) -> None:
    """Remove one occurrence; equal values may reach into the buckets that follow."""
    for b in range(_first_at_least(tops, 0, len(tops), value), len(held)):
        base = b * _CAPACITY
        place = _first_at_least(buckets, base, held[b], value)
        if place < base + held[b] and buckets[place] == value:
            held[b] -= 1
            # Unsigned: a signed index is looked at for being negative at every step.
            for k in range(np.uint64(place), np.uint64(base + held[b])):
                buckets[k] = buckets[k + np.uint64(1)]
            return


@jit
def _put(value: float, buckets: Float1D, held: Int1D, tops: Float1D) -> bool:
    """Insert; False when the bucket is full."""
    b = _first_at_least(tops, 0, len(tops), value)
    if held[b] == _CAPACITY:
        return False
    base = b * _CAPACITY
    place = _first_at_least(buckets, base, held[b], value)
    for back in range(np.uint64(held[b] - (place - base))):
        k = np.uint64(base + held[b]) - back
        buckets[k] = buckets[k - np.uint64(1)]
    buckets[place] = value
    held[b] += 1
    return True


@jit
def _select(buckets: Float1D, held: Int1D, n: int, level: float) -> float:
    """Linear between the order statistics on both sides of the level."""
    where = (n - 1) * level
    below = int(np.floor(where))
    # From the nearer end: a high level lies in the last buckets.
    if 2 * below < n:
        rank, b = below, 0
        while rank >= held[b]:
            rank -= held[b]
            b += 1
    else:
        rank, b = below - n, len(held) - 1
        while rank + held[b] < 0:
            rank += held[b]
            b -= 1
        rank += held[b]
    low = buckets[b * _CAPACITY + rank]
    if below + 1 == n:
        return low
    rank += 1
    while rank >= held[b]:
        rank -= held[b]
        b += 1
    return low + (buckets[b * _CAPACITY + rank] - low) * (where - below)
