"""A threefold step of volatility in real bars, down the scorer's whole path.

    python training/impulse_response.py --bundle runs/real/folds/perp-1h-2025-01-01 --lake runs/real/lake

From a time on every price deviates three times as far (in logs) from its value at that time, and every
variance within a bar is nine times as large; nothing else changes. The same bars without the step are the
control, so that the ratio of what is asked is the response: features, market graph, guards, slow scale and
the law's unit margins. It starts at 1 and settles where the requirement belongs under three times the
volatility. Mean over start times, of each market and side; appends one line to
``training/results/impulse_response.jsonl``.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from riskml.arrays import Float2D, Float3D
from riskml.backfill.forecasts import history_markets, watched_inputs
from riskml.features.evaluate import evaluate_features, lookback_bars
from riskml.learning.runs import append_record
from riskml.markets import Market, symbols
from riskml.risk.assess import INITIAL, MAINTENANCE
from riskml.risk.impulse import VOLATILITY_STEP, ImpulseResponse, measure_response
from riskml.risk.policy import MarginPolicy
from riskml.scoring.requirements import Requirements
from riskml.scoring.session import LoadedBundle, load_bundle
from riskml.scoring.stream import WARM_UP, GraphStream, GuardStream
from riskml.tables.align import Grid, load_grid
from riskml.tables.compiled import CompiledOps
from riskml.tables.lake import Lake
from riskml.units import DAY, HOUR, duration_bars, to_us

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results" / "impulse_response.jsonl"
PRICES = ("open", "high", "low", "close", "index_close", "spot_close")
SQUARES = ("fine_square", "fine_fall", "fine_variance", "quarter_variance")
"""Inputs that are sums of squared moves."""
STARTS = tuple(f"2025-{month:02d}-06" for month in range(2, 9))
FOLLOW_DAYS = 28
SETTLE_H = 7 * 24
"""The response counts as settled in the last week that is followed."""
POLICIES: Mapping[str, MarginPolicy] = {
    "default": MarginPolicy(),
    "default, no guards": MarginPolicy(),
    "no stressed floor": MarginPolicy(stressed_floor=0.0),
    "before 0.5": MarginPolicy(stressed_floor=0.5, apc="none", rate_limit_per_hour=0.25),
}
UNGUARDED = "no guards"
"""Part of a name that takes what the graph says: guards hold a forecast up whose inputs are out of bounds."""


def stepped(inputs: Mapping[str, Float2D], row: int, factor: float) -> dict[str, Float2D]:
    """Inputs whose prices deviate ``factor`` times as far from the close of ``row`` in the bars after it."""
    anchor = inputs["close"][row]
    result = {}
    for name, values in inputs.items():
        changed = values.copy()
        later = values[row + 1 :]
        if name in PRICES:
            changed[row + 1 :] = anchor * (later / anchor) ** factor
        elif name.startswith(SQUARES):
            changed[row + 1 :] = later * factor**2
        result[name] = changed
    return result


def asked(
    bundle: LoadedBundle, markets: Sequence[Market], grid: Grid, inputs: Mapping[str, Float2D], n_bars: int
) -> dict[str, Float3D]:
    """Unit margins of the last ``n_bars`` bars [n_bars, n_markets, 2] by policy and product."""
    features = evaluate_features(
        bundle.features,
        dict(inputs),
        grid.ts,
        interval="1h",
        reference=range(len(bundle.manifest.markets)),
        ops=CompiledOps(),
        tail=n_bars + bundle.manifest.n_bars - 1,
        markets=tuple(markets),
    )
    lead = bundle.manifest.n_bars - 1
    tail = {name: values[-len(features) :] for name, values in inputs.items()}
    stream, guard = (
        GraphStream(bundle, symbols(markets)),
        GuardStream(bundle, markets, watched_inputs(bundle)),
    )
    stream.fill(features[:lead], {name: values[:lead] for name, values in tail.items()})
    paths = {name: Requirements(bundle, policy) for name, policy in POLICIES.items()}
    found: dict[str, list[Float2D]] = {}
    ts = grid.ts[-n_bars:]
    for bar in stream.push(ts, features[lead:], {name: values[lead:] for name, values in tail.items()}):
        guarded = guard.step(bar)
        for name, path in paths.items():
            bare = replace(guarded, output=bar.output, degraded=np.zeros_like(guarded.degraded))
            path.take(bare if UNGUARDED in name else guarded, markets)
            if path.scales is None:
                raise AssertionError("a bar was taken")
            unit, policy = path.scales.market_law.unit_margins[:, : len(markets)], path.policy
            maintenance = np.maximum(unit[MAINTENANCE], policy.floor)
            initial = np.maximum(np.maximum(unit[INITIAL], policy.initial_floor), maintenance)
            found.setdefault(f"{name}: maintenance", []).append(maintenance)
            found.setdefault(f"{name}: initial", []).append(initial)
    return {name: np.stack(values) for name, values in found.items()}


def responses(bundle: LoadedBundle, lake: Lake, start: str) -> tuple[dict[str, Float3D], dict[str, float]]:
    """Ratio of stepped to plain from the step's bar on, and the largest hourly rise with the step."""
    markets = history_markets(bundle, lake, None)
    warm, follow = duration_bars(WARM_UP, "1h"), FOLLOW_DAYS * DAY // HOUR
    begin = to_us(start) - (warm + bundle.manifest.n_bars + lookback_bars(bundle.features, "1h")) * HOUR
    end = to_us(start) + (follow + 1) * HOUR
    grid = load_grid(lake, markets, "1h", begin, end, watched_inputs(bundle))
    row = int(np.searchsorted(grid.ts, to_us(start)))
    n_bars = warm + follow + 1
    plain = asked(bundle, markets, grid, grid.inputs, n_bars)
    shaken = asked(bundle, markets, grid, stepped(grid.inputs, row, VOLATILITY_STEP), n_bars)
    ratio = {name: (shaken[name] / plain[name])[warm:] for name in plain}
    rise = {
        name: float((values[warm + 1 :] / values[warm:-1] - 1.0).max()) for name, values in shaken.items()
    }
    return ratio, rise


def measured(course: Float2D) -> ImpulseResponse:
    """A response whose new level is the mean of its last week, not of its last day."""
    smooth = course.copy()
    smooth[-SETTLE_H:] = course[-SETTLE_H:].mean()
    found = measure_response(np.arange(len(course), dtype=np.float64), smooth)
    peak = float(course[1:].max())
    return ImpulseResponse(
        found.before,
        found.after,
        peak,
        max(peak / found.after - 1.0, 0.0),
        found.half_life_h,
        found.largest_hourly_rise,
    )


def main(arguments: list[str]) -> int:
    """Step at every start, average, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--lake", required=True)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    bundle, lake = load_bundle(options.bundle), Lake(options.lake)
    runs, rises = [], []
    for start in STARTS:
        print(f"a step at {start}", file=sys.stderr, flush=True)
        ratio, rise = responses(bundle, lake, start)
        runs.append(ratio)
        rises.append(rise)
    record: dict[str, Any] = {}
    for name in runs[0]:
        # [n_hours, n_starts x n_markets x 2]; geometric, because responses are ratios
        every = np.concatenate([run[name].reshape(len(run[name]), -1) for run in runs], axis=1)
        mean = measured(np.exp(np.log(every).mean(axis=1)))
        each = [measured(np.exp(np.log(run[name]).mean(axis=(1, 2)))).overshoot for run in runs]
        record[name] = {
            **asdict(mean),
            "overshoot_by_start": each,
            "largest_hourly_rise_of_any": max(rise[name] for rise in rises),
            "cap": POLICIES[name.partition(":")[0]].rate_limit_per_hour,
        }
    line = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python training/impulse_response.py --bundle {options.bundle} --lake {options.lake}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "seconds": round(time.perf_counter() - started, 1),
        "bundle_id": bundle.manifest.bundle_id,
        "starts": STARTS,
        "responses": record,
    }
    print(append_record(RESULTS, line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
