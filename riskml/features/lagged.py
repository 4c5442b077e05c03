"""Values of some bars ago, carried from row to row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from riskml.arrays import AnyArray, Float2D
from riskml.errors import DataError
from riskml.features.rolling import Span


class LagState:
    """A ring of the last ``shift`` rows.

    Parameters
    ----------
    shift : bars to look back, at least 1.
    n_columns : width of the node.
    """

    def __init__(self, shift: int, n_columns: int) -> None:
        self._shift = shift
        self._ring: Float2D = np.full((shift, n_columns), np.nan)

    def push(self, values: Float2D, span: Span) -> Float2D:
        """Values ``shift`` rows before each of the next rows [n_rows, n_columns].

        NaN before the first row, and where that row lies in an earlier segment.
        """
        n_rows, shift = span.n_rows, self._shift
        out = np.empty(values.shape)
        head = min(n_rows, shift)
        place = span.bar % shift
        turn = min(head, shift - place)  # the ring is read, and written, in two runs at most
        for rows, slots in (
            (slice(0, turn), slice(place, place + turn)),
            (slice(turn, head), slice(0, head - turn)),
        ):
            out[rows] = self._ring[slots]
        out[head:] = values[: n_rows - head]
        self._keep(values, span)
        if span.start is not None:
            cut = span.latest_start > span.bars - shift
            if cut.any():
                out[span.start > (span.bars - shift)[:, np.newaxis]] = np.nan
        return out

    def _keep(self, values: Float2D, span: Span) -> None:
        """Write the newest rows to the ring."""
        n_rows, shift = span.n_rows, self._shift
        head = min(n_rows, shift)
        newest = values[n_rows - head :]
        place = (span.bar + n_rows - head) % shift
        turn = min(head, shift - place)
        self._ring[place : place + turn] = newest[:turn]
        self._ring[: head - turn] = newest[turn:]

    def widen(self, extra: int) -> None:
        """Add columns that have had no value yet."""
        self._ring = np.concatenate([self._ring, np.full((self._shift, extra), np.nan)], axis=1)

    def adopt(self, arrays: Mapping[str, AnyArray], n_columns: int) -> None:
        """Take the last ``n_columns`` columns over from :meth:`arrays` at the same bar."""
        self._ring[:, -n_columns:] = arrays["ring"][:, -n_columns:]

    def arrays(self) -> dict[str, AnyArray]:
        """What is carried from row to row."""
        return {"ring": self._ring}

    def restore(self, arrays: Mapping[str, AnyArray]) -> None:
        """Put :meth:`arrays` back.

        Raises
        ------
        DataError : the ring is missing or of another shape.
        """
        ring = arrays.get("ring", np.full_like(self._ring, np.nan))
        if ring.shape != self._ring.shape:
            raise DataError(
                f"a saved ring of shape {ring.shape} does not fit a lag of {self._shift} bars over "
                f"{self._ring.shape[1]} columns",
                fix="restore the state into a stream of the same features and markets",
            )
        self._ring = ring.copy()


class SeasonState(LagState):
    """Mean of the values at several distances, in one ring.

    Parameters
    ----------
    offsets : bars to look back, rising; 0 is the row itself.
    min_count : finite values needed for a result.
    n_columns : width of the node.
    """

    def __init__(self, offsets: Sequence[int], min_count: int, n_columns: int) -> None:
        super().__init__(max(offsets[-1], 1), n_columns)
        self._offsets = np.array(offsets, dtype=np.int64)
        self._min_count = min_count

    def push(self, values: Float2D, span: Span) -> Float2D:
        """Means for the next rows [n_rows, n_columns]; values of earlier segments are missing."""
        total: Float2D = np.zeros(values.shape)
        count: Float2D = np.zeros(values.shape)
        # From the newest to the oldest, one by one: blocks of any length add in one order.
        for there, seen in self._looked_up(values, span):
            total += there
            count += seen
        self._keep(values, span)
        return np.where(count >= self._min_count, total / np.maximum(count, 1.0), np.nan)

    def _looked_up(self, values: Float2D, span: Span) -> Iterator[tuple[AnyArray, AnyArray]]:
        """Value, 0 where missing, and whether it is there, at each distance."""
        n_rows = span.n_rows
        cut = span.start is not None and bool((span.latest_start > span.bars - self._shift).any())
        for offset in self._offsets.tolist():
            head = min(n_rows, offset)
            rows = np.empty(values.shape)
            rows[:head] = self._ring[(span.bars[:head] - offset) % self._shift]
            rows[head:] = values[: n_rows - head]
            seen = np.isfinite(rows)
            if cut and span.start is not None:
                seen &= span.start <= (span.bars - offset)[:, np.newaxis]
            yield np.where(seen, rows, 0.0), seen
