"""Where a range of bars is cut into the part to fit on, the part to calibrate on, and what follows.

One rule for everything that needs the parts: a fit, and the page that compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

from riskml.arrays import Bool1D, TimeUs
from riskml.errors import ConfigError, DataError
from riskml.units import TimeLike, duration_us, format_us, to_us

FIT_FRACTION = 0.70
"""Share of a range that is fitted when no date is given."""
CALIBRATE_FRACTION = 0.85
"""Share of a range before the end of its calibrate part when no date is given."""


@dataclass(frozen=True)
class Parts:
    """Seams of a range, int64 microseconds UTC; starts inclusive, ends exclusive."""

    start: int
    """First bar."""
    fit_end: int
    """End of the fit part, and start of the calibrate part."""
    calibrate_end: int
    """End of the calibrate part, and start of the test part."""
    stop: int
    """End of the data."""

    def rows(self, ts: TimeUs, part: str) -> Bool1D:
        """Rows [n_bars] of ``fit``, ``calibrate`` or ``test``; nothing is purged."""
        first, last = {
            "fit": (self.start, self.fit_end),
            "calibrate": (self.fit_end, self.calibrate_end),
            "test": (self.calibrate_end, self.stop),
        }[part]
        rows: Bool1D = (ts >= first) & (ts < last)
        return rows


def cut_range(
    ts: TimeUs,
    interval: str,
    *,
    fit_end: TimeLike | None = None,
    calibrate_end: TimeLike | None = None,
    fit_fraction: float = FIT_FRACTION,
    calibrate_fraction: float = CALIBRATE_FRACTION,
) -> Parts:
    """Cut a range of bars.

    Parameters
    ----------
    ts : [n_bars] int64 us, rising.
    interval : bar length.
    fit_end, calibrate_end : seams, exclusive; the fractions where None. A fit end alone keeps the
        fractions' proportion between calibrate and test part behind it.
    fit_fraction, calibrate_fraction : shares of the range before each seam.

    Raises
    ------
    DataError : no bars.
    ConfigError : seams that are out of order or outside the range.
    """
    if len(ts) == 0:
        raise DataError("the dataset has no bars", fix="build it over a range that has data")
    bar = duration_us(interval)
    start, stop = int(ts[0]), int(ts[-1]) + bar

    def seam(moment: TimeLike | None, first: int, share: float) -> int:
        return to_us(moment) if moment is not None else first + int(share * (stop - first)) // bar * bar

    middle = seam(fit_end, start, fit_fraction)
    if calibrate_end is None and fit_end is not None:
        # A given fit end may lie behind the default calibrate end.
        end = seam(None, middle, (calibrate_fraction - fit_fraction) / (1.0 - fit_fraction))
    else:
        end = seam(calibrate_end, start, calibrate_fraction)
    if not start < middle < end <= stop + bar:
        raise ConfigError(
            f"start < fit end < calibrate end is required, found {format_us(start)}, {format_us(middle)}, "
            f"{format_us(end)}; the data ends at {format_us(stop)}",
            fix="move --fit-end and --calibrate-end inside the dataset",
        )
    return Parts(start, middle, end, stop)
