"""Features as a stream: rows of inputs go in, rows of features come out, state is carried.

Batch, backfill and a running scorer all run this. What differs is only how many rows they push
at a time and which form of the rolling statistics they choose (:mod:`riskml.features.rolling`);
neither changes a bit of the carried forms' results. Long pushes are cut into blocks that fit the
processor's cache, so memory does not grow with the history.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from riskml.arrays import AnyArray, Float2D, Float3D, Int1D, TimeUs
from riskml.errors import DataError
from riskml.features.blocks import BlockOps
from riskml.features.nodes import PRESENCE_INPUT, Axis, CrossSection, Input, walk
from riskml.features.program import Block, NodeStream, Program
from riskml.features.rolling import Ops
from riskml.features.spec import Feature
from riskml.features.weights import axis_columns
from riskml.markets import Market
from riskml.units import duration_us, format_us

BLOCK_VALUES = 65536
"""Values of a node that are computed at once (512 KiB): enough that a step costs more than its call."""


class FeatureStream:
    """Computes features row by row, or many rows at a time, with the same result.

    Parameters
    ----------
    features : in the order of the result's last axis.
    markets : columns of the market inputs; they decide how chains and stablecoins count.
    interval : bar length.
    reference : columns that define the cross-section, the first being its leader; default all.
    ops : form of the rolling statistics; default the carried one in numpy.

    A row is exact once at least ``lookback_bars`` rows have been pushed with it; before that
    windows are cut at the first row, as at a market's listing.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        markets: Sequence[Market],
        *,
        interval: str,
        reference: Sequence[int] | None = None,
        ops: Ops | None = None,
    ) -> None:
        if not features:
            raise DataError("at least one feature is required")
        self.features = tuple(features)
        self.interval = interval
        self.lookback_bars = max(feature.lookback_bars(interval) for feature in features)
        self.reference = reference_columns(reference, len(markets))
        self._clock = Clock(interval)
        self._axes = input_axes(features)
        program = Program.of([feature.expr for feature in features])
        self._ops = BlockOps() if ops is None else ops
        self._stream = NodeStream(program, markets, interval, self._ops)

    @property
    def markets(self) -> tuple[Market, ...]:
        """Columns of the result."""
        return self._stream.markets

    @property
    def last_ts(self) -> int | None:
        """Close of the last row pushed, us."""
        return self._clock.last

    def push(self, ts: TimeUs, inputs: Mapping[str, Float2D], out: Float3D | None = None) -> Float3D:
        """Features of the next rows.

        Parameters
        ----------
        ts : [n_rows] int64 us, closes of consecutive bars, following those pushed before.
            A missing bar is a row of NaN, never left out.
        inputs : name -> [n_rows, n_columns] for every input that the features read; NaN =
            missing.
        out : [n_features, n_rows, n_markets] float64 to write to, for callers that push block after
            block; default a new array.

        Returns
        -------
        [n_rows, n_markets, n_features] float64, stored feature by feature.

        NaN handling: NaN = missing in and out; infinite values come out as NaN.

        Raises
        ------
        DataError : an input is missing or of another shape, the clock goes backwards or has a
            hole. Nothing has changed then.
        """
        times = np.asarray(ts, dtype=np.int64)
        check_inputs(self._axes, inputs, len(times), len(self.markets))
        first_bar = self._clock.advance(times)
        result = result_array(out, (len(self.features), len(times), len(self.markets)))
        for begin, end in blocks(len(times), len(self.markets)):
            part = {name: inputs[name][begin:end] for name in self._axes}
            with np.errstate(all="ignore"):
                self._run(Block(times[begin:end], first_bar + begin, part), result[:, begin:end])
        return result.transpose(1, 2, 0)

    def add_markets(self, new: Sequence[Market]) -> None:
        """Add columns for markets that have had no bar so far, as on the day of a listing.

        The other markets' state does not change, and the reference stays what it is.

        Raises
        ------
        DataError : a market is there already.
        """
        known = [str(market) for market in new if market in self.markets]
        if known:
            raise DataError(f"{', '.join(known)} is a column already", fix="add a market once")
        self._stream.widen(new, 0 if self._clock.last is None else self._clock.next_bar)

    def adopt(self, other: FeatureStream, n_markets: int) -> None:
        """Give the last ``n_markets`` markets what the last ones of another stream carry.

        Parameters
        ----------
        other : a stream of the same features whose last markets are the same and which stands at
            the same bar. Every other market, and what belongs to chains, stablecoins or all
            markets together, stays as it is here.

        Raises
        ------
        DataError : features, markets or the bar differ. Nothing has changed then.
        """
        mine, theirs = self.markets[-n_markets:], other.markets[-n_markets:]
        if not 0 < n_markets <= min(len(self.markets), len(other.markets)) or mine != theirs:
            raise DataError(
                f"the last {n_markets} markets differ: {', '.join(map(str, mine))} and "
                f"{', '.join(map(str, theirs))}",
                fix="add the markets to both streams, in one order",
            )
        if self.last_ts != other.last_ts or _definition(self) != _definition(other):
            raise DataError(
                "a market can only be taken over from a stream of the same features at the same bar",
                fix="push the other stream up to the last bar of this one",
            )
        self._stream.adopt(other._stream, n_markets)

    def state(self) -> dict[str, AnyArray]:
        """Everything needed to go on from here: arrays by name."""
        if self._clock.last is None:
            return {}
        clock = np.array([self._clock.last], dtype=np.int64)
        return {"clock": clock, "identity": self._identity()} | self._stream.arrays()

    def restore(self, arrays: Mapping[str, AnyArray]) -> None:
        """Go on from a :meth:`state` of a stream of the same features and markets.

        Raises
        ------
        DataError : the state belongs to other features, markets or another interval.
        """
        rest = dict(arrays)
        clock, identity = rest.pop("clock", None), rest.pop("identity", None)
        if clock is not None and (identity is None or not np.array_equal(identity, self._identity())):
            raise DataError(
                "the state belongs to other features or markets, or to another interval",
                fix="restore the state into a stream of the same features and markets",
            )
        self._stream.restore(rest)
        self._clock.last = None if clock is None else int(clock[0])

    def _identity(self) -> AnyArray:
        """What a state belongs to, as a digest: a node's place alone does not say what it is."""
        text = json.dumps([_definition(self), self.reference.tolist(), [str(each) for each in self.markets]])
        return np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint8)

    def _run(self, block: Block, out: Float3D) -> None:
        exchange = self._stream.run(block)
        program = self._stream.program
        answer: Sequence[Float2D] | None = None
        level = 0
        while True:
            try:
                children = next(exchange) if answer is None else exchange.send(answer)
            except StopIteration as done:
                store(done.value, out, self._ops)
                return
            answer = cross_sections(program, level, children, self.reference, self._ops)
            level += 1


def _definition(stream: FeatureStream) -> list[str]:
    """What a stream computes, whoever its markets are."""
    return [stream.interval, *(feature.expr.text for feature in stream.features)]


class Clock:
    """Refuses rows that are not the next ones."""

    def __init__(self, interval: str) -> None:
        self._interval = interval
        self._bar_us = duration_us(interval)
        self.last: int | None = None

    @property
    def next_bar(self) -> int:
        """Absolute number of the next bar; 0 before the first."""
        return 0 if self.last is None else self.last // self._bar_us + 1

    def advance(self, ts: TimeUs) -> int:
        """Take rows; returns the absolute number of the first one's bar.

        Raises
        ------
        DataError : no rows, a time off the grid, a step backwards or a hole.
        """
        if len(ts) == 0:
            raise DataError("the grid is empty; at least one bar is required")
        first = int(ts[0])
        if first % self._bar_us or (np.diff(ts) != self._bar_us).any():
            raise DataError(
                f"the grid must hold consecutive multiples of {self._interval}",
                fix="lay missing bars out as rows of NaN",
            )
        if self.last is not None and first <= self.last:
            raise DataError(
                f"the clock went backwards: a bar of {format_us(first)} came after that of "
                f"{format_us(self.last)}",
                fix="push every bar once, in order",
            )
        if self.last is not None and first != self.last + self._bar_us:
            raise DataError(
                f"bars between {format_us(self.last)} and {format_us(first)} were left out",
                fix="lay missing bars out as rows of NaN",
            )
        self.last = int(ts[-1])
        return first // self._bar_us


def cross_sections(
    program: Program, level: int, children: Sequence[Float2D], reference: Int1D, ops: Ops
) -> list[Float2D]:
    """The cross-sections of a level, each [n_rows, 1]."""
    nodes = [program.order[place] for place in program.exchanges[level]]
    return [
        ops.functions[f"reference_{node.reduction}"](child, reference)
        for node, child in zip(nodes, children, strict=True)
        if isinstance(node, CrossSection)
    ]


def store(roots: Sequence[AnyArray], out: Float3D, ops: Ops) -> None:
    """Write root values into [n_features, n_rows, n_markets]; what is not finite becomes NaN."""
    write = ops.functions["store_finite"]
    for place, value in enumerate(roots):
        write(value, out[place])


def result_array(out: Float3D | None, shape: tuple[int, int, int]) -> Float3D:
    """``out`` where it has the shape, a new array where there is none.

    Raises
    ------
    DataError : ``out`` has another shape or type.
    """
    if out is None:
        return np.empty(shape)
    if out.shape != shape or out.dtype != np.float64:
        raise DataError(f"out is {out.dtype} {out.shape}; float64 {shape} is required")
    return out


def reference_columns(reference: Sequence[int] | None, n_markets: int) -> Int1D:
    """Columns that define the cross-section; default all.

    Raises
    ------
    DataError : a column that there is not, or one twice.
    """
    columns = np.array(range(n_markets) if reference is None else list(reference), dtype=np.int64)
    strange = sorted({int(column) for column in columns if not 0 <= column < n_markets})
    if strange or len(np.unique(columns)) < len(columns):
        raise DataError(
            f"the reference {columns.tolist()} has to name columns 0 to {n_markets - 1}, each once",
            fix="pass the places of the markets that define the cross-section",
        )
    return columns


def blocks(n_rows: int, width: int) -> list[tuple[int, int]]:
    """Where to cut a push."""
    step = max(1, BLOCK_VALUES // max(1, width))
    return [(begin, min(begin + step, n_rows)) for begin in range(0, n_rows, step)]


def input_axes(features: Sequence[Feature]) -> dict[str, Axis]:
    """Every input that the features read, and what its columns stand for."""
    nodes = walk(*(feature.expr for feature in features))
    axes = {node.name: node.axis for node in nodes if isinstance(node, Input)}
    if any(PRESENCE_INPUT in feature.inputs for feature in features):
        axes[PRESENCE_INPUT] = "market"
    return axes


def check_inputs(
    axes: Mapping[str, Axis], inputs: Mapping[str, Float2D], n_rows: int, n_markets: int
) -> None:
    """Refuse inputs that are missing or of another shape.

    Raises
    ------
    DataError : names every one of them.
    """
    missing = [name for name in axes if name not in inputs]
    if missing:
        raise DataError(f"inputs {', '.join(missing)} are missing; found {', '.join(inputs) or 'none'}")
    for name, axis in axes.items():
        width = {"market": n_markets, "one": 1}.get(axis, len(axis_columns(axis)))
        if inputs[name].shape != (n_rows, width):
            raise DataError(
                f"input '{name}' has shape {inputs[name].shape}; {(n_rows, width)} is required: a row per "
                f"bar, a column per {axis}"
            )
