"""Expressions as a list of steps over blocks of rows, with the state that goes from block to block.

Nodes are ordered by *level*: a cross-section needs its child for every reference market, so it
begins a new level. Between levels the work stops for the cross-sections, which is what lets
:mod:`riskml.tables.sharded` give groups of markets to threads.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from riskml.arrays import AnyArray, Float2D, Int2D, TimeUs
from riskml.errors import DataError
from riskml.features.lagged import LagState, SeasonState
from riskml.features.nodes import (
    LOOKS_BACK,
    PRESENCE_INPUT,
    Across,
    Axis,
    BarHours,
    Constant,
    CrossSection,
    Elementwise,
    Expr,
    HourOfWeek,
    Input,
    Lag,
    Rolling,
    Season,
    walk,
)
from riskml.features.rolling import Ops, RollingState, Segments, Span, Values, Window
from riskml.features.weights import axis_columns, axis_weights
from riskml.markets import Market
from riskml.units import HOUR, duration_us

_HOURS_PER_WEEK = 168
_EPOCH_HOUR_OF_WEEK = 72
"""1970-01-01 was a Thursday: 72 hours after Monday 00:00."""

Exchange: TypeAlias = Generator[tuple[Float2D, ...], Sequence[Float2D], list[AnyArray]]
"""Yields the children of each level's cross-sections, takes the cross-sections, returns the roots."""


@dataclass(frozen=True)
class Program:
    """The nodes of some expressions in the order in which they are computed."""

    order: tuple[Expr, ...]
    """Every distinct node once: by level, children before parents."""
    children: tuple[tuple[int, ...], ...]
    """Places of each node's children."""
    roots: tuple[int, ...]
    """Places of the expressions asked for."""
    released: tuple[tuple[int, ...], ...]
    """Places that nothing needs any more once the node is done."""
    exchanges: tuple[tuple[int, ...], ...]
    """Places of the cross-sections, level by level."""

    @classmethod
    def of(cls, roots: Sequence[Expr]) -> Program:
        """Order the nodes."""
        level: dict[str, int] = {}
        nodes = list(walk(*roots))
        for node in nodes:
            below = max((level[child.text] for child in node.children), default=0)
            level[node.text] = below + isinstance(node, CrossSection)
        # Cross-sections come first within their level; sorting is stable, so children stay first.
        nodes.sort(key=lambda node: (level[node.text], not isinstance(node, CrossSection)))
        place = {node.text: number for number, node in enumerate(nodes)}
        children = tuple(tuple(place[child.text] for child in node.children) for node in nodes)
        kept = tuple(place[root.text] for root in roots)
        last_use = {child: number for number, of_node in enumerate(children) for child in of_node}
        released: list[list[int]] = [[] for _ in nodes]
        for child, number in last_use.items():
            if child not in kept:
                released[number].append(child)
        exchanges: dict[int, list[int]] = {}
        for number, node in enumerate(nodes):
            if isinstance(node, CrossSection):
                exchanges.setdefault(level[node.text], []).append(number)
        return cls(
            tuple(nodes),
            children,
            kept,
            tuple(map(tuple, released)),
            tuple(tuple(places) for _, places in sorted(exchanges.items())),
        )


@dataclass(frozen=True)
class Block:
    """Some consecutive rows on their way through a program."""

    ts: TimeUs
    bar: int
    inputs: Mapping[str, Float2D]


@dataclass(frozen=True)
class _Run:
    """A block with what its nodes share."""

    block: Block
    cut: Span
    """The rows with their segments, for nodes that hang on a market's own bars."""
    uncut: Span
    values: list[AnyArray]
    """Result of each node, by place."""
    clean: dict[int, Values]
    """Children of rolling nodes, with their missing values found."""

    def forget(self, places: tuple[int, ...]) -> None:
        """Let results go that nothing needs any more."""
        for place in places:
            self.values[place] = _NOTHING
            self.clean.pop(place, None)


_Step: TypeAlias = Callable[[_Run], AnyArray]
_NOTHING: AnyArray = np.empty(0)


class NodeStream:
    """Carries a program's state over the rows of some markets.

    Parameters
    ----------
    program : what to compute.
    markets : columns of the market inputs.
    interval : bar length.
    ops : form of the rolling statistics.
    """

    def __init__(self, program: Program, markets: Sequence[Market], interval: str, ops: Ops) -> None:
        self.program = program
        self.markets = tuple(markets)
        self._interval = interval
        self._segments = Segments(len(self.markets))
        self._cuts = any(isinstance(node, LOOKS_BACK) and node.segmented for node in program.order)
        self._rolling: dict[int, RollingState] = {}
        self._lags: dict[int, LagState] = {}
        self._profiles = _profiles(program, self.markets)
        # What to do at each node is settled once: a live bar is a thousand very short steps.
        self._steps = [self._step(place, ops) for place in range(len(program.order))]

    def run(self, block: Block) -> Exchange:
        """Compute one block; see :data:`Exchange`."""
        program, steps = self.program, self._steps
        values: list[AnyArray] = [_NOTHING] * len(steps)
        run = _Run(block, *self._spans(block), values, {})
        level = 0
        for place, (step, released) in enumerate(zip(steps, program.released, strict=True)):
            if step is not None:
                values[place] = step(run)
            elif place == program.exchanges[level][0]:
                wanted = program.exchanges[level]
                children = tuple(values[program.children[number][0]] for number in wanted)
                for number, value in zip(wanted, (yield children), strict=True):
                    values[number] = value
                level = min(level + 1, len(program.exchanges) - 1)
            if released:
                run.forget(released)
        return [values[place] for place in program.roots]

    def widen(self, new: Sequence[Market], bar: int) -> None:
        """Add markets that have had no row before absolute bar ``bar``, the next one."""
        self.markets = (*self.markets, *new)
        self._segments.widen(len(new), bar)
        for place, state in self._rolling.items():
            if self.program.order[place].axis == "market":
                state.widen(len(new), bar)
        for place, lag in self._lags.items():
            if self.program.order[place].axis == "market":
                lag.widen(len(new))
        self._profiles = _profiles(self.program, self.markets)

    def adopt(self, other: NodeStream, n_markets: int) -> None:
        """Take the last ``n_markets`` markets over from a stream of the same program at the same bar."""
        self._segments.adopt(other._segments.arrays(), n_markets)
        for place, state in self._rolling.items():
            if self.program.order[place].axis == "market":
                state.adopt(other._rolling[place].arrays(), n_markets)
        for place, lag in self._lags.items():
            if self.program.order[place].axis == "market":
                lag.adopt(other._lags[place].arrays(), n_markets)

    def arrays(self) -> dict[str, AnyArray]:
        """Everything that is carried, by name."""
        states = {f"rolling{place}": state.arrays() for place, state in self._rolling.items()}
        states |= {f"lag{place}": lag.arrays() for place, lag in self._lags.items()}
        states["segments"] = self._segments.arrays()
        return {f"{part}/{name}": array for part, arrays in states.items() for name, array in arrays.items()}

    def restore(self, arrays: Mapping[str, AnyArray]) -> None:
        """Put :meth:`arrays` back."""
        parts: dict[str, dict[str, AnyArray]] = {}
        for name, array in arrays.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = array
        for place, state in self._rolling.items():
            state.restore(parts.get(f"rolling{place}", {}))
        for place, lag in self._lags.items():
            lag.restore(parts.get(f"lag{place}", {}))
        self._segments.restore(parts.get("segments", {}))

    def _width(self, axis: Axis) -> int:
        return {"market": len(self.markets), "one": 1}.get(axis, len(axis_columns(axis)))

    def _spans(self, block: Block) -> tuple[Span, Span]:
        """The block's rows with and without segments."""
        n_rows = len(block.ts)
        start: Int2D | None = None
        if self._cuts:
            start = self._segments.push(np.isfinite(block.inputs[PRESENCE_INPUT]), block.bar)
        return Span(block.bar, n_rows, start), Span(block.bar, n_rows)

    def _step(self, place: int, ops: Ops) -> _Step | None:
        """What computes a node; None for cross-sections, which need every market."""
        node, children = self.program.order[place], self.program.children[place]
        if isinstance(node, CrossSection):
            return None
        if isinstance(node, Elementwise):
            return _elementwise(ops.functions[node.operation], children)
        if isinstance(node, Rolling):
            width = self._width(node.axis)
            # The boundaries of the windows' blocks are spread over the bars by the node's text.
            state = ops.state(window_of(node, self._interval), width, zlib.crc32(node.text.encode()))
            self._rolling[place] = state
            return _rolling(state, children[0], node.segmented)
        if isinstance(node, (Lag, Season)):
            lag = self._lags[place] = self._lag_state(node)
            child, cut = children[0], node.segmented
            return lambda run: lag.push(run.values[child], run.cut if cut else run.uncut)
        if isinstance(node, Across):
            return self._across(node, children[0], ops.functions[f"across_{node.reduction}"])
        return _leaf(node, self._interval, ops.functions["finite_or_missing"])

    def _lag_state(self, node: Lag | Season) -> LagState:
        width = self._width(node.axis)
        if isinstance(node, Season):
            return SeasonState(node.offsets(self._interval), node.min_count, width)
        return LagState(node.extra_bars(self._interval), width)

    def _across(self, node: Across, child: int, function: Callable[..., AnyArray]) -> _Step:
        def step(run: _Run) -> AnyArray:
            weights, column = self._profiles[node.child.axis]
            return function(run.values[child], weights)[:, column]

        return step


def _elementwise(function: Callable[..., AnyArray], children: tuple[int, ...]) -> _Step:
    if len(children) == 1:
        (only,) = children
        return lambda run: function(run.values[only])
    if len(children) == 2:
        first, second = children
        return lambda run: function(run.values[first], run.values[second])
    return lambda run: function(*[run.values[child] for child in children])


def _rolling(state: RollingState, child: int, cut: bool) -> _Step:
    def step(run: _Run) -> AnyArray:
        span = run.cut if cut else run.uncut
        values = run.clean.get(child)
        if values is None:
            values = run.clean[child] = Values(run.values[child], span)
        return state.push(values, span)

    return step


def _leaf(node: Expr, interval: str, clean: Callable[..., AnyArray]) -> _Step:
    if isinstance(node, Input):
        name = node.name
        return lambda run: clean(run.block.inputs[name])
    if isinstance(node, Constant):
        value = np.asarray(node.value)
        return lambda run: value
    if isinstance(node, BarHours):
        hours = np.asarray(duration_us(interval) / HOUR)
        return lambda run: hours
    if isinstance(node, HourOfWeek):
        return lambda run: _hour_of_week(run.block.ts)
    raise DataError(f"'{node.text}' cannot be evaluated: unknown node {type(node).__name__}")


def _hour_of_week(ts: TimeUs) -> Float2D:
    hour = (ts // HOUR + _EPOCH_HOUR_OF_WEEK) % _HOURS_PER_WEEK
    return hour.astype(np.float64)[:, np.newaxis]


def window_of(node: Rolling, interval: str) -> Window:
    """A rolling node in bars."""
    return Window(
        node.statistic,
        node.extra_bars(interval) + 1,
        node.min_count(interval),
        node.decay(interval),
        0.5 if node.level is None else node.level,
    )


def _profiles(program: Program, markets: Sequence[Market]) -> dict[Axis, tuple[Float2D, AnyArray]]:
    """Distinct weights [n_profiles, n_columns] of each axis, and every market's profile."""
    axes: set[Axis] = {node.child.axis for node in program.order if isinstance(node, Across)}
    found: dict[Axis, tuple[Float2D, AnyArray]] = {}
    for axis in axes:
        rows, column = np.unique(axis_weights(axis, markets), axis=0, return_inverse=True)
        found[axis] = rows, column.reshape(-1)
    return found
