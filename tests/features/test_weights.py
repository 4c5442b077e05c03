"""How much chains and stablecoins count for a market."""

import copy

import numpy as np
import pytest

from riskml.errors import ConfigError
from riskml.facts import load_facts
from riskml.features.nodes import MIN_ACROSS_WEIGHT
from riskml.features.weights import axis_columns, axis_weights, validate
from riskml.markets import Market

BRIDGED = {"arbitrum", "base", "optimism", "polygon", "avalanche", "hyperliquid", "cosmos", "zksync_era"} | {
    "sui",
    "near",
    "multi",
}
"""Chains that the bridge flows name."""


def _weights(axis, market):
    row = axis_weights(axis, [market])[0]
    return {name: value for name, value in zip(axis_columns(axis), row, strict=True) if value}


@pytest.mark.parametrize(
    ("market", "expected"),
    [
        (Market("ARB", "binance"), {"arbitrum": 0.8, "multi": 0.2}),
        (Market("BTC", "deribit"), {"ethereum": 0.7, "multi": 0.3}),
        (Market("SOL", "hyperliquid"), {"solana": 0.7, "multi": 0.3}),
    ],
)
def test_a_coin_follows_its_own_chain_and_any_other_its_venue(market, expected):
    assert _weights("chain", market) == pytest.approx(expected)


def test_stablecoins_are_those_of_the_venue_even_for_a_chain_coin():
    assert _weights("asset", Market("ARB", "hyperliquid")) == {"USDC": 1.0}
    assert _weights("asset", Market("BTC", "binance"))["USDT"] == pytest.approx(0.75)


@pytest.mark.parametrize("axis", ["chain", "asset"])
def test_a_venue_that_nobody_knows_has_the_default(axis):
    assert _weights(axis, Market("BTC", "sim")) == _weights(axis, Market("XYZ", "nowhere"))


def _everything():
    facts = load_facts("chain_weights")
    venues = [Market("BTC", name) for name in facts["venue"]]
    return [*venues, *(Market(name, "sim") for name in facts["market"]), Market("BTC", "sim")]


def test_weights_of_every_entry_sum_to_one():
    for axis in ("chain", "asset"):
        weights = axis_weights(axis, _everything())
        assert (weights >= 0.0).all()
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("market", _everything(), ids=str)
def test_bridge_flows_alone_carry_enough_weight_for_every_market(market):
    bridged = sum(value for name, value in _weights("chain", market).items() if name in BRIDGED)
    assert bridged >= MIN_ACROSS_WEIGHT


def test_every_entry_gives_its_reason():
    facts = load_facts("chain_weights")
    entries = [facts["default"], *facts["venue"].values(), *facts["market"].values()]
    assert all(len(entry["reason"]) > 10 for entry in entries)


def test_other_axes_have_no_named_columns():
    assert axis_columns("market") == axis_columns("one") == ()


@pytest.mark.parametrize(
    ("section", "name", "entry", "message"),
    [
        ("venue", "binance", {"chain_weights": {"etherium": 1.0}}, "'etherium'.*Did you mean 'ethereum'"),
        ("market", "ARB", {"asset_weights": {"USDX": 1.0}}, r"\[market.ARB\] asset_weights names 'USDX'"),
        ("venue", "okx", {"chain_weights": {"multi": -1.0}}, "at least 0"),
        ("venue", "okx", {"chain_weights": {"multi": "much"}}, "finite numbers"),
        ("venue", "okx", {"chain_weights": {"multi": 0.0}}, "all zero"),
        ("venue", "okx", {"chain_weight": {"multi": 1.0}}, "Did you mean 'chain_weights'"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(section, name, entry, message):
    facts = copy.deepcopy(load_facts("chain_weights"))
    facts[section][name] = entry
    with pytest.raises(ConfigError, match=message):
        validate(facts)


def test_every_problem_is_told_at_once():
    facts = copy.deepcopy(load_facts("chain_weights"))
    facts["chains"] = [*facts["chains"], "multi"]
    facts["default"] = {"chain_weights": {"mars": 1.0}}
    with pytest.raises(
        ConfigError, match=r"'multi' is listed twice.*\[default\] lacks asset_weights.*names 'mars'"
    ):
        validate(facts)
