"""Stress of a market, bar by bar: a fall, a wave of liquidations, a book that empties.

Every threshold is taken of the past only: of what was known before the window at hand began.
A detector carries the rows it needs from one block to the next, so that a value does not depend
on where the rows are cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from riskml.arrays import Bool2D, Float2D, TimeUs
from riskml.errors import ConfigError, Problem, nearest
from riskml.features.nodes import MAX_GAP_BARS
from riskml.tables.ahead import behind, count_ahead, smallest_ahead, total_ahead, trailing_quantile
from riskml.units import HOUR, duration_bars, duration_us

KINDS = ("drop", "liquidation", "depth")
"""Kinds of stress, in the order of :class:`Stress`."""


@dataclass(frozen=True)
class StressSpec:
    """What counts as stress. The defaults of the drop are those of the evaluation protocol."""

    window: str = "1h"
    """Over which a drop and the liquidated volume are measured; one bar when bars are longer."""
    drop: float = 0.03
    """A drop is at least this log-return ..."""
    sigmas: float = 8.0
    """... and at least this many slow sigmas of the window."""
    liquidation_quantile: float = 0.99
    """Liquidated value of the window lies above this quantile of its own history."""
    liquidation_history: str = "90d"
    """One value per whole window; at least half of them have to be known."""
    depth_collapse: float = 0.5
    """Depth lies below this share of the median of its history."""
    depth_history: str = "7d"
    """One value per whole window; at least half of them have to be known."""
    cool_down: str = "24h"
    """A stressed bar begins an onset when none lies within this time before it."""

    def __post_init__(self) -> None:
        for name in ("window", "liquidation_history", "depth_history", "cool_down"):
            duration_us(getattr(self, name))
        if not (0.0 < self.drop < math.inf and 0.0 <= self.sigmas < math.inf):
            raise ConfigError(f"a drop of {self.drop} and {self.sigmas} sigmas: both have to be positive")
        if min(map(duration_us, (self.liquidation_history, self.depth_history))) < duration_us(self.window):
            raise ConfigError(
                f"histories of {self.liquidation_history} and {self.depth_history} hold no whole window of "
                f"{self.window}"
            )
        if not (0.0 < self.liquidation_quantile < 1.0 and 0.0 < self.depth_collapse < 1.0):
            raise ConfigError(
                "the liquidation quantile and the depth share lie between 0 and 1, not "
                f"{self.liquidation_quantile} and {self.depth_collapse}"
            )

    @classmethod
    def parse(cls, text: str) -> StressSpec:
        """Read ``name=value`` pairs separated by commas; what is not named keeps its default.

        >>> StressSpec.parse("drop=0.05, window=4h") == StressSpec(drop=0.05, window="4h")
        True

        Raises
        ------
        ConfigError : a name that there is not, a repeated one, a value of another type or out of range.
        """
        known = {item.name: float if isinstance(item.default, float) else str for item in fields(cls)}
        values: dict[str, Any] = {}
        problems = []
        for pair in text.split(",") if text else ():
            name, _, value = (part.strip() for part in pair.partition("="))
            if name not in known:
                problems.append(Problem("stress-key", f"there is no '{name}'.{nearest(name, known)}"))
            elif name in values:
                problems.append(Problem("stress-key", f"'{name}' is given twice"))
            else:
                try:
                    values[name] = known[name](value)
                except ValueError:
                    problems.append(Problem("stress-value", f"{name} has to be a number, not '{value}'"))
        if problems:
            raise ConfigError.from_problems(problems, f"stress '{text}': use {', '.join(known)}")
        return cls(**values)

    def window_bars(self, interval: str) -> int:
        """Bars of the window."""
        return duration_bars(self.window, interval)

    def history_bars(self, interval: str) -> int:
        """Rows before the first exact value: the longest history, the window and its lattice."""
        window = self.window_bars(interval)
        histories = (self.liquidation_history, self.depth_history)
        longest = max(duration_us(text) for text in histories) // duration_us(interval)
        return longest + 3 * window + MAX_GAP_BARS + 1


@dataclass(frozen=True)
class Signal:
    """One kind of stress, each [n_bars, n_markets]; NaN = not known."""

    flag: Float2D
    """1 where the bar is stressed, else 0."""
    size: Float2D
    """What is compared: log-return of the drop, liquidated USD of the window, USD of depth."""
    limit: Float2D
    """With what it is compared."""
    window_bars: int = 1
    """Bars, the flagged one included, that the size is measured over."""


@dataclass(frozen=True)
class Stress:
    """Every kind of stress on the same bars."""

    drop: Signal
    liquidation: Signal
    depth: Signal
    sigma: Float2D
    """[n_bars, n_markets] slow sigma of the window as known when it began, log-return units."""

    def signal(self, kind: str) -> Signal:
        """The signal of one of :data:`KINDS`."""
        found: Signal = getattr(self, kind)
        return found


class StressDetector:
    """Finds stress in consecutive blocks of rows.

    Parameters
    ----------
    spec : what counts.
    interval : bar length.
    n_markets : columns of every array.
    """

    def __init__(self, spec: StressSpec, interval: str, n_markets: int) -> None:
        self._spec = spec
        self._bar = duration_us(interval)
        self._window = spec.window_bars(interval)
        self._hours = self._window * self._bar / HOUR
        self._keep = self._window + MAX_GAP_BARS
        self._n_markets = n_markets
        self._tail: dict[str, Float2D] = {}
        window_us = self._window * self._bar
        self._liquidated = _Trailing(window_us, spec.liquidation_history, spec.liquidation_quantile)
        self._depth = _Trailing(window_us, spec.depth_history, 0.5)

    def push(self, ts: TimeUs, series: Mapping[str, Float2D]) -> Stress:
        """Stress of the next rows.

        Parameters
        ----------
        ts : [n_bars] int64 us, closes of consecutive bars that follow the last call's.
        series : ``close``, ``high``, ``low`` and ``slow`` (log of the slow variance per hour),
            each [n_bars, n_markets]; ``liquidated_usd`` (per bar) and ``depth_usd`` may be absent.

        Notes
        -----
        NaN handling: a drop is unknown where the close before the window, every low in it or the
        slow variance is missing, and where the window holds a run of more than three missing
        bars; liquidated value where any bar of the window lacks it.
        """
        n_bars = len(ts)
        joined = {name: self._join(name, values) for name, values in series.items()}
        drop, sigma = self._drop(joined)
        nothing = np.full((n_bars, self._n_markets), np.nan)
        liquidation = depth = Signal(nothing, nothing, nothing)
        if "liquidated_usd" in series:
            size = self._window_sum(joined["liquidated_usd"], int(ts[-1]))[-n_bars:]
            limit = self._liquidated.push(ts, size)
            liquidation = _signal(size, limit, (size > limit) & (size > 0.0), self._window)
        if "depth_usd" in series:
            size = series["depth_usd"]
            limit = self._spec.depth_collapse * self._depth.push(ts, size)
            depth = _signal(size, limit, size < limit)
        cut = Signal(drop.flag[-n_bars:], drop.size[-n_bars:], drop.limit[-n_bars:], drop.window_bars)
        return Stress(cut, liquidation, depth, sigma[-n_bars:])

    def _join(self, name: str, values: Float2D) -> Float2D:
        """The rows kept from before and the new ones."""
        tail = self._tail.get(name)
        joined = values if tail is None else np.concatenate([tail, values])
        self._tail[name] = joined[-self._keep :].copy()
        return joined

    def _drop(self, joined: Mapping[str, Float2D]) -> tuple[Signal, Float2D]:
        close, low, bars = joined["close"], joined["low"], self._window
        present = np.isfinite(close) & np.isfinite(joined["high"]) & np.isfinite(low)
        broken = behind(count_ahead(ends_gap(present), bars), bars, 1) != 0
        sigma = np.full(close.shape, np.nan)
        began = np.full(close.shape, np.nan)
        if len(close) > bars:
            began[bars:] = close[:-bars]
            sigma[bars:] = np.sqrt(np.exp(joined["slow"][:-bars]) * self._hours)
        with np.errstate(invalid="ignore", divide="ignore"):
            size = np.log(began / behind(smallest_ahead(low, bars), bars, np.nan))
        size[broken] = np.nan
        limit = np.maximum(self._spec.drop, self._spec.sigmas * sigma)
        return _signal(size, limit, size > limit, bars), sigma

    def _window_sum(self, joined: Float2D, last_ts: int) -> Float2D:
        """Sum over the window that ends with each row; NaN where a bar lacks a value."""
        bars = self._window
        if bars == 1:
            return joined
        first_bar = last_ts // self._bar - len(joined) + 1
        known = behind(count_ahead(np.isfinite(joined), bars), bars, 0) == bars
        return np.where(known, behind(total_ahead(joined, bars, first_bar), bars, np.nan), np.nan)


class _Trailing:
    """Quantile of a series' own past, one sample per whole window.

    Samples are the rows whose close is a multiple of the window. The quantile in force at a row
    is that of the history which ends with the last sample at or before the start of the row's
    window.
    """

    def __init__(self, window_us: int, history: str, level: float) -> None:
        self._window = window_us
        self._rows = max(1, duration_us(history) // window_us)
        self._level = level
        self._samples: Float2D | None = None
        self._next = 0

    def push(self, ts: TimeUs, values: Float2D) -> Float2D:
        """The quantile in force at each row [n_bars, n_markets]."""
        at = np.flatnonzero(ts % self._window == 0)
        before = np.empty((0, values.shape[1])) if self._samples is None else self._samples
        samples = np.concatenate([before, values[at]])
        if len(at):
            self._next = int(ts[at[-1]]) // self._window + 1
        first = self._next - len(samples)
        # Two more than the history: the rows after the newest sample look at the one before it.
        self._samples = samples[-(self._rows + 2) :]
        out = np.full(values.shape, np.nan)
        used = np.flatnonzero(np.isfinite(samples).any(axis=0))
        if not len(used):
            return out
        quantiles = trailing_quantile(samples[:, used], self._rows, (self._rows + 1) // 2, self._level)
        place = ts // self._window - 1 - first
        reached = np.flatnonzero(place >= 0)
        out[np.ix_(reached, used)] = quantiles[place[reached]]
        return out


def ends_gap(present: Bool2D) -> Bool2D:
    """Bars [n_bars, n_markets] at which more than three in a row are missing, that one included."""
    ended = ~present
    for shift in range(1, MAX_GAP_BARS + 1):
        ended[shift:] &= ~present[:-shift]
        ended[:shift] = False
    return ended


def _signal(size: Float2D, limit: Float2D, beyond: Bool2D, window_bars: int = 1) -> Signal:
    known = np.isfinite(size) & np.isfinite(limit)
    return Signal(np.where(known, beyond.astype(np.float64), np.nan), size, limit, window_bars)
