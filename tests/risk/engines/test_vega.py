"""Vega against a slow reading of its closed form, the number that its source tests, and the definition."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext
from functools import cache
from statistics import NormalDist

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.facts import load_facts
from riskml.risk import AccountBook
from riskml.risk.engines.interface import VenueState
from riskml.risk.engines.vega import (
    LogNormalModel,
    ScalingFactors,
    VegaEngine,
    normal_cdf,
    risk_model,
    scaling_factors,
)
from riskml.units import to_us

FIRST, EARLY, NOW = to_us("2023-11-01"), to_us("2024-03-01"), to_us("2025-09-01")
DIGITS = 70

# The slow reading: Phi by its power series, Phi^-1 by bisection, all to seventy digits.


def pi() -> Decimal:
    """Machin: 16 atan(1 / 5) - 4 atan(1 / 239)."""

    def atan(inverse: int) -> Decimal:
        term, total, odd = Decimal(1) / inverse, Decimal(0), 1
        while abs(term) > Decimal(10) ** -(DIGITS + 5):
            total += term / odd if odd % 4 == 1 else -term / odd
            term, odd = term / (inverse * inverse), odd + 2
        return total

    return 16 * atan(5) - 4 * atan(239)


def slow_cdf(x: Decimal) -> Decimal:
    """Phi(x) = 1 / 2 + phi(x) (x + x^3 / 3 + x^5 / (3 5) + ...)."""
    term, total, odd = x, x, 1
    while abs(term) > Decimal(10) ** -(DIGITS + 20):
        odd += 2
        term = term * x * x / odd
        total += term
    return Decimal("0.5") + (-x * x / 2).exp() / (2 * pi()).sqrt() * total


@cache
def slow_quantile(probability: str) -> Decimal:
    with localcontext() as context:
        context.prec = DIGITS + 40
        low, high, goal = Decimal(-12), Decimal(12), Decimal(probability)
        for _ in range(220):
            middle = (low + high) / 2
            low, high = (middle, high) if slow_cdf(middle) < goal else (low, middle)
        return low


@cache
def slow_factors(risk_aversion: str, tau: str, mu: str, sigma: str) -> tuple[float, float]:
    with localcontext() as context:
        context.prec = DIGITS + 40
        shift = Decimal(sigma) * Decimal(tau).sqrt()
        growth = (Decimal(mu) * Decimal(tau)).exp() / Decimal(risk_aversion)
        quantile = slow_quantile(risk_aversion)
        return float(1 - growth * slow_cdf(quantile - shift)), float(growth * slow_cdf(quantile + shift) - 1)


# The corners of what the network accepts, the values of the markets, and common ones between.
LAMBDAS = ("1e-8", "1e-6", "0.0001", "0.01", "0.1", "0.5")
TAUS = ("1e-8", "0.00000305", "0.000003995", "0.000009506426342", "0.0001140771161", "0.01", "1")
SIGMAS = ("0.001", "0.05", "0.5", "1.0", "1.15", "1.5", "3.0")
DRIFTS = itertools.cycle(("0", "0.000001", "-0.000001", "0", "0.3"))
CASES = [(lam, tau, next(DRIFTS), sigma) for lam, tau, sigma in itertools.product(LAMBDAS, TAUS, SIGMAS)]


def test_there_are_enough_golden_vectors() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize(("risk_aversion", "tau", "mu", "sigma"), CASES)
def test_risk_factors_equal_the_slow_ones(risk_aversion: str, tau: str, mu: str, sigma: str) -> None:
    model = LogNormalModel(float(risk_aversion), float(tau), float(mu), float(sigma))
    long, short = slow_factors(risk_aversion, tau, mu, sigma)
    # both are differences from 1, so their last digits are those of 1
    assert model.risk_factor_long == pytest.approx(long, rel=1e-9, abs=1e-13)
    assert model.risk_factor_short == pytest.approx(short, rel=1e-9, abs=1e-13)


def test_the_distribution_function_keeps_its_digits_in_the_tail() -> None:
    for probability in LAMBDAS:
        quantile = slow_quantile(probability)
        assert normal_cdf(float(quantile)) == pytest.approx(float(probability), rel=2e-14)
        assert NormalDist().inv_cdf(float(probability)) == pytest.approx(
            float(quantile), rel=1e-14, abs=1e-15
        )
    assert normal_cdf(0.0) == 0.5
    assert normal_cdf(40.0) == 1.0


def test_the_number_of_the_source_is_met() -> None:
    # vegaprotocol/quant, riskmodelbs/forwards_test.go: sigma 150 %, one minute, lambda 1 %
    model = LogNormalModel(0.01, 1.0 / 365 / 24 / 60, 0.0, 1.5)
    assert model.risk_factor_short == pytest.approx(5.5276558362e-03, abs=1e-12)
    assert model.risk_factor_long == pytest.approx(5.5011137953e-03, abs=1e-12)


@pytest.mark.parametrize(
    ("model", "long", "short"),
    [
        # lambda = 1 / 2: q = 0; s = 1: Phi(-1) = .158655253931, Phi(1) = .841344746069
        (LogNormalModel(0.5, 1.0, 0.0, 1.0), 1.0 - 2 * 0.158655253931, 2 * 0.841344746069 - 1.0),
        # s = 1.5 x sqrt(.01) = .15: Phi(-.15) = .440382307629
        (LogNormalModel(0.5, 0.01, 0.0, 1.5), 1.0 - 2 * 0.440382307629, 2 * 0.559617692371 - 1.0),
        # a drift of ln 1.1: the mean low is .317310507863 x 1.1, the mean high 1.682689492137 x 1.1
        (LogNormalModel(0.5, 1.0, math.log(1.1), 1.0), 0.650958441351, 0.850958441351),
        # no volatility: nothing but the drift
        (LogNormalModel(0.01, 1.0, 0.0, 0.0), 0.0, 0.0),
        # far out: a long loses everything, a short 1 / lambda - 1 times its notional
        (LogNormalModel(0.01, 1.0, 0.0, 50.0), 1.0, 99.0),
    ],
)
def test_the_closed_form_gives_the_values_worked_out_by_hand(
    model: LogNormalModel, long: float, short: float
) -> None:
    assert model.risk_factor_long == pytest.approx(long, abs=1e-11)
    assert model.risk_factor_short == pytest.approx(short, abs=1e-11)


@pytest.mark.parametrize(("risk_aversion", "sigma"), [(0.01, 1.0), (0.05, 0.3), (0.2, 2.0)])
def test_a_factor_is_the_mean_loss_in_the_worst_part_of_outcomes(risk_aversion: float, sigma: float) -> None:
    # mean over u in (0, lambda) of 1 - exp((mu - sigma^2 / 2) tau + s Phi^-1(u)), and its mirror
    tau, n = 0.05, 20_000
    shift, drift = sigma * math.sqrt(tau), -0.5 * sigma**2 * tau
    points = [NormalDist().inv_cdf((k + 0.5) / n * risk_aversion) for k in range(n)]
    falls = sum(1.0 - math.exp(drift + shift * point) for point in points) / n
    rises = sum(math.exp(drift - shift * point) - 1.0 for point in points) / n
    model = LogNormalModel(risk_aversion, tau, 0.0, sigma)
    assert model.risk_factor_long == pytest.approx(falls, rel=1e-4)
    assert model.risk_factor_short == pytest.approx(rises, rel=1e-4)


def test_more_volatility_a_longer_horizon_or_a_thinner_tail_never_needs_less() -> None:
    base = LogNormalModel(1e-4, 1e-5, 0.0, 1.0)
    ladders = [
        [LogNormalModel(1e-4, 1e-5, 0.0, sigma) for sigma in (1e-3, 0.01, 0.1, 1.0, 10.0, 50.0)],
        [LogNormalModel(1e-4, tau, 0.0, 1.0) for tau in (1e-8, 1e-6, 1e-4, 1e-2, 1.0)],
        [LogNormalModel(lam, 1e-5, 0.0, 1.0) for lam in (0.5, 0.1, 0.01, 1e-4, 1e-6, 1e-8)],
    ]
    for ladder in ladders:
        long = [model.risk_factor_long for model in ladder]
        short = [model.risk_factor_short for model in ladder]
        assert long == sorted(long)
        assert short == sorted(short)
        assert all(0.0 < low <= 1.0 and low <= high for low, high in zip(long, short, strict=True))
    assert base.risk_factor_short > base.risk_factor_long


@pytest.mark.parametrize(
    ("risk_aversion", "tau", "sigma"),
    [
        (0.0, 1.0, 1.0),
        (1.0, 1.0, 1.0),
        (-0.1, 1.0, 1.0),
        (float("nan"), 1.0, 1.0),
        (0.1, 0.0, 1.0),
        (0.1, float("nan"), 1.0),
        (0.1, 1.0, -1e-9),
        (0.1, 1.0, float("inf")),
        (0.1, 1.0, float("nan")),
    ],
)
def test_a_model_that_no_market_can_have_is_refused(risk_aversion: float, tau: float, sigma: float) -> None:
    with pytest.raises(DataError, match="no log-normal risk model has lambda"):
        LogNormalModel(risk_aversion, tau, 0.0, sigma)


# Facts.


@pytest.mark.parametrize(
    ("symbol", "ts", "model"),
    [
        ("BTC", NOW, LogNormalModel(1e-6, 3.995e-6, 0.0, 1.0)),
        ("ETH", NOW, LogNormalModel(1e-6, 3.05e-6, 0.0, 1.15)),
        ("LINK", NOW, LogNormalModel(1e-6, 9.506426342e-6, 0.0, 1.5)),
        ("NEVERLISTED", NOW, LogNormalModel(1e-6, 9.506426342e-6, 0.0, 1.5)),
        ("BTC", EARLY, LogNormalModel(1e-6, 9.506426342e-6, 0.0, 1.5)),
        ("ETH", EARLY, LogNormalModel(1e-6, 9.506426342e-6, 0.0, 1.5)),
    ],
)
def test_a_market_has_the_model_of_its_time(symbol: str, ts: int, model: LogNormalModel) -> None:
    assert risk_model(symbol, ts) == model


def test_the_stated_volatility_goes_before_the_markets_own_but_not_below_the_networks_least() -> None:
    assert risk_model("BTC", NOW, 0.7).sigma == 0.7
    assert risk_model("BTC", NOW, 60.0).sigma == 60.0
    assert [risk_model("BTC", NOW, value).sigma for value in (0.0, 0.0009, 0.001, 0.0011)] == [
        0.001,
        0.001,
        0.001,
        0.0011,
    ]


@pytest.mark.parametrize("symbol", ["BTC", "ETH"])
def test_the_markets_have_the_leverage_that_their_proposal_expected(symbol: str) -> None:
    # VMP-33: "an initial leverage of ~50x and a max leverage of ~100x"
    model = risk_model(symbol, NOW)
    assert 1.0 / model.risk_factor_long == pytest.approx(100.0, rel=0.03)
    assert 1.0 / (model.risk_factor_long * scaling_factors(NOW).initial_margin) == pytest.approx(
        50.0, rel=0.03
    )


def test_an_unlisted_market_needs_at_least_as_much_as_every_listed_one() -> None:
    unlisted = risk_model("NEVERLISTED", NOW)
    for symbol in load_facts("vega_risk_models")["market"]:
        assert unlisted.risk_factor_long >= risk_model(symbol, NOW).risk_factor_long
        assert unlisted.risk_factor_short >= risk_model(symbol, NOW).risk_factor_short


def test_the_scaling_factors_are_those_of_their_time_and_in_order() -> None:
    assert scaling_factors(NOW) == scaling_factors(EARLY) == ScalingFactors(1.2, 2.0, 2.4)
    assert scaling_factors(FIRST) == ScalingFactors(1.1, 1.5, 1.7)
    for entry in load_facts("vega_risk_models")["scaling"]:
        assert 1.0 < entry["search_level"] < entry["initial_margin"] < entry["collateral_release"]


def test_every_fact_is_dated_and_sourced() -> None:
    facts = load_facts("vega_risk_models")
    for entries in [*facts["market"].values(), facts["default"], facts["scaling"], facts["range"]]:
        assert all(entry["source"] and entry["valid_from"] for entry in entries)


def test_a_time_before_the_facts_is_refused() -> None:
    for symbol in ("BTC", "NEVERLISTED"):
        with pytest.raises(ConfigError, match="no entry is in force at 2023-10-12"):
            risk_model(symbol, to_us("2023-10-12"))
    with pytest.raises(ConfigError, match="no entry is in force at 2020-01-01"):
        VegaEngine().margins(BOOK, None, to_us("2020-01-01"))


# The engine over a book.

BOOK = AccountBook.from_dicts(
    [
        {
            "account_id": "a",
            "cash_usd": 1_000.0,
            "positions": [
                {"venue": "vega", "symbol": "BTC", "size": 2.0, "mark_price": 50_000.0},
                {"venue": "vega", "symbol": "ETH", "size": -10.0, "mark_price": 2_000.0},
                {"venue": "other", "symbol": "BTC", "size": -1.0, "mark_price": 50_000.0},
            ],
        },
        {"account_id": "idle", "cash_usd": 5.5},
        {
            "account_id": "c",
            "cash_usd": 0.0,
            "positions": [{"venue": "vega", "symbol": "NEVERLISTED", "size": -3.0, "mark_price": 10.0}],
        },
    ]
)


def test_the_engine_adds_up_positions_at_live_prices() -> None:
    state = VenueState(volatility={"vega:BTC": 0.5, "BTC": 3.0})
    margins = VegaEngine().margins(BOOK, {"BTC": 60_000.0}, NOW, state)
    held = [
        120_000.0 * slow_factors("1e-6", "0.000003995", "0", "0.5")[0],
        20_000.0 * slow_factors("1e-6", "0.00000305", "0", "1.15")[1],
        60_000.0 * slow_factors("1e-6", "0.000003995", "0", "3.0")[1],
        30.0 * slow_factors("1e-6", "0.000009506426342", "0", "1.5")[1],
    ]
    assert margins.position_maintenance_usd == pytest.approx(held, rel=1e-10)
    assert margins.maintenance_usd == pytest.approx([sum(held[:3]), 0.0, held[3]], rel=1e-10)
    assert margins.initial_usd == pytest.approx([2.0 * sum(held[:3]), 0.0, 2.0 * held[3]], rel=1e-10)
    assert margins.equity_usd is None


def test_the_initial_margin_has_the_scaling_factor_of_its_time() -> None:
    margins = VegaEngine().margins(BOOK, None, FIRST)
    assert margins.initial_usd.tolist() == (1.5 * margins.maintenance_usd).tolist()


def test_a_short_needs_more_than_a_long_and_twice_the_size_twice_the_margin() -> None:
    def maintenance(size: float) -> float:
        position = {"venue": "vega", "symbol": "BTC", "size": size, "mark_price": 50_000.0}
        book = AccountBook.from_dicts([{"account_id": "a", "cash_usd": 0.0, "positions": [position]}])
        return float(VegaEngine().margins(book, None, NOW).maintenance_usd[0])

    assert maintenance(-1.0) > maintenance(1.0) > 0.0
    sizes = (0.001, 0.5, 1.0, 1.0 + 1e-9, 2.0, 1e6)
    for side in (1.0, -1.0):
        margins = [maintenance(side * size) for size in sizes]
        assert margins == sorted(margins)
        assert margins[4] == pytest.approx(2.0 * margins[2])


def test_a_volatility_that_is_not_stated_is_the_markets_own() -> None:
    missing = VegaEngine().margins(BOOK, None, NOW)
    own = VegaEngine().margins(
        BOOK, None, NOW, VenueState(volatility={"BTC": 1.0, "ETH": 1.15, "NEVERLISTED": 1.5})
    )
    assert missing.maintenance_usd.tolist() == own.maintenance_usd.tolist()
    calm = VegaEngine().margins(BOOK, None, NOW, VenueState(volatility=dict.fromkeys(("BTC", "ETH"), 0.0)))
    assert 0.0 < calm.maintenance_usd[0] < missing.maintenance_usd[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_a_volatility_that_is_not_a_number_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="volatility of 'BTC' is"):
        VegaEngine().margins(BOOK, None, NOW, VenueState(volatility={"BTC": value}))


def test_a_book_without_positions_needs_nothing() -> None:
    margins = VegaEngine().margins(AccountBook.from_dicts([{"account_id": "a", "cash_usd": 1.0}]), None, NOW)
    assert margins.initial_usd.tolist() == margins.maintenance_usd.tolist() == [0.0]
    assert np.shape(margins.position_maintenance_usd) == (0,)
