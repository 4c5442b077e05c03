"""Where the range is cut: fit, calibrate, and what no fit ever sees.

Rows are purged at every seam: a row belongs to a part only when its longest target window
ends inside that part, so nothing of the next part leaks backwards through a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from riskml.arrays import Bool1D, TimeUs
from riskml.errors import DataError
from riskml.learning.recipe import SplitSpec
from riskml.markets import Market
from riskml.tables.parts import cut_range
from riskml.units import TimeLike, duration_us, format_us

EXCLUDED_MARKETS = ("LINK", "DOT", "SUI", "NEAR", "ATOM")
"""Never fitted, to show how forecasts transfer to a market that the network has not seen."""
MIN_PART_HORIZONS = 5
"""A part shorter than this many longest horizons is refused."""


@dataclass(frozen=True)
class Splits:
    """Seams of a fit, int64 microseconds UTC; starts inclusive, ends exclusive."""

    fit_start: int
    """First bar of the range."""
    validation_start: int
    """Start of the tail of the fit part that chooses the epoch; ``fit_end`` where there is none."""
    fit_end: int
    """End of the fit part, and start of the calibrate part."""
    calibrate_end: int
    """End of the calibrate part. No row at or after it is read, features and targets included."""
    purge_us: int
    """The longest horizon."""

    @property
    def data_end(self) -> int:
        """No data at or after this time touches the run."""
        return self.calibrate_end

    def rows(self, ts: TimeUs, part: str) -> Bool1D:
        """Rows of one part whose longest target window ends within it.

        Parameters
        ----------
        ts : bar times [n_bars].
        part : ``train``, ``validation``, ``fit`` (both of them) or ``calibrate``.
        """
        start, end = {
            "train": (self.fit_start, self.validation_start),
            "validation": (self.validation_start, self.fit_end),
            "fit": (self.fit_start, self.fit_end),
            "calibrate": (self.fit_end, self.calibrate_end),
        }[part]
        # A window (t, t + h] read at its last bar needs data up to and including t + h < end.
        return np.asarray((ts >= start) & (ts + self.purge_us < end))

    def blocks(self, ts: TimeUs, n_blocks: int) -> list[tuple[slice, Bool1D]]:
        """Contiguous blocks of the fit part, each with what may be learnt to forecast it.

        Parameters
        ----------
        ts : bar times [n_bars].
        n_blocks : number of blocks, of as many bars each.

        Returns
        -------
        Bars of each block, and the rows [n_bars] of the fit part that lie the purge apart from it.
        """
        begin, end = (int(np.searchsorted(ts, t)) for t in (self.fit_start, self.fit_end))
        seams = np.linspace(begin, end, n_blocks + 1).astype(int).tolist()
        fit = self.rows(ts, "fit")
        result = []
        for first, last in pairwise(seams):
            if last > first:
                apart = (ts + self.purge_us < ts[first]) | (ts > ts[last - 1] + self.purge_us)
                result.append((slice(first, last), np.asarray(fit & apart)))
        return result

    def to_dict(self) -> dict[str, str]:
        """ISO dates under the manifest's names."""
        return {
            "fit_start": format_us(self.fit_start),
            "validation_start": format_us(self.validation_start),
            "fit_end": format_us(self.fit_end),
            "calibrate_start": format_us(self.fit_end),
            "calibrate_end": format_us(self.calibrate_end),
            "data_end": format_us(self.data_end),
        }


def make_splits(
    ts: TimeUs,
    interval: str,
    horizons: Sequence[str],
    spec: SplitSpec,
    *,
    fit_end: TimeLike | None = None,
    calibrate_end: TimeLike | None = None,
) -> Splits:
    """Cut a range of bars.

    Parameters
    ----------
    ts : bar times [n_bars], rising.
    interval, horizons : as in the dataset; the purge is the longest horizon.
    spec : fractions used where a date is None.
    fit_end, calibrate_end : seams, exclusive.

    Raises
    ------
    DataError : no bars, or a part too short for its purge.
    ConfigError : seams that are out of order or outside the range.
    """
    parts = cut_range(
        ts,
        interval,
        fit_end=fit_end,
        calibrate_end=calibrate_end,
        fit_fraction=spec.fit_fraction,
        calibrate_fraction=spec.calibrate_fraction,
    )
    start, middle, end = parts.start, parts.fit_end, parts.calibrate_end
    purge, bar = max(duration_us(horizon) for horizon in horizons), duration_us(interval)
    validation = middle - int(spec.validation_fraction * (middle - start)) // bar * bar
    splits = Splits(start, validation, middle, end, purge)
    short = [
        name
        for name, first, last in (
            ("train", start, validation),
            ("validation", validation, middle),
            ("calibrate", middle, end),
        )
        if last - first < MIN_PART_HORIZONS * purge
        and not (name == "validation" and spec.validation_fraction == 0)
    ]
    if short:
        raise DataError(
            f"the {' and the '.join(short)} part is shorter than {MIN_PART_HORIZONS} of the longest horizons "
            f"({max(horizons, key=duration_us)})",
            fix="give a longer range, or move the seams",
        )
    return splits


def fitted_markets(markets: Iterable[Market]) -> list[int]:
    """Positions of the markets that a fit may use: all but :data:`EXCLUDED_MARKETS`.

    Raises
    ------
    DataError : none is left.
    """
    markets = list(markets)
    kept = [index for index, market in enumerate(markets) if market.symbol not in EXCLUDED_MARKETS]
    if not kept:
        raise DataError(
            "no market is left to fit: "
            + (", ".join(market.symbol for market in markets) or "the dataset has none")
            + " are kept out of every fit",
            fix="build the dataset with other markets as well",
        )
    return kept
