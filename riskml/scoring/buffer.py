"""Ring buffers of the live path: a window of rows that is always contiguous.

A ring with wrap-around would have to be unrolled before every evaluation. These keep twice
the rows and move the window back to the front once per ``rows`` appends, so that a window
is a plain view and an append costs one row on average.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from riskml.arrays import AnyArray, BoolND, Float32ND
from riskml.errors import DataError


class RowWindow:
    """The last ``rows`` rows of an array whose axis 0 is time.

    Rows that were never appended hold ``fill``.
    """

    def __init__(self, rows: int, shape: tuple[int, ...], dtype: Any, fill: float | bool) -> None:
        self.rows = rows
        self._fill = fill
        self._store: NDArray[Any] = np.full((2 * rows, *shape), fill, dtype=dtype)
        self._end = rows

    def append(self, block: AnyArray) -> None:
        """Append ``block`` [n, ...]; of more than ``rows`` rows only the last ones count."""
        block = block[-self.rows :]
        if self._end + len(block) > len(self._store):
            keep = self.rows - len(block)
            self._store[:keep] = self._store[self._end - keep : self._end]
            self._end = keep
        self._store[self._end : self._end + len(block)] = block
        self._end += len(block)

    def view(self) -> NDArray[Any]:
        """The window [rows, ...], oldest first; valid until the next append."""
        return self._store[self._end - self.rows : self._end]

    def restore(self, window: AnyArray) -> None:
        """Replace the whole window.

        Raises
        ------
        DataError : the shape is another one.
        """
        if window.shape != (self.rows, *self._store.shape[1:]):
            raise DataError(
                f"a saved window has shape {window.shape}; {(self.rows, *self._store.shape[1:])} is required",
                fix="load the state into a scorer of the same bundle",
            )
        self._store[...] = self._fill
        self._store[: self.rows] = window
        self._end = self.rows


class FeatureBuffer:
    """The feature windows that the market graph reads, with masks, one row per bar."""

    def __init__(self, n_bars: int, n_markets: int, n_features: int) -> None:
        self.n_bars = n_bars
        self._values = RowWindow(n_bars, (n_markets, n_features), np.float32, 0.0)
        self._mask = RowWindow(n_bars, (n_markets, n_features), np.bool_, False)

    def append(self, values: Float32ND, mask: BoolND) -> None:
        """Append new bars, [n_new, n_markets, n_features] each."""
        self._values.append(values)
        self._mask.append(mask)

    def graph_inputs(self) -> tuple[Float32ND, BoolND]:
        """``features`` and ``feature_mask`` [n_markets, n_bars, n_features], contiguous."""
        # [n_bars, n_markets, n_features] -> [n_markets, n_bars, n_features]
        return (
            np.ascontiguousarray(self._values.view().transpose(1, 0, 2)),
            np.ascontiguousarray(self._mask.view().transpose(1, 0, 2)),
        )

    def window(self) -> tuple[Float32ND, BoolND]:
        """Values and mask as stored, [n_bars, n_markets, n_features]."""
        return self._values.view(), self._mask.view()

    def restore(self, values: AnyArray, mask: AnyArray) -> None:
        """Replace the window, e.g. from a saved state."""
        self._values.restore(values)
        self._mask.restore(mask)
