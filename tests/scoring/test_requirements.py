"""What requirements remember from bar to bar, on forecasts made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from riskml.errors import ConfigError
from riskml.markets import Market
from riskml.risk.reasons import REASONS
from riskml.scoring import AccountBook, MarginPolicy, load_bundle
from riskml.scoring.guards import STALE_INPUT, GuardedForecast
from riskml.scoring.requirements import Requirements
from riskml.scoring.session import LoadedBundle, MarketOutput

from .conftest import position, slot

MARKETS = [Market("BTC", "sim"), Market("ETH", "sim")]
FULL_OFFSETS = MarginPolicy(
    offset_cap=1.0,
    correlation_stress=0.0,
    floor=0.0,
    initial_floor=0.0,
    slow_weight=0.0,
    stressed_floor=0.0,
    concentration_rate=0.0,
)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> LoadedBundle:
    return load_bundle(tiny_bundle)


def bar(number: int, btc: float, eth: float, *, eth_degraded: bool = False) -> GuardedForecast:
    sigma = (
        np.array([btc, eth])[:, None, None] * np.array([1.0, 2.8, 4.9])[None, :, None] * np.ones((1, 1, 2))
    )
    output = MarketOutput(
        sigma=sigma,
        nu=np.full((2, 3), 4.0),
        variance=sigma[:, :, 0] ** 2,
        stress=np.full((2, 3), 0.01),
        loadings=np.array([[0.95, 0.0], [0.95, 0.0]]),
    )
    degraded = np.array([0, STALE_INPUT if eth_degraded else 0], dtype=np.uint8)
    return GuardedForecast(slot(number), output, degraded)


def account(*positions: dict[str, object], cash: float = 4_000.0) -> AccountBook:
    return AccountBook.from_dicts([{"account_id": "a", "cash_usd": cash, "positions": list(positions)}])


def test_a_hedge_that_is_held_up_does_not_lower_the_requirement(bundle: LoadedBundle) -> None:
    hedged = account(position("BTC", 10_000.0), position("ETH", -6_000.0))
    requirements = Requirements(bundle, FULL_OFFSETS)
    requirements.take(bar(0, 0.01, 0.01), MARKETS)
    sound = requirements.decide(hedged, slot(0), {})
    naive = Requirements(bundle, FULL_OFFSETS)
    naive.take(bar(1, 0.01, 0.014), MARKETS)
    assert naive.decide(hedged, slot(1), {}).initial_margin_usd[0] < sound.initial_margin_usd[0]
    requirements.take(bar(1, 0.01, 0.014, eth_degraded=True), MARKETS)
    held = requirements.decide(hedged, slot(1), {})
    assert held.initial_margin_usd[0] >= sound.initial_margin_usd[0]
    assert held.maintenance_margin_usd[0] >= sound.maintenance_margin_usd[0]
    assert held.liquidation_probability[0, 1] >= sound.liquidation_probability[0, 1]


def test_an_account_without_the_degraded_market_follows_the_forecast_alone(bundle: LoadedBundle) -> None:
    plain = account(position("BTC", 10_000.0))
    requirements = Requirements(bundle, FULL_OFFSETS)
    requirements.take(bar(0, 0.02, 0.01), MARKETS)
    before = requirements.decide(plain, slot(0), {})
    requirements.take(bar(1, 0.01, 0.01, eth_degraded=True), MARKETS)
    assert requirements.decide(plain, slot(1), {}).initial_margin_usd[0] < before.initial_margin_usd[0]


def test_anchors_are_let_go_with_the_first_sound_bar(bundle: LoadedBundle) -> None:
    requirements = Requirements(bundle, FULL_OFFSETS)
    kept = []
    for number, degraded in enumerate((False, True, True, False, False)):
        requirements.take(bar(number, 0.01, 0.01, eth_degraded=degraded), MARKETS)
        kept.append(list(requirements.anchors))
    assert kept == [[], [slot(0)], [slot(0)], [], []]


def test_the_worse_of_two_views_counts_for_what_pools_lack_and_have_to_spare(bundle: LoadedBundle) -> None:
    alone = position("ETH", 5_000.0) | {"margin_mode": "isolated", "isolated_margin_usd": 100_000.0}
    requirements = Requirements(bundle, FULL_OFFSETS)
    spare, lacking = [], []
    for number, (scale, degraded) in enumerate(((0.04, False), (0.004, True))):
        requirements.take(bar(number, scale, scale, eth_degraded=degraded), MARKETS)
        poor, rich = (
            requirements.decide(account(position("BTC", 10_000.0), alone, cash=cash), slot(number), {})
            for cash in (300.0, 50_000.0)
        )
        lacking.append([poor.initial_shortfall_usd[0], poor.maintenance_shortfall_usd[0]])
        spare.append(rich.initial_spare_usd[0])
    # The account touches a degraded market: its last sound bar was the stricter one.
    assert lacking[0][0] > lacking[0][1] > 0.0
    np.testing.assert_allclose(lacking[1], lacking[0], rtol=1e-9)
    assert spare[1] == pytest.approx(spare[0])


def test_maintenance_rises_at_a_limited_rate_and_initial_at_once(bundle: LoadedBundle) -> None:
    policy = MarginPolicy(rate_limit_per_hour=0.1, slow_weight=0.0, stressed_floor=0.0)
    plain = account(position("BTC", 10_000.0))
    requirements = Requirements(bundle, policy)
    requirements.take(bar(0, 0.01, 0.01), MARKETS)
    before = requirements.decide(plain, slot(0), {})
    requirements.take(bar(1, 0.02, 0.02), MARKETS)
    after = requirements.decide(plain, slot(1), {})
    assert after.initial_margin_usd[0] > 1.8 * before.initial_margin_usd[0]
    assert after.maintenance_margin_usd[0] == pytest.approx(1.1 * before.maintenance_margin_usd[0], rel=0.01)
    assert int(after.reasons[0]) >> REASONS.index("rate-limited") & 1


def test_actions_are_remembered_unless_asked_not_to(bundle: LoadedBundle) -> None:
    thin = account(position("BTC", 10_000.0), cash=300.0)
    requirements = Requirements(bundle, MarginPolicy())
    requirements.take(bar(0, 0.01, 0.01), MARKETS)
    assert requirements.decide(thin, slot(0), {}, remember=False).action[0] > 0
    assert requirements.actions == {}
    action = int(requirements.decide(thin, slot(0), {}).action[0])
    requirements.decide(thin, slot(0) + 60, {})
    assert requirements.actions == {"a": (action, slot(0))}


def test_arrays_bring_everything_back(bundle: LoadedBundle) -> None:
    book = account(position("BTC", 10_000.0), position("ETH", -6_000.0))
    first = Requirements(bundle, FULL_OFFSETS)
    for number, degraded in enumerate((False, True)):
        first.take(bar(number, 0.01, 0.014, eth_degraded=degraded), MARKETS)
    first.decide(book, slot(1), {})
    second = Requirements(bundle, FULL_OFFSETS)
    second.from_arrays(first.to_arrays(), MARKETS)
    assert list(second.anchors) == list(first.anchors)
    assert (second.last_sound, second.actions) == (first.last_sound, first.actions)
    assert second.forecast.degraded_reasons == ("", "stale-input")
    one, other = first.decide(book, slot(2), {}), second.decide(book, slot(2), {})
    np.testing.assert_array_equal(one.initial_margin_usd, other.initial_margin_usd)


@pytest.mark.parametrize(("apc", "named"), [("none", False), ("a", True), ("b", True), ("c", True)])
def test_anti_procyclicality_is_named_where_it_raises_maintenance(
    bundle: LoadedBundle, apc: str, named: bool
) -> None:
    requirements = Requirements(bundle, MarginPolicy(apc=apc, stressed_floor=0.0))  # type: ignore[arg-type]
    requirements.take(bar(0, 0.001, 0.001), MARKETS)
    decisions = requirements.decide(account(position("BTC", 10_000.0)), slot(0), {})
    assert bool(int(decisions.reasons[0]) >> REASONS.index("anti-procyclical") & 1) == named


def test_a_policy_horizon_that_the_bundle_lacks_is_refused_at_once(bundle: LoadedBundle) -> None:
    with pytest.raises(ConfigError, match=r"initial_horizon is '12h'; the bundle forecasts 1h, 8h, 24h"):
        Requirements(bundle, MarginPolicy(initial_horizon="12h"))
