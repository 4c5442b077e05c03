"""A slow second opinion on features: plain loops over single cells, straight from the words.

Nothing here is shared with the evaluation under test: no arrays, no blocks, no running sums. A cell is
worked out from the cells below it, one Python float at a time, sums with :func:`math.fsum`. Tables are
read through their published form only (the nodes of an expression, the declarations of the inputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from riskml.facts import load_facts
from riskml.features import nodes as e
from riskml.markets import Market

NAN = math.nan
UNIT_US = {"s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6, "w": 7 * 86400 * 10**6}


def microseconds(duration: str) -> int:
    """``"15m"`` -> 900000000."""
    return int(duration[:-1]) * UNIT_US[duration[-1]]


class Oracle:
    """The value of any node at any row and column, remembered once known.

    Parameters
    ----------
    inputs : name -> [n_bars, n_columns of the input's axis].
    ts : [n_bars] closes of consecutive bars, us.
    reference : columns of the cross-section, the leader first.
    """

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        ts: Sequence[int],
        *,
        interval: str,
        markets: Sequence[Market],
        reference: Sequence[int] | None = None,
    ) -> None:
        self.inputs = {name: values.tolist() for name, values in inputs.items()}
        self.ts = [int(time) for time in ts]
        self.interval = interval
        self.markets = list(markets)
        self.reference = list(range(len(self.markets)) if reference is None else reference)
        self._known: dict[tuple[str, int, int], float] = {}
        self._first_row: dict[tuple[int, int], int] = {}

    def feature(self, node: e.Expr, row: int, market: int) -> float:
        """What the pipeline has to give: infinite is missing."""
        value = self.value(node, row, market)
        return value if math.isfinite(value) else NAN

    def value(self, node: e.Expr, row: int, column: int) -> float:
        place = (node.text, row, column if node.axis != "one" else 0)
        if place not in self._known:
            self._known[place] = self._work_out(node, row, place[2])
        return self._known[place]

    def _work_out(self, node: e.Expr, row: int, column: int) -> float:
        if isinstance(node, e.Input):
            return float(self.inputs[node.name][row][column])
        if isinstance(node, e.Constant):
            return float(node.value)
        if isinstance(node, e.BarHours):
            return microseconds(self.interval) / UNIT_US["h"]
        if isinstance(node, e.HourOfWeek):
            moment = datetime.fromtimestamp(self.ts[row] / 1e6, tz=UTC)
            return float(moment.weekday() * 24 + moment.hour)
        if isinstance(node, e.Elementwise):
            return ELEMENTWISE[node.operation](*(self.value(child, row, column) for child in node.arguments))
        if isinstance(node, e.Lag):
            return self._lag(node, row, column)
        if isinstance(node, e.Season):
            return self._season(node, row, column)
        if isinstance(node, e.Rolling):
            return self._rolling(node, row, column)
        if isinstance(node, e.CrossSection):
            return self._cross_section(node, row)
        if isinstance(node, e.Across):
            return self._across(node, row, column)
        raise AssertionError(f"the oracle has no words for {type(node).__name__}: {node.text}")

    def _bars(self, duration: str) -> int:
        return 1 if duration == e.BAR else max(1, microseconds(duration) // microseconds(self.interval))

    def _segment(self, row: int, market: int) -> int:
        """First row of the segment: the row after the newest run of four missing bars."""
        if (row, market) not in self._first_row:
            missing, at = 0, row
            while True:
                present = at >= 0 and math.isfinite(self.inputs[e.PRESENCE_INPUT][at][market])
                missing = 0 if present else missing + 1
                if missing == 4:
                    break
                at -= 1
            self._first_row[row, market] = at + 4
        return self._first_row[row, market]

    def _oldest(self, node: e.Expr, row: int, column: int) -> int:
        """First row that a window over the node may see."""
        return max(0, self._segment(row, column)) if cut_at_gaps(node) else 0

    def _lag(self, node: e.Lag, row: int, column: int) -> float:
        before = row - self._bars(node.duration)
        if before < self._oldest(node.child, row, column):
            return NAN
        return self.value(node.child, before, column)

    def _season(self, node: e.Season, row: int, column: int) -> float:
        """The bar that closes ``ahead`` from now, and the same place of each period before."""
        coming = row + self._bars(node.ahead)
        oldest = self._oldest(node.child, row, column)
        rows = [coming - number * self._bars(node.period) for number in range(1, node.count + 1)]
        values = [self.value(node.child, before, column) for before in rows if before >= oldest]
        values = [value for value in values if math.isfinite(value)]
        if not values or len(values) < math.ceil(node.count / 2):
            return NAN
        return math.fsum(values) / len(values)

    def _rolling(self, node: e.Rolling, row: int, column: int) -> float:
        bars = self._bars(node.window)
        first = max(row - bars + 1, self._oldest(node.child, row, column))
        cells = [(row - at, self.value(node.child, at, column)) for at in range(first, row + 1)]
        cells = [(age, value) for age, value in cells if math.isfinite(value)]
        if node.statistic == "count":
            return float(len(cells))
        enough = math.ceil(bars / 2) if node.min_window is None else self._bars(node.min_window)
        if not cells or len(cells) < enough:
            return NAN
        values = [value for _, value in cells]
        if node.statistic == "quantile":
            return quantile(values, float(node.level or 0.0))
        if node.statistic == "ewm_mean":
            half_life = self._bars(str(node.half_life))
            weights = [0.5 ** (age / half_life) for age, _ in cells]
            return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)
        return STATISTIC[node.statistic](values)

    def _cross_section(self, node: e.CrossSection, row: int) -> float:
        if node.reduction == "leader":
            return self.value(node.child, row, self.reference[0])
        values = [self.value(node.child, row, market) for market in self.reference]
        values = [value for value in values if math.isfinite(value)]
        if len(values) < (2 if node.reduction == "std" else 1):
            return NAN
        return STATISTIC[node.reduction](values)

    def _across(self, node: e.Across, row: int, market: int) -> float:
        weights = column_weights(node.child.axis, self.markets[market])
        held = [(place, weight) for place, weight in enumerate(weights) if weight > 0.0]
        cells = [(weight, self.value(node.child, row, place)) for place, weight in held]
        cells = [(weight, value) for weight, value in cells if math.isfinite(value)]
        if not cells:
            return NAN
        if node.reduction == "max":
            return max(value for _, value in cells)
        share = math.fsum(weight for weight, _ in cells)
        return math.fsum(w * v for w, v in cells) / share if share >= e.MIN_ACROSS_WEIGHT else NAN


def cut_at_gaps(node: e.Expr) -> bool:
    """Whether a series hangs on the market's own bars: some input of markets below, no cross-section."""
    if isinstance(node, (e.CrossSection, e.Across)):
        return False
    if isinstance(node, e.Input):
        return node.columns == "market"
    return any(cut_at_gaps(child) for child in node.children)


def column_weights(axis: str, market: Market) -> list[float]:
    """Shares of the chains or stablecoins for a market: its own, else its venue's, else the default."""
    facts = load_facts("chain_weights")
    table: Mapping[str, float] = facts["default"][f"{axis}_weights"]
    for section, name in (("venue", market.venue), ("market", market.symbol)):
        table = facts.get(section, {}).get(name, {}).get(f"{axis}_weights", table)
    whole = math.fsum(table.get(name, 0.0) for name in facts[f"{axis}s"])
    return [table.get(name, 0.0) / whole for name in facts[f"{axis}s"]]


def deviation(values: Sequence[float]) -> float:
    """Standard deviation, divisor n."""
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / len(values))


def quantile(values: Sequence[float], level: float) -> float:
    """Linear between the two order statistics that the level lies between."""
    ordered = sorted(values)
    place = level * (len(ordered) - 1)
    low = min(math.floor(place), len(ordered) - 1)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] * (1.0 - (place - low)) + ordered[high] * (place - low)


STATISTIC: dict[str, Callable[[Sequence[float]], float]] = {
    "sum": math.fsum,
    "mean": lambda values: math.fsum(values) / len(values),
    "std": deviation,
    "min": min,
    "max": max,
}


def _exp(x: float) -> float:
    return math.exp(x) if x < 700.0 else math.inf


def _ordered(choose: Callable[[float, float], float]) -> Callable[[float, float], float]:
    return lambda x, y: NAN if math.isnan(x) or math.isnan(y) else choose(x, y)


def _first_finite(*choices: float) -> float:
    return next((choice for choice in choices if math.isfinite(choice)), NAN)


def _known(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


ELEMENTWISE: dict[str, Callable[..., float]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y if y != 0.0 else NAN,
    "negative": lambda x: -x,
    "exp": lambda x: NAN if math.isnan(x) else _exp(x),
    "greater": lambda x, y: float(x > y) if _known(x, y) else NAN,
    "log": lambda x: math.log(x) if x > 0.0 else NAN,
    "sqrt": lambda x: math.sqrt(x) if x >= 0.0 else NAN,
    "absolute": abs,
    "square": lambda x: x * x,
    "minimum": _ordered(min),
    "maximum": _ordered(max),
    "first_finite": _first_finite,
    "where_finite": lambda x, *others: x if _known(x, *others) else NAN,
}
