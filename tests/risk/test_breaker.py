"""Market states: thresholds, hysteresis, cool-down, monotony; the policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.risk import reason_names
from riskml.risk.breaker import (
    HALT,
    NORMAL,
    RESTRICT,
    WATCH,
    BreakerState,
    MarketSignals,
    market_signals,
    step,
)
from riskml.risk.breaker_policy import SIGNALS, BreakerPolicy
from riskml.risk.collateral import Conditions
from riskml.units import HOUR

from .breaker_cases import FORECAST, TS

POLICY = BreakerPolicy()
CALM = {"stress": 0.0, "jump": 0.5, "age_h": 0.0, "chain_stress": 0.0}


def _signals(ts: int = TS, markets: tuple[str, ...] = ("BTC",), **values: Any) -> MarketSignals:
    n = len(markets)
    full = {name: np.broadcast_to(np.asarray(values.get(name, CALM[name]), float), n) for name in SIGNALS}
    degraded = np.broadcast_to(np.asarray(values.get("degraded", False), dtype=np.bool_), n)
    return MarketSignals(ts=ts, markets=markets, degraded=degraded, **full)


def _names(state: BreakerState, row: int = 0) -> list[str]:
    return reason_names(int(state.reasons[row]))


def _walk(*hours: tuple[float, dict[str, Any]], policy: BreakerPolicy = POLICY) -> list[int]:
    """States of one market after signals at some hours."""
    state, levels = None, []
    for hour, values in hours:
        state = step(state, _signals(TS + int(hour * HOUR), **values), policy)
        levels.append(int(state.level[0]))
    return levels


@pytest.mark.parametrize(
    ("values", "level", "reasons"),
    [
        ({}, NORMAL, []),
        ({"stress": 0.0499}, NORMAL, []),
        ({"stress": 0.05}, WATCH, ["market-stress"]),
        ({"stress": 0.10}, RESTRICT, ["market-stress"]),
        ({"stress": 0.20}, HALT, ["market-stress"]),
        ({"jump": 1.5}, WATCH, ["scale-jump"]),
        ({"jump": 2.25}, RESTRICT, ["scale-jump"]),
        ({"jump": 3.0}, HALT, ["scale-jump"]),
        ({"age_h": 2.0}, WATCH, ["stale-forecast"]),
        ({"age_h": 6.0}, HALT, ["stale-forecast"]),
        ({"degraded": True}, WATCH, ["degraded-forecast"]),
        ({"chain_stress": 0.5}, WATCH, ["chain-stress"]),
        ({"chain_stress": 1.0}, RESTRICT, ["chain-stress"]),
        ({"stress": 0.11, "jump": 1.6, "degraded": True}, RESTRICT, None),
    ],
)
def test_each_signal_calls_for_its_state(
    values: dict[str, Any], level: int, reasons: list[str] | None
) -> None:
    state = step(None, _signals(**values), POLICY)
    assert state.level.tolist() == [level]
    assert _names(state) == (
        reasons or ["degraded-forecast", "market-stress", "scale-jump"][: 3 * (reasons is None)]
    )


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ({"stress": np.nan}, HALT),
        ({"stress": -0.1}, HALT),
        ({"stress": 1.2}, HALT),
        ({"jump": np.nan}, HALT),
        ({"age_h": np.nan}, HALT),
        ({"chain_stress": np.nan}, RESTRICT),
    ],
)
def test_a_missing_or_impossible_signal_counts_as_the_worst(values: dict[str, Any], level: int) -> None:
    state = step(None, _signals(**values), POLICY)
    assert state.level.tolist() == [level]
    assert ("unknown-market" in _names(state)) == bool({"stress", "jump"} & set(values))


def test_a_state_holds_until_signals_fall_below_hysteresis_and_the_cool_down_has_passed() -> None:
    hot, warm, calm = {"stress": 0.06}, {"stress": 0.041}, {"stress": 0.039}
    assert _walk((0, hot), (100, warm), (200, warm), (300, calm)) == [1, 1, 1, 0]
    assert _walk((0, hot), (1.9, calm), (2.0, calm)) == [1, 1, 0]
    # Called for again, it cools down anew.
    assert _walk((0, hot), (1.9, hot), (3.8, calm), (3.9, calm)) == [1, 1, 1, 0]


def test_a_market_comes_down_one_state_at_a_time_and_stays_in_each() -> None:
    path = [(0.0, {"jump": 4.0}), *((hour, {}) for hour in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0))]
    assert _walk(*path) == [3, 3, 2, 2, 1, 1, 0, 0]
    alone = step(step(None, _signals(jump=4.0), POLICY), _signals(TS + HOUR), POLICY)
    assert _names(alone) == ["cool-down"]
    held = step(step(None, _signals(jump=4.0), POLICY), _signals(TS + 9 * HOUR, jump=2.9), POLICY)
    assert (held.level[0], _names(held)) == (HALT, ["hysteresis", "scale-jump"])


def test_worse_signals_never_give_a_milder_state_on_any_path() -> None:
    rng = np.random.default_rng(0)
    n_markets, names = 500, tuple(f"m{number}" for number in range(500))
    top = {"stress": 0.3, "jump": 4.0, "age_h": 8.0, "chain_stress": 1.0}
    mild = worse = None
    seen, differ = set(), 0
    for number in range(60):
        ts = TS + number * HOUR // 2
        low = {name: high * rng.random(n_markets) ** 5 for name, high in top.items()}
        high = {
            name: np.minimum(value + top[name] * rng.random(n_markets) ** 9, top[name])
            for name, value in low.items()
        }
        high["stress"][rng.random(n_markets) < 0.02] = np.nan
        degraded = rng.random(n_markets) < 0.05
        mild = step(mild, _signals(ts, names, **low, degraded=degraded), POLICY)
        more = degraded | (rng.random(n_markets) < 0.05)
        worse = step(worse, _signals(ts, names, **high, degraded=more), POLICY)
        assert (worse.level >= mild.level).all()
        assert ((mild.reasons > 0) == (mild.level > 0)).all()
        seen |= set(mild.level.tolist())
        differ += int((worse.level > mild.level).sum())
    assert seen == {0, 1, 2, 3}
    assert differ > 1_000


def test_all_markets_at_once_are_each_alone() -> None:
    rng = np.random.default_rng(1)
    names = ("a", "b", "c", "d")
    whole, alone = None, dict.fromkeys(names)
    for number in range(40):
        values = {"stress": 0.3 * rng.random(4) ** 3, "jump": 4.0 * rng.random(4) ** 2}
        ts = TS + number * HOUR
        whole = step(whole, _signals(ts, names, **values), POLICY)
        for row, name in enumerate(names):
            one = {key: value[row] for key, value in values.items()}
            alone[name] = step(alone[name], _signals(ts, (name,), **one), POLICY)
            assert alone[name].to_dicts()[0] == whole.to_dicts()[row]


def test_a_state_that_was_saved_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    state = step(None, _signals(markets=("BTC", "ETH"), jump=np.array([4.0, 1.0])), POLICY)
    np.savez(tmp_path / "state.npz", **state.to_arrays())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as arrays:
        back = BreakerState.from_arrays(dict(arrays))
    after = _signals(TS + 2 * HOUR, ("BTC", "ETH"))
    assert step(back, after, POLICY).to_dicts() == step(state, after, POLICY).to_dicts()
    assert step(back, after, POLICY).level.tolist() == [2, 0]
    late = TS + 2 * HOUR
    for found, wanted in zip(back.of(["ETH"], late, POLICY), state.of(["ETH"], late, POLICY), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_damaged_state_is_refused() -> None:
    arrays = step(None, _signals(), POLICY).to_arrays()
    with pytest.raises(DataError, match="has no 'on'"):
        BreakerState.from_arrays({name: value for name, value in arrays.items() if name != "on"})
    with pytest.raises(DataError, match=r"triggered_us has shape \(2, 3\); \(1, 3\) is required"):
        BreakerState.from_arrays(arrays | {"triggered_us": np.zeros((2, 3), dtype=np.int64)})
    with pytest.raises(DataError, match=r"age_h has shape \(2,\); \(1,\) is required"):
        BreakerState.from_arrays(arrays | {"age_h": np.zeros(2)})
    with pytest.raises(DataError, match="on without the one below it"):
        BreakerState.from_arrays(arrays | {"on": np.array([[False, True, False]])})


def test_a_market_that_signals_leave_out_is_halted_and_a_new_one_starts_normal() -> None:
    first = step(None, _signals(markets=("BTC", "ETH")), POLICY)
    second = step(first, _signals(TS + HOUR, ("SOL", "BTC")), POLICY)
    rows = {row["market"]: row["state"] for row in second.to_dicts()}
    assert rows == {"SOL": "normal", "BTC": "normal", "ETH": "halt"}
    level, reasons = second.of(["BTC", "nowhere"], TS + HOUR, POLICY)
    assert level.tolist() == [0, 3]
    assert reason_names(int(reasons[1])) == ["unknown-market"]


def test_an_old_step_is_no_clearance() -> None:
    state = step(None, _signals(), POLICY)
    found = [int(state.of(["BTC"], TS + hours * HOUR, POLICY)[0][0]) for hours in (1, 2, 3, 6)]
    assert found == [0, 1, 2, 3]
    assert reason_names(int(state.of(["BTC"], TS + 6 * HOUR, POLICY)[1][0])) == ["stale-forecast"]


def test_the_age_of_a_forecast_counts_from_its_own_bar_and_not_from_the_step() -> None:
    at_step = np.array([0.0, 0.5, 1.9, 5.5])
    names = ("fresh", "half", "late", "old")
    state = step(None, _signals(markets=names, age_h=at_step), POLICY)
    for hours in (0.0, 0.05, 0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 6.0):
        ts = TS + int(hours * HOUR)
        expected = step(None, _signals(ts, names, age_h=at_step + hours), POLICY)
        level, reasons = state.of(names, ts, POLICY)
        # What the step called for stays; time since then only adds to it.
        np.testing.assert_array_equal(level, np.maximum(expected.level, state.level))
        assert ["stale-forecast" in reason_names(int(bits)) for bits in reasons] == (
            at_step + hours >= 2.0
        ).tolist()
    assert state.of(["late"], TS + HOUR // 5, POLICY)[0].tolist() == [WATCH]
    # A clock that runs behind makes no forecast younger, and an unusable age is the worst.
    assert state.of(["late"], TS - HOUR, POLICY)[0].tolist() == [NORMAL]
    assert state.of(["old"], TS - 5 * HOUR, POLICY)[0].tolist() == [RESTRICT]
    lost = step(None, _signals(age_h=np.nan), BreakerPolicy(age_h_halt=np.inf))
    assert lost.of(["BTC"], TS, POLICY)[0].tolist() == [HALT]


def test_a_state_that_was_saved_without_an_age_clears_nothing_until_the_next_step() -> None:
    state = step(None, _signals(), POLICY)
    arrays = {name: value for name, value in state.to_arrays().items() if name != "age_h"}
    old = BreakerState.from_arrays(arrays)
    level, reasons = old.of(["BTC"], TS, POLICY)
    assert level.tolist() == [HALT]
    assert reason_names(int(reasons[0])) == ["stale-forecast"]
    positional = BreakerState(state.ts, state.markets, state.on, state.triggered_us, state.reasons)
    assert positional.of(["BTC"], TS, POLICY)[0].tolist() == [HALT]
    assert BreakerState.from_arrays(positional.to_arrays()).of(["BTC"], TS, POLICY)[0].tolist() == [HALT]
    assert step(old, _signals(TS + HOUR), POLICY).of(["BTC"], TS + HOUR, POLICY)[0].tolist() == [NORMAL]
    for value in (np.array([np.nan]), np.array([-1.0])):
        assert BreakerState.from_arrays(arrays | {"age_h": value}).of(["BTC"], TS, POLICY)[0].tolist() == [
            HALT
        ]


def test_signals_come_from_the_forecast_the_slow_scale_and_the_home_chain() -> None:
    forecast = replace(
        FORECAST, stress=np.array([[0.0, 0.07, 0.0]] * 3), venues=("hyperliquid", "drift", "binance")
    )
    slow = forecast.sigma / np.array([2.0, 0.5, 1.0])[:, None, None]
    slow[2, 1, 0] = np.nan
    stress = Conditions(chain_stress={"hyperliquid": 0.6, "solana": np.nan})
    found = market_signals(forecast, slow, POLICY, TS + 90 * HOUR // 60, stress)
    assert found.stress.tolist() == [0.07] * 3
    np.testing.assert_allclose(found.jump, [2.0, 0.5, np.nan])
    np.testing.assert_allclose(found.chain_stress, [0.6, np.nan, 0.0])
    np.testing.assert_allclose(found.age_h, 1.5)
    assert step(None, found, POLICY).level.tolist() == [1, 2, 3]


def test_signals_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match=r"slow_sigma has shape \(1, 3, 2\); \(3, 3, 2\) is required"):
        market_signals(FORECAST, FORECAST.sigma[:1], POLICY, TS)
    with pytest.raises(DataError, match="is later than"):
        market_signals(FORECAST, FORECAST.sigma, POLICY, TS - 1)
    with pytest.raises(ConfigError, match="no horizon '4h'"):
        market_signals(FORECAST, FORECAST.sigma, BreakerPolicy(horizon="4h"), TS)
    with pytest.raises(DataError, match="a market is there twice"):
        _signals(markets=("BTC", "BTC"))
    with pytest.raises(DataError, match=r"signal jump has shape \(2,\); \(1,\) is required"):
        replace(_signals(), jump=np.zeros(2))
    with pytest.raises(DataError, match="come after the step of"):
        step(step(None, _signals(), POLICY), _signals(TS - HOUR), POLICY)


def test_a_policy_file_is_read_and_hashed(tmp_path: Path) -> None:
    file = tmp_path / "breaker.toml"
    file.write_text('stress_halt = inf\ntarget = "probability"\n')
    policy = BreakerPolicy.load(file)
    assert (policy.stress_halt, policy.target, policy.jump_halt) == (np.inf, "probability", 3.0)
    assert BreakerPolicy.load(policy) is policy
    assert BreakerPolicy.load(None) == POLICY
    assert len({policy.policy_hash, POLICY.policy_hash, BreakerPolicy(cool_down_h=3.0).policy_hash}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stress_wach = 0.1", "no 'stress_wach'. Did you mean 'stress_watch'"),
        ("stress_watch = 0.3", "stress_watch <= stress_restrict <= stress_halt is required"),
        ("jump_watch = nan", "jump_watch <= jump_restrict"),
        ("age_h_watch = 0", "0 < age_h_watch"),
        ("hysteresis = 0", r"hysteresis has to lie in \[0.1, 1\], found 0"),
        ("step_fraction = true", r"step_fraction has to lie in \[0.001, 1\], found True"),
        ("leverage_restrict = 0.9", "leverage_watch >= leverage_restrict is required"),
        ('target = "initail"', "target is 'initail'. Did you mean 'initial'"),
        ('cut_order = "size"', "cut_order is 'size'"),
        ('horizon = "soon"', "horizon is not a duration"),
        ("cool_down_h = -1\nclosing_cost = 1", "2 problems"),
        ("horizon =", "is not valid TOML"),
    ],
)
def test_an_unusable_policy_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "breaker.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        BreakerPolicy.load(file)
    with pytest.raises(ConfigError, match=r"there is no policy file .*absent\.toml"):
        BreakerPolicy.load(tmp_path / "absent.toml")
