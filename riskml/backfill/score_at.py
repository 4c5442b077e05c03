"""One decision from the lake: warm a scorer up as of a time and score the book of that time."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from riskml.backfill.context import CONTEXT_TABLES, held_rows, last_closes
from riskml.backfill.forecasts import history_markets
from riskml.errors import DataError
from riskml.features.evaluate import lookback_bars
from riskml.features.fine import bar_lengths
from riskml.features.inputs import input_tables, max_staleness_us
from riskml.risk.breaker_policy import BreakerPolicy
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
    breaker: BreakerPolicy | str | Path | None = None,
) -> Decisions:
    """Decide on the accounts as they stood at ``at``, from what was known then.

    Parameters
    ----------
    bundle : loaded, or its folder.
    lake : market history and accounts.
    at : time of the decision; the last bar that had closed by then is the forecast's.
    policy, breaker : as of :meth:`riskml.scoring.Scorer.load`.

    Raises
    ------
    DataError : no account snapshot or no bar at or before ``at``.
    """
    source = as_lake(lake)
    loaded = bundle if isinstance(bundle, LoadedBundle) else load_bundle(bundle)
    moment = to_us(at)
    book = read_book(source, moment)
    scorer = warm_scorer(loaded, source, moment, policy=policy, breaker=breaker)
    return scorer.score(book, moment)


def warm_scorer(
    bundle: LoadedBundle,
    lake: Lake,
    at: int,
    *,
    policy: MarginPolicy | str | Path | None = None,
    breaker: BreakerPolicy | str | Path | None = None,
) -> Scorer:
    """A scorer that has observed the lake's rows known by ``at`` and closed the last bar before it.

    It says what one that had run for ever would say: the last row of a silent peg, chain or open interest
    and the last close of a market without a bar now are read however old they are. The guards know the last
    week alone: a market that has been dark, or an input that has been lost, for longer is no more held at its
    last sound forecast.

    Raises
    ------
    DataError : the lake has no bar that the scorer could close.
    """
    scorer = Scorer(bundle, MarginPolicy.load(policy), breaker)
    manifest = bundle.manifest
    bar_us = duration_us(manifest.interval)
    last_bar = at - at % bar_us
    bars_back = lookback_bars(bundle.features, manifest.interval) + manifest.n_bars
    start = last_bar - bars_back * bar_us - duration_us(WARM_UP) - max(max_staleness_us(), HISTORY)
    own = history_markets(bundle, lake, None)  # refuses a lake without bars
    names = {name for feature in bundle.features for name in feature.inputs}
    tables = {*input_tables(names), "bars", "pegs", "flows", "open_interest"}
    observed = 0
    for table in sorted(tables):
        of_bars = table in ("bars", "marks")
        for length in bar_lengths(names, table, manifest.interval) if of_bars else (None,):
            rows = lake.read(table, interval=length, start=start, end=at + 1, known_by=at)
            if table in CONTEXT_TABLES:
                for held in held_rows(lake, table, start, at, rows):
                    scorer.observe(
                        table, to_columns(held.filter(pc.less_equal(held["known_at"].cast(pa.int64()), at)))
                    )
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
    markets = {market.symbol: market for market in (*lake.markets(manifest.interval), *own)}
    for symbol, (ts, close) in last_closes(lake, [*markets.values()], manifest.interval, last_bar).items():
        scorer.on_price(symbol, close, ts)  # an older price than the one of the last bar changes nothing
    return scorer
