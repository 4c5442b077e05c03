"""Chains out of reach and slow bridges through the scorer: the library on the inputs of a decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.risk.chain_outage import ChainOutage, chain_outage, slow_bridges
from riskml.risk.decisions import decide
from riskml.scoring import AccountBook, Scorer
from riskml.scoring.requirements import Scales
from riskml.units import HOUR, MINUTE

from .conftest import N_HISTORY, Feed, position, slot
from .test_account_calls import CALM, DEGRADED, degraded_scorer, inputs

NOW = slot(N_HISTORY - 1)
NUMBERS = ("requirement_usd", "stand_alone_usd", "shortfall_usd")


@pytest.fixture(scope="module")
def book() -> AccountBook:
    """BTC and ETH at home (arbitrum) and on solana, with collateral on either and on a third chain."""
    usdc = {"asset": "USDC", "price_usd": 1.0}
    accounts: dict[str, tuple[float, list[Any], list[Any]]] = {
        "home": (900.0, [position("BTC", 9_000.0)], [usdc | {"chain": "arbitrum", "amount": 900.0}]),
        "split": (
            500.0,
            [position("BTC", 9_000.0), position("ETH", -8_000.0, venue="drift")],
            [usdc | {"chain": "solana", "amount": 3_000.0}],
        ),
        "away": (0.0, [position("ETH", 6_000.0)], [usdc | {"chain": "ethereum", "amount": 4_000.0}]),
        "alone": (
            -50.0,
            [position("SOL", 5_000.0, margin_mode="isolated", isolated_margin_usd=3_000.0)],
            [],
        ),
        "idle": (100.0, [], []),
    }
    return AccountBook.from_dicts(
        [
            {"account_id": name, "cash_usd": cash, "positions": held, "collateral": pledged}
            for name, (cash, held, pledged) in accounts.items()
        ]
    )


def library(
    scorer: Scorer, book: AccountBook, chain: str | Sequence[str], ts: int, view: Scales
) -> ChainOutage:
    return chain_outage(
        book,
        chain,
        view.forecast,
        scorer.policy,
        law=scorer.bundle.account,
        ts=ts,
        maintenance_sigma=view.maintenance,
        quantiles=view.quantiles,
        **inputs(scorer, book, ts),
    )


def test_an_outage_through_the_scorer_is_the_librarys_and_never_milder_than_the_score(
    warm: Scorer, book: AccountBook
) -> None:
    scales, ts = warm._requirements.scales, NOW + 10 * MINUTE
    assert scales is not None
    decided = warm._engine(book, ts).decide(book)
    raised = 0
    for chain in ("arbitrum", "solana", "ethereum", ("solana", "arbitrum")):
        found, expected = warm.chain_outage(book, chain, ts), library(warm, book, chain, ts, scales)
        for name in NUMBERS:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        assert found.chain.tolist() == expected.chain.tolist()
        assert (found.requirement_usd >= [decided.initial_margin_usd, decided.maintenance_margin_usd]).all()
        lacking = [decided.initial_shortfall_usd, decided.maintenance_shortfall_usd]
        assert (found.shortfall_usd >= lacking).all()
        raised += int((found.requirement_usd[0] > 1.01 * decided.initial_margin_usd).sum())
    assert raised >= 4
    longer = warm.chain_outage(book, "arbitrum", ts, outage_h=24.0)
    assert longer.requirement_usd[0, 0] > 1.3 * warm.chain_outage(book, "arbitrum", ts).requirement_usd[0, 0]
    assert warm._requirements.actions == {}


def test_holders_of_a_degraded_market_get_the_largest_numbers_of_every_view(
    make_warm: Callable[..., Scorer], feed: Feed, book: AccountBook
) -> None:
    scorer = degraded_scorer(make_warm(breaker=CALM), feed)
    ts, of = slot(N_HISTORY + 1), scorer._requirements
    assert of.scales is not None
    newest = of.scales
    wilder = replace(
        newest,
        forecast=replace(newest.forecast, sigma=2.0 * newest.forecast.sigma),
        maintenance=2.0 * newest.maintenance,
    )
    of.anchors[NOW - HOUR] = wilder  # a last sound bar that was twice as wild
    views = [
        library(scorer, book, "arbitrum", ts, view) for view in (of.scales, *of.anchors.values(), *of.floors)
    ]
    found, decided = scorer.chain_outage(book, "arbitrum"), scorer.what_if(book)
    touched = (decided.reasons & DEGRADED) > 0
    assert touched.tolist() == [False, True, True, False, False]
    for name in NUMBERS:
        values = [getattr(view, name) for view in views]
        np.testing.assert_array_equal(getattr(found, name)[:, touched], np.max(values, axis=0)[:, touched])
        np.testing.assert_array_equal(getattr(found, name)[:, ~touched], values[0][:, ~touched])
    needs = np.array([view.requirement_usd for view in views])
    assert (needs[1:].max(axis=0) > 1.5 * needs[0])[:, touched].all()
    assert (found.requirement_usd >= [decided.initial_margin_usd, decided.maintenance_margin_usd]).all()


def test_slow_bridges_through_the_scorer_are_the_librarys_conditions(warm: Scorer, book: AccountBook) -> None:
    scales, now = warm._requirements.scales, warm.what_if(book)
    assert scales is not None
    given = inputs(warm, book, NOW)
    for hours in (None, 0.0, 24.0):
        slow = given | {"conditions": slow_bridges(given["conditions"], NOW, hours)}
        expected = decide(
            book,
            scales.forecast,
            warm.policy,
            law=warm.bundle.account,
            ts=NOW,
            market_law=scales.market_law,
            **slow,
        )
        found = warm.slow_bridges(book, hours)
        for name in ("equity_usd", "collateral_usd", "initial_margin_usd", "maintenance_margin_usd"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        cut = found.collateral_usd < now.collateral_usd
        assert cut.tolist() == [False, False, hours == 24.0, False, False]  # ethereum's exit is its transfer
    assert warm._requirements.actions == {}


@pytest.mark.parametrize(
    ("chain", "row", "message"),
    [
        ("solanna", 0, "the chain 'solanna' is not known. Did you mean 'solana'"),
        (("solana", "aribtrum"), 1, "Did you mean 'arbitrum'"),
        ("", 0, "the chain '' is not known"),
        ([None], 0, "the chain None is not known"),
        (None, None, "a chain has to be a name, found None"),
        (3, None, "a chain has to be a name, found 3"),
    ],
)
def test_a_chain_that_nobody_knows_is_refused(
    warm: Scorer, book: AccountBook, chain: Any, row: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as raised:
        warm.chain_outage(book, chain)
    assert (raised.value.table, raised.value.row) == ("chains", row)
    assert raised.value.fix


def test_a_chain_of_the_book_without_facts_may_be_out(warm: Scorer) -> None:
    warm._prices._prices.clear()  # the marks of the book hold
    row = {"chain": "own", "asset": "USDC", "amount": 900.0, "price_usd": 1.0}
    held = {"account_id": "a", "cash_usd": 0.0, "positions": [position("BTC", 1_000.0)], "collateral": [row]}
    found = warm.chain_outage(AccountBook.from_dicts([held]), "own")
    assert found.chain.tolist() == ["own"]
    assert found.shortfall_usd[0, 0] == pytest.approx(found.stand_alone_usd[0, 0])


@pytest.mark.parametrize("hours", [np.nan, -1.0, "1", True, np.inf])
def test_hours_that_are_none_are_refused(warm: Scorer, book: AccountBook, hours: Any) -> None:
    with pytest.raises(ConfigError, match="an outage lasts a finite number of hours, found"):
        warm.chain_outage(book, "solana", outage_h=hours)
    if hours is not np.inf:
        with pytest.raises(ConfigError, match="a delay is a number of hours >= 0, found"):
            warm.slow_bridges(book, hours)
    with pytest.raises(ConfigError, match="an outage of no chain at all is none"):
        warm.chain_outage(book, [])


@pytest.mark.parametrize("call", ["chain_outage", "slow_bridges"])
def test_before_the_first_bar_and_in_the_past_both_are_refused(
    warm: Scorer, tiny_bundle: Any, book: AccountBook, call: str
) -> None:
    more = ("solana",) if call == "chain_outage" else (1.0,)
    with pytest.raises(DataError, match="no bar was closed yet"):
        getattr(Scorer.load(tiny_bundle), call)(book, *more)
    with pytest.raises(DataError, match="the clock went backwards"):
        getattr(warm, call)(book, *more, NOW - 1)
    getattr(warm, call)(book, *more, NOW + 30 * HOUR)
    assert warm.score(book, NOW + 1).ts == NOW + 1  # not even the moment is remembered
