"""The gate between outside data and the package: what passes, what is refused and how."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from riskml.contracts import CONTRACTS
from riskml.errors import ContractError
from riskml.tables.contracts import as_arrays, drop_invalid, enforce, from_arrays, schema
from riskml.units import HOUR, to_us


def codes(error: ContractError) -> list[str]:
    return [problem.code for problem in error.problems]


def test_every_contract_has_a_schema_with_its_columns_in_order():
    for name, spec in CONTRACTS.items():
        assert tuple(schema(name).names) == spec.column_names
        assert schema(name).field("ts").type == pa.timestamp("us", tz="UTC")


def test_an_unknown_table_names_the_nearest_one():
    with pytest.raises(ContractError, match="no table 'bar'. Did you mean 'bars'"):
        schema("bar")


def test_good_rows_come_back_in_column_order_with_absent_optional_columns_null(rows):
    data = rows.bars([100.0, 101.0])
    shuffled = data.select(data.column_names[::-1])
    checked = enforce("bars", shuffled)
    assert checked.schema.equals(schema("bars"))
    assert checked.column("trades").null_count == 2


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("volume", pa.array([1, 2], pa.int32()), pa.float64()),
        ("volume", pa.array([1.0, 2.0], pa.float32()), pa.float64()),
        ("symbol", pa.array(["BTC", "BTC"], pa.large_string()), pa.string()),
        ("symbol", pa.array(["BTC", "BTC"]).dictionary_encode(), pa.string()),
        ("trades", pa.nulls(2), pa.float64()),
    ],
)
def test_types_that_lose_nothing_are_widened(rows, column, values, kind):
    data = rows.bars([100.0, 101.0])
    if column in data.column_names:
        data = data.drop_columns([column])
    assert enforce("bars", data.append_column(column, values)).column(column).type == kind


@pytest.mark.parametrize("kind", [pa.timestamp("ms", tz="UTC"), pa.timestamp("us"), pa.int64()])
def test_times_of_other_resolutions_and_integer_microseconds_mean_the_same(rows, kind):
    data = rows.bars([100.0])
    ts = data.column("ts")
    other = ts.cast(pa.int64()) if kind == pa.int64() else ts.cast(pa.timestamp("us", tz="UTC")).cast(kind)
    assert (
        enforce("bars", data.set_column(0, "ts", other))
        .column("ts")
        .equals(enforce("bars", data).column("ts"))
    )


def test_a_missing_column_is_named_with_the_near_name_that_was_found(rows):
    data = rows.bars([100.0]).rename_columns(
        ["ts", "known_at", "venue", "symbol", "interval", "open", "high", "low", "closee", "volume"]
    )
    with pytest.raises(
        ContractError, match="'close' .* is required and missing. Did you mean 'closee'"
    ) as caught:
        enforce("bars", data)
    assert codes(caught.value) == ["missing-column", "unknown-column"]
    assert caught.value.table == "bars"


def test_a_wrong_type_is_refused_and_says_what_is_required(rows):
    data = rows.bars([100.0, 101.0], volume=["5", "6"])
    with pytest.raises(ContractError, match="'volume' has type string; double is required") as caught:
        enforce("bars", data)
    assert codes(caught.value) == ["wrong-type"]
    assert (caught.value.market, caught.value.row) == ("binance:BTC", 0)


def test_a_missing_column_names_the_market_when_there_is_one_only(rows):
    one = rows.bars([100.0, 101.0]).drop_columns(["close"])
    two = pa.concat_tables([one, rows.bars([7.0], symbol="ETH").drop_columns(["close"])])
    for data, market in ((one, "binance:BTC"), (two, None)):
        with pytest.raises(ContractError, match="'close' .* is required and missing") as caught:
            enforce("bars", data)
        assert caught.value.market == market


def test_a_time_that_would_lose_nanoseconds_is_refused(rows):
    data = rows.bars([100.0])
    odd = pa.array([1_700_000_000_000_000_001], pa.timestamp("ns", tz="UTC"))
    with pytest.raises(ContractError, match="'ts' has type timestamp"):
        enforce("bars", data.set_column(0, "ts", odd))


@pytest.mark.parametrize(
    ("column", "values", "code", "row"),
    [
        ("close", [100.0, float("nan"), 100.0], "null-value", 1),
        ("close", [100.0, 100.0, float("inf")], "not-finite", 2),
        ("close", [100.0, 0.0, 100.0], "wrong-sign", 1),
        ("volume", [5.0, 5.0, -1.0], "wrong-sign", 2),
        ("high", [101.0, 98.0, 101.0], "high-below-low", 1),
        ("trades", [1.0, -1.0, 1.0], "wrong-sign", 1),
    ],
)
def test_bad_values_are_refused_with_their_row_and_market(rows, column, values, code, row):
    with pytest.raises(ContractError, match=f"row {row}") as caught:
        enforce("bars", rows.bars([100.0, 100.0, 100.0], **{column: values}))
    assert code in codes(caught.value)
    assert caught.value.row == row
    assert caught.value.market.startswith("binance:")


@pytest.mark.parametrize(
    ("factor", "shown"),
    [
        (1e-6, "1970-01-01T00:28:24Z"),
        (1e-3, "1970-01-20T17:21:10Z"),
        (1e3, "1704070800000000000 microseconds"),
    ],
    ids=["seconds", "milliseconds", "nanoseconds"],
)
def test_times_in_another_unit_are_refused_with_their_row(rows, factor, shown):
    other = rows.times([int((rows.T0 + HOUR) * factor)] * 2)
    with pytest.raises(ContractError, match="binance:BTC.*row 0: .*between 2009 and 2200") as caught:
        enforce("bars", rows.bars([100.0, 101.0], ts=other).slice(0, 1))
    assert codes(caught.value)[0] == "wrong-units"
    assert shown in caught.value.problems[0].message


@pytest.mark.parametrize(
    ("column", "name", "code"),
    [
        ("interval", "1hour", "wrong-interval"),
        ("interval", "", "wrong-interval"),
        ("symbol", "BTCUSD_PERP", "inverse-contract"),
        ("symbol", "XBTUSD", "inverse-contract"),
        ("symbol", "BTC-USD-SWAP", "inverse-contract"),
        ("symbol", "", "empty-name"),
        ("venue", "", "empty-name"),
    ],
)
def test_names_that_mean_nothing_or_an_inverse_contract_are_refused(rows, column, name, code):
    good = "1h" if column == "interval" else "kPEPE"
    data = rows.bars([100.0, 101.0, 102.0])
    names = pa.array([good, name, good])
    data = data.set_column(data.column_names.index(column), column, names)
    with pytest.raises(ContractError, match=f"row 1: column '{column}'") as caught:
        enforce("bars", data)
    assert code in codes(caught.value)


@pytest.mark.parametrize("symbol", ["BTC", "kPEPE", "BTC-USDC", "FDUSD", "TUSD", "USDe", "1INCH"])
def test_names_of_linear_contracts_pass(rows, symbol):
    assert enforce("bars", rows.bars([100.0], symbol=symbol)).num_rows == 1


def test_an_instrument_that_says_inverse_is_refused(rows):
    instrument = {
        "ts": rows.times([rows.T0]),
        "known_at": rows.times([rows.T0]),
        "venue": ["bitmex"],
        "symbol": ["BTC"],
        "base": ["BTC"],
        "quote": ["USD"],
        "settle_asset": ["BTC"],
        "contract_multiplier": [1.0],
    }
    with pytest.raises(ContractError, match="bitmex:BTC.*row 0: column 'kind' may not be inverse") as caught:
        enforce("instruments", pa.table(instrument | {"kind": ["inverse"]}))
    assert codes(caught.value) == ["inverse-contract"]
    with pytest.raises(ContractError, match="column 'kind' has to be linear or spot, found 'option'"):
        enforce("instruments", pa.table(instrument | {"kind": ["option"]}))


def test_a_null_key_is_refused(rows):
    data = rows.bars([100.0, 101.0])
    data = data.set_column(data.column_names.index("symbol"), "symbol", pa.array(["BTC", None]))
    with pytest.raises(ContractError, match="row 1: column 'symbol' may not be null"):
        enforce("bars", data)


def test_nan_in_an_optional_column_means_missing_and_becomes_null(rows):
    checked = enforce("bars", rows.bars([100.0, 101.0], trades=[float("nan"), 3.0]))
    assert checked.column("trades").to_pylist() == [None, 3.0]


def test_a_row_known_before_it_happened_is_refused(rows):
    data = rows.bars([100.0, 101.0], known_at=rows.times([rows.T0, rows.T0]))
    with pytest.raises(ContractError, match="'known_at' is before 'ts'"):
        enforce("bars", data)


def test_duplicate_keys_name_their_rows_and_a_revision_is_no_duplicate(rows):
    data = rows.bars([100.0, 101.0])
    with pytest.raises(ContractError, match="symbol=BTC.* appears more than once .*2 rows: 2, 3") as caught:
        enforce("bars", pa.concat_tables([data, data]))
    assert codes(caught.value) == ["duplicate-key"]
    later = rows.times([rows.T0 + 10**10] * 2)
    revised = data.set_column(1, "known_at", later)
    assert enforce("bars", pa.concat_tables([data, revised])).num_rows == 4


def test_every_problem_is_collected_before_the_error(rows):
    data = rows.bars([100.0, 100.0], volume=[-1.0, 5.0], high=[90.0, 101.0]).drop_columns(["open"])
    with pytest.raises(ContractError, match="3 problems") as caught:
        enforce("bars", data)
    assert sorted(codes(caught.value)) == ["high-below-low", "missing-column", "wrong-sign"]


def test_a_projection_checks_keys_but_not_columns_left_out(rows):
    data = rows.bars([100.0, 101.0], volume=[-1.0, 5.0])
    assert enforce("bars", data, columns=["close"]).column_names == [
        "ts",
        "known_at",
        "venue",
        "symbol",
        "interval",
        "close",
    ]


def test_dropping_invalid_rows_keeps_the_rest_and_reports_each_finding(rows):
    data = rows.bars([100.0, 100.0, 100.0, 100.0], volume=[5.0, -1.0, 5.0, 5.0])
    again = pa.concat_tables([data, data.slice(3, 1)])
    kept, problems = drop_invalid("bars", again, where="file.parquet")
    assert kept.num_rows == 3
    assert [problem.code for problem in problems] == ["wrong-sign", "duplicate-key"]


def test_numpy_columns_survive_the_round_trip(rows):
    data = enforce("bars", rows.bars([100.0, 101.0], trades=[float("nan"), 3.0]))
    arrays = as_arrays(data)
    assert arrays["ts"].dtype == np.int64
    assert arrays["symbol"].tolist() == ["BTC", "BTC"]
    assert np.isnan(arrays["trades"][0])
    assert from_arrays("bars", arrays).equals(data)


def chain_rows(**columns):
    ts = np.array([to_us("2024-01-01")] * 2)
    names = {"chain": np.array(["ethereum"] * 2, object)}
    return from_arrays("chains", {"ts": ts, "known_at": ts} | names | columns)


def test_a_part_of_the_key_that_may_be_left_out_is_the_empty_name():
    ts = np.array([to_us("2024-01-01")])
    chain = np.array(["ethereum"], object)
    data = from_arrays("chains", {"ts": ts, "known_at": ts, "chain": chain})
    assert data.column("source").to_pylist() == [""]
    assert data.column("tvl_usd").to_pylist() == [None]


def test_rows_of_two_sources_of_a_chain_are_no_duplicates():
    data = chain_rows(source=np.array(["tvl", "gas"], object))
    assert data.column("source").to_pylist() == ["tvl", "gas"]
    with pytest.raises(ContractError, match="appears more than once"):
        chain_rows()


@pytest.mark.parametrize(("value", "good"), [(0.0, True), (0.55, True), (55.0, False), (-0.1, False)])
def test_a_share_of_longs_is_a_fraction(value, good):
    columns = {"venue": "binance", "symbol": "BTC", "population": "global_account"}
    rows = {name: np.array([text], object) for name, text in columns.items()}
    rows |= {"ts": np.array([to_us("2024-01-01")]), "long_fraction": np.array([value])}
    rows["known_at"] = rows["ts"]
    if good:
        assert from_arrays("long_short", rows).num_rows == 1
    else:
        with pytest.raises(ContractError, match="has to be between 0 and 1"):
            from_arrays("long_short", rows)
