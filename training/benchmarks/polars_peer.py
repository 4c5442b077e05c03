"""The catalogue in Polars: a frame with a row per bar and a column per node and market.

Wide rather than long, because a peer is shown at its best: rolling means of 20 markets take a third to a
fifth of the time of ``.over("symbol")`` so. Missing values are nulls, which is what Polars skips. Every node
is a column of its own unless it is written once, into one other expression. Some are computed together, so
that all cores work, and dropped after their last use. Exponentially weighted means never end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import polars as pl
from bench_inputs import INTERVAL, InputFolder, n_columns
from digest import Digest

from riskml.features import nodes as e
from riskml.features.catalog import CATALOG
from riskml.features.weights import axis_weights
from riskml.units import HOUR, duration_us

_TOGETHER = 4
"""Nodes computed in one call; each has a column per market."""
_ONCE = ("add", "subtract", "multiply", "negative", "exp", "absolute")
"""Operations whose translation writes each argument once, so that one may stand within another."""


class PolarsPeer:
    """Features of a folder of inputs."""

    def __init__(self, folder: InputFolder) -> None:
        self.folder = folder
        self.markets = folder.markets
        self.roots = [feature.expr for feature in CATALOG]
        self.order = tuple(e.walk(*self.roots))
        self.own_column = self._columns_of_their_own()
        self.number = {node.text: place for place, node in enumerate(self.order)}
        self.frame = pl.DataFrame({"ts": folder.ts})
        self.weights = {axis: axis_weights(axis, self.markets) for axis in ("chain", "asset")}

    def _columns_of_their_own(self) -> set[str]:
        """Every node but numbers and what is written once, into one other expression."""
        written = Counter(child.text for node in self.order for child in node.children)
        once = {
            child.text
            for node in self.order
            if isinstance(node, e.Elementwise) and (node.operation in _ONCE or _clips(node))
            for child in node.children
            if isinstance(child, e.Elementwise) and written[child.text] == 1
        }
        roots = {root.text for root in self.roots}
        nodes = (node for node in self.order if not isinstance(node, (e.Constant, e.BarHours)))
        return {node.text for node in nodes if node.text in roots or node.text not in once}

    def run(self, digest: Digest) -> None:
        """Compute every feature and hand each to the digest."""
        pending: list[e.Expr] = []
        waits = self._last_readers()
        held = {
            node.text: [self._name(node.text, column) for column in self._columns(node)]
            for node in self.order
            if node.text in waits
        }
        for place, node in enumerate(self.order):
            if node.text not in self.own_column:
                continue
            if isinstance(node, e.Input):
                with digest.paused():
                    self._load(node)
            else:
                if self._reads(node) & {other.text for other in pending} or len(pending) == _TOGETHER:
                    self._compute(pending, digest)
                    pending = []
                pending.append(node)
            needed = self._needed(pending)
            done = [text for text, last in waits.items() if last < place and text not in needed]
            self.frame = self.frame.drop(name for text in done for name in held.pop(text))
            for text in done:
                del waits[text]
        self._compute(pending, digest)

    def _reads(self, node: e.Expr) -> set[str]:
        """Columns of others that a node's expression is made of."""
        found: set[str] = set()
        for child in node.children:
            found |= {child.text} if child.text in self.own_column else self._reads(child)
        return found

    def _needed(self, pending: Sequence[e.Expr]) -> set[str]:
        return {text for node in pending for text in (node.text, *self._reads(node))}

    def _last_readers(self) -> dict[str, int]:
        last: dict[str, int] = {}
        for place, node in enumerate(self.order):
            if node.text in self.own_column:
                last.setdefault(node.text, place)
                last.update(dict.fromkeys(self._reads(node), place))
        return last

    def _load(self, node: e.Input) -> None:
        values = self.folder.read(node.name)
        columns = [
            pl.Series(self._name(node.text, place), values[:, place], nan_to_null=True)
            for place in range(values.shape[1])
        ]
        self.frame = self.frame.with_columns(columns)

    def _compute(self, nodes: Sequence[e.Expr], digest: Digest) -> None:
        if not nodes:
            return
        # Lazy, because the optimiser finds what is written twice within an expression.
        lazy = self.frame.lazy().with_columns(
            self._expression(node, column, top=True).alias(self._name(node.text, column))
            for node in nodes
            for column in self._columns(node)
        )
        self.frame = lazy.collect()
        for node in nodes:
            for feature, root in enumerate(self.roots):
                if root.text == node.text:
                    for market in range(len(self.markets)):
                        values = self.frame[self._name(node.text, self._place(node, market))]
                        digest.add(feature, values.fill_null(np.nan).to_numpy(), market)

    def _columns(self, node: e.Expr) -> list[int]:
        """Columns to compute: all, but of markets with equal weights the first only."""
        if isinstance(node, e.Across):
            return sorted({self._place(node, market) for market in range(len(self.markets))})
        return list(range(n_columns(node.axis, len(self.markets))))

    def _place(self, node: e.Expr, column: int) -> int:
        """Where the value of a column stands."""
        if isinstance(node, e.Across):
            weights = self.weights[node.child.axis]
            return int(np.flatnonzero((weights == weights[column]).all(axis=1))[0])
        return 0 if node.axis == "one" else column

    def _name(self, text: str, column: int) -> str:
        return f"{self.number[text]}@{column}"

    def _expression(self, node: e.Expr, column: int, *, top: bool = False) -> pl.Expr:
        if node.text in self.own_column and not top:
            return pl.col(self._name(node.text, self._place(node, column)))
        if isinstance(node, e.Constant):
            return pl.lit(node.value)
        if isinstance(node, e.BarHours):
            return pl.lit(duration_us(INTERVAL) / HOUR)
        if isinstance(node, e.HourOfWeek):
            moment = pl.col("ts").cast(pl.Datetime("us"))
            return ((moment.dt.weekday() - 1).cast(pl.Float64) * 24 + moment.dt.hour()).cast(pl.Float64)
        if isinstance(node, e.Elementwise):
            if _clips(node):
                bound = f"{'upper' if node.operation == 'minimum' else 'lower'}_bound"
                return self._expression(node.arguments[0], column).clip(**{bound: node.arguments[1].value})
            return ELEMENTWISE[node.operation](*(self._expression(child, column) for child in node.arguments))
        if isinstance(node, e.CrossSection):
            return self._cross_section(node)
        if isinstance(node, e.Across):
            return self._across(node, self.weights[node.child.axis][column])
        child = self._expression(node.children[0], column)
        if isinstance(node, e.Lag):
            return child.shift(node.extra_bars(INTERVAL))
        if isinstance(node, e.Season):
            same = [child.shift(offset) for offset in node.offsets(INTERVAL)]
            seen = pl.sum_horizontal(value.is_not_null() for value in same)
            return pl.when(seen >= node.min_count).then(pl.mean_horizontal(same))
        assert isinstance(node, e.Rolling)
        return _rolling(node, child)

    def _cross_section(self, node: e.CrossSection) -> pl.Expr:
        values = [self._expression(node.child, market) for market in range(len(self.markets))]
        if node.reduction == "leader":
            return values[0]
        mean = pl.mean_horizontal(values)
        if node.reduction == "mean":
            return mean
        seen = pl.sum_horizontal(value.is_not_null() for value in values)
        squares = pl.mean_horizontal((value - mean) ** 2 for value in values)
        return pl.when(seen >= 2).then(squares.sqrt())

    def _across(self, node: e.Across, weights: np.ndarray) -> pl.Expr:
        held = [
            (self._expression(node.child, int(place)), float(weights[place]))
            for place in np.flatnonzero(weights)
        ]
        if node.reduction == "max":
            return pl.max_horizontal(value for value, _ in held)
        weight = pl.sum_horizontal(value.is_not_null() * share for value, share in held)
        total = pl.sum_horizontal(value * share for value, share in held)
        return pl.when(weight >= e.MIN_ACROSS_WEIGHT).then(total / weight)


def _clips(node: e.Elementwise) -> bool:
    return node.operation in ("minimum", "maximum") and isinstance(node.arguments[1], e.Constant)


def _rolling(node: e.Rolling, values: pl.Expr) -> pl.Expr:
    bars, enough = e.bars_in(node.window, INTERVAL), max(1, node.min_count(INTERVAL))
    if node.statistic == "count":
        return values.is_not_null().cast(pl.Float64).rolling_sum(bars, min_samples=1)
    if node.statistic == "ewm_mean":
        return values.ewm_mean(half_life=e.bars_in(str(node.half_life), INTERVAL), min_samples=enough)
    if node.statistic == "quantile":
        level = float(node.level or 0.0)
        return values.rolling_quantile(level, interpolation="linear", window_size=bars, min_samples=enough)
    if node.statistic == "std":
        return values.rolling_std(bars, min_samples=enough, ddof=0)
    found: pl.Expr = getattr(values, f"rolling_{node.statistic}")(bars, min_samples=enough)
    return found


def _choose(pick: Callable[..., pl.Expr]) -> Callable[[pl.Expr, pl.Expr], pl.Expr]:
    return lambda x, y: pl.when(x.is_not_null() & y.is_not_null()).then(pick(x, y))


def _where_finite(x: pl.Expr, *others: pl.Expr) -> pl.Expr:
    return pl.when(reduce(lambda left, right: left & right, [other.is_not_null() for other in others])).then(
        x
    )


ELEMENTWISE: dict[str, Callable[..., pl.Expr]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: pl.when(y != 0.0).then(x / y),
    "negative": lambda x: -x,
    "exp": lambda x: x.exp(),
    "greater": lambda x, y: (x > y).cast(pl.Float64),
    "log": lambda x: pl.when(x > 0.0).then(x.log()),
    "sqrt": lambda x: pl.when(x >= 0.0).then(x.sqrt()),
    "absolute": lambda x: x.abs(),
    "square": lambda x: x * x,
    "minimum": _choose(pl.min_horizontal),
    "maximum": _choose(pl.max_horizontal),
    "first_finite": lambda *choices: pl.coalesce(choices),
    "where_finite": _where_finite,
}
