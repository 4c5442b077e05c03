"""Batch forecasts are the live ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from riskml.backfill import forecast_history, warm_scorer
from riskml.backfill.forecasts import history_markets
from riskml.errors import DataError
from riskml.scoring import load_bundle
from riskml.tables.align import to_columns
from riskml.tables.lake import Lake
from riskml.units import DAY, HOUR, to_us

N_LIVE = 30
TABLES = ("bars", "marks", "funding", "open_interest", "liquidations", "flows", "chains", "pegs")
"""Tables that the tiny bundle's features read."""
ARRAYS = ("sigma", "nu", "variance", "stress", "loadings")


@pytest.mark.parametrize("drop", [False, True], ids=["whole", "with missing bars"])
def test_a_live_scorer_says_what_the_batch_says(
    tiny_bundle: Path, lake: Lake, last_days: list[str], tmp_path: Path, drop: bool
) -> None:
    bundle = load_bundle(tiny_bundle)
    first = to_us(last_days[-3])
    source = lake
    if drop:
        source = Lake(tmp_path / "holes")
        for table in TABLES:
            rows = lake.read(table)
            ts = rows["ts"].cast("int64").to_numpy()
            gone = np.zeros(len(ts), dtype=np.bool_)
            if table == "bars":
                of_slot = np.isin((ts - first) // HOUR, [5, 6, 11])
                gone = of_slot & (rows["symbol"].to_numpy() == "ETH")
            source.write(table, rows.filter(~gone))
    live = warm_scorer(bundle, source, first)
    history = forecast_history(bundle, source, first, first + N_LIVE * HOUR, guarded=True)
    assert history.markets == live.markets
    for row in range(N_LIVE):
        ts = first + row * HOUR
        if row:
            for table in TABLES:
                rows = source.read(table, start=ts - 3 * DAY, end=ts + 1, known_by=ts)
                fresh = rows.filter(rows["known_at"].cast("int64").to_numpy() > ts - HOUR)
                if fresh.num_rows:
                    live.observe(table, to_columns(fresh))
            live.close_bar(ts)
        assert history.ts[row] == ts
        for name in ARRAYS:
            np.testing.assert_allclose(
                getattr(history, name)[row],
                getattr(live.forecast, name),
                rtol=1e-5,
                err_msg=f"{name}, bar {row}",
            )
        assert (history.degraded[row] > 0).tolist() == live.forecast.degraded.tolist()
    if drop:
        assert history.degraded[:, 1].astype(bool).sum() == 3
        assert (~history.available[:, 1]).sum() == 3


def test_an_operator_of_the_batch_retires_an_input_at_the_bar_where_a_live_one_would(
    tiny_bundle: Path, lake: Lake, last_days: list[str], tmp_path: Path
) -> None:
    bundle = load_bundle(tiny_bundle)
    first = to_us(last_days[-4])
    ended = Lake(tmp_path / "ended")
    for table in TABLES:
        rows = lake.read(table)
        gone = np.zeros(rows.num_rows, dtype=np.bool_)
        if table == "funding":
            late = rows["known_at"].cast("int64").to_numpy() > first
            gone = late & (rows["symbol"].to_numpy() == "ETH")
        ended.write(table, rows.filter(~gone))
    end = first + 60 * HOUR
    held = forecast_history(bundle, ended, first, end, guarded=True)
    retired = forecast_history(bundle, ended, first, end, guarded=True, retire_after="12h")
    lost = np.flatnonzero(held.degraded[:, 1])
    assert lost.tolist() == list(range(lost[0], 60))
    assert len(lost) > 20
    assert np.flatnonzero(retired.degraded[:, 1]).tolist() == lost[:12].tolist()

    live = warm_scorer(bundle, ended, first)
    for row in range(1, lost[0] + 16):
        ts = first + row * HOUR
        for table in TABLES:
            rows = ended.read(table, start=ts - 3 * DAY, end=ts + 1, known_by=ts)
            fresh = rows.filter(rows["known_at"].cast("int64").to_numpy() > ts - HOUR)
            if fresh.num_rows:
                live.observe(table, to_columns(fresh))
        live.close_bar(ts)
        if row == lost[11]:
            assert live.retire_inputs("ETH")
        np.testing.assert_allclose(retired.sigma[row], live.forecast.sigma, rtol=1e-5, err_msg=str(row))
    assert (retired.sigma[lost[12] :, 1] < held.sigma[lost[12] :, 1]).all()


def test_raw_forecasts_are_what_the_graph_says_and_guards_only_raise(
    tiny_bundle: Path, lake: Lake, last_days: list[str]
) -> None:
    bundle = load_bundle(tiny_bundle)
    raw = forecast_history(bundle, lake, last_days[0], last_days[2])
    guarded = forecast_history(bundle, lake, last_days[0], last_days[2], guarded=True)
    sound = raw.degraded == 0
    np.testing.assert_array_equal(raw.sigma[sound], guarded.sigma[sound])
    assert (guarded.sigma[~sound] >= raw.sigma[~sound]).all()


def test_a_forecast_does_not_depend_on_where_the_history_starts_or_what_else_is_asked_for(
    tiny_bundle: Path, lake: Lake, last_days: list[str]
) -> None:
    bundle = load_bundle(tiny_bundle)
    long = forecast_history(bundle, lake, last_days[0], last_days[4])
    short = forecast_history(bundle, lake, last_days[3], last_days[4], markets=["ETH"])
    np.testing.assert_array_equal(short.sigma[:, 0], long.sigma[-24:, 1])


def test_an_unknown_market_suggests_the_nearest(tiny_bundle: Path, lake: Lake) -> None:
    with pytest.raises(DataError, match=r"no 1h bars of 'ETC'. Did you mean 'ETH'\?"):
        history_markets(load_bundle(tiny_bundle), lake, ["ETC"])


def test_an_empty_range_is_refused(tiny_bundle: Path, lake: Lake) -> None:
    with pytest.raises(DataError, match=r"no 1h bar closes between"):
        forecast_history(load_bundle(tiny_bundle), lake, "2024-01-02", "2024-01-02")


def test_a_lake_without_bars_is_refused(tiny_bundle: Path, lake: Lake, tmp_path: Path) -> None:
    empty = Lake(tmp_path)
    empty.write("pegs", lake.read("pegs"))
    with pytest.raises(DataError, match=r"has no 1h bars.*ingest bars first"):
        forecast_history(load_bundle(tiny_bundle), empty, "2024-01-02", "2024-01-03")
