"""The dictionaries of tables and features, written from their declarations.

``python -m riskml.tables.dictionary`` writes ``data/TABLES.md`` and ``data/FEATURES.md``; a
test fails when they no longer match the code.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from riskml.contracts import CONTRACTS, Column, TableContract
from riskml.features.catalog import CATALOG
from riskml.features.inputs import INPUTS
from riskml.features.spec import FAMILIES, Feature

_GENERATED = "<!-- Written by `python -m riskml.tables.dictionary`; do not edit. -->\n"
_INTERVAL = "1h"
_PARTITIONS = {
    "market": "venue, symbol, year",
    "chain": "chain, year",
    "asset": "venue, asset, year",
    "date": "date",
    "none": "one file",
}
_SIGNS = {"any": "", "positive": "> 0", "non-negative": ">= 0", "fraction": "0 .. 1"}


def tables_markdown() -> str:
    """Every table with its columns, as Markdown."""
    head = (
        "# Tables\n\n"
        f"{_GENERATED}\n"
        "Times are timestamps in microseconds, UTC. A row's full key is its key and `known_at`, the time\n"
        "from which a live engine would have had it: a revision is a new row. *Optional* columns may be\n"
        "left out; a null means that the source does not give the value.\n"
    )
    return head + "".join(_table(table) for table in CONTRACTS.values())


def features_markdown() -> str:
    """Every feature and every input, as Markdown."""
    head = (
        "# Features\n\n"
        f"{_GENERATED}\n"
        f"{len(CATALOG)} features; `riskml/features/catalog.py` has them in the order of a bundle's last\n"
        f"input axis. *Lookback* is in bars of {_INTERVAL} and derived from the expression: so many rows of\n"
        "input decide one value, and none after the bar's close does.\n"
    )
    return head + "".join(_family(family) for family in FAMILIES) + _inputs()


def write(folder: Path) -> list[Path]:
    """Write both files and return their paths."""
    written = []
    for name, text in (("TABLES.md", tables_markdown()), ("FEATURES.md", features_markdown())):
        target = folder / name
        staging = folder / f".{name}.tmp"
        staging.write_text(text, encoding="utf-8")
        os.replace(staging, target)
        written.append(target)
    return written


def _table(table: TableContract) -> str:
    lines = [
        f"\n## {table.name}\n",
        f"{_sentence(table.meaning)}",
        f"Key: {', '.join(table.key)}. Partitioned by {_PARTITIONS[table.partition]}.\n",
        "| column | type | unit | range | meaning |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_column, table.columns)]) + "\n"


def _column(column: Column) -> str:
    meaning = column.meaning if column.required else f"{column.meaning} (optional)"
    return f"| {column.name} | {column.kind} | {column.unit} | {_SIGNS[column.sign]} | {_cell(meaning)} |"


def _family(family: str) -> str:
    lines = [
        f"\n## {family}\n",
        "| feature | unit | formula | idea | inputs | lookback |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_feature(feature) for feature in CATALOG if feature.family == family)]) + "\n"


def _feature(feature: Feature) -> str:
    cells = (
        feature.name,
        feature.unit,
        feature.formula,
        feature.source,
        ", ".join(feature.inputs) or "the clock",
        str(feature.lookback_bars(_INTERVAL)),
    )
    return f"| {' | '.join(map(_cell, cells))} |"


def _inputs() -> str:
    lines = [
        "\n## Inputs\n",
        "A row older than its limit is not used; bars are taken in their own slot only.\n",
        "| input | from | unit | limit | meaning |",
        "|---|---|---|---|---|",
    ]
    for spec in INPUTS.values():
        cells = (
            spec.name,
            f"{spec.table}: {spec.column}",
            spec.unit,
            spec.staleness or "exact",
            spec.meaning,
        )
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    sys.stderr.write("".join(f"wrote {path}\n" for path in write(Path(__file__).parents[2] / "data")))
