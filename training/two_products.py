"""Initial and maintenance margin of the fold bundles beside every yardstick, on identical rows.

    python training/two_products.py --folds runs/real/folds --lake runs/real/lake

*Initial* follows the fast forecast: its coverage and its average against FHS on the tuned EWMA, at 1, 8 and
24 h. *Maintenance* is the policy's slow scale at 1 h with stressed floor, ``apc`` option, rate limit and
static floor as the scorer applies them, carried over the seams of the folds as a venue would. Its settings
are swept; a fold's own are chosen on the calibrate parts up to it, and the tests are only reported. The
sweep and the yardsticks together are the frontier. Appends a line to ``training/results/two_products.jsonl``
and writes every point to ``two_products.csv`` beside it.

Breaches are pooled over markets and sides, excess is their mean; peak-to-trough over a year and the largest
one-day rise are those of each market and side, of which the median counts (the protocol's pooling) and the
worst is recorded beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from product_rows import Part, collect, tiers

from riskml import metrics
from riskml.arrays import BoolND, Float1D, Float3D, FloatND, Int1D, TimeUs
from riskml.learning.protocol import FOLDS, margin_distance
from riskml.learning.protocol import simple_requirement as usd
from riskml.learning.runs import append_record
from riskml.risk.forecast import Forecast
from riskml.risk.margin import ReferenceSigma, slow_scale
from riskml.risk.policy import MarginPolicy
from riskml.tables.lake import Lake
from riskml.units import HOUR, YEAR

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results" / "two_products.jsonl"
AIMS = {"breach": 0.005, "peak_to_trough": 4.0, "one_day_rise": 0.6}
"""Fixed limits of the maintenance product; average and excess are limited by the yardsticks."""


@dataclass(frozen=True)
class Track:
    """One chain of rows at the maintenance horizon: what the policy makes its slow scale from."""

    ts: TimeUs
    sigma: Float3D
    """[n, n_markets, 2]."""
    stressed: Float3D
    long_run: Float3D
    multiple: Mapping[float, FloatND]
    """Per level, quantile of the law in scales [n, n_markets, 1]."""
    moved: Float3D
    """Realised loss of 1 USD [n, n_markets, 2]; NaN = the row does not count."""
    margins: Mapping[str, Float3D]
    """Requirement of 1 USD of the yardsticks [n, n_markets, 2]."""

    @property
    def hours(self) -> Float1D:
        """Hours since the first row [n]."""
        return np.asarray((self.ts - self.ts[0]) / HOUR)


def track(pieces: Sequence[tuple[Part, BoolND, BoolND]], levels: Sequence[float]) -> Track:
    """Join (part, rows to take, rows that count); a row counts where every model and outcome is known."""

    def joined(of: Callable[[Part], FloatND]) -> FloatND:
        return np.concatenate([of(part)[rows] for part, rows, _ in pieces])

    def spread(values: Float3D, part: Part) -> FloatND:
        return np.broadcast_to(values[None, :, 0], (len(part.ts), *values[:, 0].shape))

    def multiples(part: Part, level: float) -> FloatND:
        unit = np.ones((*part.nu.shape[:2], 1, 2))
        return margin_distance(unit, part.nu[..., :1], part.power[:1], level)[..., 0, :1]

    counts = np.concatenate([mark[rows] for _, rows, mark in pieces])[:, None]
    margins = {name: usd(joined(lambda p, n=name: p.margins[n][:, :, 0])) for name in pieces[0][0].margins}
    moved = usd(joined(lambda part: part.excursion[:, :, 0]))
    usable = counts & joined(lambda part: part.available).astype(np.bool_)
    for values in (moved, *margins.values()):
        usable = usable & np.isfinite(values).all(axis=2)
    return Track(
        ts=np.concatenate([part.ts[rows] for part, rows, _ in pieces]),
        sigma=joined(lambda part: part.sigma[:, :, 0]),
        stressed=joined(lambda part: spread(part.stressed, part)),
        long_run=joined(lambda part: spread(part.long_run, part)),
        multiple={level: joined(lambda part, at=level: multiples(part, at)) for level in levels},
        moved=np.where(usable[..., None], moved, np.nan),
        margins=margins,
    )


def target_scale(rows: Track, policy: MarginPolicy) -> Float3D:
    """The slow scale of every row before the rate limit [n, n_markets, 2]; each row is its own market."""
    n, n_markets = rows.sigma.shape[:2]
    flat = rows.sigma.reshape(n * n_markets, 1, 2)
    none = np.zeros((n * n_markets, 1))
    forecast = Forecast(
        0, ("",) * len(flat), (policy.maintenance_horizon,), flat, none, none, none, none,
        np.zeros(len(flat), dtype=np.bool_),
    )  # fmt: skip
    reference = ReferenceSigma(rows.stressed.reshape(flat.shape), rows.long_run.reshape(flat.shape))
    return slow_scale(forecast, None, 0.0, policy, reference).sigma.reshape(n, n_markets, 2)


def rate_limited(asked: Float3D, hours: Float1D, rate: Float1D) -> Float3D:
    """Rise at most by ``rate`` [n] per hour: ``r = min(asked, r before x (1 + rate)^hours)``, unrolled.

    In logs, less what the limit allows since the start, that is a running minimum.
    """
    allowed = np.cumsum(np.log1p(np.minimum(rate, 1e6)) * np.diff(hours, prepend=hours[0]))[:, None]
    return np.exp(np.minimum.accumulate(np.log(asked) - allowed, axis=0) + allowed)


def daily_limited(asked: Float3D, hours: Float1D, rise: float) -> Float3D:
    """The same with at most ``rise`` above the lowest of the last 24 h, at once: no option of the policy."""
    result = np.empty_like(asked)
    first = np.searchsorted(hours, hours - 24.0)
    for row in range(len(asked)):
        lowest = result[first[row] : row].min(axis=0, initial=np.inf)
        result[row] = np.minimum(asked[row], (1.0 + rise) * lowest)
    return result


def required(rows: Track, policies: Sequence[MarginPolicy], owner: Int1D | None = None) -> Float3D:
    """Maintenance of 1 USD [n, n_markets, 2]; ``owner`` [n] says whose policy holds at each row.

    The limit is on a long's distance and a short's loss, as in :func:`riskml.risk.margin.slow_scale`.
    """
    which = np.zeros(len(rows.ts), dtype=np.int64) if owner is None else owner
    distance = np.empty_like(rows.sigma)
    for place, policy in enumerate(policies):
        mine = which == place
        multiple = rows.multiple[policy.maintenance_level]
        distance[mine] = (target_scale(rows, policy) * multiple)[mine]
    limit = np.array([policy.rate_limit_per_hour for policy in policies])[which]
    floor = np.array([policy.floor for policy in policies])[which]
    long = -np.expm1(-rate_limited(distance[..., 0], rows.hours, limit))
    short = rate_limited(np.expm1(distance[..., 1]), rows.hours, limit)
    return np.maximum(np.stack([long, short], axis=-1), floor[:, None, None])


def measures(rows: Track, margin: Float3D) -> dict[str, float]:
    """Breach, average, excess, and per market and side peak-to-trough and one-day rise: median and worst."""
    counted = np.isfinite(rows.moved)
    hit = counted & (np.nan_to_num(rows.moved) > margin)
    series = np.where(counted, margin, np.nan).reshape(len(rows.ts), -1)
    cuts = np.flatnonzero(np.diff(rows.ts) != HOUR) + 1
    peaks = [metrics.peak_to_trough(column, YEAR // HOUR) for column in series.T]
    rises = [
        max(metrics.largest_rise(piece, 24) for piece in np.split(column, cuts) if len(piece) > 24)
        for column in series.T
    ]
    return {
        "average": float(margin[counted].mean()),
        "breach": float(hit[counted].mean()),
        "excess": float((rows.moved - margin)[hit].mean()) if hit.any() else 0.0,
        "peak_to_trough": float(np.median(peaks)),
        "one_day_rise": float(np.nanmedian(rises)),
        "worst_peak_to_trough": max(peaks),
        "worst_one_day_rise": float(np.nanmax(rises)),
        "hourly_rise": max(metrics.largest_rise(column, 1) for column in series.T),
        "n": int(counted.sum()),
    }


def limits(yards: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What a maintenance product is to stay at or below, on the rows of these yardsticks."""
    return {**AIMS, "average": yards["fhs_slow"]["average"], "excess": yards["fhs_ewma"]["excess"]}


def missed(found: Mapping[str, float], aims: Mapping[str, float]) -> dict[str, float]:
    """Relative excess over each limit that is not kept."""
    return {name: found[name] / aim - 1.0 for name, aim in aims.items() if found[name] > aim * (1.0 + 1e-9)}


# ---------------------------------------------------------------- choice and frontier

SWEEP = {
    "slow_weight": (0.4, 0.5, 0.6, 0.7, 0.8),
    "stressed_floor": (0.0, 0.15, 0.22, 0.3),
    "maintenance_level": (0.995, 0.9965, 0.9975),
    "apc": ("none", "a", "b", "c"),
    "rate_limit_per_hour": (0.019, 0.25, math.inf),
}
DAILY_RISE = 0.6
STATED_LEVEL = MarginPolicy().maintenance_level
"""The level that the public surface states as default."""
FRONT = ("average", "breach", "excess", "peak_to_trough", "one_day_rise")


def policies() -> list[MarginPolicy]:
    """Every setting of the sweep; the EMIR options at the tightest rate limit only."""
    every = (dict(zip(SWEEP, values, strict=True)) for values in product(*SWEEP.values()))
    kept = (values for values in every if values["apc"] == "none" or values["rate_limit_per_hour"] < 0.02)
    return [MarginPolicy(**values) for values in kept]  # type: ignore[arg-type]


def setting(policy: MarginPolicy) -> dict[str, Any]:
    """What the sweep varies, JSON has no infinity."""
    values = {name: asdict(policy)[name] for name in SWEEP}
    return {name: "none" if value == math.inf else value for name, value in values.items()}


def misses(found: Mapping[str, float], aims: Mapping[str, float]) -> tuple[float, float]:
    """Sum of the relative misses, then the average: what a choice minimises."""
    return sum(missed(found, aims).values()), found["average"]


def choose(rows: Track, sweep: Sequence[MarginPolicy], level: float | None = None) -> MarginPolicy:
    """The setting of the smallest sum of relative misses on these rows.

    Only rate limits that keep the one-day rise by construction are chosen from; ``level`` fixes the level.
    """
    aims = limits({name: measures(rows, rows.margins[name]) for name in ("fhs_ewma", "fhs_slow")})
    kept = [policy for policy in sweep if (1.0 + policy.rate_limit_per_hour) ** 24 <= 1.0 + DAILY_RISE]
    kept = [policy for policy in kept if level in (None, policy.maintenance_level)]
    return min(kept, key=lambda policy: misses(measures(rows, required(rows, [policy])), aims))


def since(rows: Track, later: BoolND) -> Track:
    """The same rows, of which only some count."""
    return replace(rows, moved=np.where(later[:, None, None], rows.moved, np.nan))


def tested(parts: Sequence[Part], levels: Sequence[float]) -> tuple[Track, Int1D]:
    """Every test part, warmed up on the first calibrate part, and the fold of each row [n]."""
    everything = np.ones(len(parts[0].ts), dtype=np.bool_)
    taken = [everything, *(part.ts >= part.data_end for part in parts[1:])]
    pieces = [(part, rows, part.test) for part, rows in zip(parts, taken, strict=True)]
    fold = np.concatenate([np.full(int(rows.sum()), place) for place, rows in enumerate(taken)])
    return track(pieces, levels), fold


def dominated(points: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """Per point, those that are at least as good in every measure and better in one."""
    table = np.array([[point[name] for name in FRONT] for point in points.values()])
    names = list(points)
    better = [(table <= row).all(axis=1) & (table < row).any(axis=1) for row in table]
    return {
        name: [names[place] for place in np.flatnonzero(each)]
        for name, each in zip(names, better, strict=True)
    }


def initial_product(parts: Sequence[Part]) -> dict[str, dict[str, float]]:
    """Breaches and averages of the fast law and of FHS per horizon, both sides, on identical test rows."""
    found = {}
    for index, horizon in enumerate(("1h", "8h", "24h")):
        rows: dict[str, list[FloatND]] = {
            "riskml": [],
            "served": [],
            "held": [],
            "fhs_ewma": [],
            "fhs_slow": [],
        }
        moved = []
        for part in parts:
            asked = {
                "riskml": margin_distance(part.sigma, part.nu, part.power),
                "served": margin_distance(part.served_sigma, part.served_nu, part.power),
                "held": margin_distance(part.held_sigma, part.held_nu, part.power),
                **{name: part.margins[name] for name in ("fhs_ewma", "fhs_slow")},
            }
            now = part.excursion[:, :, index]
            usable = part.test[:, None] & part.available & np.isfinite(now).all(axis=2)
            for margin in asked.values():
                usable = usable & np.isfinite(margin[:, :, index]).all(axis=2)
            moved.append(usd(now)[usable])
            for name, margin in asked.items():
                rows[name].append(usd(margin[:, :, index])[usable])
        outcome = np.concatenate(moved)
        table = {name: np.concatenate(values) for name, values in rows.items()}
        found[horizon] = {"n": float(len(outcome))} | {
            f"{name} {key}": float(value)
            for name, margin in table.items()
            for key, value in (
                ("breach long", (outcome > margin)[:, 0].mean()),
                ("breach short", (outcome > margin)[:, 1].mean()),
                ("average", margin.mean()),
                ("to fhs_ewma", margin.mean() / table["fhs_ewma"].mean() - 1.0),
            )
        }
    return found


def maintenance_product(parts: Sequence[Part]) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Choose on calibrate parts, report the tests; the record and every point of the frontier."""
    sweep = policies()
    levels = SWEEP["maintenance_level"]
    rows, fold = tested(parts, levels)  # type: ignore[arg-type]
    points = {name: measures(rows, margin) for name, margin in rows.margins.items()}
    for name, rate in tiers().items():
        points[name] = measures(rows, np.broadcast_to(rate[None, :, None], rows.moved.shape))
    points |= {json.dumps(setting(policy)): measures(rows, required(rows, [policy])) for policy in sweep}
    chosen, at_level = [], []
    for place in range(len(parts)):
        pieces = [(part, part.calibrate, part.calibrate) for part in parts[: place + 1]]
        seen = track(pieces, levels)  # type: ignore[arg-type]
        chosen.append(choose(seen, sweep))
        at_level.append(choose(seen, sweep, STATED_LEVEL))
    points["walk-forward choice"] = measures(rows, required(rows, chosen, fold))
    points["walk-forward choice, stated level"] = measures(rows, required(rows, at_level, fold))
    points["policy defaults"] = measures(rows, required(rows, [MarginPolicy()]))
    free = replace(chosen[-1], rate_limit_per_hour=math.inf)
    capped = daily_limited(required(rows, [free]), rows.hours, DAILY_RISE)
    points["newest choice, daily limit"] = measures(rows, np.maximum(capped, free.floor))
    served, _ = tested([part.served() for part in parts], levels)  # type: ignore[arg-type]
    aims = limits(points)
    better = dominated(points)
    named = [name for name in points if not name.startswith("{")]
    return {
        "limits": aims,
        "chosen, stated level": {
            each.data_end[:4]: setting(policy) for each, policy in zip(FOLDS, at_level, strict=True)
        },
        "chosen": {each.data_end[:4]: setting(policy) for each, policy in zip(FOLDS, chosen, strict=True)},
        "chosen, on its fold and later": {
            each.data_end[:4]: measures(since(rows, fold >= place), required(rows, [policy]))
            for place, (each, policy) in enumerate(zip(FOLDS, chosen, strict=True))
        },
        "yardsticks, 2023 on": {
            name: measures(since(rows, fold >= 1), rows.margins[name]) for name in ("fhs_ewma", "fhs_slow")
        },
        "points": {name: points[name] for name in named},
        "missed": {name: missed(points[name], aims) for name in named},
        "dominated by": {name: len(better[name]) for name in named},
        "met but for excess": sum(set(missed(point, aims)) <= {"excess"} for point in points.values()),
        "met": sum(not missed(point, aims) for point in points.values()),
        "served": {
            "policy defaults": measures(served, required(served, [MarginPolicy()])),
            "walk-forward choice": measures(served, required(served, chosen, fold)),
        },
        "degraded share": {
            each.data_end[:4]: [round(float(share), 3) for share in part.degraded[part.test].mean(axis=0)]
            for each, part in zip(FOLDS, parts, strict=True)
        },
    }, points


def rounded(value: Any) -> Any:
    """Floats of a record to five digits."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def write_points(file: Path, points: Mapping[str, Mapping[str, float]]) -> None:
    """Every point of the frontier, one a line."""
    names = list(next(iter(points.values())))
    lines = [";".join(("point", *names))]
    lines += [";".join((name, *(f"{point[key]:.5g}" for key in names))) for name, point in points.items()]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Collect, choose, measure, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", type=Path, required=True, help="folder of fold bundles")
    parser.add_argument("--lake", required=True)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    lake = Lake(options.lake)
    parts = []
    for fold in FOLDS:
        print(f"{fold.data_end}: forecasting to {fold.test_end}", file=sys.stderr, flush=True)
        parts.append(collect(fold, options.folds, lake))
    maintenance, points = maintenance_product(parts)
    write_points(RESULTS.with_suffix(".csv"), points)
    line = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python training/two_products.py --folds {options.folds} --lake {options.lake}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "seconds": round(time.perf_counter() - started, 1),
        "initial": initial_product(parts),
        "maintenance": maintenance,
    }
    print(append_record(RESULTS, rounded(line)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
