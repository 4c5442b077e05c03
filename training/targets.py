"""What was aimed at beside what was reached, from the newest recorded runs.

    python training/targets.py

Reads the last line of ``training/results/folds.jsonl`` (``evaluate_folds.py --groups --baselines full``) and
the last ablation of the sequence part; prints the table, with ``--write`` also into
``training/results/TARGETS.md``. A test holds the file to the lines, so it cannot say what they do not.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from riskml.errors import DataError

RESULTS = Path(__file__).resolve().parent / "results"
TABLE = RESULTS / "TARGETS.md"
HORIZONS = ("1h", "8h", "24h")
SIDES = (("down", "long"), ("up", "short"))
KINDS = ("long", "short", "mixed")
Line = Mapping[str, Any]
Row = tuple[str, str, str, bool | str | None]
"""Measure, target, figures, whether it is met; None without a target, a text where it is met in part."""
VERDICTS = {True: "met", False: "**missed**", None: ""}
AT_MOST: Callable[[Any, Any], bool] = operator.le
AT_LEAST: Callable[[Any, Any], bool] = operator.ge
BREACHES = (0.0035, 0.0065)
"""Between which the breach rate of a 99.5 % requirement is to lie."""
BREACHES_AIM = ".35 to .65 %"


def newest(file: Path, contains: str = "", *, fix: str = "run evaluate_folds.py --groups first") -> Line:
    """The last line of a JSON-lines file, of those that contain a text.

    Raises
    ------
    DataError : there is none; ``fix`` says what makes it.
    """
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    lines = [line for line in text.splitlines() if contains in line]
    if not lines:
        raise DataError(f"{file} has no line with {contains}", fix=fix)
    found: Line = json.loads(lines[-1])
    return found


def within_breaches(rates: Iterable[float]) -> bool:
    """Whether every breach rate lies within :data:`BREACHES`."""
    return all(BREACHES[0] <= rate <= BREACHES[1] for rate in rates)


def table(body: Iterable[Row]) -> list[str]:
    """Rows as lines of a Markdown table."""
    lines = ["| measure | target | figure | |", "|---|---|---|---|"]
    for name, target, figure, ok in body:
        verdict = ok if isinstance(ok, str) else VERDICTS[ok]
        lines.append(f"| {name} | {target} | {figure} | {verdict} |")
    return lines


def tally(body: Iterable[Row]) -> str:
    """How many of the rows with a target meet it, in words."""
    aimed = [row[3] for row in body if row[3] is not None]
    return f"{sum(ok is True for ok in aimed)} of {len(aimed)} are met"


def horizons(
    name: str,
    part: Line,
    key: str,
    targets: tuple[float, ...],
    holds: Callable[[Any, Any], bool],
    shape: str,
) -> Row:
    """A measure with one target per horizon; ``{}`` in the key stands for the horizon."""
    values = [part[key.format(horizon)][0] for horizon in HORIZONS]
    sign = "at most" if holds is AT_MOST else "at least"
    met = all(holds(value, target) for value, target in zip(values, targets, strict=True))
    return (
        name,
        f"{sign} {' / '.join(shape.format(target) for target in dict.fromkeys(targets))}",
        " / ".join(shape.format(value) for value in values),
        met,
    )


def size_rows(line: Line) -> Iterator[Row]:
    """QLIKE against the debiased log-HAR."""
    aims = {"2022": (0.92, 0.87, 0.88), "2023": (0.92, 0.87, 0.88)}
    for fold, part in line["folds"].items():
        targets = aims.get(fold, (0.86, 0.80, 0.81))
        yield horizons(f"QLIKE ratio, {fold}", part, "qlike_ratio {} all both", targets, AT_MOST, "{:.3f}")
    late = [line["folds"][fold] for fold in ("2024", "2025")]
    key = "qlike_ratio {} all both"
    both = {
        key.format(h): [math.sqrt(late[0][key.format(h)][0] * late[1][key.format(h)][0])] for h in HORIZONS
    }
    aim = (0.86, 0.80, 0.81)
    yield horizons("QLIKE ratio, 2024 and 2025 together", both, key, aim, AT_MOST, "{:.3f}")
    folds = {"pooled": line["worst_market"], **line["fold_worst_market"]}
    for name, worst in (("pooled", folds.pop("pooled")), ("any fold", _worst_of(folds))):
        figures = " / ".join(f"{worst[horizon][0]} {worst[horizon][1]:.3f}" for horizon in HORIZONS)
        met = all(worst[horizon][1] <= 1.02 for horizon in HORIZONS)
        yield f"worst market outside crash weeks, {name}", "at most 1.02", figures, met
    share = "diebold_mariano_share {} all both"
    yield horizons("Diebold-Mariano p < .05, pooled", line["pooled"], share, (0.8,) * 3, AT_LEAST, "{:.0%}")
    least = {
        share.format(h): [min(part[share.format(h)][0] for part in line["folds"].values())] for h in HORIZONS
    }
    yield horizons("Diebold-Mariano p < .05, least fold", least, share, (0.8,) * 3, AT_LEAST, "{:.0%}")
    for model, words in (("boosting", "all features"), ("boosting_same", "the recipe's features")):
        yield from _against(model, words, "pooled", line["models"])
        for fold, models in line["fold_models"].items():
            yield from _against(model, words, fold, models)


def _worst_of(folds: Line) -> Line:
    """Per horizon the worst market of any fold, with the fold's name."""
    worst: dict[str, tuple[str, float]] = {}
    for horizon in HORIZONS:
        fold = max(folds, key=lambda name: folds[name][horizon][1])
        worst[horizon] = (f"{folds[fold][horizon][0]} ({fold})", folds[fold][horizon][1])
    return worst


def _against(model: str, words: str, part: str, models: Line) -> Iterator[Row]:
    """QLIKE beside boosting's."""
    if f"qlike_ratio {model} 1h" not in models:
        return
    pairs = [(models[f"qlike_ratio riskml {h}"], models[f"qlike_ratio {model} {h}"]) for h in HORIZONS]
    figures = " / ".join(f"{ours:.3f} ({theirs:.3f})" for ours, theirs in pairs)
    met = all(ours <= theirs for ours, theirs in pairs)
    yield f"QLIKE ratio, {part} (boosting on {words})", "not above boosting", figures, met


def probability_rows(line: Line) -> Iterator[Row]:
    """Liquidation at a random distance, pooled."""
    part = line["pooled"]
    loss = "log_loss_ratio {} all both"
    yield horizons("log-loss ratio to logit(z)", part, loss, (0.905, 0.945, 0.955), AT_MOST, "{:.3f}")
    yield horizons("calibration error", part, "ece {} all both", (0.0015, 0.004, 0.007), AT_MOST, "{:.4f}")
    yield horizons("AUC", part, "auc {} all both", (0.949, 0.917, 0.906), AT_LEAST, "{:.3f}")
    slopes = [part[f"slope {horizon} all both"][0] for horizon in HORIZONS]
    figures = " / ".join(f"{value:.3f}" for value in slopes)
    yield "calibration slope", ".95 to 1.05", figures, all(0.95 <= value <= 1.05 for value in slopes)


def coverage_rows(line: Line) -> Iterator[Row]:
    """The 99.5 % requirement, pooled."""
    part = line["pooled"]
    for side, word in SIDES:
        rates = [part[f"breach_rate {horizon} all {side}"][0] for horizon in HORIZONS]
        figures = " / ".join(f"{value:.2%}" for value in rates)
        yield f"breaches, {word}, pooled", BREACHES_AIM, figures, within_breaches(rates)
        key = f"breach_rate {{}} all {side}"
        each = [[fold[key.format(h)][0] for fold in line["folds"].values()] for h in HORIZONS]
        figures = " / ".join(f"{min(rates):.2%} to {max(rates):.2%}" for rates in each)
        met = all(map(within_breaches, each))
        yield f"breaches, {word}, lowest and highest fold", BREACHES_AIM, figures, met
    for horizon in ("1h", "8h"):
        shares = [part[f"kupiec_share {horizon} all {side}"][0] for side, _ in SIDES]
        figures = " / ".join(f"{value:.0%}" for value in shares)
        yield f"Kupiec p > .05 at {horizon}, long / short", "at least 90 %", figures, min(shares) >= 0.9
    shares = [
        part[f"christoffersen_share {horizon} all {side}"][0] for horizon in HORIZONS for side, _ in SIDES
    ]
    mean = sum(shares) / len(shares)
    yield "independence p > .05, of market-sides", "at least 95 %", f"{mean:.0%}", mean >= 0.95
    for side, word in SIDES:
        key = f"breach_rate_top_decile {{}} all {side}"
        yield horizons(f"breaches in the top decile, {word}", part, key, (0.01,) * 3, AT_MOST, "{:.2%}")
    red = {h: max(part[f"rolling_red_share {h} all {side}"][0] for side, _ in SIDES) for h in HORIZONS}
    figures = " / ".join(f"{value:.1%}" for value in red.values())
    yield "rolling 250 days in the red zone, share of windows", "none", figures, not any(red.values())


def group_rows(line: Line) -> Iterator[Row]:
    """Markets that no fit saw."""
    unseen, fitted = line["groups"]["no fit saw them"], line["groups"]["fitted, same folds"]
    key = "log_loss_ratio {} all both"
    kept = [
        (1.0 - unseen[key.format(horizon)][0]) / (1.0 - fitted[key.format(horizon)][0])
        for horizon in HORIZONS
    ]
    figures = " / ".join(f"{value:.0%}" for value in kept)
    yield "gain in log-loss kept on markets that no fit saw", "at least 67 %", figures, min(kept) >= 2 / 3
    for side, word in SIDES:
        key = f"breach_rate {{}} all {side}"
        yield horizons(f"breaches there, {word}", unseen, key, (0.008,) * 3, AT_MOST, "{:.2%}")


def warning_rows(line: Line) -> Iterator[Row]:
    """Early warning: the long markets, and every market."""
    for name, part in (("long markets", line["pooled"]), ("every market", line["groups"]["every market"])):
        value = {
            key: part[f"early_warning_{key} 24h all down"]
            for key in (
                "recall",
                "false_per_week",
                "alarm_share",
                "lead_minutes",
                "precision",
                "gain",
                "gain_any",
            )
        }
        n = value["recall"][2]
        yield f"early warning, {name}: onsets", "at least 400", str(n), n >= 400
        yield f"{name}: recall", "at least .65", f"{value['recall'][0]:.3f}", value["recall"][0] >= 0.65
        weekly = value["false_per_week"][0]
        yield f"{name}: false alarms a market-week", "at most 1", f"{weekly:.2f}", weekly <= 1.0
        share = value["alarm_share"][0]
        yield f"{name}: share of hours in alarm", "at most 15 %", f"{share:.1%}", share <= 0.15
        lead = value["lead_minutes"][0]
        yield f"{name}: median lead, minutes", "at least 60", f"{lead:.0f}", lead >= 60
        gain = value["gain"][0]
        words = f"{name}: recall above the best one-line detector of no more false alarms than the budget"
        yield words, "at least .15", f"{gain:.3f}", gain >= 0.15
        dear = value["gain_any"][0]
        yield (
            f"{name}: recall above the best one, whatever it costs",
            "at least .15",
            f"{dear:.3f}",
            dear >= 0.15,
        )
        yield f"{name}: precision (published)", "none", f"{value['precision'][0]:.1%}", None


def book_rows(line: Line) -> Iterator[Row]:
    """Books of 2 to 8 legs under the default policy."""
    part = line["pooled"]
    for metric, word in (("portfolio_breach_closes", "by closes"), ("portfolio_breach", "upper bound")):
        for kind in KINDS:
            key = f"{metric} {{}} {kind} policy"
            yield horizons(f"breaches of books, {kind}, {word}", part, key, (0.005,) * 3, AT_MOST, "{:.2%}")
    key = "portfolio_saving {} mixed policy"
    yield horizons("mixed books below gross", part, key, (0.30,) * 3, AT_LEAST, "{:.0%}")


def sequence_rows(line: Line) -> Iterator[Row]:
    """The sequence part on finer bars."""
    for row in line["rows"]:
        same = (row["variant"], row["reference"]) == ("finer, sequence", "finer, last bar")
        if same and row["measure"] == "log_loss" and row["horizon"] == "1h":
            figures = f"{row['ratio']:.4f} ({row['low']:.4f} to {row['high']:.4f})"
            yield (
                "log-loss with the sequence part over without, 1h",
                "at most .99",
                figures,
                row["ratio"] <= 0.99,
            )


def loss_rows(line: Line) -> Iterator[Row]:
    """A family that is lost at serving, against a model that never had it."""
    found: dict[str, list[float]] = {}
    for row in line["rows"]:
        family = row["variant"].removesuffix(" lost")
        if row["reference"] == f"without {family}" and row["measure"] == "log_loss":
            found.setdefault(family, []).append(row["ratio"])
    for family, ratios in found.items():
        figures = " / ".join(f"{ratio:.4f}" for ratio in ratios)
        name = f"log-loss with {family} lost over a fit without it"
        yield name, "at most 1.02", figures, max(ratios) <= 1.02


def seed_rows(line: Line) -> Iterator[Row]:
    """The standard recipe with other seeds: the widest ratio to its own."""
    for measure, word in (
        ("qlike", "QLIKE"),
        ("log_loss", "log-loss"),
        ("stress_log_loss", "stress log-loss"),
    ):
        ratios: dict[str, list[float]] = {}
        for row in line["rows"]:
            if row["measure"] == measure:
                ratios.setdefault(row["horizon"], [1.0]).append(row["ratio"])
        figures = " / ".join(f"{max(each) - min(each):.2%}" for each in ratios.values())
        seeds = max(map(len, ratios.values()))
        years = ", ".join(fold[:4] for fold in line["folds"])
        yield f"spread of {word} over {seeds} seeds, {years}", "none", figures, None


def render(folds: Line, sequence: Line, loss: Line, seeds: Line) -> str:
    """The table as Markdown."""
    sections: tuple[Iterator[Row], ...] = (
        size_rows(folds), probability_rows(folds), sequence_rows(sequence), coverage_rows(folds),
        group_rows(folds), warning_rows(folds), book_rows(folds), loss_rows(loss), seed_rows(seeds),
    )  # fmt: skip
    body = [row for section in sections for row in section]
    return "\n".join(
        [
            "# Targets and figures",
            "",
            f"Made by `python training/targets.py --write` from `folds.jsonl` ({folds['date']}, "
            f"{folds['machine']}) and `ablation.jsonl` ({sequence['date']}). Figures are at 1 / 8 / 24 h "
            f"where there are three. {tally(body)}.",
            "",
            "No bundle has seen rows that it is tested on. The recipe was chosen on the calibrate parts of "
            "all folds; the second halves of 2022, 2023 and 2024 are at once calibrate parts and test rows "
            "of the fold before.",
            "",
            *table(body),
            "",
        ]
    )


def newest_lines() -> list[Line]:
    """What :func:`render` takes."""
    names = ("sequence", "loss", "seeds")
    ablations = [newest(RESULTS / "ablation.jsonl", f"ablate.py {name}") for name in names]
    return [newest(RESULTS / "folds.jsonl", '"groups"'), *ablations]


def main(arguments: list[str]) -> int:
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"into {TABLE.name}")
    options = parser.parse_args(arguments)
    text = render(*newest_lines())
    if options.write:
        TABLE.write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
