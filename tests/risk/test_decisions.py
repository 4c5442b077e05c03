"""From a book to decisions: nesting, odd input, collateral and floors."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from riskml.errors import ConfigError, DataError
from riskml.facts import load_facts
from riskml.risk import AccountBook, Decisions, Forecast, MarginPolicy, decide, numpy_law, reason_names
from riskml.risk.decisions import Conditions
from riskml.risk.excursion import MAX_DISTANCE
from riskml.units import HOUR, to_us

TS = to_us("2024-05-01")
HORIZONS = ("1h", "8h", "24h")
MARKETS = ("BTC", "ETH", "SOL")
HOME = "arbitrum"  # where the venue "sim" settles
LAW = numpy_law(np.ones(3))


def _forecast(**changes: Any) -> Forecast:
    base = np.array([0.004, 0.005, 0.008])[:, None] * np.sqrt([1.0, 8.0, 24.0])
    values: dict[str, Any] = {
        "ts": TS,
        "markets": MARKETS,
        "horizons": HORIZONS,
        "sigma": np.stack([1.1 * base, base], axis=-1),
        "nu": np.full((3, 3), 3.7),
        "variance": base**2,
        "stress": np.full((3, 3), 0.01),
        "loadings": np.array([[0.8, 0.0], [0.85, 0.1], [0.7, 0.3]]),
        "degraded": np.zeros(3, dtype=np.bool_),
    }
    return Forecast(**(values | changes))


def _position(symbol: str, size: float, price: float, **more: Any) -> dict[str, Any]:
    return {"venue": "sim", "symbol": symbol, "size": size, "mark_price": price, **more}


def _account(cash: float, *positions: dict[str, Any], name: str = "a", **more: Any) -> dict[str, Any]:
    return {"account_id": name, "cash_usd": cash, "positions": list(positions), **more}


def _decide(*accounts: dict[str, Any], policy: MarginPolicy | None = None, **more: Any) -> Decisions:
    forecast = more.pop("forecast", _forecast())
    return decide(
        AccountBook.from_dicts(accounts), forecast, policy or MarginPolicy(), law=LAW, ts=TS, **more
    )


def _reasons(decisions: Decisions, row: int = 0) -> list[str]:
    return reason_names(int(decisions.reasons[row]))


def _random_account(rng: np.random.Generator, name: str) -> dict[str, Any]:
    positions = []
    for symbol, price in (("BTC", 60_000.0), ("ETH", 3_000.0), ("SOL", 150.0), ("NEW", 2.0)):
        if rng.random() < 0.6:
            isolated = rng.random() < 0.25
            more = {"margin_mode": "isolated", "isolated_margin_usd": 300.0} if isolated else {}
            positions.append(_position(symbol, float(rng.normal() * 5_000.0 / price), price, **more))
    collateral = [{"chain": HOME, "asset": "USDC", "amount": float(rng.uniform(0, 3_000)), "price_usd": 1.0}]
    return _account(float(rng.uniform(0, 2_000)), *positions, name=name, collateral=collateral)


def test_a_book_scored_whole_and_account_by_account_agrees() -> None:
    rng = np.random.default_rng(2)
    accounts = [_random_account(rng, f"a{number}") for number in range(40)]
    whole = _decide(*accounts)
    for row, account in enumerate(accounts):
        one = _decide(account)
        for name in ("equity_usd", "initial_margin_usd", "maintenance_margin_usd", "risk_score"):
            assert getattr(one, name)[0] == pytest.approx(getattr(whole, name)[row], rel=1e-9)
        np.testing.assert_allclose(
            one.liquidation_probability[0], whole.liquidation_probability[row], rtol=1e-6, atol=1e-15
        )
        assert one.action[0] == whole.action[row]
        assert one.reasons[0] == whole.reasons[row]
        entries = zip(one.contributions.of(0), whole.contributions.of(row), strict=True)
        for (symbol, *values), (wanted_symbol, *wanted) in entries:
            assert symbol == wanted_symbol
            assert values == pytest.approx(wanted)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_requirements_are_ordered_floored_and_capped(seed: int) -> None:
    rng = np.random.default_rng(seed)
    policy = MarginPolicy()
    decisions = _decide(*(_random_account(rng, str(number)) for number in range(5)), policy=policy)
    gross = np.zeros(5)
    book_rows = decisions.contributions
    for row in range(5):
        span = slice(book_rows.indptr[row], book_rows.indptr[row + 1])
        gross[row] = np.abs(book_rows.exposure_usd[span]).sum()
        if gross[row] > 0.0:
            assert book_rows.share[span].sum() == pytest.approx(1.0)
    assert np.all(decisions.initial_margin_usd >= decisions.maintenance_margin_usd)
    assert np.all(decisions.maintenance_margin_usd >= policy.floor * gross - 1e-9)
    assert np.all(decisions.initial_margin_usd >= policy.initial_floor * gross - 1e-9)
    assert np.all(np.diff(decisions.liquidation_probability, axis=1) >= 0.0)
    for values in (decisions.liquidation_probability, decisions.distance, decisions.equity_usd):
        assert np.all(np.isfinite(values))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["USDC", "ETH", "SOL", "BTC"]))
@example(260, "ETH")  # ETH at home and on another chain: each may be left out by itself
@settings(max_examples=60, deadline=None)
def test_adding_collateral_never_raises_the_probability_or_the_shortfall(seed: int, asset: str) -> None:
    rng = np.random.default_rng(seed)
    account = _random_account(rng, "a")
    account["maintenance_margin_usd"] = float(rng.uniform(0, 500)) if rng.random() < 0.5 else None
    for other in ("ETH", "BTC"):
        if rng.random() < 0.5:
            extra = {"chain": HOME, "asset": other, "amount": float(rng.uniform(0, 2)), "price_usd": 2_000.0}
            account["collateral"].append(extra)
    more = {"chain": "solana", "asset": asset, "amount": float(rng.uniform(0, 3)), "price_usd": 1_000.0}
    richer = {**account, "collateral": [*account["collateral"], more]}
    before, after = _decide(account), _decide(richer)
    assert np.all(after.liquidation_probability <= before.liquidation_probability + 1e-12)
    for name in ("initial_margin_usd", "maintenance_margin_usd"):
        shortfall = [float(getattr(found, name)[0] - found.equity_usd[0]) for found in (before, after)]
        assert shortfall[1] <= shortfall[0] + 0.02  # both are rounded up to cents


def test_isolated_positions_never_net() -> None:
    hedge = [_position("BTC", 1.0, 60_000.0), _position("ETH", -20.0, 3_000.0)]
    alone = [{**position, "margin_mode": "isolated", "isolated_margin_usd": 6_000.0} for position in hedge]
    crossed, apart = _decide(_account(12_000.0, *hedge)), _decide(_account(0.0, *alone))
    singles = [_decide(_account(6_000.0, position)) for position in hedge]
    assert crossed.equity_usd[0] == apart.equity_usd[0] == 12_000.0
    assert apart.initial_margin_usd[0] == pytest.approx(
        sum(one.initial_margin_usd[0] for one in singles), abs=0.02
    )
    assert crossed.initial_margin_usd[0] < 0.7 * apart.initial_margin_usd[0]
    worst = np.max([one.liquidation_probability[0] for one in singles], axis=0)
    np.testing.assert_allclose(apart.liquidation_probability[0], worst, rtol=1e-9)
    assert "isolated-pool" in _reasons(apart)


def test_an_isolated_margin_that_is_not_published_is_its_part_of_the_equity() -> None:
    position = _position("BTC", 1.0, 60_000.0, margin_mode="isolated")
    decisions = _decide(_account(9_000.0, position, _position("ETH", 10.0, 3_000.0)))
    assert decisions.equity_usd[0] == pytest.approx(9_000.0)
    assert "isolated-margin-unknown" in _reasons(decisions)


def test_offsets_never_take_more_than_the_cap_off() -> None:
    positions = [_position("BTC", 1.0, 60_000.0), _position("ETH", -20.0, 3_000.0)]
    forecast = _forecast(loadings=np.array([[0.999, 0.0], [0.999, 0.0], [0.9, 0.0]]))
    alone = sum(_decide(_account(0.0, one), forecast=forecast).initial_margin_usd[0] for one in positions)
    for cap in (0.0, 0.3, 0.6):
        found = _decide(
            _account(0.0, *positions),
            forecast=forecast,
            policy=MarginPolicy(offset_cap=cap, correlation_stress=0.0),
        )
        # The sum of stand-alone losses is taken to second order: within 0.2 % here.
        assert found.initial_margin_usd[0] >= 0.998 * (1.0 - cap) * alone
        assert "offset-cap" in _reasons(found)


def test_one_market_over_two_venues_nets_but_the_cap_still_holds() -> None:
    two = [_position("BTC", 1.0, 60_000.0), {**_position("BTC", -1.0, 60_000.0), "venue": "other"}]
    decisions = _decide(_account(1_000.0, *two))
    single = _decide(_account(1_000.0, two[0]))
    assert decisions.initial_margin_usd[0] >= single.initial_margin_usd[0] * 0.99
    same = [_position("BTC", 0.5, 60_000.0), {**_position("BTC", 0.5, 60_000.0), "venue": "other"}]
    split = _decide(_account(1_000.0, *same))
    assert split.initial_margin_usd[0] == single.initial_margin_usd[0]
    np.testing.assert_allclose(split.liquidation_probability, single.liquidation_probability, rtol=1e-9)


def test_a_market_without_a_forecast_is_never_milder_than_the_wildest_known() -> None:
    known = [
        _decide(_account(0.0, _position(symbol, 1.0, 1_000.0))).initial_margin_usd[0] for symbol in MARKETS
    ]
    unknown = _decide(_account(0.0, _position("NEW", 1.0, 1_000.0)))
    assert unknown.initial_margin_usd[0] > max(known)
    assert "unknown-market" in _reasons(unknown)
    forecast = _forecast()
    forecast.sigma[2] = np.nan
    missing = _decide(_account(0.0, _position("SOL", 1.0, 1_000.0)), forecast=forecast)
    assert missing.initial_margin_usd[0] == unknown.initial_margin_usd[0]
    assert "unknown-market" in _reasons(missing)


def test_the_barrier_is_named_and_moves_with_the_venues_maintenance() -> None:
    position = _position("BTC", 1.0, 60_000.0)
    given_, own = _decide(
        _account(8_000.0, position, name="a", maintenance_margin_usd=3_000.0),
        _account(8_000.0, position, name="b"),
    ).to_dicts()
    assert (given_["barrier"], own["barrier"]) == ("venue", "riskml")
    assert given_["barrier_margin_usd"] == 3_000.0
    assert given_["p_liq_8h"] > own["p_liq_8h"]
    engine = _decide(_account(8_000.0, position), policy=MarginPolicy(barrier="hyperliquid"))
    assert engine.barrier[0] == "hyperliquid"
    assert engine.barrier_margin_usd[0] == pytest.approx(600.0)
    with pytest.raises(DataError, match=r"row 0: account 'a' has no maintenance_margin_usd"):
        _decide(_account(8_000.0, position), policy=MarginPolicy(barrier="venue"))
    with pytest.raises(ConfigError, match="there is no barrier 'hyperliqid'. Did you mean 'hyperliquid'"):
        _decide(_account(8_000.0, position), policy=MarginPolicy(barrier="hyperliqid"))


def test_equity_below_maintenance_is_certain_and_deleverages() -> None:
    decisions = _decide(_account(10.0, _position("BTC", 1.0, 60_000.0), maintenance_margin_usd=600.0))
    assert decisions.liquidation_probability[0].tolist() == [1.0, 1.0, 1.0]
    assert decisions.distance[0].tolist() == [0.0, 0.0, 0.0]
    assert decisions.risk_score[0] == 100.0
    assert decisions.to_dicts()[0]["action"] == "deleverage"


def test_accounts_without_positions_are_safe_unless_they_owe() -> None:
    decisions = _decide(_account(5.0, name="a"), _account(-5.0, name="b"))
    assert decisions.liquidation_probability[:, 0].tolist() == [0.0, 1.0]
    assert decisions.distance[0, 0] == MAX_DISTANCE
    assert decisions.initial_margin_usd.tolist() == [0.0, 0.0]
    assert "negative-equity" in _reasons(decisions, 1)


def test_live_prices_remark_positions_and_the_venues_maintenance() -> None:
    account = _account(8_000.0, _position("BTC", 1.0, 60_000.0), maintenance_margin_usd=600.0)
    calm, fallen = _decide(account), _decide(account, prices={"BTC": 54_000.0})
    assert fallen.equity_usd[0] == calm.equity_usd[0] - 6_000.0
    assert fallen.barrier_margin_usd[0] == pytest.approx(540.0)
    assert fallen.liquidation_probability[0, 0] > calm.liquidation_probability[0, 0]
    other = _decide(account, prices={"sim:BTC": 54_000.0, "BTC": 70_000.0})
    assert other.equity_usd[0] == fallen.equity_usd[0]
    ignored = _decide(account, prices={"BTC": np.nan})
    assert ignored.equity_usd[0] == calm.equity_usd[0]


def test_a_position_without_a_mark_is_valued_at_its_entry_and_flagged() -> None:
    position = _position("BTC", 1.0, np.nan, entry_price=50_000.0)
    decisions = _decide(_account(8_000.0, position))
    assert decisions.equity_usd[0] == 8_000.0
    assert "missing-price" in _reasons(decisions)


def test_collateral_is_cut_for_peg_chain_and_transfer() -> None:
    def value(chain: str, asset: str, price: float, **conditions: Any) -> tuple[float, list[str]]:
        collateral = [{"chain": chain, "asset": asset, "amount": 1_000.0, "price_usd": price}]
        account = _account(0.0, _position("BTC", 0.01, 60_000.0), collateral=collateral)
        decisions = _decide(account, conditions=Conditions(**conditions))
        return float(decisions.collateral_usd[0]), _reasons(decisions)

    assert value(HOME, "USDC", 1.0)[0] == 1_000.0
    assert value(HOME, "USDC", 1.02)[0] == 1_000.0  # never above par
    remote, reasons = value("ethereum", "USDC", 1.0)
    assert 990.0 < remote < 1_000.0
    assert "remote-collateral" in reasons
    broken, reasons = value(HOME, "USDC", 0.9)
    assert broken == pytest.approx(900.0)
    assert "peg-deviation" in reasons
    local, reasons = value(HOME, "USDC", 0.9, redemption_usd={"USDC": 1.0})
    assert local == 1_000.0  # a local print with redemption intact is not a depeg
    assert "peg-deviation" not in reasons
    stressed, reasons = value(HOME, "USDC", 1.0, chain_stress={HOME: 0.9})
    assert stressed == pytest.approx(1_000.0 * (1.0 - 0.2 * 0.9))
    assert "chain-stress" in reasons
    worthless, reasons = value(HOME, "WEIRD", 5.0)
    assert worthless == 0.0
    assert "unknown-asset" in reasons
    unpriced, reasons = value(HOME, "USDC", 0.0)
    assert unpriced == 0.0
    assert "unpriced-collateral" in reasons


def test_actions_have_hysteresis_and_a_cool_down() -> None:
    policy = MarginPolicy()
    account = _account(4_000.0, _position("BTC", 1.0, 60_000.0), maintenance_margin_usd=600.0)
    forecast = _forecast(sigma=0.25 * _forecast().sigma)
    calm = _decide(account, forecast=forecast)
    assert calm.liquidation_probability[0, 1] < policy.watch_probability * policy.hysteresis
    assert calm.action[0] == 0
    cooling = _decide(account, forecast=forecast, previous={"a": (2, TS - HOUR // 2)})
    assert cooling.action[0] == 2
    assert "hysteresis" in _reasons(cooling)
    assert _decide(account, forecast=forecast, previous={"a": (2, TS - 2 * HOUR)}).action[0] == 0


def test_decisions_become_json() -> None:
    decisions = _decide(_account(4_000.0, _position("BTC", 1.0, 60_000.0)), bundle_id="x")
    row = json.loads(json.dumps(decisions.to_dicts(), allow_nan=False))[0]
    assert row["account_id"] == "a"
    assert row["ts"] == "2024-05-01T00:00:00Z"
    assert row["contributions"][0]["symbol"] == "BTC"
    assert row["contributions"][0]["share"] == pytest.approx(1.0)
    assert {"p_liq_1h", "p_liq_8h", "p_liq_24h", "distance_24h", "policy_hash"} <= row.keys()


def test_a_horizon_that_is_not_forecast_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no horizon '4h'"):
        _decide(_account(1.0), policy=MarginPolicy(initial_horizon="4h"))


def test_a_slow_scale_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match="maintenance_sigma has shape"):
        _decide(_account(1.0), maintenance_sigma=np.ones((2, 3, 2)))


def test_degraded_and_stressed_markets_are_named() -> None:
    forecast = replace(_forecast(), degraded=np.array([True, False, False]), stress=np.full((3, 3), 0.9))
    decisions = _decide(
        _account(9_000.0, _position("BTC", 0.1, 60_000.0)),
        forecast=forecast,
        notes={"rate-limited": np.array([True, False, False])},
    )
    assert {"degraded-forecast", "market-stress", "rate-limited"} <= set(_reasons(decisions))
    assert decisions.action[0] >= 1


def test_a_position_of_size_zero_is_no_position() -> None:
    decisions = _decide(_account(100.0, _position("BTC", 0.0, 60_000.0)))
    assert decisions.maintenance_margin_usd[0] == decisions.liquidation_probability[0, 2] == 0.0
    assert _reasons(decisions) == ["no-position", "no-collateral"]


def test_a_book_without_accounts_gives_no_decisions() -> None:
    assert len(_decide()) == 0


def test_two_unknown_markets_do_not_hedge_each_other() -> None:
    one = _decide(_account(100.0, _position("AAA", 100.0, 1.0)))
    two = _decide(_account(100.0, _position("AAA", 100.0, 1.0), _position("BBB", -100.0, 1.0)))
    assert two.liquidation_probability[0, 0] > one.liquidation_probability[0, 0]
    assert two.initial_margin_usd[0] > one.initial_margin_usd[0]
    assert [symbol for symbol, *_ in two.contributions.of(0)] == ["AAA", "BBB"]


def test_correlation_stress_is_named_where_it_raises_the_requirement() -> None:
    hedged = _account(5_000.0, _position("BTC", 1.0, 60_000.0), _position("ETH", 20.0, 3_000.0), name="a")
    single = _account(5_000.0, _position("BTC", 1.0, 60_000.0), name="b")
    with_stress = _decide(hedged, single)
    assert "correlation-stress" in _reasons(with_stress, 0)
    assert "correlation-stress" not in _reasons(with_stress, 1)
    assert "correlation-stress" not in _reasons(_decide(hedged, policy=MarginPolicy(correlation_stress=0.0)))


def test_liquidity_is_a_reason_only_where_it_matters() -> None:
    account = _account(9_000.0, _position("BTC", 1.0, 60_000.0))
    assert "size-against-liquidity" not in _reasons(_decide(account, liquidity_usd={"BTC": 1e10}))
    assert "size-against-liquidity" in _reasons(_decide(account, liquidity_usd={"BTC": 1e5}))


def test_a_live_price_that_blows_up_a_position_is_refused() -> None:
    account = _account(100.0, _position("BTC", 1.0, 60_000.0))
    with pytest.raises(DataError, match=r"market 'BTC', row 0: the row is worth 1e\+200 USD at the current"):
        _decide(account, prices={"BTC": 1e200})


def test_the_haircut_uses_the_chains_facts_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "chain": {
            "slow": [
                {"valid_from": "2020-01-01", "transfer_s": 3_600, "staleness_s": 86_400},
                {"valid_from": "2025-01-01", "transfer_s": 36_000, "staleness_s": 86_400},
            ],
            "late": [{"valid_from": "2025-01-01", "transfer_s": 60, "staleness_s": 86_400}],
        },
        "venue_home": {"sim": HOME},
    }
    assets = load_facts("assets")
    monkeypatch.setattr(
        "riskml.risk.collateral.load_facts", lambda name: facts if name == "chains" else assets
    )
    policy = MarginPolicy(remote_haircut_per_hour=0.01, remote_haircut_cap=0.2)
    values = []
    for chain in ("slow", "late", "nowhere"):
        held = {"chain": chain, "asset": "USD", "amount": 100.0, "price_usd": 1.0}
        account = _account(0.0, _position("BTC", 0.001, 60_000.0), collateral=[held])
        values.append(float(_decide(account, policy=policy).collateral_usd[0]))
    assert values == pytest.approx([99.0, 80.0, 80.0])
