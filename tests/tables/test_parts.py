"""Where a range is cut: parts that follow one another and hold every bar once."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.tables.parts import CALIBRATE_FRACTION, FIT_FRACTION, cut_range
from riskml.units import DAY, HOUR, format_us, to_us

TS = to_us("2024-01-01") + HOUR * np.arange(24 * 100, dtype=np.int64)


@pytest.mark.parametrize(
    ("seams", "fit_end", "calibrate_end"),
    [
        ({}, "2024-03-11", "2024-03-26"),
        ({"fit_end": "2024-02-10"}, "2024-02-10", "2024-03-11"),
        ({"fit_end": "2024-02-10", "calibrate_end": "2024-02-20"}, "2024-02-10", "2024-02-20"),
        ({"calibrate_end": "2024-04-01"}, "2024-03-11", "2024-04-01"),
    ],
)
def test_seams_are_given_or_shares_of_the_range(
    seams: dict[str, str], fit_end: str, calibrate_end: str
) -> None:
    parts = cut_range(TS, "1h", **seams)
    assert format_us(parts.fit_end)[:10] == fit_end
    assert format_us(parts.calibrate_end)[:10] == calibrate_end
    rows = sum(parts.rows(TS, name).astype(int) for name in ("fit", "calibrate", "test"))
    assert (rows == 1).all()


def test_the_recipe_cuts_by_the_same_fractions() -> None:
    from riskml.learning.recipe import SplitSpec

    assert (SplitSpec().fit_fraction, SplitSpec().calibrate_fraction) == (FIT_FRACTION, CALIBRATE_FRACTION)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="start < fit end < calibrate end is required"):
        cut_range(TS, "1h", fit_end="2024-03-01", calibrate_end="2024-02-01")
    with pytest.raises(ConfigError, match="the data ends at 2024-04-10"):
        cut_range(TS, "1h", fit_end=int(TS[-1]) + DAY)
    with pytest.raises(DataError, match="no bars"):
        cut_range(TS[:0], "1h")
