"""Values of some bars ago, carried from row to row."""

from __future__ import annotations

from collections.abc import Mapping

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
        newest = values[n_rows - head :]
        place = (span.bar + n_rows - head) % shift
        turn = min(head, shift - place)
        self._ring[place : place + turn] = newest[:turn]
        self._ring[: head - turn] = newest[turn:]
        if span.start is not None:
            cut = span.latest_start > span.bars - shift
            if cut.any():
                out[span.start > (span.bars - shift)[:, np.newaxis]] = np.nan
        return out

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
