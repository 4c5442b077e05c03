"""Compiled rolling statistics for whole histories.

The arithmetic of :mod:`riskml.features.blocks`, row by row, operation by operation, so that the
two agree bit for bit and a state can go from one to the other.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from riskml.arrays import Float2D, Int1D, Int2D
from riskml.features.block_state import BlockState
from riskml.features.blocks import (
    CountState,
    ExtremeState,
    MomentState,
    QuantileState,
    SumState,
    WeightedState,
)
from riskml.features.rolling import RollingState, Span, Values, Window
from riskml.tables.kernels import roll_count, roll_extreme, roll_moment, roll_sum, roll_weighted
from riskml.tables.sorted_window import roll_quantile
from riskml.tables.ufuncs import FUNCTIONS

_Rows: TypeAlias = tuple[Int2D, Int1D, bool, int, int]
"""Segment starts, the latest of each row, whether they count, first bar and its place."""
_UNCUT = np.zeros((1, 1), dtype=np.int64)


class CompiledOps:
    """The compiled forms; see :class:`riskml.features.rolling.Ops` for the contract."""

    functions = FUNCTIONS

    def state(self, window: Window, n_columns: int, phase: int = 0) -> RollingState:
        """See :class:`riskml.features.rolling.Ops`."""
        kinds: dict[str, type[BlockState]] = {
            "count": _Count,
            "sum": _Sum,
            "mean": _Sum,
            "ewm_mean": _Weighted,
            "std": _Moment,
            "min": _Extreme,
            "max": _Extreme,
            "quantile": _Quantile,
        }
        return kinds[window.statistic](window, n_columns, phase)


class _Compiled(BlockState):
    """Calls a kernel in place of the pieces."""

    def push(self, values: Values, span: Span) -> Float2D:
        self.begin(span.bar)
        out = np.empty(values.raw.shape)
        start = _UNCUT if span.start is None else span.start
        place = self.place_of(span.bar)
        self._run(values.raw, (start, span.latest_start, span.start is not None, span.bar, place), out)
        return out

    def _run(self, raw: Float2D, rows: _Rows, out: Float2D) -> None:
        raise TypeError(f"{type(self).__name__} names no kernel")


class _Count(_Compiled, CountState):
    def _run(self, raw: Float2D, rows: _Rows, out: Float2D) -> None:
        roll_count(raw, *rows, self.ring, self.prefix, out)


class _Sum(_Compiled, SumState):
    def _run(self, raw: Float2D, rows: _Rows, out: Float2D) -> None:
        mean = self.window.statistic == "mean"
        roll_sum(
            raw, *rows, self.ring, self.ring_count, self.prefix, self.prefix_count, self.enough, mean, out
        )


class _Weighted(_Compiled, WeightedState):
    def _run(self, raw: Float2D, rows: _Rows, out: Float2D) -> None:
        carried = (self.ring, self.ring_weight, self.ring_count)
        prefixes = (self.prefix, self.prefix_weight, self.prefix_count)
        roll_weighted(raw, *rows, *carried, *prefixes, self.enough, self.powers, out)


class _Moment(_Compiled, MomentState):
    def _run(self, raw: Float2D, rows: _Rows, out: Float2D) -> None:
        carried = (self.ring, self.ring_square, self.ring_count)
        prefixes = (self.prefix, self.prefix_square, self.prefix_count)
        roll_moment(raw, *rows, *carried, *prefixes, self.enough, out)


class _Extreme(_Compiled, ExtremeState):
    def _run(self, raw: Float2D, rows: _Rows, out: Float2D) -> None:
        carried = (self.ring, self.ring_count, self.prefix, self.prefix_count)
        roll_extreme(raw, *rows, *carried, self.enough, self.sign, out)


class _Quantile(_Compiled, QuantileState):
    def _run(self, raw: Float2D, rows: _Rows, out: Float2D) -> None:
        carried = (self.ring, self.ordered, self.prefix_count)
        roll_quantile(raw, *rows, *carried, self.enough, self.window.level, out)
