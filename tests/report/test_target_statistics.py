"""Targets: sizes, rates, onsets and the largest moves of a known dataset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from riskml.report.target_statistics import describe_targets, excursion_edges
from riskml.tables.dataset import Dataset
from riskml.tables.onsets import SCHEMA
from riskml.units import to_us

from .conftest import N_BARS


def test_quantiles_are_those_of_the_known_rows(toy: Dataset) -> None:
    found = describe_targets(toy).excursions
    assert [(item.side, item.horizon) for item in found][:3] == [("down", "1h"), ("up", "1h"), ("down", "8h")]
    values = toy.mae[:, :, 2, 0]
    last = next(item for item in found if (item.side, item.horizon) == ("down", "24h"))
    assert last.rows == np.isfinite(values).sum()
    assert last.missing == pytest.approx(24 / N_BARS)
    assert last.quantiles[-1] == np.nanmax(values)
    assert last.quantiles[0] == pytest.approx(np.nanmedian(values), rel=1e-2)


def test_a_histogram_holds_every_row_even_those_beyond_its_ends(toy: Dataset) -> None:
    mae = np.zeros_like(toy.mae)
    mae[100] = 5.0
    (item, *_) = describe_targets(replace(toy, mae=mae)).excursions
    assert sum(item.shares) == pytest.approx(1.0)
    assert (item.shares[0], item.shares[-1]) == (pytest.approx(1 - 1 / N_BARS), pytest.approx(1 / N_BARS))
    assert len(item.shares) == len(excursion_edges()) - 1


def test_rates_and_onsets_are_per_market_year_and_kind(toy: Dataset) -> None:
    stress = np.zeros_like(toy.stress)
    stress[: N_BARS // 4, 0] = 1.0
    liquidation = np.full_like(stress, np.nan)
    liquidation[:, 1] = 0.0
    times = pa.array([to_us("2024-02-01"), to_us("2024-03-01")], pa.int64()).cast(
        pa.timestamp("us", tz="UTC")
    )
    onsets = pa.table(
        {
            "venue": ["sim", "sim"],
            "symbol": ["BTC", "BTC"],
            "kind": ["drop", "liquidation"],
            "start": times,
            "close": times,
            "size": [0.1, 1.0],
            "limit": [0.05, 1.0],
            "sigma": [0.01, 0.01],
        },
        schema=SCHEMA,
    )
    report = describe_targets(replace(toy, stress=stress, stress_liquidation=liquidation), onsets)
    assert report.kinds == ("drop", "liquidation")
    btc, eth, _ = report.stress
    assert (btc.market, btc.year, btc.rows) == ("BTC", 2024, N_BARS)
    assert (btc.rate["drop"], btc.rate["liquidation"]) == (0.25, None)
    assert (btc.onsets["drop"], btc.onsets["liquidation"]) == (1, 1)
    assert (eth.rate["liquidation"], eth.onsets["drop"]) == (0.0, 0)
    assert describe_targets(toy).stress[0].onsets == {"drop": None}


def test_the_largest_moves_are_one_per_event(toy: Dataset) -> None:
    mae = np.full_like(toy.mae, 0.01)
    mae[1000:1020, 0, 2, 0] = np.linspace(0.5, 0.6, 20)
    mae[3000, 0, 2, 0], mae[1005, 1, 2, 1] = 0.4, 0.3
    moves = describe_targets(replace(toy, mae=mae)).largest[:3]
    assert [(move.market, move.side, round(move.excursion, 3)) for move in moves] == [
        ("BTC", "down", 0.6),
        ("BTC", "down", 0.4),
        ("ETH", "up", 0.3),
    ]
    assert moves[0].ts == "2024-02-12T12:00:00Z"
