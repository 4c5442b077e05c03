"""Evaluation of feature expressions over arrays [n_bars, n_markets].

Batch and live run the same code: batch asks for every row with compiled statistics, a
scorer asks for the last row with the plain ones. How many rows each node has to produce is
worked out from the roots down, and a node that several features share is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from riskml.arrays import AnyArray, Float2D, Float3D, Int2D, TimeUs
from riskml.errors import DataError
from riskml.features.expr import (
    PRESENCE_INPUT,
    BarHours,
    Constant,
    CrossSection,
    Elementwise,
    Expr,
    HourOfWeek,
    Input,
    Lag,
    Rolling,
    walk,
)
from riskml.features.rolling import NumpyOps, Ops, Window, segment_starts
from riskml.features.spec import Feature
from riskml.units import HOUR, duration_us

_HOURS_PER_WEEK = 168
_EPOCH_HOUR_OF_WEEK = 72
"""1970-01-01 was a Thursday: 72 hours after Monday 00:00."""


def lookback_bars(features: Sequence[Feature], interval: str) -> int:
    """Rows of input that determine one row of all features exactly."""
    return max(feature.lookback_bars(interval) for feature in features)


def input_names(features: Sequence[Feature]) -> tuple[str, ...]:
    """Every input that the features read, sorted."""
    return tuple(sorted({name for feature in features for name in feature.inputs}))


def evaluate_features(
    features: Sequence[Feature],
    inputs: Mapping[str, Float2D],
    grid_ts: TimeUs,
    *,
    interval: str,
    reference: Sequence[int] | None = None,
    ops: Ops | None = None,
    tail: int | None = None,
) -> Float3D:
    """Compute features.

    Parameters
    ----------
    features : in the order of the result's last axis.
    inputs : name -> [n_bars, n_markets] for every input that the features read.
    grid_ts : [n_bars] int64 us, closes of consecutive bars: multiples of the interval
        without holes (a missing bar is a row of NaN).
    interval : bar length.
    reference : columns that define the cross-section, the first being its leader; default all.
    ops : how rolling statistics are computed; default the plain definition.
    tail : how many of the last rows to return; default all.

    Returns
    -------
    [rows, n_markets, n_features] float64. A row is exact when at least
    ``lookback_bars(features, interval)`` input rows end at it; before that windows are cut
    at the first row, as at a market's listing.

    NaN handling: NaN = missing in and out; infinite values come out as NaN.

    Raises
    ------
    DataError : an input is missing or of another shape, the grid has holes.
    """
    ts, n_markets = _validate(features, inputs, grid_ts, interval)
    rows = len(ts) if tail is None else min(tail, len(ts))
    run = _Run(
        inputs=inputs,
        ts=ts,
        interval=interval,
        reference=tuple(range(n_markets)) if reference is None else tuple(int(place) for place in reference),
        ops=NumpyOps() if ops is None else ops,
        start=_starts(features, inputs),
        n_markets=n_markets,
    )
    out = np.empty((rows, n_markets, len(features)))
    places: dict[str, list[int]] = {}
    for place, feature in enumerate(features):
        places.setdefault(feature.expr.text, []).append(place)

    def keep(node: Expr, value: AnyArray) -> None:
        for place in places.get(node.text, ()):
            out[:, :, place] = value[-rows:] if np.ndim(value) else value

    with np.errstate(all="ignore"):
        _evaluate(_plan(tuple(features), interval, len(ts), rows), run, keep)
        out[~np.isfinite(out)] = np.nan
    return out


@dataclass(frozen=True)
class _Run:
    """What nodes need besides the values of their children."""

    inputs: Mapping[str, Float2D]
    ts: TimeUs
    interval: str
    reference: tuple[int, ...]
    ops: Ops
    start: Int2D | None
    n_markets: int

    def starts(self, node: Expr, n_rows: int) -> Int2D | None:
        """Segment starts for the last ``n_rows`` rows, counted from the first of them."""
        if self.start is None or not node.segmented:
            return None
        n_bars = len(self.ts)
        return np.asarray(np.maximum(self.start[n_bars - n_rows :] - (n_bars - n_rows), 0))


@dataclass(frozen=True)
class _Plan:
    """Which nodes to compute, in which order, and how many rows of each."""

    order: tuple[Expr, ...]
    """Every distinct node once, children first."""
    need: dict[str, int]
    """How many of the last rows a node has to produce."""
    last_use: dict[str, int]
    """Place in the order of the last node that reads a node; absent for mere results."""


@lru_cache(maxsize=64)
def _plan(features: tuple[Feature, ...], interval: str, n_bars: int, rows: int) -> _Plan:
    roots = [feature.expr for feature in features]
    order = tuple(walk(*roots))
    need = dict.fromkeys((node.text for node in order), 0)
    need.update((root.text, rows) for root in roots)
    for node in reversed(order):
        wanted = min(n_bars, need[node.text] + node.extra_bars(interval))
        for child in node.children:
            need[child.text] = max(need[child.text], wanted)
    last_use = {child.text: place for place, node in enumerate(order) for child in node.children}
    return _Plan(order, need, last_use)


def _evaluate(plan: _Plan, run: _Run, keep: Callable[[Expr, AnyArray], None]) -> None:
    """Compute every node once and hand each to ``keep``; values are let go after their last use."""
    values: dict[str, AnyArray] = {}
    for place, node in enumerate(plan.order):
        value = _compute(node, plan.need[node.text], values, run)
        keep(node, value)
        if node.text in plan.last_use:
            values[node.text] = value
        for child in node.children:
            if plan.last_use[child.text] == place:
                values.pop(child.text, None)


def _compute(node: Expr, rows: int, values: Mapping[str, AnyArray], run: _Run) -> AnyArray:
    """The last ``rows`` rows of a node: [rows, n_markets], [rows, 1] or a scalar array."""
    if isinstance(node, Input):
        return np.ascontiguousarray(run.inputs[node.name][-rows:], dtype=np.float64)
    if isinstance(node, Constant):
        return np.asarray(node.value)
    if isinstance(node, BarHours):
        return np.asarray(duration_us(run.interval) / HOUR)
    if isinstance(node, HourOfWeek):
        hour = (run.ts[-rows:] // HOUR + _EPOCH_HOUR_OF_WEEK) % _HOURS_PER_WEEK
        return hour.astype(np.float64)[:, np.newaxis]
    if isinstance(node, Elementwise):
        arguments = [_last(values[child.text], rows) for child in node.arguments]
        return ELEMENTWISE[node.operation](*arguments)
    if isinstance(node, CrossSection):
        return _cross_section(node, _last(values[node.child.text], rows), run.reference)
    if isinstance(node, Lag):
        return _lag(node, rows, values[node.child.text], run)
    if isinstance(node, Rolling):
        return _rolling(node, rows, values[node.child.text], run)
    raise DataError(f"'{node.text}' cannot be evaluated: unknown node {type(node).__name__}")


def _last(value: AnyArray, rows: int) -> AnyArray:
    return value[-rows:] if value.ndim else value


def _rolling(node: Rolling, rows: int, child: AnyArray, run: _Run) -> Float2D:
    values = _last(child, min(len(run.ts), rows + node.extra_bars(run.interval)))
    window = Window(
        node.statistic,
        node.extra_bars(run.interval) + 1,
        node.min_count(run.interval),
        node.decay(run.interval),
        0.5 if node.level is None else node.level,
    )
    first_bar = int(run.ts[len(run.ts) - len(values)]) // duration_us(run.interval)
    return run.ops.rolling(window, values, run.starts(node, len(values)), rows, first_bar)


def _lag(node: Lag, rows: int, child: AnyArray, run: _Run) -> Float2D:
    shift = node.extra_bars(run.interval)
    values = _last(child, min(len(run.ts), rows + shift))
    out = np.full((rows, values.shape[1]), np.nan)
    reached = len(values) - shift
    if reached > 0:
        out[rows - reached :] = values[:reached]
    start = run.starts(node, len(values))
    if start is not None:
        origin = np.arange(reached - rows, reached)[:, np.newaxis]
        out[origin < start[-rows:]] = np.nan
    return out


def _cross_section(node: CrossSection, values: AnyArray, reference: Sequence[int]) -> Float2D:
    """One value per row [rows, 1]; columns are added one by one, so that rows do not matter."""
    rows = len(values)
    if not reference:
        return np.full((rows, 1), np.nan)
    if node.reduction == "leader":
        return np.ascontiguousarray(values[:, reference[0] : reference[0] + 1])
    counts, centre = _mean_over([values[:, place] for place in reference])
    if node.reduction == "mean":
        return centre[:, np.newaxis]
    _, variance = _mean_over([np.square(values[:, place] - centre) for place in reference])
    return np.where(counts >= 2, np.sqrt(variance), np.nan)[:, np.newaxis]


def _mean_over(columns: Sequence[AnyArray]) -> tuple[AnyArray, AnyArray]:
    counts = np.zeros(len(columns[0]), dtype=np.int64)
    sums = np.zeros(len(columns[0]))
    for column in columns:
        finite = np.isfinite(column)
        counts += finite
        sums += np.where(finite, column, 0.0)
    return counts, np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _starts(features: Sequence[Feature], inputs: Mapping[str, Float2D]) -> Int2D | None:
    if not any(PRESENCE_INPUT in feature.inputs for feature in features):
        return None
    return segment_starts(np.isfinite(inputs[PRESENCE_INPUT]))


def _validate(
    features: Sequence[Feature], inputs: Mapping[str, Float2D], grid_ts: TimeUs, interval: str
) -> tuple[TimeUs, int]:
    if not features:
        raise DataError("at least one feature is required")
    ts = np.asarray(grid_ts, dtype=np.int64)
    if len(ts) == 0:
        raise DataError("the grid is empty; at least one bar is required")
    bar = duration_us(interval)
    if ts[0] % bar or (np.diff(ts) != bar).any():
        raise DataError(
            f"the grid must hold consecutive multiples of {interval}",
            fix="lay missing bars out as rows of NaN",
        )
    names = input_names(features) or tuple(inputs)[:1]
    missing = [name for name in names if name not in inputs]
    if missing or not names:
        raise DataError(
            f"inputs {', '.join(missing) or 'of any kind'} are missing; found {', '.join(inputs)}"
        )
    n_markets = inputs[names[0]].shape[1] if inputs[names[0]].ndim == 2 else -1
    for name in names:
        if inputs[name].shape != (len(ts), n_markets):
            raise DataError(
                f"input '{name}' has shape {inputs[name].shape}; [{len(ts)}, n_markets] is required", row=None
            )
    return ts, n_markets


def _divide(x: AnyArray, y: AnyArray) -> AnyArray:
    return np.where(y == 0.0, np.nan, np.divide(x, y))


def _log(x: AnyArray) -> AnyArray:
    return np.where(x > 0.0, np.log(x), np.nan)


def _first_finite(*choices: AnyArray) -> AnyArray:
    result = choices[0]
    for choice in choices[1:]:
        result = np.where(np.isfinite(result), result, choice)
    return result


def _where_finite(x: AnyArray, *others: AnyArray) -> AnyArray:
    usable = np.isfinite(x)
    for other in others:
        usable = usable & np.isfinite(other)
    return np.where(usable, x, np.nan)


ELEMENTWISE: dict[str, Callable[..., AnyArray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": _divide,
    "negative": np.negative,
    "log": _log,
    "sqrt": np.sqrt,
    "absolute": np.absolute,
    "square": np.square,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "first_finite": _first_finite,
    "where_finite": _where_finite,
}
"""What the operations of :class:`riskml.features.expr.Elementwise` mean."""
