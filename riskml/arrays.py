"""Array aliases: the rank and the dtype that an annotation promises, in one place.

Dimension words used everywhere: n_bars, n_markets, n_features, n_horizons, n_accounts,
n_legs, n_factors. Side index 0 is *down* (a long loses), 1 is *up* (a short loses).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float1D: TypeAlias = NDArray[np.float64]
Float2D: TypeAlias = NDArray[np.float64]
Float3D: TypeAlias = NDArray[np.float64]
FloatND: TypeAlias = NDArray[np.float64]
Float32ND: TypeAlias = NDArray[np.float32]
Bool1D: TypeAlias = NDArray[np.bool_]
Bool2D: TypeAlias = NDArray[np.bool_]
BoolND: TypeAlias = NDArray[np.bool_]
Int1D: TypeAlias = NDArray[np.int64]
Int2D: TypeAlias = NDArray[np.int64]
TimeUs: TypeAlias = NDArray[np.int64]
"""Microseconds since 1970-01-01 UTC, int64 [n]."""
AnyArray: TypeAlias = NDArray[Any]

DOWN = 0
"""Side index: price falls, a long loses."""
UP = 1
"""Side index: price rises, a short loses."""
