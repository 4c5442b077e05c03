"""The out-of-sample part of a model card: the fold table, every market beside every baseline, what fails.

Every figure is read off one evaluate JSON with folds, such as ``riskml evaluate --walk-forward`` writes. What
is known to fail is the same for every forecast of this kind, and is said in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from riskml.errors import DataError

MODEL, ALL = "riskml", "all"
PER_MARKET = (
    ("qlike", "QLIKE of the variance", "both", "{:.4f}"),
    ("log_loss", "log-loss of the liquidation probability", "both", "{:.5f}"),
    ("breach_rate", "breaches of the 99.5 % margin of a long", "down", "{:.2%}"),
    ("breach_rate", "breaches of the 99.5 % margin of a short", "up", "{:.2%}"),
)
"""(metric, words, side, format) of the tables by market."""
PROCYCLICALITY = (
    ("average_margin", "average margin", "{:.2%}"),
    ("peak_to_trough", "peak to trough within a year", "{:.1f}"),
    ("largest_daily_rise", "largest rise within a day", "{:.2f}"),
    ("mean_breach_excess", "mean excess of a breach", "{:.2%}"),
)
_SIDES = {"down": ", long", "up": ", short"}
_WORST = (
    (
        "qlike_ratio_calm",
        "Largest QLIKE ratio of a market outside crash weeks",
        "{:.3f}",
        False,
    ),
    ("log_loss_ratio", "Largest log-loss ratio to logit(z)", "{:.3f}", False),
    ("ece", "Largest calibration error", "{:.4f}", False),
    ("slope", "Largest calibration slope", "{:.2f}", False),
    ("breach_rate", "Most breaches of the 99.5 % margin", "{:.2%}", False),
    ("breach_rate_top_decile", "Most breaches in the most volatile tenth", "{:.2%}", False),
    ("rolling_red_share", "Largest share of 250-day windows in the red zone", "{:.0%}", False),
    ("early_warning_recall", "Least recall of early warning", "{:.2f}", True),
    ("early_warning_false_per_week", "Most false alarms per market-week", "{:.2f}", False),
    ("portfolio_breach", "Most breaches of random books, upper bound", "{:.2%}", False),
)
"""(metric, words, format, whether the least is the worst) of what the card owns up to."""
KNOWN_FAILURES = """
### Known failures
- **A volatility model cannot margin a cascade that nothing announced**, such as that of 10 October 2025: a
  forecast of this kind follows such a move, it does not precede it. The policy's stressed floor and breaker
  are there for that: leave them on.
- **Young coins.** A market with a few months of history has no slow volatility of its own, and rich models
  carry over worse at 24 h than at 1 h. Blend towards slow volatility, or ask for an add-on, at first.
- **Early warning is a hint.** Most alarms are false: watch by it, do not close positions by it.
- **Fast margin is procyclical**: see peak to trough. Maintenance comes from the slow forecast in the policy.
"""


def evaluation_section(evaluation: Mapping[str, Any]) -> str:
    """Markdown of the section.

    Parameters
    ----------
    evaluation : evaluate JSON; ``folds`` in it gives the fold table.

    Raises
    ------
    DataError : it is no evaluation, or in sample.
    """
    lacking = [name for name in ("start", "end", "rows", "in_sample", "metrics") if name not in evaluation]
    if lacking:
        raise DataError(f"the evaluation lacks {', '.join(lacking)}", fix="pass what 'riskml evaluate' wrote")
    if evaluation["in_sample"]:
        raise DataError(
            "the evaluation has rows that its bundles have seen, so a card cannot print it",
            fix="evaluate later data, or the folds with --walk-forward",
        )
    rows = [row for row in evaluation["metrics"] if row["value"] is not None]
    lines = [
        "## Out of sample",
        "",
        f"The same recipe, refitted fold by fold and tested after its data: {evaluation['start'][:10]} to "
        f"{evaluation['end'][:10]}, {evaluation['rows']:,} rows, every model on identical rows. Ratios are "
        "to a debiased log-HAR (QLIKE) and to a logistic regression on the standardised distance (log-loss). "
        "No bundle has seen rows that it is tested on; the recipe was chosen on the parts that bundles are "
        "calibrated on, which for one fold are test rows of the fold before.",
        "",
        *_fold_table(evaluation),
        "",
        *_warning_lines(rows),
        "",
        "### Where it falls short",
        "",
        *_shortfalls(evaluation),
    ]
    horizons = list(dict.fromkeys(row["horizon"] for row in rows if row["metric"] == "qlike"))
    for metric, words, side, shape in PER_MARKET:
        for horizon in horizons:
            table = _market_table(rows, (metric, horizon, side), shape)
            if table:
                lines += ["", f"### {words[0].upper()}{words[1:]}, {horizon}", "", *table]
    lines += ["", "### Procyclicality of the 99.5 % margin (median over markets)", "", *_procyclicality(rows)]
    return "\n".join(lines) + "\n" + KNOWN_FAILURES


def _fold_table(evaluation: Mapping[str, Any]) -> list[str]:
    parts = [(f"from {part['start'][:10]}", part["metrics"]) for part in evaluation.get("folds", ())]
    parts.append(("all folds", evaluation["metrics"]))
    columns = (
        ("qlike_ratio", "both", "QLIKE ratio", "{:.3f}"),
        ("log_loss_ratio", "both", "log-loss ratio", "{:.3f}"),
        ("breach_rate", "down", "breaches, long", "{:.2%}"),
        ("breach_rate", "up", "breaches, short", "{:.2%}"),
    )
    head = ["test part", *(f"{words} 1 / 8 / 24 h" for _, _, words, _ in columns)]
    body = []
    for name, metrics in parts:
        cells = [name]
        for metric, side, _, shape in columns:
            values = [
                row["value"]
                for row in metrics
                if (row["metric"], row["side"], row["market"], row["model"]) == (metric, side, ALL, MODEL)
            ]
            cells.append(" / ".join("-" if value is None else shape.format(value) for value in values))
        body.append(cells)
    return _table(head, body)


def _shortfalls(evaluation: Mapping[str, Any]) -> list[str]:
    """The worst figures of the evaluation, so that a reader need not look for them."""
    parts = [(part["start"][:4], part["metrics"]) for part in evaluation.get("folds", ())]
    parts = parts or [("the whole", evaluation["metrics"])]
    lines = []
    for metric, words, shape, least in _WORST:
        found = [
            (row["value"], row, name)
            for name, metrics in parts
            for row in metrics
            if row["metric"] == metric and row["model"] == MODEL and row["value"] is not None
        ]
        if found:
            value, row, name = (min if least else max)(found, key=lambda item: item[0])
            where = "" if row["market"] == ALL else f", {row['market']}"
            side = _SIDES.get(row["side"], "")
            lines.append(f"- {words}: {shape.format(value)} ({row['horizon']}{side}{where}, {name})")
    return lines


def _warning_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {
        row["metric"]: row
        for row in rows
        if row["metric"].startswith("early_warning_") and row["model"] == MODEL
    }
    if "early_warning_recall" not in found:
        return []
    recall = found["early_warning_recall"]

    def figure(name: str, shape: str) -> str:
        row = found.get(f"early_warning_{name}")  # no alarm has no precision, no hit no lead
        return "-" if row is None else shape.format(row["value"])

    best = "none was measured"
    if recall["baseline_model"] and recall["baseline"] is not None:
        best = f"{recall['baseline_model']}: {recall['baseline']:.2f}"
    weekly = figure("false_per_week", "{:.2f}")
    return [
        f"Early warning of a fall within 24 h: recall {figure('recall', '{:.2f}')} of {recall['n']} onsets "
        f"(best one-line detector, {best}) at {weekly} false alarms per market-week; "
        f"precision {figure('precision', '{:.1%}')}, lead {figure('lead_minutes', '{:.0f}')} min (median)."
    ]


def _market_table(rows: Iterable[Mapping[str, Any]], key: tuple[str, str, str], shape: str) -> list[str]:
    """Markets down, models across; empty where the metric was not measured."""
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        if (row["metric"], row["horizon"], row["side"]) == key:
            values.setdefault(row["market"], {})[row["model"]] = row["value"]
    models = list(dict.fromkeys(model for found in values.values() for model in found))
    if not models:
        return []
    body = [
        [market, *(shape.format(found[model]) if model in found else "-" for model in models)]
        for market, found in values.items()
    ]
    return _table(["market", *models], body)


def _procyclicality(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    body = []
    for metric, words, shape in PROCYCLICALITY:
        found: dict[tuple[str, str], dict[str, float]] = {}
        for row in rows:
            if row["metric"] == metric and row["market"] == ALL:
                found.setdefault((row["horizon"], row["side"]), {})[row["model"]] = row["value"]
        for (horizon, side), values in found.items():
            ours = values.pop(MODEL, None)
            others = ", ".join(f"{name} {shape.format(value)}" for name, value in values.items())
            body.append([words, horizon, side, "-" if ours is None else shape.format(ours), others])
    return _table(["measure", "horizon", "side", "riskml", "yardsticks"], body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
