"""Market states of the scorer: a step per bar, aged between bars, saved, and told to holders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.risk.breaker import HALT, RESTRICT, BreakerState, market_signals, step
from riskml.risk.breaker_policy import MARKET_STATES, BreakerPolicy
from riskml.risk.reasons import reason_bit
from riskml.scoring import AccountBook, Scorer, market_states
from riskml.scoring.conditions import conditions_at
from riskml.scoring.market_states import KEPT_BARS, MarketStates, breaker_policy
from riskml.units import DAY, HOUR

from .conftest import N_HISTORY, SYMBOLS, Feed, position, slot
from .test_scorer import NUMBERS, assert_same

NOW = slot(N_HISTORY - 1)
TOUCHY = BreakerPolicy(
    stress_watch=1.0, stress_restrict=1.0, stress_halt=1.0, jump_watch=1.02, jump_restrict=1.1, jump_halt=1.2
)
"""Thresholds that the quiet feed of these tests crosses now and then."""
HALTED = BreakerPolicy(jump_watch=1e-6, jump_restrict=1e-6, jump_halt=1e-6)
CALM = BreakerPolicy(
    stress_watch=1.0, stress_restrict=1.0, stress_halt=1.0, jump_watch=1e6, jump_restrict=1e6, jump_halt=1e6
)
BITS = np.uint64(reason_bit("entries-paused") | reason_bit("market-halted"))

Bar = tuple[Any, ...]


def watched(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """What the breaker has to step on after each bar of the scorer, collected beside it."""
    bars: list[Bar] = []
    requirements, store = scorer._requirements, scorer._live.store
    original = requirements.take

    def take(guarded: Any, markets: Any) -> Any:
        forecast = original(guarded, markets)
        conditions = conditions_at(store, forecast.ts)
        bars.append((forecast, requirements.scales.maintenance, guarded.told_sigma, conditions))
        return forecast

    monkeypatch.setattr(requirements, "take", take)
    return bars


def by_hand(bars: list[Bar], policy: BreakerPolicy) -> list[BreakerState]:
    states: list[BreakerState] = []
    for forecast, slow, told, conditions in bars:
        signals = market_signals(forecast, slow, policy, forecast.ts, conditions, told)
        states.append(step(states[-1] if states else None, signals, policy))
    return states


def assert_same_state(first: BreakerState | None, second: BreakerState | None) -> None:
    assert first is not None
    assert second is not None
    for name, values in first.to_arrays().items():
        np.testing.assert_array_equal(values, second.to_arrays()[name], err_msg=name)


def flows(days: int, chain: str = "arbitrum") -> dict[str, np.ndarray]:
    """Daily flows of a chain from the feed's start on; it is silent afterwards."""
    ts = slot(0) + DAY * np.arange(days)
    text = {"chain": chain, "asset": "ALL", "source": "sim"}
    return {
        "ts": ts,
        "known_at": ts,
        "inflow_usd": np.full(days, 1e6),
        "outflow_usd": np.full(days, 1e6),
        "supply_usd": np.full(days, 1e9),
        "lending_rate": np.full(days, np.nan),
    } | {name: np.full(days, value) for name, value in text.items()}


def test_the_states_are_a_recursion_over_the_scorers_own_forecasts(
    tiny_bundle: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer.load(tiny_bundle, breaker=TOUCHY)
    bars = watched(scorer, monkeypatch)
    scorer.observe("flows", flows(12))
    feed.observe(scorer, 0, N_HISTORY - 1)
    scorer.close_bar(NOW)
    assert len(bars) == KEPT_BARS  # the bars that the guards warm up on count as well
    assert_same_state(scorer.market_states, by_hand(bars, TOUCHY)[-1])
    feed.observe(scorer, N_HISTORY, N_HISTORY + 3)
    scorer.close_bar(slot(N_HISTORY + 3))
    assert len(bars) == KEPT_BARS + 4  # a step for every skipped bar too
    for number in (N_HISTORY + 4, N_HISTORY + 5, N_HISTORY + 8):  # without bars, then with some
        if number > N_HISTORY + 5:
            feed.observe(scorer, number - 1, number)
        scorer.close_bar(slot(number))
        assert_same_state(scorer.market_states, by_hand(bars, TOUCHY)[-1])
    levels = np.concatenate([state.level for state in by_hand(bars, TOUCHY)])
    reasons = [name for state in by_hand(bars, TOUCHY) for row in state.to_dicts() for name in row["reasons"]]
    assert set(levels.tolist()) == {0, 1, 2, 3}, "the feed no longer goes through every state"
    assert {"degraded-forecast", "chain-stress"} <= set(reasons)


def test_a_saved_state_in_the_middle_gives_equal_later_states(
    make_warm: Callable[..., Scorer], tiny_bundle: Path, feed: Feed, tmp_path: Path
) -> None:
    original = make_warm(breaker=TOUCHY)
    restored, fresh = Scorer.load(tiny_bundle, breaker=TOUCHY), None
    restored.load_state(original.save_state(tmp_path / "state.npz"))
    assert_same_state(original.market_states, restored.market_states)
    for number in range(N_HISTORY, N_HISTORY + 5):
        for scorer in (original, restored):
            feed.observe(scorer, number)
            scorer.close_bar(slot(number))
        assert_same_state(original.market_states, restored.market_states)
        fresh = original.market_states
    assert fresh is not None
    assert (fresh.triggered_us > NOW - 100 * HOUR).any()


@pytest.mark.parametrize(
    ("hours", "state"), [(1, "normal"), (2, "watch"), (3, "restrict"), (5, "restrict"), (6, "halt")]
)
def test_hours_without_a_bar_age_every_state(
    make_warm: Callable[..., Scorer], book: AccountBook, hours: int, state: str
) -> None:
    scorer = make_warm(breaker=CALM)
    assert {row["state"] for row in scorer.market_states_at()} == {"normal"}
    moment = NOW + hours * HOUR
    found = scorer.market_states_at(moment)
    assert [row["market"] for row in found] == list(SYMBOLS)
    assert {row["state"] for row in found} == {state}
    assert all((row["reasons"] == ["stale-forecast"]) == (state != "normal") for row in found)
    told = scorer.score(book, moment).reasons & BITS
    paused, halted = np.uint64(reason_bit("entries-paused")), BITS
    expected = {"restrict": paused, "halt": halted}.get(state, np.uint64(0))
    assert set(told.tolist()) == {int(expected)}


def test_a_later_bar_takes_the_age_away(make_warm: Callable[..., Scorer], feed: Feed) -> None:
    scorer = make_warm(breaker=CALM)
    late = slot(N_HISTORY + 5)
    assert {row["state"] for row in scorer.market_states_at(late)} == {"halt"}
    feed.observe(scorer, N_HISTORY, N_HISTORY + 5)
    scorer.close_bar(late)
    assert {row["state"] for row in scorer.market_states_at()} == {"normal"}


def test_telling_the_holders_changes_no_number_and_no_action(
    make_warm: Callable[..., Scorer], book: AccountBook
) -> None:
    calm, halted = make_warm(breaker=CALM).score(book), make_warm(breaker=HALTED).score(book)
    for name in set(NUMBERS) - {"reasons"}:
        np.testing.assert_array_equal(getattr(calm, name), getattr(halted, name), err_msg=name)
    np.testing.assert_array_equal(calm.reasons | BITS, halted.reasons)
    assert not (calm.reasons & BITS).any()


def test_only_holders_and_those_with_orders_that_add_are_told() -> None:
    order = {"venue": "sim", "symbol": "BTC", "size": 1.0, "price": 5e4}
    accounts: dict[str, dict[str, Any]] = {
        "held": {"positions": [position("BTC", 1e3), position("ETH", 1e3)]},
        "sound": {"positions": [position("ETH", 1e3)]},
        "unknown": {"positions": [position("NEW", 1e3)]},
        "closed": {"positions": [position("BTC", 0.0)]},
        "order": {"orders": [order]},
        "reduces": {"orders": [order | {"reduce_only": True}]},
        "nothing": {},
    }
    book = AccountBook.from_dicts(
        [{"account_id": name, "cash_usd": 1e3} | more for name, more in accounts.items()]
    )
    on = np.array([[True, True, False], [True, False, False], [True, False, False]])
    last = np.full((3, 3), NOW, dtype=np.int64)
    state = BreakerState(NOW, SYMBOLS, on, last, np.zeros(3, dtype=np.uint64), np.zeros(3))
    states = MarketStates(BreakerPolicy(), state)
    reasons = np.zeros(len(book), dtype=np.uint64)
    states.add_reasons(reasons, book, NOW)
    paused = int(reason_bit("entries-paused"))
    told = dict(zip(accounts, reasons.tolist(), strict=True))
    assert told == dict.fromkeys(accounts, 0) | {"held": paused, "order": paused, "unknown": int(BITS)}


@pytest.mark.parametrize("seed", range(5))
def test_what_holders_are_told_is_what_the_breaker_says_at_that_moment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    on = rng.integers(0, 3, size=3)[:, None] > np.arange(3)
    last, age_h = np.full((3, 3), NOW, dtype=np.int64), rng.choice([0.0, 0.5, 2.5, np.inf], size=3)
    state = BreakerState(NOW, SYMBOLS, on, last, np.zeros(3, dtype=np.uint64), age_h)
    states = MarketStates(BreakerPolicy(), state)
    names = (*SYMBOLS, "NEW")
    book = AccountBook.from_dicts(
        [{"account_id": name, "cash_usd": 1e3, "positions": [position(name, 1e3)]} for name in names]
    )
    # Forth and back, and to either side of each threshold: what is kept must not outlive its time.
    edges = [NOW + int(hours * HOUR) for hours in (0.5, 1.0, 1.5, 2.0, 3.0, 3.5, 6.0)]
    moments = [NOW, *(edge + step for edge in edges for step in (-2_000, -1, 0, 1)), NOW + 100 * HOUR]
    for moment in [*moments, *moments[::-1]]:
        reasons = np.zeros(4, dtype=np.uint64)
        states.add_reasons(reasons, book, moment)
        expected, _ = state.of(names, moment, states.policy)
        for name, least in (("entries-paused", RESTRICT), ("market-halted", HALT)):
            told = (reasons & np.uint64(reason_bit(name))) > 0
            assert told.tolist() == (expected >= least).tolist(), (name, moment - NOW)


def rewritten(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A state file with some of its arrays changed."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    change(arrays)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def without_breaker(arrays: dict[str, np.ndarray]) -> None:
    for name in [name for name in arrays if name.startswith("breaker/")]:
        del arrays[name]


def test_a_state_of_before_the_breaker_halts_every_market_until_the_next_bar(
    make_warm: Callable[..., Scorer], tiny_bundle: Path, feed: Feed, book: AccountBook, tmp_path: Path
) -> None:
    original = make_warm(breaker=CALM)
    path = rewritten(original.save_state(tmp_path / "state.npz"), without_breaker)
    old = Scorer.load(tiny_bundle, breaker=CALM)
    old.load_state(path)
    assert old.market_states is None
    assert old.market_states_at() == [
        {"market": symbol, "state": "halt", "reasons": ["unknown-market"]} for symbol in SYMBOLS
    ]
    assert ((old.score(book).reasons & BITS) == BITS).all()
    feed.observe(old, N_HISTORY)
    old.close_bar(slot(N_HISTORY))
    assert {row["state"] for row in old.market_states_at()} == {"normal"}
    assert not (old.score(book).reasons & BITS).any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("on", None),
        ("on", np.zeros((2, 3), dtype=np.bool_)),
        ("on", np.array([[False, True, False]] * 3)),
        ("triggered_us", None),
        ("reasons", np.zeros(1, dtype=np.uint64)),
        ("markets", np.array(["BTC"])),
        ("ts", np.array(NOW + HOUR)),
        ("ts", np.array(NOW - HOUR)),
        ("ts", np.array("yesterday")),
        ("ts", np.array([NOW, NOW])),
    ],
)
def test_a_damaged_breaker_part_is_refused_and_changes_nothing(
    make_warm: Callable[..., Scorer],
    feed: Feed,
    book: AccountBook,
    tmp_path: Path,
    name: str,
    value: np.ndarray | None,
) -> None:
    scorer = make_warm(breaker=TOUCHY)

    def damage(arrays: dict[str, np.ndarray]) -> None:
        arrays.pop(f"breaker/{name}")
        if value is not None:
            arrays[f"breaker/{name}"] = value

    path = rewritten(scorer.save_state(tmp_path / "state.npz"), damage)
    feed.observe(scorer, N_HISTORY)
    scorer.close_bar(slot(N_HISTORY))
    before, decided = scorer.market_states, scorer.score(book)
    with pytest.raises(DataError, match=r"state.npz is not a usable state"):
        scorer.load_state(path)
    assert scorer.market_states is before
    assert_same(scorer.score(book), decided)


def test_another_breaker_policy_is_as_if_the_scorer_had_been_loaded_with_it(
    make_warm: Callable[..., Scorer], feed: Feed, tmp_path: Path
) -> None:
    changed, loaded = make_warm(breaker=CALM), make_warm(breaker=TOUCHY)
    file = tmp_path / "breaker.toml"
    file.write_text(
        "stress_watch = 1.0\nstress_restrict = 1.0\nstress_halt = 1.0\n"
        "jump_watch = 1.02\njump_restrict = 1.1\njump_halt = 1.2\n"
    )
    changed.set_breaker(file)
    assert changed.breaker == TOUCHY
    assert_same_state(changed.market_states, loaded.market_states)
    for scorer in (changed, loaded):
        feed.observe(scorer, N_HISTORY)
        scorer.close_bar(slot(N_HISTORY))
    assert_same_state(changed.market_states, loaded.market_states)


def test_another_breaker_policy_keeps_the_latches_of_a_loaded_state(
    make_warm: Callable[..., Scorer], tiny_bundle: Path, feed: Feed, tmp_path: Path
) -> None:
    halted = make_warm(breaker=HALTED)
    restored = Scorer.load(tiny_bundle, breaker=HALTED)
    restored.load_state(halted.save_state(tmp_path / "state.npz"))
    feed.observe(restored, N_HISTORY)
    restored.close_bar(slot(N_HISTORY))
    restored.set_breaker(CALM)  # the cool-down of what was halted goes on
    state = restored.market_states
    assert state is not None
    assert (state.level == HALT).all()
    assert all("cool-down" in row["reasons"] for row in state.to_dicts())


def test_another_breaker_policy_keeps_the_latches_of_bars_that_are_no_longer_kept(
    make_warm: Callable[..., Scorer], feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(market_states, "KEPT_BARS", 1)
    scorer = make_warm(breaker=HALTED)
    feed.observe(scorer, N_HISTORY)
    scorer.close_bar(slot(N_HISTORY))
    scorer.set_breaker(CALM)
    state = scorer.market_states
    assert state is not None
    assert (state.level == HALT).all()


def test_a_horizon_that_is_not_forecast_is_refused_and_a_default_one_gives_way(
    tiny_bundle: Path, warm: Scorer
) -> None:
    with pytest.raises(ConfigError, match=r"horizon is '4h'; the bundle forecasts 1h, 8h, 24h"):
        Scorer.load(tiny_bundle, breaker=BreakerPolicy(horizon="4h"))
    with pytest.raises(ConfigError, match=r"there is no policy file .*nowhere.toml"):
        Scorer.load(tiny_bundle, breaker="nowhere.toml")
    before = warm.breaker
    with pytest.raises(ConfigError, match=r"horizon is '4h'"):
        warm.set_breaker(BreakerPolicy(horizon="4h"))
    assert warm.breaker is before
    assert breaker_policy(None, ("1h", "8h")) == BreakerPolicy()
    assert breaker_policy(None, ("5m", "1h")) == BreakerPolicy(horizon="1h")


def test_telemetry_counts_the_bars_that_a_market_was_restricted_or_halted(
    make_warm: Callable[..., Scorer],
) -> None:
    scorer = make_warm(breaker=HALTED)
    assert scorer.telemetry.value("halted_bars", label="BTC") == 1
    assert scorer.telemetry.value("restricted_bars") == 0
    assert MARKET_STATES[HALT] == "halt"
