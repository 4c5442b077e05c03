"""``riskml score``: decisions with market states, plans, liquidation prices and limits beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from riskml import cli
from riskml.backfill import warm_scorer
from riskml.scoring import load_bundle
from riskml.tables.book import read_book
from riskml.tables.lake import Lake
from riskml.units import HOUR, to_us

Said = pytest.CaptureFixture[str]

EVERYTHING_HALTED = "jump_watch = 1e-6\njump_restrict = 1e-6\njump_halt = 1e-6\n"


@pytest.fixture
def moment(last_days: list[str]) -> int:
    """A time between two bars at which the lake has accounts."""
    return to_us(last_days[-2]) + 7 * HOUR


def run(said: Said, bundle: Path, lake: Lake, moment: int, *options: str | Path) -> dict[str, Any]:
    words = ["score", "--bundle", bundle, "--lake", lake.path, "--at", _iso(moment), *options]
    assert cli.main([*map(str, words), "--json", "--quiet"]) == 0
    record: dict[str, Any] = json.loads(said.readouterr().out)
    return record


def _iso(moment: int) -> str:
    from riskml.units import format_us

    return format_us(moment)


def test_decisions_and_market_states_come_always_the_rest_when_asked(
    tiny_bundle: Path, lake: Lake, moment: int, capsys: Said
) -> None:
    plain = run(capsys, tiny_bundle, lake, moment)
    full = run(capsys, tiny_bundle, lake, moment, "--plans", "--prices")
    assert plain["decisions"] == full["decisions"]
    assert plain["market_states"] == full["market_states"]
    assert {"plans", "liquidation_prices", "leverage_limits"}.isdisjoint(plain)
    scorer, book = warm_scorer(load_bundle(tiny_bundle), lake, moment), read_book(lake, moment)
    assert full["market_states"] == scorer.market_states_at(moment)
    limits = json.loads(json.dumps(full["leverage_limits"]))
    assert limits["markets"] == scorer.leverage_limits(ts=moment).to_dict()["markets"]
    assert [row["account_id"] for row in limits["accounts"]] == book.account_id.tolist()
    assert full["liquidation_prices"] == scorer.liquidation_prices(book, moment).to_dicts()
    expected = [plan.to_dict() for plan in scorer.deleverage(book, ts=moment)]
    assert full["plans"] == json.loads(json.dumps(expected))
    at_deleverage = {row["account_id"] for row in full["decisions"] if row["action"] == "deleverage"}
    assert {plan["account_id"] for plan in full["plans"]} <= at_deleverage


def test_a_breaker_file_decides_the_states_and_what_holders_are_told(
    tiny_bundle: Path, lake: Lake, moment: int, tmp_path: Path, capsys: Said
) -> None:
    file = tmp_path / "breaker.toml"
    file.write_text(EVERYTHING_HALTED)
    usual = run(capsys, tiny_bundle, lake, moment)
    halted = run(capsys, tiny_bundle, lake, moment, "--breaker", file)
    assert {row["state"] for row in halted["market_states"]} == {"halt"}
    assert halted["counts"]["halted_markets"] == len(halted["market_states"])
    assert {row["state"] for row in usual["market_states"]} != {"halt"}
    for before, after in zip(usual["decisions"], halted["decisions"], strict=True):
        if after["contributions"]:
            assert {"entries-paused", "market-halted"} <= set(after["reasons"])
        told = before["reasons"], after["reasons"]
        assert {**before, "reasons": None} == {**after, "reasons": None}, told


def test_people_see_states_plans_prices_and_limits(
    tiny_bundle: Path, lake: Lake, moment: int, tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "breaker.toml").write_text(EVERYTHING_HALTED + "target = 'probability'\n")
    words = ["score", "--bundle", tiny_bundle, "--lake", lake.path, "--at", _iso(moment), "--quiet"]
    assert (
        cli.main([*map(str, words), "--plans", "--prices", "--breaker", str(tmp_path / "breaker.toml")]) == 0
    )
    text = capsys.readouterr().out
    for part in (
        "riskiest of 8 accounts",
        "3 of 3 markets not normal",
        "scale-jump",
        "pools to deleverage",
        "liquidation prices of these accounts",
        "together 24h",
        "largest leverage of a position of 10,000 USD",
        "margin used",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no policy file"),
        ("jump_wach = 2.0", "the breaker policy has no 'jump_wach'. Did you mean 'jump_watch'?"),
        ("horizon = '4h'", "the breaker policy's horizon is '4h'; the bundle forecasts 1h, 8h, 24h"),
        ("jump_watch = -1.0", "0 < jump_watch"),
    ],
)
def test_a_breaker_file_that_is_not_usable_is_wrong_usage(
    tiny_bundle: Path,
    lake: Lake,
    moment: int,
    tmp_path: Path,
    capsys: Said,
    content: str | None,
    message: str,
) -> None:
    file = tmp_path / "breaker.toml"
    if content is not None:
        file.write_text(content)
    words = ["score", "--bundle", tiny_bundle, "--lake", lake.path, "--at", _iso(moment), "--breaker", file]
    assert cli.main([*map(str, words), "--quiet"]) == 2
    assert message in capsys.readouterr().err
