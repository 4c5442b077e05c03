"""The words of the expression language: what a feature's formula is written with.

``from riskml.features import expr as e`` is how families use it; the nodes that the words make,
and the rules on windows and missing bars, are in :mod:`riskml.features.nodes`.
"""

from __future__ import annotations

from riskml.features.nodes import (
    BAR,
    Across,
    BarHours,
    Constant,
    CrossSection,
    Elementwise,
    Expr,
    HourOfWeek,
    Lag,
    Rolling,
    Season,
    as_expr,
)

__all__ = [
    "BarHours", "Constant", "Expr", "HourOfWeek", "absolute", "across_max", "across_mean", "as_expr",
    "at_least", "at_most", "clip", "correlation", "count", "ewm_mean", "exp", "first_finite", "greater",
    "lag", "larger", "leader", "log", "maximum", "mean", "minimum", "quantile", "reference_mean",
    "reference_std", "season", "smaller", "sqrt", "square", "std", "total", "where_finite",
]  # fmt: skip


def log(x: Expr) -> Expr:
    """Natural logarithm; NaN for values that are not positive."""
    return Elementwise("log", (x,))


def sqrt(x: Expr) -> Expr:
    """Square root; NaN for negative values."""
    return Elementwise("sqrt", (x,))


def absolute(x: Expr) -> Expr:
    """Absolute value."""
    return Elementwise("absolute", (x,))


def square(x: Expr) -> Expr:
    """The square."""
    return Elementwise("square", (x,))


def exp(x: Expr) -> Expr:
    """Exponential."""
    return Elementwise("exp", (x,))


def greater(x: Expr, y: Expr | float) -> Expr:
    """1 where x > y, 0 where it is not, NaN where either is missing."""
    return Elementwise("greater", (x, as_expr(y)))


def larger(x: Expr, y: Expr) -> Expr:
    """The larger of two; NaN when either is missing."""
    return Elementwise("maximum", (x, y))


def smaller(x: Expr, y: Expr) -> Expr:
    """The smaller of two; NaN when either is missing."""
    return Elementwise("minimum", (x, y))


def clip(x: Expr, low: float, high: float) -> Expr:
    """Limit to [low, high]; NaN stays NaN."""
    return Elementwise("minimum", (Elementwise("maximum", (x, as_expr(low))), as_expr(high)))


def at_least(x: Expr, low: float) -> Expr:
    """The larger of the two; NaN stays NaN."""
    return Elementwise("maximum", (x, as_expr(low)))


def at_most(x: Expr, high: float) -> Expr:
    """The smaller of the two; NaN stays NaN."""
    return Elementwise("minimum", (x, as_expr(high)))


def first_finite(*choices: Expr) -> Expr:
    """The first choice that is finite, row by row."""
    return Elementwise("first_finite", choices)


def where_finite(x: Expr, *others: Expr) -> Expr:
    """``x`` where all the others are finite too, else NaN: a common sample for moments."""
    return Elementwise("where_finite", (x, *others))


def lag(x: Expr, duration: str = BAR) -> Expr:
    """The value ``duration`` ago."""
    return Lag(x, duration)


def season(x: Expr, ahead: str, period: str, count: int) -> Expr:
    """Mean over the last ``count`` periods of the value at the place that comes ``ahead`` from now."""
    return Season(x, ahead, period, count)


def count(x: Expr, window: str) -> Expr:
    """Number of finite values in the window; 0 when there is none."""
    return Rolling("count", x, window)


def total(x: Expr, window: str, *, min_window: str | None = None) -> Expr:
    """Sum over the window."""
    return Rolling("sum", x, window, min_window)


def mean(x: Expr, window: str, *, min_window: str | None = None) -> Expr:
    """Mean over the window."""
    return Rolling("mean", x, window, min_window)


def std(x: Expr, window: str, *, min_window: str | None = None) -> Expr:
    """Standard deviation over the window, divisor n."""
    return Rolling("std", x, window, min_window)


def minimum(x: Expr, window: str, *, min_window: str | None = None) -> Expr:
    """Smallest value in the window."""
    return Rolling("min", x, window, min_window)


def maximum(x: Expr, window: str, *, min_window: str | None = None) -> Expr:
    """Largest value in the window."""
    return Rolling("max", x, window, min_window)


def quantile(x: Expr, window: str, level: float, *, min_window: str | None = None) -> Expr:
    """Quantile over the window, linear between order statistics."""
    return Rolling("quantile", x, window, min_window, level=level)


def ewm_mean(x: Expr, half_life: str, window: str, *, min_window: str | None = None) -> Expr:
    """Exponentially weighted mean, truncated at the window and normalised over what is there."""
    return Rolling("ewm_mean", x, window, min_window, half_life=half_life)


def correlation(xy: Expr, xx: Expr, yy: Expr) -> Expr:
    """Correlation about zero from mean products over one sample; NaN when one is constant zero."""
    return clip(xy / sqrt(xx * yy), -1.0, 1.0)


def reference_mean(x: Expr) -> Expr:
    """Mean over the reference markets that have a value."""
    return CrossSection("mean", x)


def reference_std(x: Expr) -> Expr:
    """Standard deviation (divisor n) over the reference markets; NaN with fewer than two."""
    return CrossSection("std", x)


def across_mean(x: Expr) -> Expr:
    """Weighted mean over chains or stablecoins, per market."""
    return Across("mean", x)


def across_max(x: Expr) -> Expr:
    """Largest value over the chains or stablecoins that matter to the market."""
    return Across("max", x)


def leader(x: Expr) -> Expr:
    """The value of the first reference market."""
    return CrossSection("leader", x)
