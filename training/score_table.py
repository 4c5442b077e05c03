"""What a risk score came true as, and what owners change about it: out of sample, on real data.

    python training/score_table.py --folds runs/real/folds --lake runs/real/lake

- *replayed*: seeded accounts along the test part of every fold, held still (``evaluate_accounts.py`` draws
  them): forecast and observed liquidation frequency by band of the score at the longest horizon, as forecast
  and as served (after the guards), pooled and by fold. Rows of one day, or of one week, are one block.
- *recorded*: the Hyperliquid accounts of 2023 at 24 h, against what happened, and against what holding still
  would have done; an account is one block.
- *behaviour*: on the same accounts at 1, 6 and 24 h, where the log-loss that riskml has above leverage comes
  from, and whether it is gone once both are fitted on the months (or weeks) before alone. Fits: the shift of
  riskml's logit, and intercept and slope of riskml's logit, of ln leverage and of -ln distance.

No fold bundle scores a row before the end of its data plus the longest horizon. Writes
``training/results/score_table.csv``, appends a line to ``training/results/accounts.jsonl``, prints it last.
``--write`` renews the table in docs/limits-and-prices.md from the CSV and does nothing else.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from evaluate_accounts import RECORDED, RECORDED_HORIZONS, RESULTS, SEED, Replay, join_replays, replay_fold

from riskml import metrics
from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, TimeUs
from riskml.learning.account_behaviour import loss_by, next_event, walk_forward, what_followed
from riskml.learning.account_evaluation import (
    DISTANCE,
    LEVERAGE,
    TABLE_EDGES,
    AccountCases,
    Comparison,
    account_cases,
    compare_probabilities,
    cross_fitted,
    liquidation_times,
)
from riskml.learning.account_scoring import ScoredAccounts, score_accounts
from riskml.learning.protocol import FOLDS, MODEL
from riskml.learning.runs import append_record, write_text
from riskml.replay.labels import replay_labels
from riskml.risk.score import ScoreTable, probability_to_score, score_table
from riskml.tables.lake import Lake
from riskml.units import DAY, duration_us

REPOSITORY = Path(__file__).resolve().parents[1]
TABLE = REPOSITORY / "training" / "results" / "score_table.csv"
DOCUMENT = REPOSITORY / "docs" / "limits-and-prices.md"
BEGIN, END = "<!-- score table: training/score_table.py --write -->", "<!-- end of the score table -->"
SERVED = "served"
SHIFTED, MAPPED, RAW = "riskml_shifted", "riskml_mapped", "riskml_raw"
SHOWN = {
    "replayed pooled": "replayed, as forecast",
    "replayed pooled served": "replayed, as served",
    "recorded above covered held still": "2023, held still",
    "recorded above covered": "2023, recorded",
}
"""Parts that the document shows, the last two on identical rows, and what they are called there."""


# ---------------------------------------------------------------- tables


def rows_of(part: str, block: str, table: ScoreTable) -> list[dict[str, Any]]:
    """A part's bands as rows of the CSV."""
    return [{"part": part, "block": block, **row} for row in table.to_dicts()]


def replayed_rows(name: str, replay: Replay) -> list[dict[str, Any]]:
    """Bands of replayed accounts, as forecast and as served, by day and by week."""
    outcome, days = replay.labels[:, -1, 0], replay.drawn.ts // DAY
    rows = []
    for part, probability in ((name, replay.said), (f"{name} {SERVED}", replay.guarded)):
        score = probability_to_score(probability[:, -1])
        for block, label in (("day", days), ("week", days // 7)):
            rows += rows_of(f"replayed {part}", block, score_table(score, outcome, block=label))
    return rows


def replayed(folds: Path, lake: Lake, times: int, per_time: int) -> tuple[list[dict[str, Any]], int]:
    """Bands of every fold's test part and of all together, and the number of accounts."""
    rows, parts = [], []
    for number, fold in enumerate(FOLDS):
        part = replay_fold(folds, fold, lake, times, per_time, SEED + number)
        print(f"{fold.data_end}: {len(part.drawn):,} accounts", file=sys.stderr, flush=True)
        rows += replayed_rows(fold.data_end[:4], part)
        parts.append(part)
    whole = join_replays(parts)
    return replayed_rows("pooled", whole) + rows, len(whole.drawn)


def recorded_rows(
    name: str, scored: ScoredAccounts, cases: AccountCases, held: Float2D
) -> list[dict[str, Any]]:
    """Bands of recorded accounts at the last horizon; ``held`` as from :func:`held_still`."""
    score = probability_to_score(cases.probability)
    still = held[: len(cases), -1]
    groups = {
        "all": np.ones(len(cases), dtype=np.bool_),
        "above": cases.above,
        "above covered": cases.above & scored.covered[: len(cases)],
    }
    rows = []
    for group, chosen in groups.items():
        part, account = f"recorded {group}{name}", cases.account[chosen]
        table = score_table(score[chosen], cases.outcome[chosen], block=account)
        rows += rows_of(part, "account", table)
        if group == "above covered":
            table = score_table(score[chosen], still[chosen], block=account)
            rows += rows_of(f"{part} held still", "account", table)
    return rows


def outside(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Bands whose forecast is outside the interval: by part and block, band -> factor, forecast, observed."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        here = found.setdefault(f"{row['part']} by {row['block']}", {})
        if row["miss"] != 1.0:
            band = f"{row['low_score']:.1f}-{row['high_score']:.1f}"
            here[band] = [round(row[name], 6) for name in ("miss", "forecast", "observed")]
    return found


# ---------------------------------------------------------------- recorded accounts


@dataclass(frozen=True)
class Record:
    """Recorded accounts of 2023, in the order of their time."""

    scored: ScoredAccounts
    served: ScoredAccounts
    """The same rows by the engine's law of markets without bars, after the guards."""
    own_marks: ScoredAccounts
    """The same rows at the record's marks."""
    times: dict[str, TimeUs]
    """Liquidations of each account."""
    held: Float2D
    """[n_rows, n_horizons] label of holding still; NaN = not known, or not covered, or below at the start."""
    breach: TimeUs
    """When that would have liquidated the account; the largest int64 = never."""
    after: Mapping[str, TimeUs]
    """First ``deposit``, ``withdrawal``, ``fill`` and liquidation (``event``) after the row."""

    @property
    def end(self) -> int:
        """To where outcomes are known."""
        return int(self.scored.ts.max()) + 1

    def cases(self, horizon: str, scored: ScoredAccounts | None = None) -> AccountCases:
        """Rows with a known outcome: the first ones, because rows are in the order of time."""
        return account_cases(scored or self.scored, self.times, horizon, end_us=self.end)


def read_record(folds: Path, lake: Lake) -> Record:
    """Score the accounts and look up what was done with them."""
    scored = score_accounts(folds, lake, *RECORDED, RECORDED_HORIZONS)
    served = score_accounts(folds, lake, *RECORDED, RECORDED_HORIZONS, unknown="policy", guarded=True)
    own_marks = score_accounts(folds, lake, *RECORDED, RECORDED_HORIZONS, remark=False)
    if (np.diff(scored.ts) < 0).any():
        raise ValueError("the record is not in the order of time")
    for other in (served, own_marks):
        if not (np.array_equal(other.ts, scored.ts) and np.array_equal(other.account_id, scored.account_id)):
            raise ValueError("two scorings of one record have different rows")
    held, breach = held_still(scored, lake)
    events = lake.read("liquidations", venues="hyperliquid", start=RECORDED[0], end=RECORDED[1])
    ledger, fills = (lake.read(name, start=RECORDED[0], end=RECORDED[1]) for name in ("ledger", "trades"))
    kind = ledger.column("kind").to_numpy(zero_copy_only=False)
    found = {
        "deposit": ledger.filter(kind == "deposit"),
        "withdrawal": ledger.filter(kind == "withdrawal"),
        "fill": fills,
        "event": events,
    }
    after = {name: first_after(scored, rows) for name, rows in found.items()}
    times = liquidation_times(
        events.column("account_id").to_pylist(), events.column("ts").cast("int64").to_numpy()
    )
    return Record(scored, served, own_marks, times, held, breach, after)


def first_after(scored: ScoredAccounts, rows: pa.Table) -> TimeUs:
    """Time of the account's first of these rows after each snapshot; the largest int64 = none."""
    names, account = np.unique(scored.account_id.astype(str), return_inverse=True)
    code = {name: place for place, name in enumerate(names.tolist())}
    owner = np.asarray([code.get(name, -1) for name in rows.column("account_id").to_pylist()])
    return next_event(account, scored.ts, owner, rows.column("ts").cast("int64").to_numpy())


def held_still(scored: ScoredAccounts, lake: Lake) -> tuple[Float2D, TimeUs]:
    """Replay labels [n_rows, n_horizons] of covered accounts above their barrier, and times of breach."""
    labels = replay_labels(lake, *RECORDED, horizons=scored.horizons)
    ids = labels.column("account_id").to_pylist()
    moments = labels.column("ts").cast("int64").to_pylist()
    row_of = {key: row for row, key in enumerate(zip(moments, ids, strict=True))}
    keys = zip(scored.ts.tolist(), scored.account_id.astype(str).tolist(), strict=True)
    place = np.asarray([row_of.get(key, -1) for key in keys])
    usable = (place >= 0) & scored.covered & (scored.distance > 0.0)
    usable[usable] &= ~labels.column("below_at_start").to_numpy()[place[usable]]
    held = np.full((len(scored), len(scored.horizons)), np.nan)
    for number, horizon in enumerate(scored.horizons):
        held[usable, number] = labels.column(f"liquidated_{horizon}").to_numpy()[place[usable]]
    never = int(np.iinfo(np.int64).max)
    times = labels.column("first_breach_ts").cast("int64").fill_null(never).to_numpy()
    return held, np.where(usable, times[place], never)


# ---------------------------------------------------------------- behaviour


def behaviour(record: Record) -> dict[str, Any]:
    """Per horizon: parts of the excess over leverage, and the comparison of what could be known before."""
    found: dict[str, Any] = {}
    for number, horizon in enumerate(RECORDED_HORIZONS):
        cases = record.cases(horizon)
        found[horizon] = {
            "excess": excess(record, cases, horizon, record.held[: len(cases), number]),
            "walk_forward": walked(cases, record.scored, horizon),
        }
    return found


def excess(record: Record, cases: AccountCases, horizon: str, held: Float1D) -> dict[str, Any]:
    """What riskml's raw log-loss has above that of leverage cross-fitted over accounts, above the barrier."""
    above = cases.above
    mine = cases.select(above)
    fitted = cross_fitted(mine.scores()[LEVERAGE], mine.outcome, mine.account)
    raw, other = (metrics.log_losses(mine.outcome, values) for values in (mine.probability, fitted))
    own = record.cases(horizon, record.own_marks).probability[above]
    n_rows = len(cases)
    after = {name: values[:n_rows] for name, values in record.after.items()}
    broke = np.unique(cases.account[record.scored.equity_usd[:n_rows] < 0.0])
    followed = what_followed(cases.outcome, held, record.breach[:n_rows], after["event"], after)[above]
    bands = band_names(mine.probability)
    groups: dict[str, AnyArray] = {
        "followed": followed,
        "probability": bands,
        "liquidated": np.where(
            mine.outcome > 0.0, np.char.add(np.char.add(followed, " "), bands), "not liquidated"
        ),
        "record": np.where(np.isin(mine.account, broke), "below zero at some time", "never below zero"),
        "marks": np.where(record.scored.covered[:n_rows], "covered", "uncovered")[above],
        "month": months(record.scored.ts[:n_rows][above]),
    }
    return {
        "rows": len(mine),
        "riskml": float(raw.mean()),
        "riskml_at_own_marks": metrics.log_loss(mine.outcome, own),
        "leverage": float(other.mean()),
        "probability": float(mine.probability.mean()),
        "frequency": float(mine.outcome.mean()),
        "slope": metrics.calibration_slope(mine.outcome, mine.probability),
        "parts": {
            name: loss_by(group, raw - other, mine.outcome, mine.probability)
            for name, group in groups.items()
        },
    }


def months(ts: TimeUs) -> AnyArray:
    """Calendar month of each time, as text."""
    return np.asarray(ts.astype("datetime64[us]").astype("datetime64[M]").astype(str))


def band_names(probability: Float1D) -> AnyArray:
    """Bin of the calibration table of each row, as text."""
    place = np.clip(np.searchsorted(TABLE_EDGES, probability, side="left") - 1, 0, len(TABLE_EDGES) - 2)
    names = [f"{low:g}-{high:g}" for low, high in pairwise(TABLE_EDGES)]
    return np.asarray(names)[place]


def walked(cases: AccountCases, scored: ScoredAccounts, horizon: str) -> dict[str, list[Comparison]]:
    """Raw and walk-forward riskml against walk-forward yardsticks, on identical rows, by period and group."""
    ts, covered = scored.ts[: len(cases)], scored.covered[: len(cases)]
    groups: dict[str, Bool1D] = {"above all": cases.above, "above covered": cases.above & covered}
    found = {}
    for group, chosen in groups.items():
        rows, span = cases.select(chosen), duration_us(horizon)
        scores = raw_scores(rows)
        for period in ("month", "week"):
            fits: dict[str, Float1D] = {RAW: rows.probability}
            for name, score, slope in (
                (SHIFTED, scores[MODEL], False),
                (MAPPED, scores[MODEL], True),
                (LEVERAGE, scores[LEVERAGE], True),
                (DISTANCE, scores[DISTANCE], True),
            ):
                fits[name] = walk_forward(
                    score, rows.outcome, rows.account, ts[chosen], span, period=period, slope=slope
                )
            found[f"{group} {period}"] = compare_probabilities(
                rows, fits, (RAW, SHIFTED, MAPPED), (LEVERAGE, DISTANCE)
            )
    return found


def raw_scores(cases: AccountCases) -> dict[str, Float1D]:
    """One variable per model, of accounts above their barrier; nothing of it looks at other rows."""
    clip = metrics.PROBABILITY_CLIP
    probability = np.clip(cases.probability, clip, 1.0 - clip)
    return {
        MODEL: np.log(probability) - np.log1p(-probability),
        LEVERAGE: np.log(cases.leverage),
        DISTANCE: -np.log(cases.distance),
    }


# ---------------------------------------------------------------- output


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV, figures to six digits."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        )
    return file.getvalue()


def render(text: str) -> str:
    """The table of the document, from the CSV: forecast -> observed [interval] of the shown parts."""
    rows = list(csv.DictReader(io.StringIO(text)))
    shown = {
        (row["part"], float(row["low_score"])): row
        for row in rows
        if row["part"] in SHOWN and row["block"] != "week"
    }
    bands = sorted({(low, float(row["high_score"])) for (_, low), row in shown.items()})
    lines = ["| score | " + " | ".join(SHOWN.values()) + " |", "|---|" + "---|" * len(SHOWN)]
    for low, high in bands:
        cells = [_cell(shown.get((part, low))) for part in SHOWN]
        lines.append(f"| {low:.1f} to {high:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Mapping[str, str] | None) -> str:
    if row is None:
        return "-"
    said, seen, low, high = (_share(float(row[name])) for name in ("forecast", "observed", "low", "high"))
    counts = f"{int(float(row['n_events'])):,} of {int(float(row['n_rows'])):,}"
    text = f"{said} -> {seen} [{low}, {high}], {counts}"
    return text if float(row["miss"]) == 1.0 else f"**{text}**"


def _share(value: float) -> str:
    return "0" if value == 0.0 else f"{100.0 * value:.2g} %"


def write_document() -> None:
    """Put the table of the CSV between the two marks of the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    table = render(TABLE.read_text(encoding="utf-8"))
    write_text(DOCUMENT, f"{before}{BEGIN}\n{table}\n{END}{after}")


def short(found: Mapping[str, Any]) -> dict[str, Any]:
    """The behaviour part as short lists, see ``columns`` of the line."""
    kept: dict[str, Any] = {}
    for horizon, item in found.items():
        parts = {
            name: {
                group: [_round(row[key]) for key in ("part", "rows", "events", "probability", "frequency")]
                for group, row in rows.items()
            }
            for name, rows in item["excess"]["parts"].items()
        }
        levels = {key: _round(value) for key, value in item["excess"].items() if key != "parts"}
        pairs = {
            f"{row.metric} {row.model} {row.yardstick} {name}": [
                _round(value)
                for value in (
                    row.value,
                    row.against,
                    row.low,
                    row.high,
                    row.n,
                    row.events,
                    row.accounts_with_event,
                )
            ]
            for name, rows in item["walk_forward"].items()
            for row in rows
        }
        kept[horizon] = {"excess": {**levels, "parts": parts}, "walk_forward": pairs}
    return kept


def _round(value: float) -> float:
    return round(value, 5)


def main(arguments: list[str]) -> int:
    """Measure, write, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", help="folder of fold bundles")
    parser.add_argument("--lake")
    parser.add_argument("--times", type=int, default=1000, help="opening times a fold (default: %(default)s)")
    parser.add_argument("--per-time", type=int, default=40, help="accounts at each (default: %(default)s)")
    parser.add_argument("--table", default=str(TABLE))
    parser.add_argument("--results", default=str(RESULTS))
    parser.add_argument("--write", action="store_true", help="only renew the table of the document")
    options = parser.parse_args(arguments)
    if options.write:
        write_document()
        return 0
    if not (options.folds and options.lake):
        parser.error("--folds and --lake are required")
    started = time.perf_counter()
    folds, lake = Path(options.folds), Lake(options.lake)
    record = read_record(folds, lake)
    longest = RECORDED_HORIZONS[-1]
    rows = [
        row
        for name, scored in (("", record.scored), (f" {SERVED}", record.served))
        for row in recorded_rows(name, scored, record.cases(longest, scored), record.held)
    ]
    owners = short(behaviour(record))
    drawn, accounts = replayed(folds, lake, options.times, options.per_time)
    rows = drawn + rows
    write_text(Path(options.table), to_csv(rows))
    line = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(
            [
                "python training/score_table.py --folds runs/real/folds --lake runs/real/lake",
                f"--times {options.times} --per-time {options.per_time}",
            ]
        ),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "measure": "score table and behaviour",
        "replayed_accounts": accounts,
        "recorded_rows": len(record.scored),
        "outside": outside(rows),
        "behaviour": owners,
        "variants": "shift; intercept and slope; both refitted by month (the question) and by week",
        "columns": {
            "outside": "band: factor outside the 95 % interval, forecast, observed; other bands are inside",
            "walk_forward": "value, yardstick, low and high of the difference, rows, events, accounts hit",
            "parts": "part of the excess of the mean log-loss, rows, events, probability, frequency",
        },
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(append_record(Path(options.results), line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
