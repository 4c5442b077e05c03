"""What live rows say of market states, backfilled rows say too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from riskml.backfill import backfill, local, score_at, warm_scorer
from riskml.backfill.context import first_closes, read_context
from riskml.errors import ConfigError
from riskml.markets import Market
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.outcome import Decisions
from riskml.risk.reasons import reason_names
from riskml.scoring import load_bundle
from riskml.scoring.conditions import ChainStress, chain_stress_at, conditions_at
from riskml.tables.align import to_columns
from riskml.tables.book import read_book
from riskml.tables.lake import Lake
from riskml.units import DAY, HOUR, format_us, to_us

QUIET = BreakerPolicy(stress_watch=1.0, stress_restrict=1.0, stress_halt=1.0)
TOUCHY = replace(QUIET, jump_watch=1.0, jump_restrict=1.1, jump_halt=1.2)
"""Thresholds that the sample's scales cross now and then."""
OF_CHAINS = replace(
    QUIET,
    jump_watch=99.0,
    jump_restrict=99.0,
    jump_halt=99.0,
    chain_stress_watch=0.01,
    chain_stress_restrict=0.025,
    chain_stress_halt=0.037,
    hysteresis=1.0,
)
"""Goes by the stress of the chain alone, which the daily rows of the sample move."""
TABLES = ("bars", "marks", "funding", "open_interest", "liquidations", "flows", "chains", "pegs")
BEGIN = to_us("2024-06-28")
HOURS = 30

Reasons = dict[tuple[int, str], list[str]]


def of_states(found: Reasons) -> Reasons:
    """Only what market states say."""
    kept = ("entries-paused", "market-halted")
    return {key: [name for name in names if name in kept] for key, names in found.items()}


def told(decisions: Decisions) -> Reasons:
    rows = zip(decisions.account_id.tolist(), decisions.reasons.tolist(), strict=True)
    return {(decisions.ts, name): reason_names(bits) for name, bits in rows}


def batch(bundle: Path, lake: Lake, out: Path, breaker: BreakerPolicy | None, start: int = BEGIN) -> Reasons:
    """Of the range, by a backfill that starts then or earlier."""
    backfill(bundle, lake, out, start=start, end=BEGIN + HOURS * HOUR, breaker=breaker)
    rows = Lake(out).read("margins", start=BEGIN).to_pylist()
    return {(to_us(row["ts"]), row["account_id"]): row["reasons"].split("|") for row in rows}


def live(bundle: Path, lake: Lake, breaker: BreakerPolicy | None) -> Reasons:
    """Of one scorer that lives through the range, bar by bar."""
    scorer = warm_scorer(load_bundle(bundle), lake, BEGIN, breaker=breaker)
    found: Reasons = {}
    for ts in range(BEGIN, BEGIN + HOURS * HOUR, HOUR):
        if ts > BEGIN:
            for table in TABLES:
                rows = lake.read(table, start=ts - 3 * DAY, end=ts + 1, known_by=ts)
                fresh = rows.filter(pc.greater(rows["known_at"].cast(pa.int64()), ts - HOUR))
                if fresh.num_rows:
                    scorer.observe(table, to_columns(fresh))
            scorer.close_bar(ts)
        found |= told(scorer.score(read_book(lake, ts), ts))
    return found


@pytest.mark.parametrize(("breaker", "named"), [(TOUCHY, 2), (OF_CHAINS, 2), (None, 0)])
def test_a_backfilled_row_has_the_reasons_of_a_live_one(
    tiny_bundle: Path, lake: Lake, tmp_path: Path, breaker: BreakerPolicy | None, named: int
) -> None:
    expected = live(tiny_bundle, lake, breaker)
    found = batch(tiny_bundle, lake, tmp_path, breaker)
    assert len(found) == len(expected) == 8 * HOURS
    assert of_states(found) == of_states(expected)
    first_day = [key for key in expected if key[0] < BEGIN + DAY]  # then a backfill forgets actions
    assert {key: found[key] for key in first_day} == {key: expected[key] for key in first_day}
    # Holders are told, in some hours more than in others.
    kinds = {"|".join(names) for names in of_states(expected).values()}
    assert len(kinds - {""}) == named
    of_account = {name: set() for _, name in expected}
    for (_, name), names in of_states(expected).items():
        of_account[name].add("|".join(names))
    assert max(map(len, of_account.values())) == named + 1
    at_once = told(score_at(tiny_bundle, lake, BEGIN + 7 * HOUR, breaker=breaker))
    assert of_states(at_once) == of_states({key: expected[key] for key in at_once})


@pytest.fixture(scope="module")
def outflow(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The sample, but with an outflow 6.5 days before the range that is odd only without those of 34 days."""
    result = Lake(tmp_path_factory.mktemp("outflow") / "lake")
    for table in ("bars", "marks", "funding", "accounts", "collateral", "positions", "orders"):
        result.write(table, lake.read(table))
    days = np.arange(-59, 1)
    net = np.where(days % 2, 1e5, -1e5)
    net[days == -33] = -1e9
    net[days == -6] = -3e6
    ts = BEGIN - DAY // 2 + DAY * days
    text = {"chain": "arbitrum", "asset": "ALL", "source": "sim"}
    times = {name: pa.array(ts, pa.int64()).cast(pa.timestamp("us", tz="UTC")) for name in ("ts", "known_at")}
    usd = {"inflow_usd": np.maximum(net, 0.0), "outflow_usd": np.maximum(-net, 0.0)}
    result.write("flows", pa.table(times | {name: [value] * 60 for name, value in text.items()} | usd))
    return result


def test_states_do_not_depend_on_how_a_backfill_is_cut(
    tiny_bundle: Path, outflow: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"chain_stress_watch": 0.3, "chain_stress_restrict": 0.4, "chain_stress_halt": 1.0}
    breaker = replace(OF_CHAINS, **steps, cool_down_h=400.0)
    whole = batch(tiny_bundle, outflow, tmp_path / "long", breaker, BEGIN - 10 * DAY)
    assert batch(tiny_bundle, outflow, tmp_path / "short", breaker) == whole
    monkeypatch.setattr(local, "DAYS_PER_TASK", 1)
    assert batch(tiny_bundle, outflow, tmp_path / "days", breaker) == whole


def test_another_breaker_policy_does_the_days_again_and_the_default_said_aloud_does_not(
    tiny_bundle: Path, lake: Lake, tmp_path: Path
) -> None:
    span = {"start": BEGIN, "end": BEGIN + HOUR, "resume": True}
    day = format_us(BEGIN)[:10]
    file = tmp_path / "breaker.toml"
    file.write_text("jump_watch = 1.0\n")
    assert backfill(tiny_bundle, lake, tmp_path / "out", **span).written == (day,)
    assert backfill(tiny_bundle, lake, tmp_path / "out", breaker=BreakerPolicy(), **span).skipped == (day,)
    assert backfill(tiny_bundle, lake, tmp_path / "out", breaker=file, **span).written == (day,)
    assert backfill(tiny_bundle, lake, tmp_path / "out", breaker=file, **span).skipped == (day,)


def test_a_breaker_policy_at_a_horizon_that_is_not_forecast_is_refused_before_anything_is_written(
    tiny_bundle: Path, lake: Lake, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"horizon is '7d'; the bundle forecasts 1h, 8h, 24h"):
        backfill(tiny_bundle, lake, tmp_path / "out", breaker=BreakerPolicy(horizon="7d"))
    assert not (tmp_path / "out").exists()


def test_chain_stress_for_the_breaker_is_that_of_decisions(lake: Lake) -> None:
    context = read_context(lake, BEGIN, BEGIN + DAY)
    kept = ChainStress(context)
    chains = ("arbitrum", "solana", "dydx", "base")  # no row speaks of the last two
    seen = set()
    for ts in (BEGIN, BEGIN + HOUR, BEGIN + 90 * DAY, BEGIN):
        every = conditions_at(context, ts).chain_stress
        expected = {chain: every[chain] for chain in chains if chain in every}
        assert chain_stress_at(context, ts, chains) == kept(ts, chains) == expected
        assert (
            chain_stress_at(context, ts, ("solana",)) == kept(ts, ("solana",)) == {"solana": every["solana"]}
        )
        assert sorted(expected) == ["arbitrum", "solana"]
        seen.add(expected["arbitrum"])
    assert len(seen) == 3
    cosmos = lake.read("flows").filter(pc.equal(lake.read("flows")["chain"], "solana"))
    names = pa.array(["cosmos"] * cosmos.num_rows)
    store = read_context(lake, BEGIN, BEGIN + DAY)
    store.append(
        "flows", to_columns(cosmos.set_column(cosmos.schema.get_field_index("chain"), "chain", names))
    )
    # dYdX's data come under the name of Cosmos.
    assert chain_stress_at(store, BEGIN, ("dydx",)) == {
        "dydx": conditions_at(store, BEGIN).chain_stress["dydx"]
    }


@pytest.fixture(scope="module")
def listing(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The sample with a market that is listed at 10:00 of the first day, and held all the while."""
    result = Lake(tmp_path_factory.mktemp("listing") / "lake")
    for table in (*TABLES, "accounts", "collateral", "orders"):
        result.write(table, lake.read(table))
    sol = lake.read("bars", start=BEGIN + 10 * HOUR).filter(pc.field("symbol") == "SOL")
    result.write("bars", renamed(sol, "NEW"))
    held = lake.read("positions")
    mine = pc.and_(pc.equal(held["symbol"], "SOL"), pc.less(held["account_id"], "sim-0004"))
    result.write("positions", held.filter(pc.invert(mine)))
    result.write("positions", renamed(held.filter(mine), "NEW"))
    return result


def renamed(rows: pa.Table, symbol: str) -> pa.Table:
    """The rows of another market."""
    return rows.set_column(
        rows.schema.get_field_index("symbol"), "symbol", pa.array([symbol] * rows.num_rows)
    )


def test_a_market_is_unknown_until_its_first_bar_in_batch_as_it_is_live(
    tiny_bundle: Path, listing: Lake, tmp_path: Path
) -> None:
    expected = live(tiny_bundle, listing, None)
    found = batch(tiny_bundle, listing, tmp_path, None)
    first_day = [key for key in expected if key[0] < BEGIN + DAY]
    assert {key: found[key] for key in first_day} == {key: expected[key] for key in first_day}
    assert of_states(found) == of_states(expected)
    unknown = {(ts - BEGIN) // HOUR for (ts, _), names in found.items() if "unknown-market" in names}
    assert unknown == set(range(10))
    rows = Lake(tmp_path).read("margins", start=BEGIN, end=BEGIN + DAY).to_pylist()
    # A day alone does not know of the listing to come, or to have been, any better.
    backfill(tiny_bundle, listing, tmp_path / "short", start=BEGIN, end=BEGIN + 5 * HOUR)
    short = Lake(tmp_path / "short").read("margins").to_pylist()
    assert short == [row for row in rows if to_us(row["ts"]) < BEGIN + 5 * HOUR]


def test_the_first_bar_of_a_market_is_the_oldest_that_was_known_in_time(listing: Lake) -> None:
    markets = (Market("NEW", "sim"), Market("BTC", "sim"), Market("NONE", "sim"), Market("ETH", "binance"))
    oldest = pc.min(listing.read("bars")["ts"]).cast(pa.int64()).as_py()
    assert first_closes(listing, markets, "1h") == {"NEW": BEGIN + 10 * HOUR, "BTC": oldest}
    assert first_closes(listing, markets, "5m") == {}
