"""The kernels of the compiled rolling statistics, one per state of :mod:`riskml.features.blocks`.

All take the same rows: values [n_rows, n_columns], each row's segment start and the latest of
them, whether segments cut windows at all, the first bar and its place in its block. Then come the
carried arrays, which they change in place, and the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from riskml.arrays import Float1D, Float2D, Int1D, Int2D

_F = TypeVar("_F", bound=Callable[..., Any])


def jit(function: _F) -> _F:
    # fastmath stays off: reordering sums would break chunk invariance.
    compiled: _F = numba.njit(cache=True, nogil=True)(function)
    return compiled


@jit
def is_finite(x: float) -> bool:
    return x - x == 0.0


@jit
def roll_count(
    raw: Float2D,
    start: Int2D,
    latest: Int1D,
    cut: bool,
    bar: int,
    place: int,
    ring: Float2D,
    prefix: Float1D,
    out: Float2D,
) -> None:
    size, n_columns = ring.shape
    for t in range(raw.shape[0]):
        oldest = bar + t - size + 1
        if place == 0:
            prefix[:] = 0.0
        mature = not cut or latest[t] <= oldest
        for j in range(n_columns):
            alive = True
            behind = place + 1
            if not mature:
                if start[t, j] == bar + t:
                    prefix[j] = 0.0
                alive = start[t, j] <= bar + t
                behind = max(start[t, j], oldest) - (bar + t - place - size)
            finite = alive and is_finite(raw[t, j])
            prefix[j] += 1.0 if finite else 0.0
            total = prefix[j] + (ring[behind, j] if behind < size else 0.0)
            out[t, j] = total if alive else 0.0
            ring[place, j] = 1.0 if finite else np.nan
        place += 1
        if place == size:
            place = 0
            _close_counts(ring)


@jit
def _close_counts(ring: Float2D) -> None:
    size, n_columns = ring.shape
    for k in range(size - 1, -1, -1):
        for j in range(n_columns):
            later = ring[k + 1, j] if k < size - 1 else 0.0
            ring[k, j] = later + (1.0 if is_finite(ring[k, j]) else 0.0)


@jit
def roll_sum(
    raw: Float2D,
    start: Int2D,
    latest: Int1D,
    cut: bool,
    bar: int,
    place: int,
    ring: Float2D,
    ring_count: Int2D,
    prefix: Float1D,
    prefix_count: Int1D,
    enough: int,
    mean: bool,
    out: Float2D,
) -> None:
    size, n_columns = ring.shape
    for t in range(raw.shape[0]):
        oldest = bar + t - size + 1
        if place == 0:
            prefix[:] = 0.0
            prefix_count[:] = 0
        mature = not cut or latest[t] <= oldest
        for j in range(n_columns):
            alive = True
            behind = place + 1
            if not mature:
                if start[t, j] == bar + t:
                    prefix[j] = 0.0
                    prefix_count[j] = 0
                alive = start[t, j] <= bar + t
                behind = max(start[t, j], oldest) - (bar + t - place - size)
            x = raw[t, j]
            finite = alive and is_finite(x)
            prefix[j] += x if finite else 0.0
            prefix_count[j] += 1 if finite else 0
            total, count = prefix[j], prefix_count[j]
            if behind < size:
                total += ring[behind, j]
                count += ring_count[behind, j]
            total = total / max(count, 1) if mean else total
            out[t, j] = total if alive and count >= enough else np.nan
            ring[place, j] = x
        place += 1
        if place == size:
            place = 0
            _close_sums(ring, ring_count)


@jit
def _close_sums(ring: Float2D, ring_count: Int2D) -> None:
    size, n_columns = ring.shape
    for k in range(size - 1, -1, -1):
        for j in range(n_columns):
            finite = is_finite(ring[k, j])
            value = ring[k, j] if finite else 0.0
            if k == size - 1:
                ring[k, j] = value
                ring_count[k, j] = 1 if finite else 0
            else:
                ring[k, j] = ring[k + 1, j] + value
                ring_count[k, j] = ring_count[k + 1, j] + (1 if finite else 0)


@jit
def roll_weighted(
    raw: Float2D,
    start: Int2D,
    latest: Int1D,
    cut: bool,
    bar: int,
    place: int,
    ring: Float2D,
    ring_weight: Float2D,
    ring_count: Int2D,
    prefix: Float1D,
    prefix_weight: Float1D,
    prefix_count: Int1D,
    enough: int,
    powers: Float1D,
    out: Float2D,
) -> None:
    size, n_columns = ring.shape
    decay = powers[1]
    for t in range(raw.shape[0]):
        oldest = bar + t - size + 1
        if place == 0:
            prefix[:] = 0.0
            prefix_weight[:] = 0.0
            prefix_count[:] = 0
        join = powers[place + 1]
        mature = not cut or latest[t] <= oldest
        for j in range(n_columns):
            alive = True
            behind = place + 1
            if not mature:
                if start[t, j] == bar + t:
                    prefix[j] = 0.0
                    prefix_weight[j] = 0.0
                    prefix_count[j] = 0
                alive = start[t, j] <= bar + t
                behind = max(start[t, j], oldest) - (bar + t - place - size)
            x = raw[t, j]
            finite = alive and is_finite(x)
            prefix[j] = prefix[j] * decay + (x if finite else 0.0)
            prefix_weight[j] = prefix_weight[j] * decay + (1.0 if finite else 0.0)
            prefix_count[j] += 1 if finite else 0
            total, weight, count = prefix[j], prefix_weight[j], prefix_count[j]
            if behind < size:
                total += join * ring[behind, j]
                weight += join * ring_weight[behind, j]
                count += ring_count[behind, j]
            ring[place, j] = x
            if alive and count >= enough:
                out[t, j] = total / (weight if weight > 0.0 else 1.0)
            else:
                out[t, j] = np.nan
        place += 1
        if place == size:
            place = 0
            _close_weighted(ring, ring_weight, ring_count, powers)


@jit
def _close_weighted(ring: Float2D, ring_weight: Float2D, ring_count: Int2D, powers: Float1D) -> None:
    size, n_columns = ring.shape
    for k in range(size - 1, -1, -1):
        power = powers[size - 1 - k]
        for j in range(n_columns):
            finite = is_finite(ring[k, j])
            value = (ring[k, j] if finite else 0.0) * power
            mass = power if finite else 0.0
            if k == size - 1:
                ring[k, j], ring_weight[k, j] = value, mass
                ring_count[k, j] = 1 if finite else 0
            else:
                ring[k, j] = ring[k + 1, j] + value
                ring_weight[k, j] = ring_weight[k + 1, j] + mass
                ring_count[k, j] = ring_count[k + 1, j] + (1 if finite else 0)


@jit
def roll_moment(
    raw: Float2D,
    start: Int2D,
    latest: Int1D,
    cut: bool,
    bar: int,
    place: int,
    ring: Float2D,
    ring_square: Float2D,
    ring_count: Float2D,
    prefix: Float1D,
    prefix_square: Float1D,
    prefix_count: Float1D,
    enough: int,
    out: Float2D,
) -> None:
    size, n_columns = ring.shape
    for t in range(raw.shape[0]):
        oldest = bar + t - size + 1
        if place == 0:
            prefix[:] = 0.0
            prefix_square[:] = 0.0
            prefix_count[:] = 0.0
        mature = not cut or latest[t] <= oldest
        for j in range(n_columns):
            alive = True
            behind = place + 1
            if not mature:
                if start[t, j] == bar + t:
                    prefix[j] = 0.0
                    prefix_square[j] = 0.0
                    prefix_count[j] = 0.0
                alive = start[t, j] <= bar + t
                behind = max(start[t, j], oldest) - (bar + t - place - size)
            x = raw[t, j]
            finite = alive and is_finite(x)
            value = x if finite else 0.0
            prefix_count[j] += 1.0 if finite else 0.0
            step = value - prefix[j] if finite else 0.0
            prefix[j] += step / max(prefix_count[j], 1.0)
            prefix_square[j] += step * (value - prefix[j])
            count, square = prefix_count[j], prefix_square[j]
            before, centre, square_before = 0.0, 0.0, 0.0
            if behind < size:
                before, centre, square_before = ring_count[behind, j], ring[behind, j], ring_square[behind, j]
            both = count + before
            gap = prefix[j] - centre
            joined = square + (square_before + gap * gap * count * before / (both if both > 0.0 else 1.0))
            square = joined if before > 0.0 else square
            variance = square / (both if both > 0.0 else 1.0)
            out[t, j] = np.sqrt(variance) if alive and both >= enough else np.nan
            ring[place, j] = x
        place += 1
        if place == size:
            place = 0
            _close_moments(ring, ring_square, ring_count)


@jit
def _close_moments(ring: Float2D, ring_square: Float2D, ring_count: Float2D) -> None:
    size, n_columns = ring.shape
    for k in range(size - 1, -1, -1):
        for j in range(n_columns):
            count, centre, square = 0.0, 0.0, 0.0
            if k < size - 1:
                count, centre, square = ring_count[k + 1, j], ring[k + 1, j], ring_square[k + 1, j]
            finite = is_finite(ring[k, j])
            value = ring[k, j] if finite else 0.0
            count += 1.0 if finite else 0.0
            step = value - centre if finite else 0.0
            centre += step / max(count, 1.0)
            square += step * (value - centre)
            ring_count[k, j], ring[k, j], ring_square[k, j] = count, centre, square


@jit
def roll_extreme(
    raw: Float2D,
    start: Int2D,
    latest: Int1D,
    cut: bool,
    bar: int,
    place: int,
    ring: Float2D,
    ring_count: Int2D,
    prefix: Float1D,
    prefix_count: Int1D,
    enough: int,
    sign: float,
    out: Float2D,
) -> None:
    size, n_columns = ring.shape
    for t in range(raw.shape[0]):
        oldest = bar + t - size + 1
        if place == 0:
            prefix[:] = -np.inf
            prefix_count[:] = 0
        mature = not cut or latest[t] <= oldest
        for j in range(n_columns):
            alive = True
            behind = place + 1
            if not mature:
                if start[t, j] == bar + t:
                    prefix[j] = -np.inf
                    prefix_count[j] = 0
                alive = start[t, j] <= bar + t
                behind = max(start[t, j], oldest) - (bar + t - place - size)
            x = raw[t, j]
            finite = alive and is_finite(x)
            value = sign * x if finite else -np.inf
            prefix[j] = value if value > prefix[j] else prefix[j]
            prefix_count[j] += 1 if finite else 0
            best, count = prefix[j], prefix_count[j]
            if behind < size:
                best = ring[behind, j] if ring[behind, j] > best else best
                count += ring_count[behind, j]
            out[t, j] = sign * best if alive and count >= enough else np.nan
            ring[place, j] = x
        place += 1
        if place == size:
            place = 0
            for k in range(size - 1, -1, -1):
                for j in range(n_columns):
                    finite = is_finite(ring[k, j])
                    value = sign * ring[k, j] if finite else -np.inf
                    if k == size - 1:
                        ring[k, j] = value
                        ring_count[k, j] = 1 if finite else 0
                    else:
                        ring[k, j] = value if value > ring[k + 1, j] else ring[k + 1, j]
                        ring_count[k, j] = ring_count[k + 1, j] + (1 if finite else 0)
