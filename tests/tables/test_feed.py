"""Rows of a lake in order of time: read once, kept as long as a slot can see them."""

import numpy as np
import pytest

from riskml.errors import ContractError, DataError
from riskml.features.columns import column_values
from riskml.features.inputs import INPUTS
from riskml.features.series import SeriesKey
from riskml.markets import Market
from riskml.tables import feed as feed_module
from riskml.tables.feed import LakeFeed, needed_columns, to_columns
from riskml.tables.partitions import row_groups
from riskml.units import DAY, HOUR

BTC = Market("BTC", "binance")


@pytest.fixture
def filled(lake, rows):
    """Two years of hourly bars of two venues, some half-hourly ones, and funding."""
    n_bars = 366 * 24 + 100
    for venue in ("binance", "bybit", "binance_spot"):
        lake.write("bars", rows.bars(np.full(n_bars, 100.0), venue=venue))
    lake.write("bars", rows.bars(np.full(48, 100.0), interval="30m", step=HOUR // 2))
    lake.write("bars", rows.bars(np.full(48, 100.0), symbol="ETH"))
    lake.write("funding", rows.funding(np.full(9, 1e-4)))
    return lake


def test_every_row_group_is_read_once_however_many_blocks_follow(filled, rows, monkeypatch):
    read, calls = feed_module.read_partition, []

    def counting(partition, columns, *, groups):
        calls.append((partition.relative, tuple(groups)))
        return read(partition, columns, groups=groups)

    monkeypatch.setattr(feed_module, "read_partition", counting)
    feed = LakeFeed(filled, [BTC], "1h", ["close", "funding_8h"])
    for block in range(12):
        feed.advance(rows.T0 + 32 * block * DAY, rows.T0 + 32 * (block + 1) * DAY)
    assert sorted(calls) == [
        ("bars/venue=binance/symbol=BTC/year=2024.parquet", (0,)),
        ("bars/venue=binance/symbol=BTC/year=2025.parquet", (0,)),
        ("funding/venue=binance/symbol=BTC/year=2024.parquet", (0,)),
    ]


def test_other_venues_are_read_only_for_inputs_that_compare_venues(filled, rows):
    found = {}
    for names in (["close"], ["close", "spot_close"], ["close", "venue_close"]):
        feed = LakeFeed(filled, [BTC], "1h", names)
        feed.advance(rows.T0, rows.T0 + DAY)
        found[names[-1]] = [key.place for key in feed.store.keys("bars")]
    assert found["close"] == ["binance"]
    assert "binance_spot" in found["spot_close"]
    assert "bybit" in found["venue_close"]


def test_the_store_forgets_what_no_later_slot_sees(filled, rows):
    feed = LakeFeed(filled, [BTC], "1h", ["close", "funding_8h"])
    feed.advance(rows.T0, rows.T0 + DAY)
    before = feed.store.get(SeriesKey("bars", "binance", "BTC", "1h"))
    feed.advance(rows.T0 + 100 * DAY, rows.T0 + 101 * DAY)
    after = feed.store.get(SeriesKey("bars", "binance", "BTC", "1h"))
    assert before is not None
    assert after is not None
    assert before.ts[0] == rows.T0 + HOUR
    assert after.ts[0] == rows.T0 + 99 * DAY  # funding may be a day old
    assert {key.detail for key in feed.store.keys("bars")} == {"1h"}


def test_a_range_in_the_middle_of_a_file_starts_with_what_its_first_slot_sees(filled, rows):
    feed = LakeFeed(filled, [BTC], "1h", ["close", "funding_8h"])
    feed.advance(rows.T0 + 2 * DAY, rows.T0 + 3 * DAY)
    found = feed.store.get(SeriesKey("bars", "binance", "BTC", "1h"))
    assert found is not None
    assert found.ts[0] == rows.T0 + DAY


def test_footers_give_the_span_of_row_groups_of_one_bar_length(filled, rows):
    part = next(part for part in filled.partitions("bars") if part.relative.endswith("BTC/year=2024.parquet"))
    groups = row_groups(part, {"1h"})
    assert [(group.first, group.last) for group in groups] == [
        (rows.T0 + HOUR, rows.T0 + 366 * DAY - HOUR),
    ]
    assert len(row_groups(part)) == 2


@pytest.mark.parametrize("spec", INPUTS.values(), ids=lambda spec: spec.name)
def test_an_input_has_the_columns_that_it_reads(spec):
    columns = needed_columns(spec.table, [spec.name])
    found = {name: np.ones(1) for name in columns}
    assert np.isfinite(column_values(found, spec.column)).all()


def test_a_symbol_that_no_table_knows_is_named(filled):
    with pytest.raises(DataError, match="no symbol 'BTD'. Did you mean 'BTC'"):
        LakeFeed(filled, [Market("BTD", "binance")], "1h", ["close"])


def test_a_file_in_the_wrong_place_is_refused(filled, rows):
    source = filled.path / "bars" / "venue=binance" / "symbol=BTC" / "year=2024.parquet"
    source.rename(source.with_name("year=2023.parquet"))
    feed = LakeFeed(filled, [BTC], "1h", ["close"])
    with pytest.raises(ContractError, match="'ts' lies outside the period"):
        feed.advance(rows.T0 - DAY, rows.T0 + 2 * DAY)


def test_text_columns_keep_their_texts_and_missing_ones(rows):
    found = to_columns(rows.bars([1.0, 2.0]))
    assert found["venue"].tolist() == ["binance", "binance"]
    assert found["ts"].dtype == np.int64
    assert found["venue"][0] is found["venue"][1]
