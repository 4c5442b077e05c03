"""The nodes of the expression language that features are written in.

An :class:`Expr` is a tree over named inputs. Every node can look back a finite number of
bars and none can look forward, so a feature is causal because nothing else can be said
in the language. Equal subtrees have equal :attr:`Expr.text` and are computed once.

Windows and missing bars
------------------------
A window of ``w`` bars at row ``t`` holds rows ``t - w + 1 .. t``, cut off at the start of
the market's *segment*: a run of more than :data:`MAX_GAP_BARS` missing bars ends a segment,
so no window joins prices from both sides of an outage. NaN and infinite values are skipped;
the result is NaN unless at least ``min_count`` finite values remain (default: half the
window, rounded up). Inputs that do not hang on the market's own bars (chains, pegs, the
cross-section) are not cut at its segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from riskml.errors import ConfigError
from riskml.units import duration_bars, duration_us

MAX_GAP_BARS = 3
"""A longer run of missing bars ends a segment."""
MIN_ACROSS_WEIGHT = 0.25
"""Least share of a market's weights that must have a value in a mean over chains or stablecoins."""
PRESENCE_INPUT = "close"
"""A market's bar is present when this input is finite."""
BAR = "bar"
"""The duration of one bar, whatever the interval."""

Statistic: TypeAlias = Literal["count", "sum", "mean", "std", "min", "max", "quantile", "ewm_mean"]
Reduction: TypeAlias = Literal["mean", "std", "leader"]
Axis: TypeAlias = Literal["one", "market", "chain", "asset"]
"""What the columns of a node stand for: ``one`` column for all markets (calendar, cross-section),
a column per market, per chain or per stablecoin (:mod:`riskml.features.weights`)."""
AcrossReduction: TypeAlias = Literal["mean", "max"]


def bars_in(duration: str, interval: str) -> int:
    """Bars in a duration; :data:`BAR` is always one.

    >>> bars_in("1d", "1h"), bars_in(BAR, "1h")
    (24, 1)
    """
    return 1 if duration == BAR else duration_bars(duration, interval)


@dataclass(frozen=True, eq=False)
class Expr:
    """A node. Combine nodes with ``+ - * /``, unary ``-`` and the functions below."""

    @property
    def children(self) -> tuple[Expr, ...]:
        return ()

    @cached_property
    def text(self) -> str:
        """Canonical text: the node's identity, and what the fingerprint is taken of."""
        raise ConfigError("a bare Expr has no meaning; use a node or a function of this module")

    @cached_property
    def segmented(self) -> bool:
        """Whether windows over this node are cut at the market's segments."""
        return any(child.segmented for child in self.children)

    @cached_property
    def axis(self) -> Axis:
        """What the columns stand for.

        Raises
        ------
        ConfigError : chains, stablecoins and markets are mixed without :func:`across`.
        """
        axes = {child.axis for child in self.children} - {"one"}
        if len(axes) > 1:
            raise ConfigError(
                f"'{self.text[:80]}' mixes columns per {' and per '.join(sorted(axes))}",
                fix="bring chains and stablecoins to markets with across_mean or across_max",
            )
        return axes.pop() if axes else "one"

    def extra_bars(self, interval: str) -> int:
        """How many rows before its own first row the node reads from its children."""
        return 0

    def lookback_bars(self, interval: str) -> int:
        """Rows of input that determine one row of output exactly (at least 1)."""
        depth: dict[str, int] = {}
        cut = False
        for node in walk(self):
            below = max((depth[child.text] for child in node.children), default=0)
            depth[node.text] = below + node.extra_bars(interval)
            cut = cut or (node.segmented and node.extra_bars(interval) > 0)
        # Whether a segment ended at the oldest row needs the rows of a whole gap before it.
        return depth[self.text] + 1 + (MAX_GAP_BARS + 1 if cut else 0)

    def input_names(self) -> tuple[str, ...]:
        """Inputs that the expression reads, sorted; with presence when windows are cut by it."""
        names = {node.name for node in walk(self) if isinstance(node, Input)}
        if any(isinstance(node, LOOKS_BACK) and node.segmented for node in walk(self)):
            names.add(PRESENCE_INPUT)
        return tuple(sorted(names))

    def __str__(self) -> str:
        return self.text

    def __add__(self, other: Expr | float) -> Expr:
        return Elementwise("add", (self, as_expr(other)))

    def __radd__(self, other: float) -> Expr:
        return Elementwise("add", (as_expr(other), self))

    def __sub__(self, other: Expr | float) -> Expr:
        return Elementwise("subtract", (self, as_expr(other)))

    def __rsub__(self, other: float) -> Expr:
        return Elementwise("subtract", (as_expr(other), self))

    def __mul__(self, other: Expr | float) -> Expr:
        return Elementwise("multiply", (self, as_expr(other)))

    def __rmul__(self, other: float) -> Expr:
        return Elementwise("multiply", (as_expr(other), self))

    def __truediv__(self, other: Expr | float) -> Expr:
        return Elementwise("divide", (self, as_expr(other)))

    def __rtruediv__(self, other: float) -> Expr:
        return Elementwise("divide", (as_expr(other), self))

    def __neg__(self) -> Expr:
        return Elementwise("negative", (self,))


@dataclass(frozen=True, eq=False)
class Input(Expr):
    """A named input [n_bars, n_columns], see :mod:`riskml.features.inputs`."""

    name: str
    columns: Axis = "market"
    """Inputs of markets hang on the market's own bars, so that windows are cut at gaps."""

    @cached_property
    def text(self) -> str:
        return self.name

    @cached_property
    def segmented(self) -> bool:
        return self.columns == "market"

    @cached_property
    def axis(self) -> Axis:
        return self.columns


@dataclass(frozen=True, eq=False)
class Constant(Expr):
    """A number."""

    value: float

    @cached_property
    def text(self) -> str:
        return repr(float(self.value))


@dataclass(frozen=True, eq=False)
class BarHours(Expr):
    """The length of a bar in hours: divides a per-bar variance into a per-hour one."""

    @cached_property
    def text(self) -> str:
        return "bar_hours"


@dataclass(frozen=True, eq=False)
class HourOfWeek(Expr):
    """Hour of the week of the next bar's start: 0 = Monday 00:00 UTC .. 167."""

    @cached_property
    def text(self) -> str:
        return "hour_of_week"


@dataclass(frozen=True, eq=False)
class Elementwise(Expr):
    """A function of values of the same row."""

    operation: str
    arguments: tuple[Expr, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.arguments

    @cached_property
    def text(self) -> str:
        return f"{self.operation}({', '.join(child.text for child in self.arguments)})"


@dataclass(frozen=True, eq=False)
class Lag(Expr):
    """The value ``duration`` ago; NaN when that lies in an earlier segment."""

    child: Expr
    duration: str

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.child,)

    def extra_bars(self, interval: str) -> int:
        return bars_in(self.duration, interval)

    @cached_property
    def text(self) -> str:
        return f"lag({self.child.text}, {self.duration})"


@dataclass(frozen=True, eq=False)
class Season(Expr):
    """Mean over the last periods of the value at the place that comes ``ahead`` from now.

    Of the next hour (``ahead``), say, the mean over the last 14 days (``period`` 1 d, ``count`` 14)
    of the value that was reached at the end of that hour of the day. Missing values are skipped; NaN
    with fewer than half of them. Values of an earlier segment are missing.
    """

    child: Expr
    ahead: str
    period: str
    count: int

    def __post_init__(self) -> None:
        if self.count < 1 or duration_us(self.ahead) > duration_us(self.period):
            raise ConfigError(
                f"a season looks at least one period back and at most one ahead, not {self.count} of "
                f"{self.period} and {self.ahead}"
            )

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.child,)

    def offsets(self, interval: str) -> tuple[int, ...]:
        """How many bars ago the values lie, the newest first."""
        ahead, period = bars_in(self.ahead, interval), bars_in(self.period, interval)
        return tuple(number * period - ahead for number in range(1, self.count + 1))

    def extra_bars(self, interval: str) -> int:
        return self.offsets(interval)[-1]

    @property
    def min_count(self) -> int:
        """Finite values needed for a result."""
        return (self.count + 1) // 2

    @cached_property
    def text(self) -> str:
        return f"season({self.child.text}, {self.ahead}, {self.period}, {self.count})"


@dataclass(frozen=True, eq=False)
class Rolling(Expr):
    """A statistic over the last ``window``; see the module's words on missing bars."""

    statistic: Statistic
    child: Expr
    window: str
    min_window: str | None = None
    """At least this many bars' worth of finite values; default: half the window."""
    half_life: str | None = None
    """Of ``ewm_mean``: weights halve every half-life and end at the window."""
    level: float | None = None
    """Of ``quantile``: in [0, 1], linear between order statistics."""

    def __post_init__(self) -> None:
        if (self.statistic == "ewm_mean") != (self.half_life is not None):
            raise ConfigError("half_life belongs to ewm_mean, and only to it")
        if (self.statistic == "quantile") != (self.level is not None):
            raise ConfigError("level belongs to quantile, and only to it")
        if self.level is not None and not 0.0 <= self.level <= 1.0:
            raise ConfigError(f"a quantile level lies in [0, 1], not {self.level}")

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.child,)

    def extra_bars(self, interval: str) -> int:
        return bars_in(self.window, interval) - 1

    def min_count(self, interval: str) -> int:
        """Finite values needed for a result."""
        if self.statistic == "count":
            return 0
        if self.min_window is not None:
            return bars_in(self.min_window, interval)
        return (bars_in(self.window, interval) + 1) // 2

    def decay(self, interval: str) -> float:
        """Weight ratio of neighbouring bars of ``ewm_mean`` (1 for the other statistics)."""
        if self.half_life is None:
            return 1.0
        return float(0.5 ** (1.0 / bars_in(self.half_life, interval)))

    @cached_property
    def text(self) -> str:
        options = [
            f"{name}={value}"
            for name, value in (
                ("min", self.min_window),
                ("half_life", self.half_life),
                ("level", self.level),
            )
            if value is not None
        ]
        return f"{self.statistic}({', '.join([self.child.text, self.window, *options])})"


LOOKS_BACK = (Rolling, Lag, Season)
"""Nodes that read rows before their own: those that a market's segments cut."""


@dataclass(frozen=True, eq=False)
class CrossSection(Expr):
    """A reduction over the reference markets of one row: one value for all markets."""

    reduction: Reduction
    child: Expr

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.child,)

    @cached_property
    def segmented(self) -> bool:
        return False

    @cached_property
    def axis(self) -> Axis:
        return "one"

    @cached_property
    def text(self) -> str:
        return f"reference_{self.reduction}({self.child.text})"


@dataclass(frozen=True, eq=False)
class Across(Expr):
    """Values per chain or stablecoin brought to markets through the market's weights.

    ``mean``: weighted mean over the columns that have a value; NaN when those carry less than
    :data:`MIN_ACROSS_WEIGHT` of the market's weight. ``max``: largest value among the columns of
    positive weight that have one.
    """

    reduction: AcrossReduction
    child: Expr

    def __post_init__(self) -> None:
        if self.child.axis not in ("chain", "asset"):
            raise ConfigError(
                f"'{self.child.text[:80]}' has a column per {self.child.axis}, not per chain or asset"
            )

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.child,)

    @cached_property
    def axis(self) -> Axis:
        return "market"

    @cached_property
    def segmented(self) -> bool:
        return False

    @cached_property
    def text(self) -> str:
        return f"across_{self.reduction}({self.child.text})"


def walk(*roots: Expr) -> Iterator[Expr]:
    """Every distinct node once, children before parents."""
    seen: set[str] = set()
    for root in roots:
        stack: list[tuple[Expr, bool]] = [(root, False)]
        while stack:
            node, expanded = stack.pop()
            if node.text in seen:
                continue
            if expanded:
                seen.add(node.text)
                yield node
                continue
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(node.children))


def as_expr(value: Expr | float) -> Expr:
    """A number as a :class:`Constant`; an expression as itself."""
    return value if isinstance(value, Expr) else Constant(float(value))
