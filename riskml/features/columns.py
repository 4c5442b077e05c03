"""What the columns of inputs mean that no table holds: expressions over the columns of a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from riskml.arrays import Float1D

MAX_PEG_PREMIUM = 0.5
"""Further above redemption than this it is another unit or asset, and counts as missing. There is no
such limit below: a peg that is lost altogether is what the input is for."""
PARKINSON = "ln(high / low)^2 / (4 ln 2)"
"""Column expression: Parkinson variance of a bar."""
SQUARED_BODY = "ln(close / open)^2"
"""Column expression: squared log return of a bar, from its own open."""
SQUARED_FALL = "min(ln(close / open), 0)^2"
"""Column expression: the same of bars that fell, else 0."""


def _funding_per_8h(columns: Mapping[str, Float1D]) -> Float1D:
    return np.asarray(columns["rate"] * 8.0 / columns["interval_h"])


def _net_flow(columns: Mapping[str, Float1D]) -> Float1D:
    return np.asarray(columns["inflow_usd"] - columns["outflow_usd"])


def _gross_flow(columns: Mapping[str, Float1D]) -> Float1D:
    return np.asarray(columns["inflow_usd"] + columns["outflow_usd"])


def _taker_imbalance(columns: Mapping[str, Float1D]) -> Float1D:
    def share(buy: Float1D, sell: Float1D) -> Float1D:
        both = buy + sell
        return np.asarray(np.where(both > 0.0, (buy - sell) / np.where(both > 0.0, both, 1.0), np.nan))

    of_volume = share(columns["buy_volume"], columns["sell_volume"])
    of_value = share(columns["buy_usd"], columns["sell_usd"])
    return np.where(np.isfinite(of_volume), of_volume, of_value)


def _peg_deviation(columns: Mapping[str, Float1D]) -> Float1D:
    redemption = columns["redemption_usd"]
    fair = np.where(np.isfinite(redemption) & (redemption > 0.0), redemption, 1.0)
    deviation = columns["price_usd"] / fair - 1.0
    return np.where(deviation <= MAX_PEG_PREMIUM, deviation, np.nan)


def _parkinson(columns: Mapping[str, Float1D]) -> Float1D:
    return np.asarray(np.square(np.log(columns["high"] / columns["low"])) / (4.0 * math.log(2.0)))


def _squared_body(columns: Mapping[str, Float1D]) -> Float1D:
    return np.asarray(np.square(np.log(columns["close"] / columns["open"])))


def _squared_fall(columns: Mapping[str, Float1D]) -> Float1D:
    return np.asarray(np.square(np.minimum(np.log(columns["close"] / columns["open"]), 0.0)))


COLUMN_EXPRESSIONS: dict[str, Callable[[Mapping[str, Float1D]], Float1D]] = {
    "rate * 8 / interval_h": _funding_per_8h,
    "inflow_usd - outflow_usd": _net_flow,
    "inflow_usd + outflow_usd": _gross_flow,
    "(buy - sell) / (buy + sell)": _taker_imbalance,
    "price_usd / redemption_usd - 1": _peg_deviation,
    PARKINSON: _parkinson,
    SQUARED_BODY: _squared_body,
    SQUARED_FALL: _squared_fall,
}
"""What a :attr:`~riskml.features.inputs.InputSpec.column` that is no column means: value columns
[n_rows] -> [n_rows]."""


def column_values(columns: Mapping[str, Float1D], text: str) -> Float1D:
    """Values of a column, or of an expression over columns, for the rows of a series.

    Parameters
    ----------
    columns : value columns of the series by name, each [n_rows].
    text : :attr:`riskml.features.inputs.InputSpec.column`.

    Returns
    -------
    [n_rows] float64. NaN handling: a row that lacks what the expression needs gives NaN.
    """
    expression = COLUMN_EXPRESSIONS.get(text)
    if expression is None:
        return np.ascontiguousarray(columns[text], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.ascontiguousarray(expression(columns))
