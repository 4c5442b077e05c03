"""Haircuts measured on real depegs: when the first charge came, and what caused none.

    python training/depegs.py --lake runs/real/lake --folds runs/real/folds

- *usdc*: March 2023, prices of a pool every 15 minutes, replayed in the order in which rows became known.
  A dollar of USDC that backs an account at its venue; a **charge** is what its value lacks of one.
  Beside it: the same from daily sources alone, and by the rule that the price nearest to the peg holds
  whatever its age (riskml until 0.4.1), and the value against the lowest price of the margin period.
- *ust*: May 2022, daily closes of two sources.
- *local*: prints of one source that another one of the same day does not share; and the prints of March 2023
  as if one venue alone had them, with redemption stated at one dollar: neither may change a haircut or a
  decision. An account that would be liquidated at the print is scored by a bundle fitted before.
- *calm*: how often a dollar is charged where nothing happened.
- *daily_deviation*: what facts/assets.toml says of each asset, from the same files.

Appends one line to ``training/results/depegs.jsonl`` and prints it last.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from riskml.backfill.bundles import choose_bundle, find_bundles
from riskml.backfill.score_at import warm_scorer
from riskml.features.series import SeriesStore
from riskml.learning.runs import append_record
from riskml.risk import AccountBook, Forecast, MarginPolicy, decide, reason_names
from riskml.risk.collateral import Conditions, value_collateral
from riskml.risk.haircuts import margin_period_h
from riskml.scoring.conditions import conditions_at
from riskml.scoring.session import load_bundle
from riskml.tables.align import to_columns
from riskml.tables.lake import Lake
from riskml.units import BASIS_POINT, DAY, HOUR, MINUTE, format_us, to_us

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results" / "depegs.jsonl"
VENUE, CHAIN, POOL = "hyperliquid", "hyperliquid", "dex_pool"
"""A venue and the chain on which it settles, so that nothing is charged for a transfer."""
NAMED = "peg-deviation"
MATERIAL = 0.001
"""A change of a charge from which it counts in the comparisons."""
ABOVE = 1.25
"""Equity of the account that is scored, in maintenance requirements: a tenth less leaves it open, and a
charge for what may follow does not."""
POLICY = MarginPolicy()
DAILY = (
    ("binance_spot", "USDC", "2023-01-01"),
    ("coinbase", "USDT", "2023-01-01"),
    ("coinmarketcap", "DAI", "2023-01-01"),
    ("coinmarketcap", "UST", "2022-05-01"),
)


def peg_store(pegs: pd.DataFrame) -> SeriesStore:
    """Rows of the pegs table as what a scorer has observed."""
    store = SeriesStore()
    columns: dict[str, Any] = {name: pegs[name].to_numpy(object) for name in ("venue", "asset")}
    columns |= {name: pegs[name].to_numpy(np.int64) for name in ("ts", "known_at")}
    columns |= {name: pegs[name].to_numpy(np.float64) for name in ("price_usd", "redemption_usd")}
    if len(pegs):
        store.append("pegs", columns)
    return store


def charges(asset: str, conditions: Sequence[Conditions], moments: Sequence[int]) -> pd.DataFrame:
    """What one unit lacks of a dollar at the venue, and whether a depeg is named."""
    book = AccountBook.from_dicts([_account(asset, 1.0, 0.001)])
    rows = []
    for moment, found in zip(moments, conditions, strict=True):
        value = value_collateral(book, {"BTC": 0}, {}, POLICY, found, moment)
        rows.append((moment, 1.0 - float(value.value_usd[0]), bool(value.off_peg[0])))
    return pd.DataFrame(rows, columns=["moment", "charge", "named"])


def replayed(pegs: pd.DataFrame, asset: str, start: str, end: str) -> pd.DataFrame:
    """Charges each time that something became known."""
    of_asset = pegs[pegs.asset == asset]
    known = np.unique(of_asset.known_at.to_numpy())
    moments = [int(at) for at in known if to_us(start) <= at < to_us(end)]
    store = peg_store(of_asset)
    return charges(asset, [conditions_at(store, moment) for moment in moments], moments)


def usdc(pegs: pd.DataFrame, windows: Path) -> dict[str, Any]:
    """March 2023."""
    start, calm_end, end = "2023-03-09T14:00", "2023-03-10T12:00", "2023-03-15"
    found = replayed(pegs, "USDC", start, end)
    calm = found[found.moment < to_us(calm_end)]
    usual = float(calm.charge.max())
    first = found[found.named & (found.charge > usual + MATERIAL)].iloc[0]
    pool = pegs[
        (pegs.asset == "USDC") & (pegs.venue == POOL) & (pegs.ts >= to_us(start)) & (pegs.ts < to_us(end))
    ]
    closes = pool.sort_values("ts")
    bars = pd.read_parquet(windows).drop_duplicates("time").sort_values("time")
    opened = pd.DatetimeIndex(bars.time).as_unit("us").asi8
    lows = pd.Series(bars.low.to_numpy(), index=opened)[
        lambda low: (low.index >= to_us(start)) & (low.index < to_us(end))
    ]
    prints = {
        f"close_below_{limit}": int(closes[closes.price_usd < limit].ts.iloc[0]) for limit in (0.99, 0.95)
    } | {f"bar_of_low_below_{limit}_opens": int(lows[lows < limit].index[0]) for limit in (0.99, 0.95)}
    below, far = prints["close_below_0.99"], prints["close_below_0.95"]
    low_below, low_far = prints["bar_of_low_below_0.99_opens"], prints["bar_of_low_below_0.95_opens"]
    unnamed = found[~found.named & (found.moment < far)].moment
    at_print = found[found.moment <= below + 15 * MINUTE].iloc[-1]
    before_far = found[found.moment < low_far].iloc[-1]
    daily = replayed(pegs[pegs.venue != POOL], "USDC", start, end)
    nearest = charges("USDC", *_nearest_whatever_age(pegs, found.moment.tolist()))
    return {
        "rows_known": len(found),
        "calm_until": calm_end,
        "calm_charge_max": usual,
        "prints": {name: format_us(ts) for name, ts in prints.items()},
        "first_charge": {
            "at": format_us(int(first.moment)),
            "charge": float(first.charge),
            "minutes_after_first_close_below_0.99": (first.moment - below) / MINUTE,
            "minutes_after_bar_of_first_low_below_0.99_opens": (first.moment - low_below) / MINUTE,
            "minutes_before_bar_of_first_low_below_0.95_opens": (low_far - first.moment) / MINUTE,
        },
        "first_named_after_that_bar_opens": format_us(
            int(found[found.named & (found.moment > low_below)].moment.iloc[0])
        ),
        "named_without_a_break_from": format_us(int(found[found.moment > unnamed.max()].moment.iloc[0])),
        "charge_15_minutes_after_first_close_below_0.99": float(at_print.charge),
        "charge_before_first_low_below_0.95": float(before_far.charge),
        "met": bool(first.moment <= min(below, low_below) + 15 * MINUTE and first.moment < min(far, low_far)),
        "daily_sources_alone_charge_at": _first_named(daily),
        "nearest_of_any_age_charges_at": _first_named(nearest),
        "cover": _cover(found, closes),
    }


def _cover(found: pd.DataFrame, closes: pd.DataFrame) -> dict[str, Any]:
    """How often the lowest close of the margin period lay below the value, from the first named charge on."""
    ahead = int(margin_period_h(POLICY) * HOUR)
    times, prices = closes.ts.to_numpy(), closes.price_usd.to_numpy()
    rows = []
    named = found[found.moment >= found[found.named].moment.iloc[0]]
    for moment, charge in zip(named.moment, named.charge, strict=True):
        later = prices[(times > moment) & (times <= moment + ahead)]
        before = prices[times <= moment]
        if len(later) and len(before):
            rows.append((1.0 - charge, min(float(before[-1]), 1.0), float(later.min())))
    value, market, low = np.array(rows).T
    return {
        "decisions": len(rows),
        "breached": float((low < value).mean()),
        "mean_charge": float(1.0 - value.mean()),
        "worst_excess": float(np.maximum(value - low, 0.0).max()),
        "at_market_price_breached": float((low < market).mean()),
        "at_market_price_worst_excess": float(np.maximum(market - low, 0.0).max()),
        "at_par_breached": float((low < 1.0).mean()),
    }


def _nearest_whatever_age(pegs: pd.DataFrame, moments: list[int]) -> tuple[list[Conditions], list[int]]:
    """The rule until 0.4.1: of the newest rows of all venues, however old, the price nearest to a dollar."""
    of_asset = pegs[pegs.asset == "USDC"].sort_values(["ts", "known_at"])
    conditions = []
    for moment in moments:
        newest = of_asset[of_asset.known_at <= moment].groupby("venue").price_usd.last()
        conditions.append(
            Conditions(peg_price_usd={"USDC": float(newest.iloc[(newest - 1.0).abs().argmin()])})
        )
    return conditions, moments


def _first_named(found: pd.DataFrame) -> str | None:
    named = found[found.named]
    return format_us(int(named.moment.iloc[0])) if len(named) else None


def ust(pegs: pd.DataFrame) -> dict[str, Any]:
    """May 2022."""
    rows = pegs[(pegs.asset == "UST") & (pegs.ts >= to_us("2022-05-01")) & (pegs.ts < to_us("2022-05-28"))]
    found = replayed(pegs, "UST", "2022-05-01", "2022-05-28")
    calm = found[found.moment < to_us("2022-05-08")]
    first = found[found.charge > float(calm.charge.max()) + MATERIAL].iloc[0]
    below = rows[rows.price_usd < 0.99].sort_values("known_at").iloc[0]
    at_below = found[found.moment == below.known_at].iloc[0]
    return {
        "calm_charge_max": float(calm.charge.max()),
        "first_charge_above_calm": {"at": format_us(int(first.moment)), "charge": float(first.charge)},
        "first_row_below_0.99": {
            "closes": format_us(int(below.ts)),
            "known": format_us(int(below.known_at)),
            "price": float(below.price_usd),
            "charge_when_known": float(at_below.charge),
        },
        "met": bool(
            at_below.named and at_below.charge >= 1.0 - below.price_usd and first.moment <= below.known_at
        ),
        "lag_h": {
            "row_known_after_its_day_ended": (below.known_at - below.ts) / HOUR,
            "most_after_a_print_of_that_day": (below.known_at - below.ts + DAY) / HOUR,
        },
    }


def local(pegs: pd.DataFrame) -> dict[str, Any]:
    """Real prints that one source has and another one of the same time has not."""
    listed = pegs[pegs.asset.isin(("USDC", "USDT", "DAI", "BUSD", "UST"))]
    groups = listed.groupby(["asset", "ts"])
    compared, added, alone = [], [0.0], 0
    for (asset, ts), rows in groups:
        off = rows[rows.price_usd < 0.99]
        if len(off) != 1 or not ((rows.price_usd - 1.0).abs() < 0.002).any():
            continue
        moment = int(rows.known_at.max())
        of_asset = listed[(listed.asset == asset) & (listed.known_at <= moment)]
        with_print = of_asset
        without = of_asset.drop(index=off.index)
        only = of_asset[of_asset.venue == off.venue.iloc[0]]
        cuts = [
            float(charges(str(asset), [conditions_at(peg_store(some), moment)], [moment]).charge.iloc[0])
            for some in (with_print, without, only)
        ]
        compared.append((asset, format_us(int(ts)), off.venue.iloc[0], float(off.price_usd.iloc[0]), *cuts))
        added.append(cuts[0] - cuts[1])
        alone += int(cuts[2] > cuts[1] + MATERIAL)
    return {
        "prints": len(compared),
        "largest_haircut_added": max(added),
        "added_a_basis_point": sum(cut > BASIS_POINT for cut in added),
        "charged_without_company": alone,
        "which": compared,
    }


def intact(pegs: pd.DataFrame, lake: Lake, folds: Path) -> dict[str, Any]:
    """An account through the prints of March 2023, with and without a redemption at one dollar."""
    start, end = to_us("2023-03-10T12:00"), to_us("2023-03-12")
    choice = choose_bundle(find_bundles(folds), start)
    scorer = warm_scorer(load_bundle(choice.path), lake, start)
    forecast = scorer.forecast
    if forecast is None or choice.in_sample(start):
        raise SystemExit("there is no fold bundle from before March 2023")
    pool = pegs[(pegs.asset == "USDC") & (pegs.venue == POOL)]
    issuer = pool.assign(venue="issuer", price_usd=1.0, redemption_usd=1.0)
    calm = _decisions(forecast, pool, [start], scorer)[0]
    moments = [int(at) for at in np.unique(pool.known_at.to_numpy()) if start <= at < end]
    told = _decisions(forecast, pd.concat([pool, issuer], ignore_index=True), moments, scorer)
    untold = _decisions(forecast, pool, moments, scorer)

    same = (
        "collateral_usd",
        "equity_usd",
        "maintenance_margin_usd",
        "initial_margin_usd",
        "p_liq_8h",
        "action",
    )

    def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "lowest_collateral_usd": min(row["collateral_usd"] for row in rows),
            "highest_p_liq_8h": max(row["p_liq_8h"] for row in rows),
            "liquidated": sum(row["equity_usd"] < row["maintenance_margin_usd"] for row in rows),
            "depeg_named": sum(NAMED in row["reasons"] for row in rows),
            "unlike_before": sum(any(row[name] != calm[name] for name in same) for row in rows),
        }

    return {
        "bundle": choice.path.name,
        "decisions": len(moments),
        "lowest_print": float(pool[(pool.known_at >= start) & (pool.known_at < end)].price_usd.min()),
        "before": {name: calm[name] for name in same},
        "redemption_intact": summary(told),
        "redemption_unknown": summary(untold),
        "met": summary(told)["unlike_before"] == 0 and summary(told)["liquidated"] == 0,
    }


def _decisions(
    forecast: Forecast, pegs: pd.DataFrame, moments: list[int], scorer: Any
) -> list[dict[str, Any]]:
    """An account whose equity is ``ABOVE`` its maintenance, at unchanged market prices."""
    store, law = peg_store(pegs), scorer.bundle.account
    conditions = [conditions_at(store, moment) for moment in moments]
    unit = decide(
        AccountBook.from_dicts([_account("USDC", 0.0, 1.0)]), forecast, POLICY, law=law, ts=moments[0]
    ).maintenance_margin_usd[0]
    book = AccountBook.from_dicts([_account("USDC", ABOVE * float(unit), 1.0)])
    rows = []
    for moment, found in zip(moments, conditions, strict=True):
        decided = decide(book, forecast, POLICY, law=law, ts=moment, conditions=found)
        row = decided.to_dicts()[0]
        rows.append(row | {"reasons": reason_names(int(decided.reasons[0]))})
    return rows


def _account(asset: str, amount: float, size: float) -> dict[str, Any]:
    """A long position with collateral at the venue's chain."""
    return {
        "account_id": "a",
        "cash_usd": 0.0,
        "positions": [{"venue": VENUE, "symbol": "BTC", "size": size, "mark_price": 20_000.0}],
        "collateral": [{"chain": CHAIN, "asset": asset, "amount": amount, "price_usd": 1.0}],
    }


def calm(pegs: pd.DataFrame) -> dict[str, Any]:
    """Share of times charged by more than ``MATERIAL`` beyond the base haircut, where nothing happened."""
    result = {}
    for asset, start, end in (
        ("USDC", "2025-04-01", "2025-10-01"),
        ("USDe", "2025-03-22", "2025-10-01"),
        ("USD1", "2025-07-18", "2025-10-01"),
        ("USDC", "2023-10-25", "2024-04-20"),
        ("USDT", "2023-01-01", "2023-03-08"),
        ("DAI", "2022-01-01", "2022-05-01"),
    ):
        found = replayed(pegs, asset, start, end)
        base = float(charges(asset, [Conditions()], [to_us(start)]).charge.iloc[0])
        extra = found.charge - base
        result[f"{asset} {start} {end}"] = {
            "times": len(found),
            "charged": float((extra > MATERIAL).mean()),
            "mean_extra": float(extra.mean()),
            "largest_extra": float(extra.max()),
            "named": float(found.named.mean()),
        }
    return result


def daily_deviation(pegs: pd.DataFrame) -> dict[str, float]:
    """Root mean square of the change of the daily close since June 2021."""
    result = {}
    for venue, asset, end in DAILY:
        rows = pegs[(pegs.venue == venue) & (pegs.asset == asset)]
        rows = rows[(rows.ts >= to_us("2021-06-01")) & (rows.ts < to_us(end))].sort_values("ts")
        result[asset] = float(np.sqrt(np.mean(np.square(np.diff(rows.price_usd)))))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lake", type=Path, default=REPOSITORY / "runs/real/lake")
    parser.add_argument("--folds", type=Path, default=REPOSITORY / "runs/real/folds")
    parser.add_argument("--raw", type=Path, default=REPOSITORY.parent / "shared/data")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    lake = Lake(options.lake)
    pegs = pd.DataFrame(to_columns(lake.read("pegs")))
    line = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python training/depegs.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, python {platform.python_version()}",
        "policy_hash": POLICY.policy_hash,
        "usdc": usdc(pegs, options.raw / "stress/stablecoin_intraday_windows.parquet"),
        "ust": ust(pegs),
        "local": local(pegs),
        "intact": intact(pegs, lake, options.folds),
        "calm": calm(pegs),
        "daily_deviation": daily_deviation(pegs),
    }
    print(append_record(options.out, line))


if __name__ == "__main__":
    main()
