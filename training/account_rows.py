"""Rows of ``results/ACCOUNTS.md``: a measure of accounts, its aim, the figure of a recorded line, a verdict.

Each function reads one line as ``account_targets.py`` finds it and looks nothing up elsewhere. A key that the
line lacks raises ``KeyError``; ``account_targets.py`` says then which file is of an older form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from targets import (
    AT_LEAST,
    AT_MOST,
    BREACHES_AIM,
    HORIZONS,
    SIDES,
    Line,
    Row,
    horizons,
    within_breaches,
)

from riskml.learning.account_evaluation import DISTANCE, LEVERAGE, RECALIBRATED, Comparison
from riskml.learning.protocol import MODEL

NO_AIM = "no number named"
RECORDED_HORIZONS = ("1h", "6h", "24h")
YARDSTICKS = (LEVERAGE, DISTANCE)
Verdict: TypeAlias = bool | str
Scalars: TypeAlias = Mapping[str, list[float]]


def at_most(value: float, limit: float) -> bool:
    """Whether a limit is kept, but for the last digits of a float."""
    return value <= limit * (1.0 + 1e-9)


def joined(values: Sequence[float | None], shape: str) -> str:
    """Figures side by side; ``-`` for one that is not there."""
    return " / ".join("-" if value is None else shape.format(value) for value in values)


# ---------------------------------------------------------------- recorded and replayed accounts


def comparison(found: Line, name: str, horizon: str) -> Comparison:
    """A recorded comparison; ``name`` = metric, model and yardstick, and what else its key has."""
    value, against, low, high, n, events, hit = found[name]
    metric, model, yardstick = name.split(" ")[:3]
    # The line keeps the accounts with an event alone, and nothing here reads the others.
    return Comparison(horizon, metric, model, yardstick, value, against, low, high, n, events, hit, hit)


def beaten(rows: Mapping[str, Sequence[Comparison]]) -> Verdict:
    """Whether yardsticks are beaten, by horizon: True = all of them with an interval that excludes 0."""
    groups: dict[str, list[str]] = {}
    for horizon, found in rows.items():
        if all(row.significant for row in found):
            state = "met"
        elif all(row.beats for row in found):
            word = "lower" if found[0].metric == "log_loss" else "higher"
            state = f"{word}, interval holds 0"
        else:
            state = "**missed**"
        groups.setdefault(state, []).append(horizon)
    if len(groups) > 1:
        return "; ".join(f"{state} at {' and '.join(names)}" for state, names in groups.items())
    state = next(iter(groups))
    return {"met": True, "**missed**": False}.get(state, state)


def against(name: str, found: Mapping[str, Line], metric: str, model: str, key: str) -> Row:
    """A measure beside leverage and distance, with the interval of each difference.

    ``found`` has the comparisons of each horizon; ``{}`` in ``key`` stands for the horizon.
    """
    digits = 4 if metric == "log_loss" else 3
    rows, cells = {}, []
    for horizon, lines in found.items():
        rest = key.format(horizon)
        rows[horizon] = [comparison(lines, f"{metric} {model} {yard} {rest}", horizon) for yard in YARDSTICKS]
        others = [
            f"{row.against:.{digits}f} [{row.low:+.{digits}f}, {row.high:+.{digits}f}]"
            for row in rows[horizon]
        ]
        cells.append(f"{horizon} {rows[horizon][0].value:.{digits}f} / {' / '.join(others)}")
    word = "below" if metric == "log_loss" else "above"
    return name, f"{word} both, intervals exclude 0", "; ".join(cells), beaten(rows)


def recorded_rows(line: Line) -> Iterator[Row]:
    """Hyperliquid 2023: account-hours above maintenance, by whether every position has klines."""
    found = dict.fromkeys(RECORDED_HORIZONS, line["recorded"]["comparisons"])
    for group in ("covered", "uncovered", "all"):
        key = f"above {group} {{}}"
        counts = [
            comparison(found[h], f"auc {MODEL} {LEVERAGE} {key.format(h)}", h) for h in RECORDED_HORIZONS
        ]
        figures = "; ".join(
            f"{row.horizon} {row.n:,} / {row.events:,} / {row.accounts_with_event:,}" for row in counts
        )
        yield f"{group}: account-hours / liquidated within / accounts of these", NO_AIM, figures, None
        yield against(f"{group}: AUC", found, "auc", MODEL, key)
        yield against(f"{group}: log-loss, raw", found, "log_loss", MODEL, key)
        yield against(f"{group}: log-loss, recalibrated", found, "log_loss", RECALIBRATED, key)


def walk_forward_rows(line: Line) -> Iterator[Row]:
    """The same with every map fitted on the past alone."""
    found = {horizon: line["behaviour"][horizon]["walk_forward"] for horizon in RECORDED_HORIZONS}
    models = (("raw", "raw"), ("shifted", "shift fitted"), ("mapped", "intercept and slope fitted"))
    for group in ("covered", "all"):
        for period in ("month", "week"):
            for metric, word in (("auc", "AUC"), ("log_loss", "log-loss")):
                for model, words in models:
                    name = f"{group}, by {period}: {word}, {words}"
                    yield against(name, found, metric, f"{MODEL}_{model}", f"above {group} {period}")


def replayed_rows(line: Line) -> Iterator[Row]:
    """Calibration error of replayed accounts, pooled and in the worst fold."""
    rows = line["replayed"]["rows"]
    years = sorted({key[:4] for key in rows if key[:4].isdigit()})
    if not years:
        raise KeyError("a fold")
    for part, word in (("", "as forecast"), (", guarded", "as served, after the guards")):
        worst = {h: [max(rows[f"{year}{part} all {h}"][0] for year in years)] for h in HORIZONS}
        pooled = {h: [rows[f"pooled{part} all {h}"][0]] for h in HORIZONS}
        for name, found in (("pooled", pooled), ("worst fold", worst)):
            measure = f"calibration error, {word}, {name}"
            yield horizons(measure, found, "{}", (0.01,) * 3, AT_MOST, "{:.4f}")


def score_rows(bands: Sequence[Mapping[str, str]]) -> Iterator[Row]:
    """Bands of the risk score whose forecast lies in the interval of what was observed."""
    parts = (
        ("replayed pooled", "day", "replayed, pooled, as forecast"),
        ("replayed pooled served", "day", "replayed, pooled, as served"),
        ("recorded above covered held still", "account", "Hyperliquid 2023, held still"),
        ("recorded above covered", "account", "Hyperliquid 2023, recorded"),
    )
    for part, block, words in parts:
        rows = [row for row in bands if (row["part"], row["block"]) == (part, block)]
        if not rows:
            raise KeyError(part)
        outside = [row for row in rows if float(row["miss"]) != 1.0]
        told = [
            f"{float(row['low_score']):.0f} to {float(row['high_score']):.0f} "
            f"({float(row['forecast']):.2%} for {float(row['observed']):.2%})"
            for row in outside
        ]
        figures = f"{len(rows) - len(outside)} of {len(rows)}" + (
            f"; outside: {', '.join(told)}" if told else ""
        )
        yield f"bands inside their 95 % interval, {words}", NO_AIM, figures, None


# ---------------------------------------------------------------- two products


def initial_rows(line: Line) -> Iterator[Row]:
    """The fast product: average to FHS-EWMA, and coverage of each side."""
    initial = line["initial"]
    words = {
        "riskml": "as forecast",
        "served": "as served, a lost source retired after a week",
        "held": "as served, never retired",
    }
    for name, word in words.items():
        share = [initial[h][f"{name} to fhs_ewma"] for h in HORIZONS]
        met = all(value <= -0.1 for value in share[:2])
        aim = "at most -10 % at 1h and 8h"
        yield f"average to that of FHS-EWMA, {word}", aim, joined(share, "{:+.1%}"), met
        for _, side in SIDES:
            rates, beside = (
                [initial[h][f"{each} breach {side}"] for h in HORIZONS] for each in (name, "fhs_ewma")
            )
            figures = f"{joined(rates, '{:.2%}')} (FHS-EWMA {joined(beside, '{:.2%}')})"
            yield f"breaches, {side}, {word}", BREACHES_AIM, figures, within_breaches(rates)


AIMS = (
    ("breach", "breach", "breaches, pooled", "{:.3%}", ""),
    ("peak_to_trough", "peak_to_trough", "peak to trough in a year, median market-side", "{:.2f}", ""),
    ("worst_peak_to_trough", "peak_to_trough", "peak to trough in a year, worst market-side", "{:.2f}", ""),
    ("one_day_rise", "one_day_rise", "largest one-day rise, median market-side", "{:.1%}", ""),
    ("worst_one_day_rise", "one_day_rise", "largest one-day rise, worst market-side", "{:.1%}", ""),
    ("average", "average", "average", "{:.2%}", " (slow FHS)"),
    ("excess", "excess", "mean breach excess", "{:.2%}", " (FHS-EWMA)"),
)
"""Measure of a point, limit of the line, words, how it is written, whose the limit is."""


def maintenance_rows(line: Line) -> Iterator[Row]:
    """The slow product: the five aims, whole and as served, the yardsticks, and the sweep."""
    found = line["maintenance"]
    limits, missed = found["limits"], found["missed"]
    subjects = (
        ("policy defaults", found["points"]),
        ("walk-forward choice", found["points"]),
        ("policy defaults", found["served"]),
        ("walk-forward choice", found["served"]),
    )
    for name, points in subjects:
        word = f"{name}, as served" if points is found["served"] else f"{name}, as forecast"
        for key, limit, words, shape, whose in AIMS:
            value, most = points[name][key], limits[limit]
            aim = f"at most {shape.format(most)}{whose}"
            yield f"{words}, {word}", aim, shape.format(value), at_most(value, most)
    for name, word in (("fhs_slow", "slow FHS"), ("fhs_ewma", "FHS-EWMA")):
        figures = ", ".join(
            f"{words} {shape.format(found['points'][name][key])}" for key, _, words, shape, _ in AIMS
        )
        over = ", ".join(f"{key.replace('_', ' ')} by {share:.0%}" for key, share in missed[name].items())
        yield f"{word} on the same rows", NO_AIM, f"{figures}; over the limit: {over or 'nothing'}", None
    # Both counts of the line are over the sweep and the points that it names.
    named = {
        "all five": sum(not each for each in missed.values()),
        "excess": sum(set(each) <= {"excess"} for each in missed.values()),
    }
    yield "points of the sweep that meet all five", NO_AIM, str(found["met"] - named["all five"]), None
    rest = str(found["met but for excess"] - named["excess"])
    yield "points of the sweep that meet all but the excess, or all", NO_AIM, rest, None


def impulse_rows(line: Line) -> Iterator[Row]:
    """A threefold step of volatility in real bars."""
    words = {
        "default": "default policy",
        "default, no guards": "default policy without guards",
        "no stressed floor": "without the stressed floor",
    }
    for name, word in words.items():
        for product in ("initial", "maintenance"):
            found = line["responses"][f"{name}: {product}"]
            by_start = found["overshoot_by_start"]
            figures = f"{found['overshoot']:.1%} (single starts {min(by_start):.0%} to {max(by_start):.0%})"
            measure = f"overshoot of {product}, mean response, {word}"
            yield measure, "at most 10 %", figures, at_most(found["overshoot"], 0.1)
        rise, cap = found["largest_hourly_rise_of_any"], found["cap"]
        yield (
            f"largest hourly rise of maintenance, {word}",
            f"at most {cap:.2%} (its cap)",
            f"{rise:.2%}",
            at_most(rise, cap),
        )


# ---------------------------------------------------------------- hedged books


def beside_gross(row: Row, part: Scalars, key: str) -> Row:
    """A breach rate with what gross margin would have had."""
    other = joined([part[key.format(horizon)][0] for horizon in HORIZONS], "{:.2%}")
    return row[0], row[1], f"{row[2]} (gross {other})", row[3]


def breach_row(name: str, part: Scalars, key: str, rule: str) -> Row:
    """Breaches of one rule at every horizon."""
    row = horizons(name, part, f"{key} {rule}", (0.005,) * 3, AT_MOST, "{:.2%}")
    return beside_gross(row, part, f"{key} gross")


def hedged_rows(line: Line) -> Iterator[Row]:
    """Hedged books: saving, breaches at every resolution, and what a flip of correlations does."""
    pooled, fine = line["pooled"], line["fine"]
    key = "hedged {} saving policy"
    yield horizons("margin below gross, default policy", pooled, key, (0.35,) * 3, AT_LEAST, "{:.0%}")
    kinds = (("closes", "by closes"), ("bound", "upper bound"))
    for kind, word in kinds:
        books = pooled[f"hedged 1h breach {kind} policy"][1]
        name = f"breaches, default policy, {word}, 1h bars, {books:,} books"
        yield breach_row(name, pooled, f"hedged {{}} breach {kind}", "policy")
    for resolution, each in fine.items():
        for kind, word in kinds:
            part = each["pooled"]
            name = f"breaches, default policy, {word}, {_books(resolution, each)}"
            yield breach_row(name, part, f"hedged {{}} breach {kind} {resolution}", "policy")
    for flip, words in (("one", "all correlations to 1"), ("zero", "all correlations to 0")):
        for resolution, each in fine.items():
            for kind, word in kinds:
                part = each["pooled"]
                name = f"breaches of the stressed requirement, {words}, {word}, {_books(resolution, each)}"
                yield breach_row(name, part, f"flip {{}} breach {flip} {kind} {resolution}", "stressed")
    for kind, word in ((" closes", "by closes"), ("", "upper bound")):
        name = f"breaches of the stressed requirement, longs down and shorts up on one path, {word}, 1h bars"
        yield breach_row(name, pooled, f"flip {{}} breach against{kind}", "stressed")


def _books(resolution: str, each: Line) -> str:
    """What a set of books is."""
    folds = len(each["folds"])
    n = sum(part["n"] for part in each["folds"].values())
    return f"{resolution} bars, {n:,} books of {folds} fold{'s' if folds > 1 else ''}"


# ---------------------------------------------------------------- depegs, and states of the breaker


def depeg_rows(line: Line) -> Iterator[Row]:
    """When haircuts charged real depegs, and what one venue's print did."""
    usdc, first = line["usdc"], line["usdc"]["first_charge"]
    minutes = [
        first["minutes_after_first_close_below_0.99"],
        first["minutes_after_bar_of_first_low_below_0.99_opens"],
    ]
    name = "USDC: minutes from the first close / the bar of the first low under .99 to the first charge"
    yield name, "at most 15", joined(minutes, "{:.0f}"), max(minutes) <= 15.0
    before = first["minutes_before_bar_of_first_low_below_0.95_opens"]
    name = "USDC: minutes from the first charge to the bar of the first low under .95"
    yield name, "above 0", f"{before:.0f}", before > 0.0
    charges = [
        usdc["charge_15_minutes_after_first_close_below_0.99"],
        usdc["charge_before_first_low_below_0.95"],
    ]
    name = "USDC: charge 15 minutes after the first close under .99 / before the first low under .95"
    yield name, NO_AIM, joined(charges, "{:.1%}"), None
    ust = line["ust"]
    row, lag = ust["first_row_below_0.99"], ust["lag_h"]
    yield (
        "UST: charged on the first row known that is under .99",
        "at least what it lacks of a dollar",
        f"{row['charge_when_known']:.1%} at {row['price']:.3f}; first charge "
        f"{ust['first_charge_above_calm']['at']}, "
        f"row known {row['known']}: {lag['row_known_after_its_day_ended']:.0f} h after its day ended, "
        f"{lag['most_after_a_print_of_that_day']:.0f} h at most after a print of that day",
        ust["met"] and row["charge_when_known"] >= 1.0 - row["price"],
    )
    intact = line["intact"]
    counts = [intact[name]["liquidated"] for name in ("redemption_intact", "redemption_unknown")]
    yield (
        f"prints of one venue down to {intact['lowest_print']:.2f}, redemption intact: "
        "decisions that liquidate",
        "none",
        f"{counts[0]} of {intact['decisions']} (redemption unknown {counts[1]})",
        counts[0] == 0,
    )
    local = line["local"]
    figures = f"{local['largest_haircut_added']:.4%} at most, over {local['prints']} prints"
    yield "haircut that a print of one source alone added, real prints", NO_AIM, figures, None


def breaker_rows(line: Line) -> Iterator[Row]:
    """States of markets and whether they came before onsets, on the test parts by fold."""
    parts = line["parts"]
    tests = [part["test"] for part in parts.values()]
    years = " / ".join(parts)
    yield f"onsets, {years}", NO_AIM, joined([part["onsets"] for part in tests], "{}"), None
    measures = (
        ("hours", "share of market-hours", "{:.2%}"),
        ("entered_per_market_week", "times entered a market-week", "{:.2f}"),
        ("before_onset", "onsets seen before their bar", "{:.0%}"),
        ("at_close_of_onset", "onsets seen at its close", "{:.0%}"),
    )
    for state in ("watch", "restrict", "halt"):
        for key, words, shape in measures:
            name = f"{words} in {state}" if state == "halt" else f"{words} in {state} or beyond"
            yield name, NO_AIM, joined([part[state][key] for part in tests], shape), None
