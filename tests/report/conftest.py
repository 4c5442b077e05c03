"""A dataset in memory whose features are known, so that one thing at a time can be broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from riskml.arrays import AnyArray
from riskml.features.catalog import fingerprint, select
from riskml.markets import Market
from riskml.tables.dataset import Dataset, DatasetInfo
from riskml.units import HOUR, format_us, to_us

HORIZONS = ("1h", "8h", "24h")
NAMES = (
    "log_har_24h",
    "relative_volume_24h",
    "funding_rate_8h",
    "funding_z_7d",
    "basis_bps",
    "tvl_drawdown_30d",
    "hour_of_week",
)
MARKETS = ("BTC", "ETH", "SOL")
START = "2024-01-01T01:00:00Z"
N_BARS = 24 * 300

MakeDataset = Callable[..., Dataset]


def healthy(n_bars: int = N_BARS, seed: int = 5) -> Dataset:
    """300 days of three markets: volatility that persists, features that move and do not drift."""
    draw = np.random.default_rng(seed)
    ts = to_us(START) + HOUR * np.arange(n_bars, dtype=np.int64)
    shape = (n_bars, len(MARKETS))
    level = np.zeros(shape)
    for bar in range(1, n_bars):
        level[bar] = 0.98 * level[bar - 1] + 0.2 * draw.standard_normal(shape[1])
    bar_variance = np.exp(level + 0.8 * draw.standard_normal(shape) - 11.0)
    features = draw.standard_normal((*shape, len(NAMES))).astype(np.float32)
    features[:, :, 0] = level + 0.3 * draw.standard_normal(shape)
    features[:, :, -1] = ((ts // HOUR) % 168)[:, np.newaxis]
    total = np.vstack([np.zeros((1, shape[1])), np.cumsum(bar_variance, axis=0)])
    variance = np.full((*shape, len(HORIZONS)), np.nan)
    for place, steps in enumerate((1, 8, 24)):
        variance[:-steps, :, place] = total[steps + 1 :] - total[1:-steps]
    size = np.abs(draw.standard_normal(shape))[:, :, np.newaxis] * np.sqrt(variance)
    mae = np.stack([size, 0.8 * size], axis=-1)
    stress = np.where(np.isfinite(variance), (mae[..., 0] > 0.03).astype(float), np.nan)
    info = DatasetInfo(
        path="toy",
        interval="1h",
        horizons=HORIZONS,
        markets=MARKETS,
        venues=("sim",) * len(MARKETS),
        features=NAMES,
        fingerprint=fingerprint(select(NAMES), "1h"),
        start=format_us(int(ts[0])),
        end=format_us(int(ts[-1]) + HOUR),
        rows=n_bars * len(MARKETS),
        data_hashes={},
        riskml_version="0",
    )
    return Dataset(
        info=info,
        ts=ts,
        markets=tuple(Market(name, "sim") for name in MARKETS),
        feature_names=NAMES,
        features=features,
        close=np.full(shape, 100.0),
        mae=mae,
        variance=variance,
        stress=stress,
        stress_liquidation=np.full_like(stress, np.nan),
        stress_depth=np.full_like(stress, np.nan),
    )


@pytest.fixture(scope="session")
def toy() -> Dataset:
    """Nothing is wrong with it."""
    return healthy()


@pytest.fixture
def broken(toy: Dataset) -> MakeDataset:
    """A copy of the toy dataset in which ``change(values)`` edits features, by name, in place."""

    def make(changes: Mapping[str, Callable[[AnyArray], None]] | None = None, **other: object) -> Dataset:
        features = toy.features.copy()
        for name, change in (changes or {}).items():
            change(features[:, :, NAMES.index(name)])
        return replace(toy, features=features, **other)

    return make


@pytest.fixture
def stored(toy: Dataset, tmp_path: Path) -> Path:
    """The toy dataset as a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from riskml.tables.dataset import dataset_chunks, market_folder, write_info

    root = tmp_path / "dataset"
    (chunk,) = dataset_chunks(toy.info)
    for place, market in enumerate(toy.markets):
        columns: dict[str, AnyArray | pa.Array] = {
            "ts": pa.array(toy.ts, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "close": toy.close[:, place],
        }
        for index, name in enumerate(NAMES):
            columns[name] = toy.features[:, place, index]
        for index, horizon in enumerate(HORIZONS):
            columns[f"mae_down_{horizon}"] = toy.mae[:, place, index, 0]
            columns[f"mae_up_{horizon}"] = toy.mae[:, place, index, 1]
            columns[f"variance_{horizon}"] = toy.variance[:, place, index]
            columns[f"stress_{horizon}"] = toy.stress[:, place, index]
        folder = market_folder(root, market)
        folder.mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / chunk.file_name)
    write_info(root, toy.info)
    return root
