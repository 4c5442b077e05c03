"""Labels against recorded liquidations: the counting, the command, and the real venue of 2023."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from riskml import cli
from riskml.errors import DataError
from riskml.replay.labels import replay_labels
from riskml.replay.labels_check import compare_with_recorded
from riskml.tables.ingest import ingest
from riskml.tables.lake import Lake

FLAT = (100.0, 100.0, 100.0)
LOW = (85.0, 100.0, 100.0)
LEG = {"symbol": "BTC", "size": 1.0, "mark": 100.0}


def close(world: Any, name: str, hour: float) -> None:
    market = {"venue": "sim", "symbol": "BTC", "side": "long", "notional_usd": 85.0}
    world.add("liquidations", ts=world.at(hour), account_id=name, **market)


@pytest.fixture
def history(world: Any) -> Lake:
    """Bars fall in hour 3 only. Snapshots at hours 0, 2 and 30 of four accounts of equal book."""
    world.bars("BTC", [*[FLAT] * 3, LOW, *[FLAT] * 80])
    for hour in (0, 2, 30):
        for name in ("gone", "helped", "lucky"):
            world.account(name, 20.0, [LEG], hour=hour, maintenance=10.0)
        world.account("wrong", -5.0, [LEG], hour=hour, maintenance=10.0)
    close(world, "gone", 2.5)
    close(world, "safe-elsewhere", 2.5)
    close(world, "lucky", 40.0)
    world.add("ledger", ts=world.at(2.2), account_id="helped", delta_usd=50.0, kind="deposit", sequence=0)
    # The fill of the liquidation itself is not something that the account did.
    fill = {"venue": "sim", "symbol": "BTC", "size": -1.0, "price": 85.0, "is_taker": True, "sequence": 0}
    world.add("trades", ts=world.at(2.5), account_id="gone", **fill)
    return world.write()


def test_recorded_liquidations_are_looked_up_at_the_last_snapshot_before_them(history: Lake) -> None:
    found = compare_with_recorded(replay_labels(history), history)
    assert (found["rows"], found["accounts"], found["accounts_below_zero"]) == (12, 4, 1)
    assert found["liquidations"] == 2
    one, eight, day = (found["horizons"][horizon] for horizon in ("1h", "8h", "24h"))
    # "gone" has a snapshot half an hour before; "lucky" ten hours before, when nothing was ahead.
    assert (one["followed"], one["labelled"], one["foreseen"]) == (1, 1, 1)
    assert (eight["followed"], eight["foreseen"]) == (1, 1)
    assert (day["followed"], day["labelled"], day["foreseen"]) == (2, 2, 1)


def test_labels_of_one_are_counted_with_what_became_of_them(history: Lake) -> None:
    found = compare_with_recorded(replay_labels(history), history)
    one, day = found["horizons"]["1h"], found["horizons"]["24h"]
    # Hour 2 sees the fall within the hour, hours 0 and 2 within the day; "wrong" is below throughout.
    assert (one["positive"], one["happened"]) == (3, 1)
    assert (one["positive_untouched"], one["happened_untouched"]) == (2, 1)
    assert (day["positive"], day["happened"]) == (6, 2)
    assert (day["positive_untouched"], day["happened_untouched"]) == (4, 2)
    assert (one["below_at_start"], one["below_happened"]) == (2, 0)
    assert (one["negative"], one["negative_happened"]) == (3, 0)


def test_no_labels_cannot_be_compared(history: Lake) -> None:
    with pytest.raises(DataError, match="no labels to compare"):
        compare_with_recorded(replay_labels(history).slice(0, 0), history)


def test_the_command_writes_labels_and_says_how_they_compare(
    history: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.parquet"
    arguments = ["replay", "labels", "--lake", str(history.path), "--out", str(out)]
    assert cli.main([*arguments, "--horizons", "1h,24h", "--json", "--quiet"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["outputs"] == [str(out)]
    assert record["counts"] == {"rows": 12, "accounts": 4}
    assert list(record["recorded"]["horizons"]) == ["1h", "24h"]
    assert cli.main([*arguments, "--quiet"]) == 0
    assert "24h" in capsys.readouterr().out


def test_replay_without_margins_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", "--lake", "L", "--out", "R"]) == 2
    assert "pass --margins DIR, or 'riskml replay labels'" in capsys.readouterr().err
    assert cli.main(["replay", "labels", "--lake", "L", "--out", "R", "--barrier", "riskml"]) in (1, 2)


@pytest.mark.real_data
def test_the_labels_of_the_2023_venue_foresee_most_recorded_liquidations(
    shared_data: Path, tmp_path: Path
) -> None:
    """The figures of training/results/replay_labels.jsonl, from the account files and 15 m and 1 h bars."""
    source = tmp_path / "data"
    shutil.copytree(
        shared_data / "accounts" / "hyperliquid_alpha_2023", source / "accounts" / "hyperliquid_alpha_2023"
    )
    for coin in ("BTC", "ETH", "SOL", "AVAX", "BNB", "DOGE", "LTC"):
        for file in (
            f"bars/binance/{coin}USDT_15m",
            f"bars/binance/{coin}USDT_1h",
            f"funding/binance/{coin}USDT",
        ):
            if (shared_data / f"{file}.parquet").is_file():
                (source / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(shared_data / f"{file}.parquet", source / f"{file}.parquet")
    ingest("vendor", source, tmp_path / "lake")
    lake = Lake(tmp_path / "lake")
    found = compare_with_recorded(replay_labels(lake, "2023-02-01", "2023-06-01"), lake)
    assert (found["rows"], found["liquidations"]) == (26_862, 62)
    hour, day = found["horizons"]["1h"], found["horizons"]["24h"]
    assert (hour["followed"], hour["labelled"]) == (59, 41)
    assert hour["foreseen"] >= 28
    assert day["foreseen"] >= 31
    # Far above chance: of rows with the label 0, one in a thousand is liquidated within the hour.
    assert hour["happened_sound"] / hour["positive_sound"] > 0.5
    assert hour["negative_happened"] / hour["negative"] < 0.002
