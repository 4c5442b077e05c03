"""The catalogue in pandas, as one would write it: a long table, ``groupby("symbol").rolling``.

The expressions are translated node by node and every distinct node is computed once, so that pandas gets
our sharing of common parts for free. The rows of a table are sorted by symbol, then time. Chains and
stablecoins have tables of their own. Exponentially weighted means are pandas' own and never end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import pandas as pd
from bench_inputs import INTERVAL, InputFolder, n_columns
from digest import Digest

from riskml.features import nodes as e
from riskml.features.catalog import CATALOG
from riskml.features.weights import axis_weights
from riskml.units import HOUR, duration_us


class PandasPeer:
    """Features of a folder of inputs."""

    def __init__(self, folder: InputFolder) -> None:
        self.folder = folder
        self.markets = folder.markets
        self.keys = {
            axis: pd.Series(np.repeat(np.arange(width, dtype=np.int16), folder.n_bars)).astype("category")
            for axis in ("market", "chain", "asset")
            if (width := n_columns(axis, len(self.markets)))
        }
        self.times = pd.Series(np.tile(np.arange(folder.n_bars), len(self.markets)))

    def run(self, digest: Digest) -> None:
        """Compute every feature and hand each to the digest."""
        roots = [feature.expr for feature in CATALOG]
        order = tuple(e.walk(*roots))
        last_use = {child.text: place for place, node in enumerate(order) for child in node.children}
        values: dict[str, pd.Series | float] = {}
        for place, node in enumerate(order):
            values[node.text] = self._node(node, values, digest)
            for feature, root in enumerate(roots):
                if root.text == node.text:
                    spread = self._spread(values[node.text], node.axis, "market")
                    digest.add(feature, spread.to_numpy().reshape(len(self.markets), -1))
            for name in (node.text, *(child.text for child in node.children)):
                if last_use.get(name, -1) <= place:
                    values.pop(name, None)

    def _node(self, node: e.Expr, values: dict[str, pd.Series | float], digest: Digest) -> pd.Series | float:
        if isinstance(node, e.Input):
            with digest.paused():
                return pd.Series(self.folder.read(node.name).T.ravel())
        if isinstance(node, e.Constant):
            return node.value
        if isinstance(node, e.BarHours):
            return duration_us(INTERVAL) / HOUR
        if isinstance(node, e.HourOfWeek):
            moment = pd.Series(pd.to_datetime(self.folder.ts, unit="us"))
            return (moment.dt.weekday * 24 + moment.dt.hour).astype(float)
        if isinstance(node, e.Elementwise):
            arguments = [self._spread(values[child.text], child.axis, node.axis) for child in node.arguments]
            return ELEMENTWISE[node.operation](*arguments)
        child = values[node.children[0].text]
        if isinstance(node, e.Lag):
            return self._grouped(child, node.child.axis).shift(node.extra_bars(INTERVAL))
        if isinstance(node, e.Season):
            grouped = self._grouped(child, node.child.axis)
            same = pd.concat([grouped.shift(offset) for offset in node.offsets(INTERVAL)], axis=1)
            return same.mean(axis=1).where(same.notna().sum(axis=1) >= node.min_count)
        if isinstance(node, e.Rolling):
            return self._rolling(node, child)
        if isinstance(node, e.CrossSection):
            return self._cross_section(node, self._spread(child, node.child.axis, "market"))
        assert isinstance(node, e.Across)
        return self._across(node, child)

    def _grouped(self, values: pd.Series, axis: e.Axis) -> pd.api.typing.SeriesGroupBy | pd.Series:
        return values if axis == "one" else values.groupby(self.keys[axis], sort=False, observed=True)

    def _rolling(self, node: e.Rolling, values: pd.Series) -> pd.Series:
        grouped, enough = self._grouped(values, node.child.axis), node.min_count(INTERVAL)
        bars = e.bars_in(node.window, INTERVAL)
        if node.statistic == "ewm_mean":
            half_life = e.bars_in(str(node.half_life), INTERVAL)
            found = grouped.ewm(halflife=half_life, min_periods=enough).mean()
        elif node.statistic == "quantile":
            found = grouped.rolling(bars, min_periods=enough).quantile(node.level)
        elif node.statistic == "std":
            found = grouped.rolling(bars, min_periods=enough).std(ddof=0)
        else:
            found = getattr(grouped.rolling(bars, min_periods=enough), node.statistic)()
        return found.reset_index(drop=True)

    def _cross_section(self, node: e.CrossSection, values: pd.Series) -> pd.Series:
        if node.reduction == "leader":
            return values.iloc[: self.folder.n_bars]
        by_time = values.groupby(self.times, sort=False)
        if node.reduction == "mean":
            return by_time.mean()
        return by_time.std(ddof=0).where(by_time.count() >= 2)

    def _across(self, node: e.Across, values: pd.Series) -> pd.Series:
        weights = axis_weights(node.child.axis, self.markets)
        wide = pd.DataFrame(values.to_numpy().reshape(weights.shape[1], -1).T)
        done: dict[bytes, pd.Series] = {}
        for row in weights:
            if row.tobytes() in done:
                continue
            held = wide.loc[:, row > 0.0]
            share = row[row > 0.0]
            if node.reduction == "max":
                done[row.tobytes()] = held.max(axis=1)
                continue
            weight = held.notna().mul(share, axis=1).sum(axis=1)
            mean = held.mul(share, axis=1).sum(axis=1) / weight
            done[row.tobytes()] = mean.where(weight >= e.MIN_ACROSS_WEIGHT)
        return pd.concat([done[row.tobytes()] for row in weights], ignore_index=True)

    def _spread(self, values: pd.Series | float, axis: e.Axis, wanted: e.Axis) -> pd.Series | float:
        """A column per time repeated for every symbol, chain or stablecoin."""
        if not isinstance(values, pd.Series) or axis == wanted:
            return values
        width = n_columns(wanted, len(self.markets))
        return pd.Series(np.tile(values.to_numpy(), width))


def _divide(x: pd.Series | float, y: pd.Series | float) -> pd.Series | float:
    return x / (y.where(y != 0.0) if isinstance(y, pd.Series) else y)


def _greater(x: pd.Series | float, y: pd.Series | float) -> pd.Series:
    return pd.Series(x > y).astype(float).where(pd.notna(x) & pd.notna(y))


def _where_finite(x: pd.Series | float, *others: pd.Series) -> pd.Series:
    known = reduce(lambda left, right: left & right, [other.notna() for other in others])
    return x.where(known) if isinstance(x, pd.Series) else pd.Series(x, index=known.index).where(known)


ELEMENTWISE: dict[str, Callable[..., pd.Series | float]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": _divide,
    "negative": lambda x: -x,
    "exp": np.exp,
    "greater": _greater,
    "log": lambda x: np.log(x.where(x > 0.0)) if isinstance(x, pd.Series) else np.log(x),
    "sqrt": lambda x: np.sqrt(x.where(x >= 0.0)) if isinstance(x, pd.Series) else np.sqrt(x),
    "absolute": abs,
    "square": lambda x: x * x,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "first_finite": lambda *choices: reduce(lambda x, y: x.fillna(y), choices),
    "where_finite": _where_finite,
}
