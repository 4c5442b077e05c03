"""The dictionaries of tables and features, written from their declarations.

``python -m riskml.tables.dictionary`` writes ``data/TABLES.md`` and ``data/FEATURES.md``; a
test fails when they no longer match the code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from riskml.contracts import CONTRACTS, Column, TableContract
from riskml.facts import load_facts
from riskml.features.catalog import CATALOG
from riskml.features.evaluate import input_names
from riskml.features.inputs import INPUTS, input_tables
from riskml.features.nodes import MAX_GAP_BARS, Rolling, walk
from riskml.features.spec import FAMILIES, Feature
from riskml.features.weights import axis_columns

_GENERATED = "<!-- Written by `python -m riskml.tables.dictionary`; do not edit. -->\n"
_INTERVALS = ("1h", "1m")
"""Bar lengths at which lookbacks are given."""
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
    """Every feature, every input, and the weights of chains and stablecoins, as Markdown."""
    n_windows = sum(isinstance(node, Rolling) for node in walk(*(feature.expr for feature in CATALOG)))
    head = (
        "# Features\n\n"
        f"{_GENERATED}\n"
        f"{len(CATALOG)} features over {len(INPUTS)} inputs and {n_windows} distinct windows, in the order\n"
        "of a bundle's last input axis. A formula is for people; the expression in `riskml/features/` is\n"
        "the definition. Families can be chosen by name (`volatility,funding`), and so can features.\n\n"
        "- *Lookback* is derived from the expression, in bars of "
        f"{' and of '.join(_INTERVALS)}: so many rows of\n"
        "  input decide one value, and none after the bar's close does.\n"
        "- *Missing when* is the rule for NaN. Windows count the bars with a value, and none reaches across\n"
        f"  a gap of more than {MAX_GAP_BARS} bars.\n"
        "- Windows are durations. At bars longer than a window the window is one bar.\n"
    )
    return head + "".join(_family(family) for family in FAMILIES) + _inputs() + _weights()


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
    chosen = [feature for feature in CATALOG if feature.family == family]
    names = ", ".join(f"`{table}`" for table in input_tables(input_names(chosen)))
    lines = [
        f"\n## {family}\n",
        f"{len(chosen)} features; tables: {names or 'none, only the clock'}.\n",
        "| feature | unit | formula | idea | inputs | "
        + " | ".join(f"lookback {interval}" for interval in _INTERVALS)
        + " | missing when |",
        "|---|---|---|---|---|" + "---|" * len(_INTERVALS) + "---|",
    ]
    return "\n".join([*lines, *map(_feature, chosen)]) + "\n"


def _feature(feature: Feature) -> str:
    cells = (
        feature.name,
        feature.unit,
        feature.formula,
        feature.source,
        ", ".join(feature.inputs) or "the clock",
        *(str(feature.lookback_bars(interval)) for interval in _INTERVALS),
        feature.nan_rule,
    )
    return f"| {' | '.join(map(_cell, cells))} |"


def _inputs() -> str:
    lines = [
        "\n## Inputs\n",
        "A row older than its limit is not used; *exact* inputs take the row of their own slot only. Every",
        "look-up sees the rows that were known at the slot. Kinds: `riskml/features/inputs.py`.\n",
        "| input | from | kind | unit | limit | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for spec in INPUTS.values():
        options = ", ".join(part for part in (spec.detail, spec.side, spec.combine) if part)
        cells = (
            spec.name,
            f"{spec.table}: {spec.column}",
            f"{spec.kind} ({options})" if options else spec.kind,
            spec.unit,
            spec.staleness or "exact",
            spec.meaning,
        )
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def _weights() -> str:
    facts = load_facts("chain_weights")
    lines = [
        "\n## Chains and stablecoins of a market\n",
        "A market takes the weights of its own entry, else of its venue's, else the default",
        f"(`riskml/facts/chain_weights.toml`, from {facts['valid_from']} on), divided by their sum.",
        f"Chains: {', '.join(axis_columns('chain'))}. Stablecoins: {', '.join(axis_columns('asset'))}.\n",
        "| entry | chains | stablecoins | reason |",
        "|---|---|---|---|",
    ]
    entries = [("default", facts["default"])]
    for section in ("venue", "market"):
        entries += [(f"{section} {name}", entry) for name, entry in facts[section].items()]
    for name, entry in entries:
        cells = (
            name,
            _shares(entry.get("chain_weights", {})),
            _shares(entry.get("asset_weights", {})),
            entry["reason"].replace("\n", " "),
        )
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def _shares(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    sys.stderr.write("".join(f"wrote {path}\n" for path in write(Path(__file__).parents[2] / "data")))
