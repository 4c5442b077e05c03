"""The results block of the README, rendered from recorded lines.

The newest ones of ``real_data.jsonl`` and ``accounts.jsonl`` in ``training/results``.

    python training/results_table.py

Prints the block; with ``--write`` it also replaces the one in ``README.md``. A test compares the two, so
the README cannot say what the file does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from account_rows import RECORDED_HORIZONS, comparison
from account_targets import SOURCES, TABLE
from targets import Line

from riskml.learning.account_evaluation import LEVERAGE, RECALIBRATED, Comparison
from riskml.learning.protocol import MODEL

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results" / "real_data.jsonl"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
HORIZONS = ("1h", "8h", "24h")


def newest_line() -> dict[str, Any]:
    """The last recorded run of ``training/run_real_data.py``."""
    line: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8").splitlines()[-1])
    return line


def newest_accounts() -> Line:
    """The last recorded run of ``training/evaluate_accounts.py``."""
    return SOURCES["accounts"].newest()


def render(line: dict[str, Any], accounts: Line) -> str:
    """Markdown between the markers, markers included."""
    steps = line["steps"]
    folds = [name.removeprefix("evaluate_") for name in steps if name.startswith("evaluate_")]
    rows = ["| test part | measure | 1h | 8h | 24h |", "|---|---|---|---|---|"]
    for fold in folds:
        rows += _fold_rows(fold, steps[f"evaluate_{fold}"])
    build = steps["build"]
    fits = [steps[f"fit_{fold}"]["seconds"] for fold in folds]
    backfill = steps["backfill"]
    return "\n".join(
        [
            BEGIN,
            "Real data, ten long markets, 1 h bars, every fold out of sample "
            f"({line['machine']}, {line['date']}, `{line['command']}`):",
            "",
            *rows,
            "",
            "All on identical rows. QLIKE is the ratio to a debiased log-HAR (geometric mean over markets; "
            "below 1 is better). Log-loss is of liquidation at a random distance. The breach rate of a "
            "99.5 % requirement should be .005; FHS is filtered historical simulation on an EWMA.",
            "",
            f"{_ingest(steps)}Build {build['rows']:,} rows x {build['features']} features: "
            f"{build['seconds']:.0f} s. Fit, per fold: {min(fits):.0f}-{max(fits):.0f} s. "
            f"All steps: {line['seconds'] / 60:.0f} min, peak memory {line['peak_mb'] / 1024:.1f} GiB.",
            "",
            _accounts(backfill, accounts),
            END,
        ]
    )


def _fold_rows(fold: str, step: dict[str, Any]) -> list[str]:
    def cells(keys: tuple[str, ...], digits: int) -> str:
        found = []
        for horizon in HORIZONS:
            values = [step.get(key.replace("*", horizon)) for key in keys]
            found.append(" / ".join("-" if value is None else f"{value:.{digits}f}" for value in values))
        return " | ".join(found)

    return [
        f"| {fold} | QLIKE ratio: riskml / EWMA | {cells(('qlike_ratio_*', 'qlike_ratio_*_ewma'), 3)} |",
        f"| | log-loss: riskml / logit(z) | {cells(('log_loss_*', 'log_loss_*_logit_z'), 4)} |",
        "| | breach, long: riskml / FHS | "
        f"{cells(('breach_rate_*_down', 'breach_rate_*_down_fhs_ewma'), 4)} |",
        f"| | breach, short: riskml / FHS | {cells(('breach_rate_*_up', 'breach_rate_*_up_fhs_ewma'), 4)} |",
    ]


def _accounts(step: dict[str, Any], line: Line) -> str:
    """What the backfill came out as, and what the accounts measure beside leverage."""

    def pairs(metric: str, digits: int, other: str) -> str:
        found = []
        for horizon in HORIZONS:
            ours, theirs = step[f"{metric}_{horizon}"], step[f"{metric}_{horizon}_{other}"]
            found.append(f"{horizon} {ours:.{digits}f} / {theirs:.{digits}f}")
        return ", ".join(found)

    area, loss, raw = (
        _beside_leverage(line, metric, model)
        for metric, model in (("auc", MODEL), ("log_loss", RECALIBRATED), ("log_loss", MODEL))
    )
    both = [row for row in area if row.horizon in HORIZONS]
    reason = ""
    if all(step[f"account_auc_{row.horizon}"] < row.value for row in both):
        reason = (
            " The backfill's own figures are lower: it gives markets without bars the policy's unknown "
            "scale, takes the record's marks, which are last trades, and has accounts below maintenance too."
        )
    return (
        "Hyperliquid accounts of 2023, scored hour by hour with the fold fitted before them: "
        f"{step['rows']:,} rows in {step['seconds']:.0f} s, {step['in_sample_rows']} of them in sample. "
        "AUC for the recorded liquidations, riskml / the venue's margin ratio: "
        f"{pairs('account_auc', 3, 'hyperliquid')}; log-loss, riskml / the base rate: "
        f"{pairs('account_log_loss', 3, 'base_rate')}. The same accounts above maintenance, re-marked, and "
        "with the scale of their peers for markets without bars: AUC, riskml / leverage, "
        f"{_pairs(area, 3)}; log-loss after the same one-variable recalibration {_pairs(loss, 4)}; raw "
        f"log-loss {_pairs(raw, 4)}. The interval over accounts excludes 0 in riskml's favour "
        f"{_clear(area)} in AUC, {_clear(loss)} in recalibrated and {_clear(raw)} in raw log-loss."
        f"{reason} Every measure of accounts beside its aim: "
        f"[{TABLE.name}]({TABLE.relative_to(REPOSITORY).as_posix()})."
    )


def _beside_leverage(line: Line, metric: str, model: str) -> list[Comparison]:
    """Riskml against leverage on the recorded accounts above maintenance, by horizon."""
    found = line["recorded"]["comparisons"]
    return [comparison(found, f"{metric} {model} {LEVERAGE} above all {h}", h) for h in RECORDED_HORIZONS]


def _pairs(rows: list[Comparison], digits: int) -> str:
    return ", ".join(f"{row.horizon} {row.value:.{digits}f} / {row.against:.{digits}f}" for row in rows)


def _clear(rows: list[Comparison]) -> str:
    """Horizons at which the interval of the difference excludes 0 in riskml's favour."""
    found = [row.horizon for row in rows if row.significant]
    return f"at {', '.join(found)}" if found else "nowhere"


def replaced(readme: str, block: str) -> str:
    """The README with its results block exchanged."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + block + after


def _ingest(steps: dict[str, Any]) -> str:
    """What the ingest took; nothing where the run found the lake complete (``--skip-ingest``)."""
    if "ingest" not in steps:
        return ""
    counts, seconds = steps["ingest"]["counts"], steps["ingest"]["seconds"]
    return f"Ingest {counts['rows_added']:,} rows of {counts['files']} files: {seconds:.0f} s. "


def main(arguments: list[str]) -> int:
    """Print the block, or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the block in README.md")
    options = parser.parse_args(arguments)
    block = render(newest_line(), newest_accounts())
    print(block)
    if options.write:
        text = replaced(README.read_text(encoding="utf-8"), block)
        staging = README.with_name(".README.md.tmp")
        staging.write_text(text, encoding="utf-8")
        staging.replace(README)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
