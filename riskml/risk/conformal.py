"""Adaptive conformal control of the margin level.

A requirement at level a should be exceeded by a share 1 - a of the excursions that follow. When a
regime breaks, a fitted law drifts off that share. The controller watches the windows that have closed
and moves the *level that margin is taken at*, in log-odds, by adaptive conformal inference
(Gibbs and Candes 2021, "Adaptive conformal inference under distribution shift", eq. 2)::

    shift <- clip(shift + step / h * (breached share - (1 - a)), -max_lower, max_raise)
    effective level = 1 / (1 + exp(-(logit(a) + shift)))

per horizon of h bars and side, pooled over markets. A window (t - h, t] is judged at its close against
the distance asked for at t - h. All h phases are used, each with ``step / h``, so that overlapping
windows together move the level as one window does. The move of a bar is at most ``step / h``.

The law itself is not changed: liquidation probabilities stay what they were, and the probability at
the margin distance is 1 - the *effective* level instead of 1 - a.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from riskml.arrays import DOWN, UP, AnyArray, Bool1D, Float2D, Float3D, FloatND
from riskml.errors import ConfigError, DataError
from riskml.risk.excursion import NU_MAX, NU_MIN, QUANTILE_POINTS, quantile_table

GRID_POINTS = 129
"""Levels at which quantiles are tabulated between the bounds; interpolation is within 1e-4 relative."""


@dataclass(frozen=True)
class LevelControl:
    """Step and bounds of the controller; log-odds throughout."""

    level: float
    """Level that is aimed at."""
    step: float
    """Move of the shift by a window that every market breaches; 0 = the level stays."""
    max_raise: float
    """Largest shift upwards."""
    max_lower: float = 0.0
    """Largest shift downwards; 0 = the controller only ever raises a requirement."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.level < 1.0:
            raise ConfigError(f"the controlled level has to lie in [0.5, 1), found {self.level!r}")
        for name in ("step", "max_raise", "max_lower"):
            value = getattr(self, name)
            if not 0.0 <= value < np.inf:
                raise ConfigError(f"{name} has to be finite and not negative, found {value!r}")


def shifted_level(level: ArrayLike, shift: ArrayLike) -> FloatND:
    """``level`` moved by ``shift`` in log-odds, broadcast.

    >>> float(shifted_level(0.5, 0.0)), round(float(shifted_level(0.995, 1.0)), 5)
    (0.5, 0.99815)
    """
    base = np.asarray(level, dtype=np.float64)
    return np.asarray(1.0 / (1.0 + (1.0 - base) / base * np.exp(-np.asarray(shift, dtype=np.float64))))


class LevelQuantiles:
    """Quantile rows (see :func:`~riskml.risk.excursion.quantile_table`) for any shift within bounds."""

    def __init__(self, level: float, max_lower: float, max_raise: float) -> None:
        self._low = -max_lower
        self._per_unit = (GRID_POINTS - 1) / max(max_lower + max_raise, 1e-9)
        self._shifts = self._low + np.arange(GRID_POINTS) / self._per_unit
        self._table = quantile_table(shifted_level(level, self._shifts))
        self._exact = quantile_table([level])[0]

    def rows(self, shift: ArrayLike) -> FloatND:
        """Quantiles [..., n_nu] on the grid of 1/nu; shift 0 is exact."""
        wanted = np.asarray(shift, dtype=np.float64)
        position = np.clip((wanted - self._low) * self._per_unit, 0.0, GRID_POINTS - 1)
        cell = np.minimum(position.astype(np.int64), GRID_POINTS - 2)
        part = (position - cell)[..., None]
        rows = self._table[cell] * (1.0 - part) + self._table[cell + 1] * part
        return np.asarray(np.where((wanted == 0.0)[..., None], self._exact, rows))


class LevelController:
    """The recursion over closed bars; pure, and the same live and in batch.

    Parameters
    ----------
    control : target, step and bounds.
    bars : length of each horizon in bars [n_horizons].
    n_markets : markets at the start; :meth:`widen` takes in more.
    """

    def __init__(self, control: LevelControl, bars: Sequence[int], n_markets: int) -> None:
        if not bars or min(bars) < 1:
            raise DataError(f"horizons have to be whole bars, at least one, found {list(bars)}")
        self.control = control
        self.bars = tuple(int(n) for n in bars)
        self.shift: Float2D = np.zeros((len(self.bars), 2))
        """Shift of the level in log-odds [n_horizons, 2 (down, up)]."""
        self.last_ts: int | None = None
        self._quantiles = LevelQuantiles(control.level, control.max_lower, control.max_raise)
        self._length = max(self.bars) + 1
        self._prices: Float3D = np.full((self._length, n_markets, 3), np.nan)
        self._asked: FloatND = np.full((self._length, n_markets, len(self.bars), 2), np.nan)

    def step(
        self, ts: int, prices: Float2D, sigma: Float3D, nu: Float2D, power: ArrayLike, sound: Bool1D
    ) -> Float2D:
        """Judge the windows that close with this bar, move the level, remember what is asked now.

        Parameters
        ----------
        ts : close of the bar, microseconds; equal steps are the caller's business, see :meth:`forget`.
        prices : high, low, close [n_markets, 3]; NaN = no bar.
        sigma, nu : the forecast made at this close, [n_markets, n_horizons(, 2)].
        power : b [n_horizons] of the calibration map g(z) = z**b.
        sound : [n_markets]; what is asked of other markets is never judged.

        Returns
        -------
        float64 [n_horizons, 2] : the shift from this bar on. NaN handling: a window with a missing bar,
            or whose forecast was not sound, gives no feedback; a bar without any moves nothing.
        """
        self._prices = np.concatenate([self._prices[1:], prices[None]])
        target = 1.0 - self.control.level
        for place, n_bars in enumerate(self.bars):
            asked = self._asked[self._length - n_bars, :, place]
            excursion = self._excursion(n_bars)
            known = np.isfinite(asked) & np.isfinite(excursion)
            n_known = known.sum(axis=0)
            breached = (known & (np.nan_to_num(excursion) > np.nan_to_num(asked))).sum(axis=0)
            share = breached / np.maximum(n_known, 1)
            move = np.where(n_known > 0, self.control.step / n_bars * (share - target), 0.0)
            self.shift[place] = np.clip(
                self.shift[place] + move, -self.control.max_lower, self.control.max_raise
            )
        distance = self.distance(sigma, nu, power)
        asked_now = np.where(sound[:, None, None], distance, np.nan)
        self._asked = np.concatenate([self._asked[1:], asked_now[None]])
        self.last_ts = ts
        return self.shift.copy()

    def distance(self, sigma: Float3D, nu: Float2D, power: ArrayLike) -> Float3D:
        """Log-distance asked for at the effective levels [n_markets, n_horizons, 2]; NaN in, NaN out."""
        rows = self._quantiles.rows(self.shift)  # [n_horizons, 2, n_nu]
        grid = QUANTILE_POINTS - 1
        inv_nu = 1.0 / np.clip(nu, NU_MIN, NU_MAX)
        position = (inv_nu - 1.0 / NU_MAX) * (grid / (1.0 / NU_MIN - 1.0 / NU_MAX))
        cell = np.clip(np.nan_to_num(position), 0, grid - 1).astype(np.int64)
        part = (position - cell)[..., None]
        places = np.arange(len(self.bars))
        z = rows[places, :, cell] * (1.0 - part) + rows[places, :, cell + 1] * part
        exponent = 1.0 / np.broadcast_to(np.asarray(power, dtype=np.float64), (len(self.bars),))
        return np.asarray(sigma * z ** exponent[:, None])

    def applied_shift(self, place: int) -> float:
        """Shift of a requirement over horizon ``place``: the largest of both sides and shorter horizons.

        A book mixes sides, and a longer horizon must not ask for less.
        """
        return float(self.shift[: place + 1].max())

    def forget(self) -> None:
        """Drop the open windows after a gap in the bars; the shift stays."""
        self._prices = np.full_like(self._prices, np.nan)
        self._asked = np.full_like(self._asked, np.nan)

    def widen(self, n_markets: int) -> None:
        """Take in markets that joined; they have no past."""
        more = n_markets - self._prices.shape[1]
        if more > 0:
            pad = ((0, 0), (0, more))
            self._prices = np.pad(self._prices, (*pad, (0, 0)), constant_values=np.nan)
            self._asked = np.pad(self._asked, (*pad, (0, 0), (0, 0)), constant_values=np.nan)

    def to_arrays(self) -> dict[str, AnyArray]:
        """Everything that is remembered."""
        last = np.array([] if self.last_ts is None else [self.last_ts], dtype=np.int64)
        return {"shift": self.shift, "prices": self._prices, "asked": self._asked, "last_ts": last}

    def from_arrays(self, arrays: Mapping[str, AnyArray]) -> None:
        """The inverse of :meth:`to_arrays`; the shift is clipped to this policy's bounds.

        Raises
        ------
        DataError : the arrays are of other horizons.
        """
        prices, asked, shift = arrays["prices"], arrays["asked"], arrays["shift"]
        wanted = (self._length, prices.shape[1], len(self.bars), 2)
        if shift.shape != self.shift.shape or asked.shape != wanted:
            raise DataError(
                f"the saved level control has shapes {shift.shape} and {asked.shape}; "
                f"{self.shift.shape} and {wanted} are required",
                fix="start from the history instead of the state",
            )
        self.shift = np.clip(shift, -self.control.max_lower, self.control.max_raise)
        self._prices, self._asked = prices, asked
        self.last_ts = int(arrays["last_ts"][0]) if len(arrays["last_ts"]) else None

    def _excursion(self, n_bars: int) -> Float2D:
        """MAE [n_markets, 2] over the newest ``n_bars`` bars; NaN where one is missing."""
        start = self._prices[self._length - 1 - n_bars, :, 2]
        window = self._prices[self._length - n_bars :]
        out = np.empty((window.shape[1], 2))
        out[:, DOWN] = np.log(start / window[:, :, 1].min(axis=0))
        out[:, UP] = np.log(window[:, :, 0].max(axis=0) / start)
        return np.maximum(out, 0.0)
