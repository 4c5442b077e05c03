"""Small literal vendor files that the ingest tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from riskml.tables.ingest import ingest
from riskml.tables.lake import Lake
from riskml.units import to_us

T0 = to_us("2024-01-01")


def stamps(*hours: float) -> pa.Array:
    return pa.array([T0 // 1000 + int(hour * 3_600_000) for hour in hours], pa.timestamp("ms", tz="UTC"))


def put(folder: Path, name: str, **columns: Any) -> Path:
    path = folder / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def put_bars(folder: Path, name: str, n: int = 3, step: float = 1.0, **columns: Any) -> Path:
    ohlc = {
        "open": [10.0] * n,
        "high": [12.0] * n,
        "low": [9.0] * n,
        "close": [11.0] * n,
        "volume": [5.0] * n,
    }
    return put(folder, name, ts=stamps(*(step * row for row in range(n))), **(ohlc | columns))


def put_accounts(folder: Path) -> None:
    base = "accounts/hyperliquid_alpha_2023"
    outcome = {
        "next_liq_time": stamps(9, 9),
        "liq_1h": [True, False],
        "minutes_to_next_liq": [5.0, 5.0],
        "equity_below_mm_flag": [False, True],
        "life_end_recon_residual_usd": [1.0, 1.0],
    }
    put(
        folder,
        f"{base}/account_hourly_labelled",
        time=stamps(0, 0),
        user=["a", "b"],
        equity_recon_usd=[100.0, -5.0],
        unrealized_pnl_usd=[40.0, 10.0],
        maintenance_margin_usd=[3.0, 4.0],
        **outcome,
    )
    put(
        folder,
        f"{base}/position_hourly",
        time=stamps(0, 0),
        user=["b", "b"],
        coin=["ETH", "SOL"],
        side=[-1, 1],
        size=[2.0, 3.0],
        entry_px=[10.0, 11.0],
        mark_px_last_trade=[12.0, 13.0],
        mark_age_s=[1.0, 1.0],
        notional_usd=[30.0, 10.0],
        unrealized_pnl_usd=[0.0, 0.0],
    )
    put(
        folder,
        f"{base}/trades",
        time=stamps(0),
        user=["a"],
        coin=["ETH"],
        side=["Ask"],
        px=[10.0],
        size=[2.0],
        signed_size=[-2.0],
        is_taker=[True],
        seq=[7],
    )
    put(folder, f"{base}/ledger_updates", time=stamps(0, 1), user=["a", "a"], delta_usd=[50.0, -20.0])
    put(
        folder,
        f"{base}/liquidations",
        time=stamps(0.5, 0.6),
        user=["b", "a"],
        coins=["ETH+SOL", "BTC"],
        liquidated_notional_usd=[80.0, 50.0],
        side=[None, 1.0],
        mark_px_implied=[None, 25.0],
    )


@pytest.fixture
def make() -> SimpleNamespace:
    """Makers of vendor files: ``put``, ``put_bars``, ``put_accounts``, ``stamps``; ``T0`` is their start."""
    return SimpleNamespace(T0=T0, stamps=stamps, put=put, put_bars=put_bars, put_accounts=put_accounts)


@pytest.fixture
def vendor(tmp_path: Path) -> Path:
    folder = tmp_path / "vendor"
    folder.mkdir()
    return folder


@pytest.fixture
def read(vendor: Path, tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Ingest the vendor folder and read one table as a list of rows."""

    def run(table: str) -> list[dict[str, Any]]:
        report = ingest("vendor", vendor, tmp_path / "lake")
        assert report.problems == ()
        return Lake(tmp_path / "lake").read(table).to_pylist()

    return run
