"""Coverage of the requirement with and without the level control, on bundles and a real lake.

    python training/conformal_coverage.py models/perp-1h-0.2.0 --lake LAKE --start 2025-01-01 --end 2025-10-01

The step is chosen on the bundle's calibrate part alone: the largest that costs at most 5 % of margin there,
averaged over horizons and sides. The step with the best calibrate coverage is recorded beside it; where the
law was calibrated on that same part it is 0 by construction, so it cannot choose. The test part is only
reported, once as it is and once with every scale cut, as a law that a regime break has left behind.
A folder of bundles is taken one by one, each over the range given (or the year after its data).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from riskml.arrays import FloatND
from riskml.backfill.forecasts import ForecastHistory, forecast_history, history_markets
from riskml.learning.protocol import FOLDS
from riskml.risk.conformal import LevelControl, LevelController
from riskml.scoring.session import LoadedBundle, load_bundle
from riskml.tables.align import load_grid
from riskml.tables.lake import Lake
from riskml.tables.targets import targets
from riskml.units import DAY, duration_bars, to_us

LEVEL = 0.995
STEPS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
MAX_RAISE = 3.0
MARGIN_BUDGET = 1.05
BROKEN_SCALE = 0.6
"""Factor on every scale in the stressed report."""


def main() -> int:
    """Run every bundle and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", type=Path, help="a bundle, or a folder of bundles")
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--start", help="test part; default: from the bundle's data_end")
    parser.add_argument("--end", help="default: of the fold's test part, else a year on")
    parser.add_argument("--out", type=Path, default=Path("training/results/conformal.json"))
    options = parser.parse_args()
    single = (options.bundles / "manifest.json").exists()
    found = [options.bundles] if single else sorted(p.parent for p in options.bundles.glob("*/manifest.json"))
    if not found:
        print(f"there is no bundle in {options.bundles}", file=sys.stderr)
        return 2
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "command": "python training/conformal_coverage.py " + " ".join(sys.argv[1:]),
        "level": LEVEL,
        "max_raise": MAX_RAISE,
        "bundles": [run(path, Lake(options.lake), options.start, options.end) for path in found],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


def run(path: Path, lake: Lake, start: str | None, end: str | None) -> dict[str, Any]:
    """Choose the step on the calibrate part, report both controls on the test part."""
    bundle = load_bundle(path)
    manifest = bundle.manifest
    first = to_us(start or manifest.data_end)
    last = to_us(end) if end else _test_end(first)
    calibrate = prepare(bundle, lake, to_us(manifest.calibrate_start), to_us(manifest.calibrate_end))
    tried = {step: measure(bundle, *calibrate, step, 0.0) for step in STEPS}
    chosen = max(step for step in STEPS if _mean_ratio(tried[step]) <= MARGIN_BUDGET)
    test = prepare(bundle, lake, first, last)
    broken = (replace(test[0], sigma=BROKEN_SCALE * test[0].sigma), *test[1:])
    return {
        "bundle_id": manifest.bundle_id,
        "name": path.name,
        "step": chosen,
        "step_of_best_coverage": min(STEPS, key=lambda step: (_worst(tried[step]), _mean_ratio(tried[step]))),
        "calibrate": {str(step): rows for step, rows in tried.items()},
        "test": {
            "without": measure(bundle, *test, 0.0, 0.0),
            "raise_only": measure(bundle, *test, chosen, 0.0),
            "two_sided": measure(bundle, *test, chosen, 1.0),
        },
        f"test_with_scales_times_{BROKEN_SCALE}": {
            "without": measure(bundle, *broken, 0.0, 0.0),
            "raise_only": measure(bundle, *broken, chosen, 0.0),
        },
    }


def _test_end(first: int) -> int:
    """End of the test part that begins there: the fold's of the protocol, else a year on."""
    ends = [to_us(fold.test_end) for fold in FOLDS if to_us(fold.data_end) == first]
    return ends[0] if ends else first + 365 * DAY


def prepare(
    bundle: LoadedBundle, lake: Lake, start: int, end: int
) -> tuple[ForecastHistory, FloatND, FloatND]:
    """Guarded forecasts, prices [n_ts, n_markets, 3] and targets mae [n_ts, n_markets, n_horizons, 2]."""
    manifest = bundle.manifest
    history = forecast_history(bundle, lake, start, end, guarded=True)
    grid = load_grid(
        lake, history_markets(bundle, lake, None), manifest.interval, start, end, ("high", "low", "close")
    )
    high, low, close = (grid.inputs[name] for name in ("high", "low", "close"))
    mae = targets(close, high, low, grid.ts, manifest.interval, manifest.horizons).mae
    return history, np.stack([high, low, close], axis=2), mae


def measure(
    bundle: LoadedBundle, history: ForecastHistory, prices: FloatND, mae: FloatND, step: float, lower: float
) -> list[dict[str, Any]]:
    """Breach rate and margin ratio to the uncontrolled one, per horizon and side."""
    manifest = bundle.manifest
    bars = [duration_bars(horizon, manifest.interval) for horizon in manifest.horizons]
    n_markets = len(history.markets)
    power = np.asarray(manifest.calibration_power or [1.0] * len(bars))
    plain = LevelController(LevelControl(LEVEL, 0.0, 0.0), bars, n_markets)
    control = LevelController(LevelControl(LEVEL, step, MAX_RAISE, lower), bars, n_markets)
    base, asked = np.empty_like(history.sigma), np.empty_like(history.sigma)
    for row, ts in enumerate(history.ts.tolist()):
        sigma, nu = history.sigma[row], history.nu[row]
        control.step(ts, prices[row], sigma, nu, power, history.degraded[row] == 0)
        base[row], asked[row] = plain.distance(sigma, nu, power), control.distance(sigma, nu, power)
    rows = []
    for place, horizon in enumerate(manifest.horizons):
        for side, name in enumerate(("down", "up")):
            at = (..., place, side)
            usable = np.isfinite(mae[at]) & np.isfinite(asked[at])
            breach = (mae[at] > asked[at])[usable]
            ratio = np.expm1(asked[at][usable]).mean() / np.expm1(base[at][usable]).mean()
            rows.append(
                {
                    "horizon": horizon,
                    "side": name,
                    "n": int(usable.sum()),
                    "breach": round(float(breach.mean()), 6),
                    "margin_ratio": round(float(ratio), 4),
                }
            )
    return rows


def _worst(rows: list[dict[str, Any]]) -> float:
    return max(abs(float(row["breach"]) - (1.0 - LEVEL)) for row in rows)


def _mean_ratio(rows: list[dict[str, Any]]) -> float:
    return float(np.mean([row["margin_ratio"] for row in rows]))


if __name__ == "__main__":
    raise SystemExit(main())
