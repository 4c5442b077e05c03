"""The labels against a plain loop over one account at a time, on random worlds with holes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from riskml.replay.labels import replay_labels
from riskml.risk.engines.hyperliquid import tier_table
from riskml.tables.lake import Lake
from riskml.units import HOUR, MINUTE, duration_us

SYMBOLS = ("BTC", "ETH", "XYZ")
VENUES = ("okx", "hyperliquid", "sim")
"""In the order of preference as a reference."""
INTERVALS = ("15m", "1h")
HORIZONS = {"1h": HOUR, "8h": 8 * HOUR, "24h": 24 * HOUR}
LONGEST = 24 * HOUR
HAIRCUTS = {"ETH": 0.1, "USDC": 0.0}


class Oracle:
    """Everything in dicts; every rule spelled out once more."""

    def __init__(self, lake: Lake, remark: bool, barrier: str) -> None:
        self.remark, self.barrier = remark, barrier
        self.bars: dict[Any, dict[int, tuple[float, float, float]]] = {}
        self.funding: dict[Any, dict[int, float]] = {}
        for row in lake.read("bars").to_pylist():
            key = (row["venue"], row["symbol"], row["interval"])
            self.bars.setdefault(key, {})[us(row["ts"])] = (row["low"], row["high"], row["close"])
        for row in lake.read("funding").to_pylist():
            self.funding.setdefault((row["venue"], row["symbol"]), {})[us(row["ts"])] = row["rate"]

    def label(self, account: dict[str, Any], positions: Any, collateral: Any) -> dict[str, Any]:
        ts = us(account["ts"])
        legs = [
            {"venue": p["venue"], "symbol": p["symbol"], "size": p["size"], "mark": p["mark_price"], "pos": p}
            for p in positions
        ]
        legs += [
            {"venue": "", "symbol": "ETH", "size": c["amount"] * 0.9, "mark": c["price_usd"], "pos": None}
            for c in collateral
            if c["asset"] == "ETH" and c["amount"] > 0
        ]
        choice = [self.route(legs, ts, interval) for interval in INTERVALS]
        # The finest that is known furthest; of equals the one that prices more legs.
        best = max(range(2), key=lambda place: (choice[place][0], choice[place][1], -place))
        reach, _, sources = choice[best]
        interval = INTERVALS[best]
        pools = self.pools(account, positions, collateral, legs, sources, interval, ts)
        return self.walk(pools, reach, interval, ts, bool(positions))

    def known_until(self, source: Any, ts: int, interval: str) -> tuple[int, float] | None:
        """To where a source is known after ts, and the close known at ts."""
        bars, step = self.bars.get((*source, interval), {}), duration_us(interval)
        slot = ts // step * step
        before = [slot - back * step for back in range(4) if slot - back * step in bars]
        if not before:
            return None
        reach, end = ts, (ts + LONGEST) // step * step
        for now in range(slot + step, end + 1, step):
            # A hole is bridged when a bar within three missing ones comes before and after it.
            around = [t for t in range(now - 3 * step, now + 4 * step, step) if t in bars]
            earlier = max((t for t in around if t <= now), default=None)
            later = min((t for t in around if t >= now), default=None)
            if earlier is None or later is None or later - earlier > 4 * step:
                return reach, bars[before[0]][2]
            reach = now
        return ts + LONGEST, bars[before[0]][2]

    def route(self, legs: Any, ts: int, interval: str) -> tuple[float, int, list[Any]]:
        chosen = []
        for leg in legs:
            others = [venue for venue in VENUES if venue != leg["venue"]]
            candidates = [(venue, leg["symbol"]) for venue in (leg["venue"], *others)]
            found = [(self.known_until(source, ts, interval), source) for source in candidates]
            usable = [(known[0], -place, source) for place, (known, source) in enumerate(found) if known]
            chosen.append(max(usable)[2] if usable else None)
        reaches = [self.known_until(s, ts, interval) if s else None for s in chosen]
        reach = min((known[0] if known else -math.inf for known in reaches), default=ts + LONGEST)
        return reach, sum(source is not None for source in chosen), chosen

    def rates(self, leg: Any, ts: int) -> dict[int, float]:
        """Payments after ts of the first series without more than three hours missing."""
        others = [venue for venue in VENUES if venue != leg["venue"]]
        for venue in (leg["venue"], *others):
            paid = sorted(self.funding.get((venue, leg["symbol"]), {}))
            runs: list[list[int]] = []
            for when in paid:
                if runs and when - runs[-1][-1] <= 4 * HOUR:
                    runs[-1].append(when)
                else:
                    runs.append([when])
            if any(run[0] - HOUR <= ts and ts + LONGEST <= run[-1] + HOUR for run in runs):
                series = self.funding[venue, leg["symbol"]]
                return {when: series[when] for when in paid if ts < when <= ts + LONGEST}
        return {}

    def pools(
        self, account: Any, positions: Any, collateral: Any, legs: Any, sources: Any, interval: str, ts: int
    ) -> list[dict[str, Any]]:
        gross = sum(abs(p["size"] * p["mark_price"]) for p in positions)
        cash = account["cash_usd"] + sum(
            c["amount"] * (min(c["price_usd"], 1.0) if c["asset"] == "USDC" else c["price_usd"] * 0.9)
            for c in collateral
        )
        cross = {"equity": cash, "legs": []}
        pools = [cross]
        own = all(p["venue"] == "hyperliquid" for p in positions)
        for leg, source in zip(legs, sources, strict=True):
            known = self.known_until(source, ts, interval) if source else None
            leg["start"] = known[1] if known else leg["mark"]
            leg["source"] = source
            leg["scale"] = 1.0 if self.remark else leg["mark"] / leg["start"]
            first = leg["start"] if self.remark else leg["mark"]
            pool = cross
            if leg["pos"] is None:
                pool["equity"] += leg["size"] * (first - leg["mark"])
            else:
                p = leg["pos"]
                profit = p["size"] * (first - p["entry_price"])
                if p["margin_mode"] == "isolated":
                    margin = p["isolated_margin_usd"]
                    pool = {"equity": profit + margin, "legs": []}
                    pools.append(pool)
                else:
                    cross["equity"] += profit
                leg["paid"] = self.rates(leg, ts)
                if self.barrier == "hyperliquid" or own:
                    leg["need"] = lambda usd, s=leg["symbol"]: tiered(s, ts, usd)
                else:
                    stated = account["maintenance_margin_usd"]
                    rate = math.nan if stated is None else stated / gross
                    leg["need"] = lambda usd, rate=rate: usd * rate
            pool["legs"].append(leg)
        return pools

    def walk(self, pools: Any, reach: float, interval: str, ts: int, has_positions: bool) -> dict[str, Any]:
        step = duration_us(interval)
        out: dict[str, Any] = {"below": False, "together": None, "possible": None, "confirmed": None}
        unpriced = any(leg["source"] is None for pool in pools for leg in pool["legs"])
        start = [self.value(pool, [leg["start"] for leg in pool["legs"]]) for pool in pools]
        open_pools = [any(leg["pos"] is not None for leg in pool["legs"]) for pool in pools]
        out["equity"] = sum(equity for equity, _ in start)
        out["need"] = sum(need for (_, need), is_open in zip(start, open_pools, strict=True) if is_open)
        out["below"] = any(e < n for (e, n), is_open in zip(start, open_pools, strict=True) if is_open)
        ratios = [e / n for (e, n), is_open in zip(start, open_pools, strict=True) if is_open and n > 0]
        equities = [out["equity"]]
        last_bar = 0 if unpriced else int(min(reach, (ts + LONGEST) // step * step))
        for now in range(ts // step * step + step, last_bar + 1, step):
            whole = ts % step == 0 or now - step >= ts
            points = {"low": 0.0, "high": 0.0, "close": 0.0}
            for pool, is_open in zip(pools, open_pools, strict=True):
                box = [self.box(leg, now, step, whole, interval) for leg in pool["legs"]]
                before = pool["equity"]
                low, high = (self.value(pool, [b[side] for b in box]) for side in (0, 1))
                corners = self.corners(pool, box)
                for leg, b in zip(pool["legs"], box, strict=True):
                    for when, rate in leg.get("paid", {}).items():
                        if now - step < when <= now:
                            pool["equity"] -= rate * leg["size"] * leg["scale"] * b[2]
                close = self.value(pool, [b[2] for b in box])
                for name, (equity, _) in zip(points, (low, high, close), strict=True):
                    points[name] += equity
                assert before is not None
                if not is_open:
                    continue
                ratios += [e / n for e, n in (low, high, close) if n > 0]
                confirmed = close[0] < close[1] or any(all(m < 0 for m in saved) for saved in corners["sure"])
                together = confirmed or low[0] < low[1] or high[0] < high[1]
                possible = together or min(corners["all"]) < 0
                for name, hit in (("together", together), ("possible", possible), ("confirmed", confirmed)):
                    if hit and out[name] is None:
                        out[name] = now
            equities += points.values()
        if out["below"]:
            out |= {"together": ts, "possible": ts, "confirmed": ts}
        out |= {"equity_min": min(equities), "ratio": min(ratios, default=math.nan)}
        barrier = not any(math.isnan(n) for (_, n), is_open in zip(start, open_pools, strict=True) if is_open)
        return out | outcomes(out, ts, reach, step, barrier and not unpriced, barrier, has_positions)

    def value(self, pool: Any, prices: list[float]) -> tuple[float, float]:
        equity, need = pool["equity"], 0.0
        for leg, price in zip(pool["legs"], prices, strict=True):
            equity += leg["size"] * leg["scale"] * (price - leg["start"])
            if leg["pos"] is not None:
                need += leg["need"](abs(leg["size"] * leg["scale"] * price))
        return equity, need

    def box(self, leg: Any, now: int, step: int, whole: bool, interval: str) -> tuple[float, float, float]:
        bars = self.bars[(*leg["source"], interval)]
        if now in bars:
            low, high, close = bars[now]
            return (low, high, close) if whole else (close, close, close)
        last = next(bars[now - back * step][2] for back in range(1, 5) if now - back * step in bars)
        return last, last, last

    def corners(self, pool: Any, box: Any) -> dict[str, Any]:
        """Margins at every combination of ends; per source the combinations with it at each end."""
        sources = sorted({leg["source"] for leg in pool["legs"]})
        table = {}
        for sides in itertools.product((0, 1), repeat=len(sources)):
            side = dict(zip(sources, sides, strict=True))
            prices = [b[side[leg["source"]]] for leg, b in zip(pool["legs"], box, strict=True)]
            equity, need = self.value(pool, prices)
            table[sides] = equity - need
        sure = []
        for place in range(len(sources)):
            for end in (0, 1):
                sure.append([margin for sides, margin in table.items() if sides[place] == end])
        return {"all": list(table.values()) or [math.inf], "sure": sure}


def outcomes(
    out: dict[str, Any], ts: int, reach: float, step: int, priced: bool, barrier: bool, has_positions: bool
) -> dict[str, float]:
    found = {}
    for name, span in HORIZONS.items():
        covered = priced and reach >= (ts + span) // step * step
        hit = out["together"] is not None and out["together"] <= ts + span
        known = barrier and (out["below"] or covered)
        found[name] = float(out["below"] or hit) if known else math.nan
        if not has_positions:
            found[name] = 0.0
    return found


def us(moment: Any) -> int:
    return round(moment.timestamp() * 1_000_000)


def tiered(symbol: str, ts: int, usd: float) -> float:
    table = tier_table(symbol, ts)
    need, low = 0.0, 0.0
    bounds = [*table.lower_usd.tolist()[1:], math.inf]
    for bound, leverage in zip(bounds, table.max_leverage.tolist(), strict=True):
        need += max(min(usd, bound) - low, 0.0) / (2.0 * leverage)
        low = bound
    return need


def fill(world: Any, seed: int) -> None:
    """Random bars with holes, funding with holes, and accounts of every kind."""
    rng = np.random.default_rng(seed)
    for symbol, venue in itertools.product(SYMBOLS, VENUES):
        scale = {"BTC": 50_000.0, "ETH": 2_000.0, "XYZ": 3.0}[symbol]
        for interval, count in (("15m", 4 * 60), ("1h", 60)):
            if rng.random() < (0.4 if interval == "15m" else 0.15):
                continue
            step = 0.004 if interval == "15m" else 0.008
            close = scale * np.exp(np.cumsum(step * rng.standard_normal(count)))
            reach = 2.0 * step * np.abs(rng.standard_normal((2, count)))
            low, high = close * np.exp(-reach[0]), close * np.exp(reach[1])
            rows: list[Any] = [tuple(map(float, row)) for row in zip(low, high, close, strict=True)]
            for _ in range(int(rng.integers(0, 3))):
                hole = int(rng.integers(0, count))
                rows[hole : hole + int(rng.integers(1, 7))] = [None] * len(rows[hole : hole + 6])
            world.bars(symbol, rows[: int(count * rng.uniform(0.6, 1.0))], venue=venue, interval=interval)
        if rng.random() < 0.7:
            hours = [h for h in range(-2, 60) if rng.random() < 0.85]
            world.pay(symbol, {h: float(2e-4 * rng.standard_normal()) for h in hours}, venue=venue)
    for number in range(60):
        hour = float(rng.choice([3, 10, 20, 30])) + float(rng.choice([0, 0, 0, 0.25, 0.4]))
        positions, held = [], set()
        everywhere = rng.random() < 0.5
        for _ in range(int(rng.choice([0, 1, 2, 3, 3, 4]))):
            venue = "hyperliquid" if everywhere else str(rng.choice(VENUES))
            symbol = str(rng.choice(SYMBOLS))
            if (venue, symbol) in held:
                continue
            held.add((venue, symbol))
            scale = {"BTC": 50_000.0, "ETH": 2_000.0, "XYZ": 3.0}[symbol]
            mark = scale * float(np.exp(0.05 * rng.standard_normal()))
            isolated = bool(rng.random() < 0.3)
            size = float(rng.choice([-1, 1]) * rng.uniform(500, 6000)) / scale
            item = {"venue": venue, "symbol": symbol, "size": size, "mark": mark}
            item["entry"] = mark * float(np.exp(0.03 * rng.standard_normal()))
            if isolated:
                item |= {"mode": "isolated", "margin": abs(size * mark) * float(rng.uniform(0.05, 0.3))}
            positions.append(item)
        collateral = {"USDC": (float(rng.uniform(0, 300)), float(rng.choice([1.0, 0.98])))}
        if rng.random() < 0.5:
            collateral["ETH"] = (float(rng.uniform(0, 0.3)), 2_000.0)
        stated = None if rng.random() < 0.2 else float(rng.uniform(5, 300))
        cash = float(rng.uniform(-100, 400))
        world.account(f"a{number:02d}", cash, positions, hour=hour, maintenance=stated, collateral=collateral)


@pytest.mark.parametrize(
    ("seed", "remark", "barrier"),
    [
        (1, True, "venue"),
        (2, True, "venue"),
        (3, False, "venue"),
        (4, True, "hyperliquid"),
        (5, False, "venue"),
    ],
)
def test_labels_equal_a_plain_loop_on_random_worlds(
    world: Any, seed: int, remark: bool, barrier: str
) -> None:
    fill(world, seed)
    lake = world.write()
    oracle = Oracle(lake, remark, barrier)
    found = replay_labels(lake, haircuts=HAIRCUTS, remark=remark, barrier=barrier).to_pylist()
    tables = {name: lake.read(name).to_pylist() for name in ("accounts", "positions", "collateral")}
    assert len(found) == 60
    seen = set()
    for row in found:
        mine = {
            name: [
                item for item in rows if (item["ts"], item["account_id"]) == (row["ts"], row["account_id"])
            ]
            for name, rows in tables.items()
        }
        want = oracle.label(mine["accounts"][0], mine["positions"], mine["collateral"])
        for horizon in HORIZONS:
            np.testing.assert_equal(row[f"liquidated_{horizon}"], want[horizon], row["account_id"])
            seen.add(str(want[horizon]))
        for name, kind in (
            ("first_breach_ts", "together"),
            ("possible_ts", "possible"),
            ("confirmed_ts", "confirmed"),
        ):
            assert (None if row[name] is None else us(row[name])) == want[kind], (row["account_id"], name)
        assert row["below_at_start"] == want["below"]
        np.testing.assert_allclose(row["equity_usd"], want["equity"], rtol=1e-9)
        np.testing.assert_allclose(row["maintenance_usd"], want["need"], rtol=1e-9)
        if row["reason"] in ("", "no-positions") and not math.isnan(row["equity_min_usd"]):
            np.testing.assert_allclose(row["equity_min_usd"], want["equity_min"], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(row["min_margin_ratio"], want["ratio"], rtol=1e-9)
        if want["together"] is not None:
            assert row["minutes_to_breach"] == (want["together"] - us(row["ts"])) / MINUTE
    assert seen == {"0.0", "1.0", "nan"}


def test_labels_move_the_right_way(world: Any) -> None:
    fill(world, 11)
    lake = world.write()
    plain = replay_labels(lake, haircuts=HAIRCUTS).to_pandas()
    cut = replay_labels(lake, haircuts={"ETH": 0.6, "USDC": 0.3}).to_pandas()
    seen = plain["liquidated_24h"].notna()
    # A longer horizon never has fewer.
    for short, long in (("1h", "8h"), ("8h", "24h")):
        both = plain[plain[f"liquidated_{long}"].notna()]
        assert (both[f"liquidated_{short}"] <= both[f"liquidated_{long}"]).all()
    # Less collateral is never liquidated later, and now and then earlier.
    first = plain["minutes_to_breach"].fillna(np.inf)
    assert (cut["minutes_to_breach"].fillna(np.inf) <= first).all()
    assert (cut["minutes_to_breach"].fillna(np.inf) < first).any()
    assert (cut["equity_usd"] <= plain["equity_usd"] + 1e-9).all()
    # The three answers are in order.
    far = np.iinfo(np.int64).max
    times = {
        n: plain[n].astype("int64").where(plain[n].notna(), far)
        for n in ("possible_ts", "first_breach_ts", "confirmed_ts")
    }
    assert (times["possible_ts"] <= times["first_breach_ts"]).all()
    assert (times["first_breach_ts"] <= times["confirmed_ts"]).all()
    assert (times["possible_ts"] < times["confirmed_ts"]).any()
    assert 0 < plain.loc[seen, "liquidated_24h"].mean() < 1
