"""Filtered historical simulation against a slow implementation in plain Python."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.risk.accounts import AccountBook
from riskml.risk.engines import engine_names, get_engine
from riskml.risk.engines.fhs import (
    EWMA,
    SLOW,
    FhsRules,
    ewma,
    fhs_distances,
    fhs_rules,
    fhs_scales,
    residual_quantiles,
)
from riskml.risk.engines.interface import Distances, VenueState
from riskml.units import DAY, HOUR, to_us

NOW = to_us("2024-03-01T12:00")
HORIZONS = ("1h", "8h")
ENGINES = (EWMA, SLOW)
REFRESH = 24 * HOUR
N_CASES = 210


# ------------------------------------------------------- slow, from the formula in words


def slow_quantile(sample: list[float], level: float) -> float:
    """The linear interpolation between order statistics at rank ``level (n - 1)``."""
    ordered = sorted(sample)
    rank = level * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (rank - low) * (ordered[high] - ordered[low])


def slow_ewma(values: list[float], row: int, half_life: float) -> float:
    """Weighted mean of the rows up to ``row``, each weight by its age; NaN before 24 known rows."""
    known = [(row - place, value) for place, value in enumerate(values[: row + 1]) if not math.isnan(value)]
    if len(known) < 24:
        return math.nan
    weights = [0.5 ** (age / half_life) for age, _ in known]
    return sum(w * value for w, (_, value) in zip(weights, known, strict=True)) / sum(weights)


def slow_distance(case: dict[str, Any], engine: str, row: int, market: int, place: int, side: int) -> float:
    """Distance of one market, horizon and side at one bar, from everything that was known."""
    hours = (1, 8)[place]
    known: dict[tuple[str, int, int, int], float] = case.setdefault("scales", {})

    def scale(at: int, of: int) -> float:
        key = (engine, place, at, of)
        if key not in known:
            if engine == EWMA:
                variance = slow_ewma(case["variance"][:, of].tolist(), at, (6.0, 12.0)[place])
            else:
                variance = math.exp(case["log_slow"][at, of])
            known[key] = math.sqrt(variance * hours)
        return known[key]

    first = next(at for at in range(case["start"], row + 1) if same_period(case, at, row))
    samples: list[list[float]] = []
    for of in range(case["variance"].shape[1]):
        found = []
        for at in range(len(case["ts"])):
            if case["ts"][at] + hours * HOUR <= case["ts"][first]:
                residual = case["excursion"][at, of, place, side] / scale(at, of)
                if not math.isnan(residual):
                    found.append(residual)
        samples.append(found)
    pooled = [value for found in samples for value in found]
    if len(pooled) < case["rules"].min_residuals:
        return math.nan
    sample = samples[market] if len(samples[market]) >= case["rules"].min_residuals else pooled
    return scale(row, market) * slow_quantile(sample, case["rules"].level)


def same_period(case: dict[str, Any], one: int, other: int) -> bool:
    return bool(case["ts"][one] // REFRESH == case["ts"][other] // REFRESH)


def slow_rate(distances: list[float], short: bool, level_of: str) -> float:
    """Requirement of 1 USD from the distances at both horizons of the position's side."""
    rates = [
        1.0 if math.isnan(d) else (math.exp(d) - 1.0 if short else 1.0 - math.exp(-d)) for d in distances
    ]
    return rates[0] if level_of == "maintenance" else max(rates)


# ------------------------------------------------------- random histories


def rules_of(**changes: Any) -> FhsRules:
    return replace(fhs_rules(NOW), refresh="24h", **changes)


def make_case(number: int) -> dict[str, Any]:
    """60 bars of two markets; some rows missing, some samples too small, the refresh at any place."""
    generator = np.random.default_rng(number)
    n_bars, n_markets = 60, 2
    variance = generator.lognormal(-10.0, 1.0, (n_bars, n_markets))
    variance[generator.random((n_bars, n_markets)) < 0.05] = np.nan
    if number % 5 == 0:
        variance[:45, 1] = np.nan  # a young market
    excursion = np.abs(generator.standard_t(3, (n_bars, n_markets, 2, 2))) * 0.01
    excursion[generator.random(excursion.shape) < 0.05] = np.nan
    start = int(generator.integers(40, 59))
    return {
        "ts": NOW + (np.arange(n_bars) + int(generator.integers(0, 48))) * HOUR,
        "variance": variance,
        "log_slow": generator.normal(-10.0, 0.3, (n_bars, n_markets)),
        "excursion": excursion,
        "start": start,
        "row": int(generator.integers(start, n_bars)),
        "rules": rules_of(min_residuals=(5, 20, 40, 1000)[number % 4], level=(0.995, 0.9, 0.5)[number % 3]),
    }


CASES = [make_case(number) for number in range(N_CASES)]


def distances_of(case: dict[str, Any], engine: str) -> np.ndarray:
    """[n_markets, 2 horizons, 2] at the case's row, by the engine's formula."""
    fast = ewma(case["variance"], np.array([6.0, 12.0])) * np.array([1.0, 8.0])
    scale = fhs_scales(fast, case["log_slow"], (1.0, 8.0))[engine]
    rows = slice(case["start"], len(case["ts"]))
    found = fhs_distances(
        case["ts"],
        rows,
        scale,
        case["excursion"],
        HORIZONS,
        level=case["rules"].level,
        rules=case["rules"],
    )
    return np.asarray(found[case["row"] - case["start"]])


def book_of(positions: list[tuple[str, str, float, float]]) -> AccountBook:
    return AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": 1e6,
                "positions": [
                    {"venue": v, "symbol": s, "size": size, "entry_price": mark, "mark_price": mark}
                    for v, s, size, mark in positions
                ],
            }
        ]
    )


def state_of(engine: str, distances: dict[str, Any]) -> VenueState:
    return VenueState(distances={engine: Distances(HORIZONS, distances)})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", range(N_CASES))
def test_requirements_equal_the_slow_simulation(number: int, engine: str) -> None:
    case = CASES[number]
    found = distances_of(case, engine)
    random.seed(number)
    positions = [
        ("x", name, random.choice([-1.0, 1.0]) * random.lognormvariate(0, 2), random.lognormvariate(4, 2))
        for name in ("AAA", "BBB")
    ]
    state = state_of(engine, {"AAA": found[0], "BBB": found[1]})
    margins = get_engine(engine).margins(book_of(positions), None, NOW, state)
    expected = {"maintenance": [], "initial": []}
    for market, (_, _, size, mark) in enumerate(positions):
        distance = [
            slow_distance(case, engine, case["row"], market, place, int(size < 0)) for place in (0, 1)
        ]
        for kind, values in expected.items():
            values.append(abs(size) * mark * slow_rate(distance, size < 0, kind))
    assert margins.position_maintenance_usd == pytest.approx(expected["maintenance"], rel=1e-9)
    assert margins.maintenance_usd[0] == pytest.approx(sum(expected["maintenance"]), rel=1e-9)
    assert margins.initial_usd[0] == pytest.approx(sum(expected["initial"]), rel=1e-9)


def test_the_cases_reach_every_branch() -> None:
    known = [np.isfinite(distances_of(case, EWMA)[:, 0]).all() for case in CASES]
    assert 20 < sum(known) < N_CASES
    crossing = [case for case in CASES if not same_period(case, case["start"], case["row"])]
    edges = [case for case in CASES if case["ts"][case["row"]] % REFRESH == 0]
    assert len(crossing) > 20
    assert len(edges) > 2


# ------------------------------------------------------- the rules of the engines


def test_both_engines_are_registered() -> None:
    assert set(ENGINES) <= set(engine_names())
    for name in ENGINES:
        assert get_engine(name).name == name


@pytest.mark.parametrize(
    "state",
    [None, VenueState(), state_of(SLOW, {}), state_of(EWMA, {"BTC": np.full((2, 2), np.nan)})],
)
def test_a_market_without_history_is_asked_for_its_whole_notional(state: VenueState | None) -> None:
    book = book_of([("x", "BTC", -2.0, 50_000.0)])
    margins = get_engine(EWMA).margins(book, None, NOW, state)
    assert margins.maintenance_usd.tolist() == margins.initial_usd.tolist() == [100_000.0]


def test_a_venues_own_distance_goes_before_the_symbols() -> None:
    both = {"BTC": np.full((2, 2), 0.5), "x:BTC": np.full((2, 2), 0.1)}
    book = book_of([("x", "BTC", 1.0, 1.0), ("y", "BTC", 1.0, 1.0)])
    found = get_engine(SLOW).margins(book, None, NOW, state_of(SLOW, both)).position_maintenance_usd
    assert found == pytest.approx([1 - math.exp(-0.1), 1 - math.exp(-0.5)])


def test_initial_is_never_below_maintenance() -> None:
    state = state_of(EWMA, {"BTC": np.array([[0.3, 0.3], [0.1, 0.1]])})
    margins = get_engine(EWMA).margins(book_of([("x", "BTC", 1.0, 100.0)]), None, NOW, state)
    assert margins.initial_usd[0] == margins.maintenance_usd[0] == pytest.approx(100 * (1 - math.exp(-0.3)))


def test_a_live_price_re_marks_a_position() -> None:
    state = state_of(EWMA, {"BTC": np.full((2, 2), 0.2)})
    margins = get_engine(EWMA).margins(book_of([("x", "BTC", 1.0, 100.0)]), {"BTC": 300.0}, NOW, state)
    assert margins.maintenance_usd[0] == pytest.approx(300 * (1 - math.exp(-0.2)))


def test_an_empty_book_asks_for_nothing() -> None:
    margins = get_engine(EWMA).margins(book_of([]), None, NOW, VenueState())
    assert margins.maintenance_usd.tolist() == [0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 2), -0.1), r"distance of 'BTC' for 'fhs_ewma'.*not negative"),
        (np.full((2, 2), np.inf), r"finite log distances"),
        (np.full((1, 2), 0.1), r"state \(2, 2\) finite"),
        (np.full((2, 2), 800.0), r"beyond any price"),
    ],
)
def test_a_distance_that_cannot_be_is_refused(values: np.ndarray, message: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(DataError, match=message):
        get_engine(EWMA).margins(
            book_of([("x", "BTC", -1.0, 1.0)]), None, NOW, state_of(EWMA, {"BTC": values})
        )


def test_a_horizon_that_is_not_stated_is_named() -> None:
    state = VenueState(distances={EWMA: Distances(("1h",), {"BTC": np.full((1, 2), 0.1)})})
    with pytest.raises(DataError, match=r"no horizon '8h'.*found 1h"):
        get_engine(EWMA).margins(book_of([("x", "BTC", 1.0, 1.0)]), None, NOW, state)


def test_too_few_residuals_over_all_markets_give_nothing() -> None:
    sample = np.ones((4, 2, 2))
    assert np.isnan(residual_quantiles(sample, 0.995, 9)).all()
    assert (residual_quantiles(sample, 0.995, 8) == 1.0).all()


def test_parameters_are_dated_and_half_lives_changed_in_2024() -> None:
    assert fhs_rules(0).ewma_half_life["8h"] == "12h"
    assert fhs_rules(to_us("2024-07-01")).ewma_half_life["8h"] == "24h"
    assert fhs_rules(to_us("2024-07-01") - DAY).ewma_half_life["8h"] == "12h"
