"""What was aimed at for accounts beside what was reached, from the newest recorded runs.

    python training/account_targets.py

Reads the last lines of ``accounts.jsonl``, ``two_products.jsonl``, ``impulse_response.jsonl``,
``hedged_books.jsonl``, ``depegs.jsonl`` and ``breaker.jsonl`` in ``training/results``, and
``score_table.csv`` there; prints the tables, with ``--write`` also into ``training/results/ACCOUNTS.md``.
A test holds the file to the lines, so it cannot say what they do not. A measure for which no number was
named gets no verdict. ``account_rows.py`` has the rows.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from account_rows import (
    breaker_rows,
    depeg_rows,
    hedged_rows,
    impulse_rows,
    initial_rows,
    maintenance_rows,
    recorded_rows,
    replayed_rows,
    score_rows,
    walk_forward_rows,
)
from targets import RESULTS, Line, Row, newest, table, tally

from riskml.errors import DataError
from riskml.learning.runs import write_text

TABLE = RESULTS / "ACCOUNTS.md"
BANDS = "score_table.csv"
Rows: TypeAlias = Callable[[Any], Iterator[Row]]


@dataclass(frozen=True)
class Source:
    """Where a section's figures come from."""

    file: str
    """In ``training/results``."""
    contains: str
    """Tells its lines from others of the file; nothing for a CSV."""
    command: str
    """What appends such a line."""

    def newest(self) -> Line:
        """The last such line; :class:`DataError` where there is none."""
        return newest(RESULTS / self.file, self.contains, fix=f"run {self.command}")


_REAL = "--folds runs/real/folds --lake runs/real/lake"
SOURCES = {
    "accounts": Source(
        "accounts.jsonl",
        "training/evaluate_accounts.py",
        f"python training/evaluate_accounts.py {_REAL} --out accounts.json",
    ),
    "behaviour": Source(
        "accounts.jsonl", "training/score_table.py", f"python training/score_table.py {_REAL}"
    ),
    "products": Source(
        "two_products.jsonl", "training/two_products.py", f"python training/two_products.py {_REAL}"
    ),
    "impulse": Source(
        "impulse_response.jsonl",
        "training/impulse_response.py",
        "python training/impulse_response.py --bundle runs/real/folds/perp-1h-2025-01-01 "
        "--lake runs/real/lake",
    ),
    "hedged": Source(
        "hedged_books.jsonl", '"part": "test"', f"python training/hedged_books.py {_REAL} --part test"
    ),
    "depegs": Source("depegs.jsonl", "training/depegs.py", "python training/depegs.py"),
    "breaker": Source(
        "breaker.jsonl",
        "training/breaker_states.py",
        f"python training/breaker_states.py {_REAL} --dataset runs/real/dataset",
    ),
    "bands": Source(BANDS, "", f"python training/score_table.py {_REAL}"),
}

SECTIONS: tuple[tuple[str, str, str, Rows], ...] = (
    (
        "Hyperliquid accounts of 2023",
        "Account-hours above maintenance, outcome = a recorded liquidation; riskml / leverage [difference] / "
        "distance [difference], 95 % over accounts. Covered: every position has klines. Recalibrated: "
        "intercept and slope of one variable, cross-fitted over accounts, for riskml as for the yardsticks.",
        "accounts",
        recorded_rows,
    ),
    (
        "The same, walk-forward",
        "Maps and yardsticks fitted on the months (weeks) before alone; rows that have such a past.",
        "behaviour",
        walk_forward_rows,
    ),
    ("Replayed accounts", "", "accounts", replayed_rows),
    ("Initial margin, the fast product", "", "products", initial_rows),
    (
        "Maintenance margin, the slow product",
        "Limits are those of the line: the issue's, and yardsticks on identical rows.",
        "products",
        maintenance_rows,
    ),
    ("A threefold step of volatility", "", "impulse", impulse_rows),
    (
        "Hedged books",
        "Net exposure at most a fifth of gross. The true breach rate lies between closes and upper bound; "
        "sets of finer bars hold other markets and books.",
        "hedged",
        hedged_rows,
    ),
    ("Depegs", "", "depegs", depeg_rows),
    ("Circuit breaker", "Test parts.", "breaker", breaker_rows),
    ("Risk score", "", "bands", score_rows),
)
"""Heading, note, source, and what makes its rows of that."""


def section_rows(source: str, rows: Rows, found: Any) -> list[Row]:
    """Rows of one function.

    Raises
    ------
    DataError : the line is of an older form; names the file and what renews it.
    """
    where = SOURCES[source]
    try:
        return list(rows(found))
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{RESULTS / where.file}: the newest figures lack what {rows.__name__} reads ({error!r})",
            fix=f"run {where.command}",
        ) from error


def render(found: Mapping[str, Any]) -> str:
    """The page as Markdown; ``found`` as from :func:`newest_figures`."""
    tables = [
        (title, note, section_rows(source, rows, found[source])) for title, note, source, rows in SECTIONS
    ]
    everything = [row for _, _, body in tables for row in body]
    lines = [
        "# Targets and figures of accounts",
        "",
        "Made by `python training/account_targets.py --write`. Figures are at 1 / 8 / 24 h where there are "
        f"three and nothing else is said. {tally(everything)}; what is met in part is not counted. No bundle "
        "has seen rows that it is tested on; what was chosen after tests were seen is told in "
        "[LOG.md](../LOG.md).",
        "",
        "Two measures have no recorded line: the properties, with their cases and violations, are in "
        "[docs/properties.md](../../docs/properties.md); bad input is held by tests "
        "([accounts](../../tests/risk/test_accounts.py), [decisions](../../tests/risk/test_decisions.py)).",
        "",
        "| figures | of | command |",
        "|---|---|---|",
    ]
    for name, source in SOURCES.items():
        line = found["behaviour" if name == "bands" else name]  # one run writes both
        lines.append(f"| {source.file} | {line['date']} | `{line['command']}` |")
    for title, note, body in tables:
        lines += ["", f"## {title}", "", *([note, ""] if note else []), *table(body)]
    return "\n".join([*lines, ""])


def newest_figures() -> dict[str, Any]:
    """What :func:`render` takes: the newest line of every source, and the rows of the score's bands."""
    found: dict[str, Any] = {
        name: source.newest() for name, source in SOURCES.items() if source.file != BANDS
    }
    file = RESULTS / BANDS
    if not file.exists():
        raise DataError(f"{file} is not there", fix=f"run {SOURCES['bands'].command}")
    with file.open(encoding="utf-8", newline="") as text:
        found["bands"] = list(csv.DictReader(text))
    return found


def main(arguments: list[str]) -> int:
    """Print or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"into {TABLE.name}")
    options = parser.parse_args(arguments)
    text = render(newest_figures())
    if options.write:
        write_text(TABLE, text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
