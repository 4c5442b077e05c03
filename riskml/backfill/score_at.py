"""One decision from the lake: warm a scorer up as of a time and score the book of that time."""

from __future__ import annotations

from pathlib import Path

from riskml.backfill.forecasts import history_markets
from riskml.errors import DataError
from riskml.features.evaluate import lookback_bars
from riskml.features.fine import bar_lengths
from riskml.features.inputs import input_tables, max_staleness_us
from riskml.risk.outcome import Decisions
from riskml.risk.policy import MarginPolicy
from riskml.scoring.conditions import HISTORY
from riskml.scoring.scorer import Scorer
from riskml.scoring.session import LoadedBundle, load_bundle
from riskml.scoring.stream import WARM_UP
from riskml.tables.align import to_columns
from riskml.tables.book import read_book
from riskml.tables.lake import Lake, as_lake
from riskml.units import TimeLike, duration_us, format_us, to_us


def score_at(
    bundle: LoadedBundle | str | Path,
    lake: Lake | str | Path,
    at: TimeLike,
    *,
    policy: MarginPolicy | str | Path | None = None,
) -> Decisions:
    """Decide on the accounts as they stood at ``at``, from what was known then.

    Parameters
    ----------
    bundle : loaded, or its folder.
    lake : market history and accounts.
    at : time of the decision; the last bar that had closed by then is the forecast's.

    Raises
    ------
    DataError : no account snapshot or no bar at or before ``at``.
    """
    source = as_lake(lake)
    loaded = bundle if isinstance(bundle, LoadedBundle) else load_bundle(bundle)
    moment = to_us(at)
    book = read_book(source, moment)
    scorer = warm_scorer(loaded, source, moment, policy=policy)
    return scorer.score(book, moment)


def warm_scorer(
    bundle: LoadedBundle, lake: Lake, at: int, *, policy: MarginPolicy | str | Path | None = None
) -> Scorer:
    """A scorer that has observed the lake's rows known by ``at`` and closed the last bar before it.

    Raises
    ------
    DataError : the lake has no bar that the scorer could close.
    """
    scorer = Scorer(bundle, MarginPolicy.load(policy))
    manifest = bundle.manifest
    bar_us = duration_us(manifest.interval)
    last_bar = at - at % bar_us
    bars_back = lookback_bars(bundle.features, manifest.interval) + manifest.n_bars
    start = last_bar - bars_back * bar_us - duration_us(WARM_UP) - max(max_staleness_us(), HISTORY)
    history_markets(bundle, lake, None)  # refuses a lake without bars
    names = {name for feature in bundle.features for name in feature.inputs}
    tables = {*input_tables(names), "bars", "pegs", "flows", "open_interest"}
    observed = 0
    for table in sorted(tables):
        of_bars = table in ("bars", "marks")
        for length in bar_lengths(names, table, manifest.interval) if of_bars else (None,):
            rows = lake.read(table, interval=length, start=start, end=at + 1, known_by=at)
            if rows.num_rows:
                scorer.observe(table, to_columns(rows))
                observed += rows.num_rows if table == "bars" and length == manifest.interval else 0
    if not observed:
        raise DataError(
            f"the lake at {lake.path} has no {manifest.interval} bar at or before {format_us(at)}",
            table="bars",
            fix="ask for a later time, or ingest bars",
        )
    scorer.close_bar(last_bar)
    return scorer
