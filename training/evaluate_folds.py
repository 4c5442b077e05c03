"""Measure bundles of folds that exist, each on its own test part, and pool the rows.

    python training/evaluate_folds.py --folds runs/real/folds --lake runs/real/lake --out pooled.json

``riskml evaluate --walk-forward`` fits the folds as well; this takes a folder of bundles named
``perp-<interval>-<data_end>``, as ``run_real_data.py`` leaves it. Writes the evaluate JSON with the folds
below ``folds``, appends a line to ``training/results/folds.jsonl``, and prints the same line last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from riskml.learning.baselines import Which
from riskml.learning.evaluate import Evaluated, evaluate_rows
from riskml.learning.measures import measure
from riskml.learning.protocol import FOLDS, LONG_MARKETS, Scored, join
from riskml.learning.runs import append_record, write_text
from riskml.learning.splits import EXCLUDED_MARKETS
from riskml.learning.walk_forward import fold_path, pool_folds
from riskml.scoring.session import load_bundle
from riskml.tables.lake import Lake

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results" / "folds.jsonl"
HEADLINE = (
    "qlike_ratio", "qlike_ratio_crash", "qlike_ratio_calm", "diebold_mariano_share", "log_loss_ratio", "ece",
    "auc", "slope", "breach_rate", "breach_rate_top_decile", "kupiec_share", "christoffersen_share",
    "rolling_red_share", "average_margin", "early_warning_recall", "early_warning_precision",
    "early_warning_false_per_week", "early_warning_alarm_share", "early_warning_lead_minutes",
    "early_warning_gain", "early_warning_gain_any",
)  # fmt: skip
"""Pooled measures of the bundle that the line keeps."""


def headline(metrics: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Value, baseline and count of the pooled measures, by ``metric horizon market side``."""
    return {
        " ".join((row["metric"], row["horizon"], row["market"], row["side"])): [
            *(None if row[name] is None else round(row[name], 5) for name in ("value", "baseline")),
            row["n"],
        ]
        for row in metrics
        if row["model"] == "riskml"
        and ((row["metric"] in HEADLINE and row["market"] == "all") or row["metric"].startswith("portfolio_"))
    }


def by_model(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """QLIKE ratio and log-loss of every model, by ``metric model horizon``."""
    return {
        " ".join((row["metric"], row["model"], row["horizon"])): round(row["value"], 5)
        for row in metrics
        if row["metric"] in ("qlike_ratio", "log_loss")
        and row["market"] == "all"
        and row["value"] is not None
    }


def worst_markets(metrics: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The market with the largest QLIKE ratio outside crash weeks, per horizon."""
    found: dict[str, list[Any]] = {}
    for row in metrics:
        if row["metric"] == "qlike_ratio_calm" and row["model"] == "riskml" and row["market"] != "all":
            worst = found.setdefault(row["horizon"], ["", 0.0])
            if row["value"] is not None and row["value"] > worst[1]:
                found[row["horizon"]] = [row["market"], round(row["value"], 5)]
    return found


def evaluate_all(
    folds: Path, lake: Lake, markets: list[str], *, baselines: Which = "light", portfolios: bool = False
) -> list[Evaluated]:
    """Every fold's bundle on its own test part."""
    results = []
    for fold in FOLDS:
        bundle = fold_path(folds, fold, "1h")
        print(f"{bundle.name}: testing to {fold.test_end}", file=sys.stderr, flush=True)
        results.append(
            evaluate_rows(
                load_bundle(bundle),
                lake,
                start=fold.data_end,
                end=fold.test_end,
                markets=markets,
                baselines=baselines,
                portfolios=portfolios,
            )
        )
    return results


def groups(results: list[Evaluated], fitted: list[str]) -> dict[str, dict[str, list[float | None]]]:
    """Pooled measures of markets that no fit saw, and alarms over every market.

    The fitted markets are measured again on the folds that hold markets left out, for like rows.
    """
    pooled = join([result.scored for result in results])
    seen = set(fitted)
    left_out = [name for name in pooled.markets if name in EXCLUDED_MARKETS]
    later = [
        result.scored for result in results if np.isfinite(result.scored.select(left_out).realised).any()
    ]
    found = {
        "every market": headline(measure_dicts(pooled)),
        "no fit saw them": headline(measure_dicts(join(later).select(left_out))),
        "fitted, same folds": headline(
            measure_dicts(join(later).select([name for name in pooled.markets if name in seen]))
        ),
    }
    return found


def measure_dicts(scored: Scored) -> list[dict[str, Any]]:
    """Metric rows in their JSON form."""
    return [row.to_dict() for row in measure(scored)]


def main(arguments: list[str]) -> int:
    """Evaluate, pool, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", required=True, help="folder of fold bundles")
    parser.add_argument("--lake", required=True)
    parser.add_argument("--out", required=True, help="evaluate JSON")
    parser.add_argument("--markets", default=",".join(LONG_MARKETS), help="default: the long markets")
    parser.add_argument("--groups", action="store_true", help="measure every market of binance as well")
    parser.add_argument("--baselines", choices=("light", "full"), default="light")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    lake, markets = Lake(options.lake), options.markets.split(",")
    results = evaluate_all(Path(options.folds), lake, markets, baselines=options.baselines, portfolios=True)
    report = pool_folds(results, (FOLDS[0].data_end, FOLDS[-1].test_end))
    write_text(Path(options.out), json.dumps(report, allow_nan=False) + "\n")
    line = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python training/evaluate_folds.py --markets {options.markets} "
        f"--baselines {options.baselines}{' --groups' if options.groups else ''}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "rows": report["rows"],
        "in_sample": report["in_sample"],
        "pooled": headline(report["metrics"]),
        "models": by_model(report["metrics"]),
        "worst_market": worst_markets(report["metrics"]),
        "alarm_thresholds": {
            fold.data_end[:4]: part["alarm_thresholds"].get("riskml")
            for fold, part in zip(FOLDS, report["folds"], strict=True)
        },
        "fold_models": {
            fold.data_end[:4]: by_model(part["metrics"])
            for fold, part in zip(FOLDS, report["folds"], strict=True)
        },
        "fold_worst_market": {
            fold.data_end[:4]: worst_markets(part["metrics"])
            for fold, part in zip(FOLDS, report["folds"], strict=True)
        },
        "folds": {
            fold.data_end[:4]: headline(part["metrics"])
            for fold, part in zip(FOLDS, report["folds"], strict=True)
        },
    }
    if options.groups:
        every = [market.symbol for market in lake.markets("1h") if market.venue == "binance"]
        whole = evaluate_all(Path(options.folds), lake, every)
        line["groups"] = groups(whole, markets)
    line["seconds"] = round(time.perf_counter() - started, 1)
    print(append_record(RESULTS, line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
