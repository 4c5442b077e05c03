"""Evaluation of features over a whole history in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from riskml.arrays import Float2D, Float3D, TimeUs
from riskml.errors import DataError
from riskml.features.engine import FeatureStream, input_axes
from riskml.features.rolling import Ops
from riskml.features.spec import Feature
from riskml.markets import Market

_UNKNOWN = Market("", "")
_PUSH_ROWS = 4096
"""Rows of the warm-up at once; what nobody asked for is not kept."""


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
    markets: Sequence[Market] | None = None,
) -> Float3D:
    """Compute features.

    Parameters
    ----------
    features : in the order of the result's last axis.
    inputs : name -> [n_bars, n_columns of the input's axis] for every input that they read.
    grid_ts : [n_bars] int64 us, closes of consecutive bars: multiples of the interval
        without holes (a missing bar is a row of NaN).
    interval : bar length.
    reference : columns that define the cross-section, the first being its leader; default all.
    ops : form of the rolling statistics; default the carried one in numpy.
    tail : how many of the last rows to return; default all.
    markets : what the columns are, which decides how chains and stablecoins count for them;
        default: markets that the facts do not know.

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
    chosen = (_UNKNOWN,) * _width(features, inputs) if markets is None else tuple(markets)
    stream = FeatureStream(features, chosen, interval=interval, reference=reference, ops=ops)
    ts = np.asarray(grid_ts, dtype=np.int64)
    warm_up = 0 if tail is None else max(0, len(ts) - tail)
    for begin in range(0, warm_up, _PUSH_ROWS):
        rows = slice(begin, min(begin + _PUSH_ROWS, warm_up))
        stream.push(ts[rows], {name: values[rows] for name, values in inputs.items()})
    rest = slice(warm_up, None)
    return stream.push(ts[rest], {name: values[rest] for name, values in inputs.items()})


def _width(features: Sequence[Feature], inputs: Mapping[str, Float2D]) -> int:
    """Number of markets, from the inputs that have a column for each."""
    axes = input_axes(features)
    of_markets = [name for name in inputs if axes.get(name, "market") == "market" and inputs[name].ndim == 2]
    if not of_markets:
        raise DataError(f"no input has a column per market; found {', '.join(inputs) or 'none'}")
    named = [name for name in of_markets if name in axes]
    return int(inputs[(named or of_markets)[0]].shape[1])
