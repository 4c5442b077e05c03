"""Markets, contracts and the fact loader."""

from __future__ import annotations

import pytest

from riskml.contracts import CONTRACTS, contract
from riskml.errors import ConfigError, ContractError, DataError
from riskml.facts import fact_names, fact_text, load_facts, valid_at
from riskml.markets import Market, choose

BTC, PEPE = Market("BTC", "binance"), Market("kPEPE", "hyperliquid")


def test_markets_are_chosen_by_symbol_or_with_their_venue_in_the_order_asked() -> None:
    assert choose("all", [BTC, PEPE]) == [BTC, PEPE]
    assert choose("kPEPE,BTC", [BTC, PEPE]) == [PEPE, BTC]
    assert choose(["hyperliquid:kPEPE"], [BTC, PEPE]) == [PEPE]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("kPEP", "no market 'kPEP'. Did you mean 'kPEPE'"),
        ("BTC,BTC", "asked for twice"),
        ("X", "known markets: BTC"),
    ],
)
def test_an_unknown_or_repeated_market_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose(wanted, [BTC, PEPE])


def test_every_contract_holds_its_key_and_known_at() -> None:
    for table in CONTRACTS.values():
        assert set(table.full_key) <= set(table.column_names)
        assert len(set(table.column_names)) == len(table.column_names)
        # A text that is left out is an empty one; anything else in a key has to be given.
        for column in map(table.column, table.full_key):
            assert column.required or column.kind == "text"


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("bars", {"ts", "venue", "symbol", "interval", "open", "high", "low", "close", "taker_buy_volume"}),
        ("funding", {"rate", "interval_h"}),
        ("margins", {"p_liq_1h", "distance_24h", "barrier", "in_sample", "policy_hash"}),
        ("flows", {"chain", "asset", "source", "inflow_usd", "outflow_usd", "supply_usd", "lending_rate"}),
    ],
)
def test_the_contracts_carry_the_documented_columns(table: str, columns: set[str]) -> None:
    assert columns <= set(contract(table).column_names)


def test_an_unknown_table_or_column_suggests_the_nearest() -> None:
    with pytest.raises(ContractError, match="no table 'bar'. Did you mean 'bars'"):
        contract("bar")
    with pytest.raises(ContractError, match="no column 'hihg'. Did you mean 'high'"):
        contract("bars").column("hihg")


def test_every_fact_file_is_valid_and_named() -> None:
    for name in fact_names():
        assert load_facts(name), name
    with pytest.raises(ConfigError, match="there are no facts 'nope'"):
        fact_text("nope")


def test_the_entry_in_force_is_the_newest_that_has_begun() -> None:
    entries = [{"valid_from": "2023-01-01", "rate": 1}, {"valid_from": "2024-01-01", "rate": 2}]
    assert valid_at(entries, "2023-12-31")["rate"] == 1
    assert valid_at(entries, "2024-01-01")["rate"] == 2
    with pytest.raises(ConfigError, match="no entry is in force at 2022-06-01"):
        valid_at(entries, "2022-06-01")
