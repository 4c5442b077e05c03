"""Sums over groups of rows."""

from __future__ import annotations

import numpy as np

from riskml.arrays import AnyArray, Float1D, Int1D


def sum_by(group: Int1D, values: AnyArray, n_groups: int) -> Float1D:
    """Sum of ``values`` [n] over each group [n_groups]; groups without rows are 0."""
    return np.bincount(group, weights=values, minlength=n_groups).astype(np.float64)
