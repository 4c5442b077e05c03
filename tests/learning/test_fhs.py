"""FHS moved from the baselines to the engines: the numbers are those of the formula before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from riskml.learning.baselines import fhs_margins, fhs_scales
from riskml.units import HOUR, duration_us

HORIZONS = ("1h", "8h", "24h")


def before(data: Any, rows: slice, scale: np.ndarray) -> np.ndarray:
    """The formula as the baselines had it."""
    result = np.full((rows.stop - rows.start, len(data.markets), len(data.horizons), 2), np.nan)
    residual = data.excursion / scale[..., None]
    period = data.ts[rows] // duration_us("30d")
    starts = np.append(np.flatnonzero(np.diff(period, prepend=period[:1] - 1)), period.size)
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        for index, horizon in enumerate(data.horizons):
            limit = data.ts[rows.start + start] - duration_us(horizon)
            closed = int(np.searchsorted(data.ts, limit, side="right"))
            multiple = np.full((len(data.markets), 2), np.nan)
            for side in range(2):
                sample = residual[:closed, :, index, side]
                pooled = sample[np.isfinite(sample)]
                for market in range(len(data.markets)):
                    own = sample[:, market][np.isfinite(sample[:, market])]
                    if pooled.size >= 2000:
                        multiple[market, side] = np.quantile(own if own.size >= 2000 else pooled, 0.995)
            block = scale[rows.start + start : rows.start + stop, :, index, None]
            result[start:stop, :, index] = block * multiple
    return result


@pytest.mark.parametrize("seed", range(4))
def test_margins_equal_those_of_the_formula_before(seed: int) -> None:
    draw = np.random.default_rng(seed)
    n_bars = 4000
    shape = (n_bars, 3, 3)
    excursion = np.abs(draw.standard_t(3, (*shape, 2)))
    excursion[draw.random(excursion.shape) < 0.02] = np.nan
    excursion[:2500, 2] = np.nan  # a young market borrows
    scale = draw.lognormal(size=shape)
    scale[draw.random(shape) < 0.01] = np.nan
    data: Any = SimpleNamespace(
        ts=(np.arange(n_bars) + seed * 1000) * HOUR,
        markets=("A", "B", "C"),
        horizons=HORIZONS,
        horizon_hours=(1.0, 8.0, 24.0),
        excursion=excursion,
        log_slow=draw.normal(size=(n_bars, 3)),
    )
    rows = slice(700, n_bars)
    scales = fhs_scales(data, scale**2)
    slow = np.exp(0.5 * data.log_slow)[:, :, None] * np.sqrt(np.array([1.0, 8.0, 24.0]))
    np.testing.assert_array_equal(scales["fhs_slow"], slow)
    np.testing.assert_array_equal(scales["fhs_ewma"], np.sqrt(scale**2))
    for name, found in fhs_margins(data, rows, scales).items():
        expected = before(data, rows, scales[name])
        np.testing.assert_array_equal(found, expected)
        assert np.isfinite(expected).mean() > 0.5
