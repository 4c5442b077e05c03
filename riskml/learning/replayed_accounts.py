"""Random accounts opened along the recorded history: is the probability of liquidation calibrated?

Recorded liquidations are few, and the owners of those accounts act. Here accounts are drawn (seeded),
opened at random hours of a fold's test part, and scored with the fold's bundle from what was known then. What
becomes of them is read off the highs and lows that followed (:mod:`riskml.replay.labels`); the caller brings
these labels, because nothing in ``learning`` may import them.

Leverage is log-normal between :data:`LEAST_LEVERAGE` and the venue's maximum, with the median and the 99th
percentile of the re-marked Hyperliquid accounts of 2023: 3.6 and 74 (issue 5; our own re-marking of the
account-hours that have equity gives 3.62 and 72.9).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from riskml import metrics
from riskml.arrays import AnyArray, Bool1D, Bool2D, Float1D, Float2D, Int1D, Int2D, TimeUs
from riskml.backfill.forecasts import ForecastHistory
from riskml.bundle import Manifest
from riskml.errors import DataError
from riskml.learning.account_scoring import forecast_at, venue_policy
from riskml.risk.accounts import AccountBook
from riskml.risk.decisions import decide
from riskml.risk.law import numpy_law

MEDIAN_LEVERAGE = 3.6
HIGH_LEVERAGE, HIGH_LEVEL = 74.0, 0.99
"""Leverage at this level of the mix."""
MAINTENANCE_RATE = 0.01
"""Maintenance over exposure of that venue (facts/hyperliquid_tiers.toml): no leverage reaches 100."""
LEAST_LEVERAGE = 0.1
LONG, SHORT, MIXED = 0, 1, 2
SIDES = ("long", "short", "mixed")
LEVERAGE_BANDS = (0.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_LEGS, _LEG_SHARE = (1, 2, 3, 5), (0.4, 0.2, 0.2, 0.2)


@dataclass(frozen=True)
class DrawnAccounts:
    """Accounts [n_rows] as they were opened, and their legs [n_legs], sorted by row."""

    ts: TimeUs
    leverage: Float1D
    side: Int1D
    """LONG, SHORT or MIXED."""
    legs: Int1D
    """Number of positions."""
    gross_usd: Float1D
    leg_row: Int1D
    leg_symbol: AnyArray
    leg_size: Float1D
    """Base units, signed."""
    leg_price: Float1D
    """Close at the time of opening: entry and mark."""
    venue: str

    def __len__(self) -> int:
        return len(self.ts)

    def book(self, rows: slice = slice(None)) -> AccountBook:
        """The accounts of some neighbouring rows; ids are ``a<row>``, cash backs them, margin is crossed."""
        chosen = np.arange(len(self))[rows]
        first, last = np.searchsorted(self.leg_row, [chosen[0], chosen[-1] + 1])
        legs = slice(int(first), int(last))
        names = np.char.add("a", chosen.astype(np.str_))
        gross = self.gross_usd[rows]
        return AccountBook.from_arrays(
            {
                "account_id": names,
                "cash_usd": gross / self.leverage[rows],
                "maintenance_margin_usd": MAINTENANCE_RATE * gross,
            },
            {
                "account_id": names[self.leg_row[legs] - chosen[0]],
                "venue": np.full(legs.stop - legs.start, self.venue),
                "symbol": self.leg_symbol[legs].astype(np.str_),
                "size": self.leg_size[legs],
                "mark_price": self.leg_price[legs],
            },
        )


def draw_accounts(
    ts: TimeUs, close: Float2D, symbols: Sequence[str], venue: str, *, per_time: int, seed: int
) -> DrawnAccounts:
    """Draw accounts at given times.

    Two fifths hold one market, the others two, three or five; of those, half are long and short at once, the
    rest all long or all short. Sizes within an account and exposures are log-normal.

    Parameters
    ----------
    ts : [n_times] rising.
    close : [n_times, n_markets] last close known at each time; NaN = the market is not traded then.
    per_time : accounts opened at each time.

    Raises
    ------
    DataError : a time at which fewer markets trade than the largest account holds.
    """
    traded = np.isfinite(close) & (close > 0.0)
    if (short := np.flatnonzero(traded.sum(axis=1) < max(_LEGS))).size:
        raise DataError(
            f"{int(traded[short[0]].sum())} markets trade where {max(_LEGS)} are needed",
            table="bars",
            row=int(short[0]),
            fix="open accounts only where enough markets have bars",
        )
    rng = np.random.default_rng(seed)
    n_rows, n_markets = len(ts) * per_time, close.shape[1]
    at = np.repeat(np.arange(len(ts)), per_time)
    legs = rng.choice(_LEGS, n_rows, p=_LEG_SHARE)
    order = np.argsort(np.where(traded[at], rng.random((n_rows, n_markets)), np.inf), axis=1)
    held = np.zeros((n_rows, n_markets), dtype=np.bool_)
    np.put_along_axis(held, order, np.arange(n_markets) < legs[:, None], axis=1)
    sign, side = _signs(rng, held, order, legs)
    weight = np.where(held, np.exp(0.75 * rng.standard_normal(held.shape)), 0.0)
    gross = 10_000.0 * np.exp(rng.standard_normal(n_rows))
    exposure = sign * weight / weight.sum(axis=1, keepdims=True) * gross[:, None]
    row, market = np.nonzero(held)
    price = close[at[row], market]
    names = np.asarray(symbols, dtype=object)
    return DrawnAccounts(
        ts[at], _leverages(rng, n_rows), side, legs, gross, row, names[market],
        exposure[row, market] / price, price, venue,
    )  # fmt: skip


def score_drawn(drawn: DrawnAccounts, history: ForecastHistory, manifest: Manifest) -> Float2D:
    """Liquidation probability of every account [n_rows, n_horizons], from the bar that closed at its time.

    Raises
    ------
    DataError : the history has no bar that closes at a time at which accounts were opened.
    """
    policy = venue_policy(history.horizons)
    times, begin = np.unique(drawn.ts, return_index=True)
    bar = np.searchsorted(history.ts, times)
    if (bar == len(history.ts)).any() or (history.ts[bar] != times).any():
        raise DataError("there is no forecast at a time at which accounts are opened", table="bars")
    parts = []
    for row, first, last in zip(bar.tolist(), begin, [*begin[1:], len(drawn)], strict=True):
        forecast = forecast_at(history, row, manifest)
        book = drawn.book(slice(int(first), int(last)))
        decided = decide(book, forecast, policy, law=numpy_law(forecast.power), ts=forecast.ts)
        parts.append(decided.liquidation_probability)
    return np.concatenate(parts)


def opening_times(
    history: ForecastHistory, first: int, last: int, count: int, *, least_markets: int = max(_LEGS), seed: int
) -> Int1D:
    """Rows of the history [<= count], rising, drawn from bars in [first, last) with enough markets."""
    enough = history.available.sum(axis=1) >= least_markets
    usable = np.flatnonzero(enough & (history.ts >= first) & (history.ts < last))
    if not len(usable):
        raise DataError("no bar in the range has enough markets", table="bars", fix="choose another range")
    chosen = np.random.default_rng(seed).choice(usable, min(count, len(usable)), replace=False)
    return np.sort(chosen)


def _signs(rng: np.random.Generator, held: Bool2D, order: Int2D, legs: Int1D) -> tuple[Float2D, Int1D]:
    """Sign of every leg [n_rows, n_markets] and the side of every account [n_rows]."""
    n_rows = len(legs)
    side = np.where(rng.random(n_rows) < 0.5, LONG, SHORT)
    side[(legs > 1) & (rng.random(n_rows) < 0.5)] = MIXED
    sign = np.where(side == SHORT, -1.0, 1.0)[:, None] * np.ones(held.shape)
    mixed = side == MIXED
    sign[mixed] = np.where(rng.random((int(mixed.sum()), held.shape[1])) < 0.5, 1.0, -1.0)
    # The first two markets drawn take opposite sides, so that a mixed account is one.
    rows = np.flatnonzero(mixed)
    sign[rows, order[rows, 1]] = -sign[rows, order[rows, 0]]
    return sign, side.astype(np.int64)


def _leverages(rng: np.random.Generator, count: int) -> Float1D:
    """The mix, truncated to [LEAST_LEVERAGE, 1 / MAINTENANCE_RATE)."""
    drawn = np.zeros(count)
    open_rows = np.arange(count)
    while len(open_rows):
        drawn[open_rows] = MEDIAN_LEVERAGE * np.exp(_spread() * rng.standard_normal(len(open_rows)))
        open_rows = open_rows[
            (drawn[open_rows] < LEAST_LEVERAGE) | (drawn[open_rows] >= 1.0 / MAINTENANCE_RATE)
        ]
    return drawn


@cache
def _spread() -> float:
    """Standard deviation of ln leverage whose truncated law has HIGH_LEVERAGE at HIGH_LEVEL."""

    def below(leverage: float, spread: float) -> float:
        return 0.5 * (1.0 + math.erf(math.log(leverage / MEDIAN_LEVERAGE) / spread / math.sqrt(2.0)))

    low, high = 0.5, 3.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        floor, top = below(LEAST_LEVERAGE, middle), below(1.0 / MAINTENANCE_RATE, middle)
        reached = (below(HIGH_LEVERAGE, middle) - floor) / (top - floor)
        # A wider law has more above.
        low, high = (middle, high) if reached > HIGH_LEVEL else (low, middle)
    return low


@dataclass(frozen=True)
class CalibrationRow:
    """How probabilities of one group and horizon agree with what happened."""

    horizon: str
    group: str
    n: int
    events: int
    ece: float
    slope: float
    auc: float
    log_loss: float
    base_log_loss: float
    probability: float
    frequency: float


def calibration_row(horizon: str, group: str, outcome: Float1D, probability: Float1D) -> CalibrationRow:
    """Measure one group; NaN handling: the caller leaves out rows without an outcome."""
    rate = np.full(len(outcome), outcome.mean())
    return CalibrationRow(
        horizon,
        group,
        len(outcome),
        int(outcome.sum()),
        metrics.expected_calibration_error(outcome, probability),
        metrics.calibration_slope(outcome, probability),
        metrics.roc_auc(outcome, probability),
        metrics.log_loss(outcome, probability),
        metrics.log_loss(outcome, rate),
        float(probability.mean()),
        float(outcome.mean()),
    )


def groups_of(drawn: DrawnAccounts) -> dict[str, Bool1D]:
    """Rows of every leverage band, side and number of legs, by name."""
    found = {
        f"leverage {low:g}-{high:g}": (drawn.leverage >= low) & (drawn.leverage < high)
        for low, high in pairwise(LEVERAGE_BANDS)
    }
    found |= {name: drawn.side == code for code, name in enumerate(SIDES)}
    found |= {f"{count} legs": drawn.legs == count for count in _LEGS}
    return found
