"""Liquidation probabilities of a recorded account history, re-marked, out of sample.

A record of accounts may carry marks that are hours old. Each snapshot is therefore re-marked by the newest
price that was known at its time, and every row says whose price it was (:data:`KLINES`,
:data:`OPEN_INTEREST`, :data:`TRADES`). Equity, maintenance, exposure and probability follow from the same
marks, so that what is compared on a row has seen the same prices.

A market without bars has no forecast. The risk engine then uses the policy's unknown scale, which is
a margin and errs on the safe side by an order of magnitude; a probability on it is no forecast. Here such a
market may be given the *peer law* instead (:func:`with_peers`): the geometric mean of the forecast markets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, FloatND, Int1D, TimeUs
from riskml.backfill.bundles import BundleChoice, choose_bundle, find_bundles
from riskml.backfill.forecasts import ForecastHistory, forecast_history
from riskml.bundle import Manifest
from riskml.errors import DataError
from riskml.features.asof import AsOfIndex
from riskml.markets import venue_order
from riskml.risk.accounts import AccountBook
from riskml.risk.decisions import decide
from riskml.risk.engines.interface import current_marks
from riskml.risk.forecast import Forecast
from riskml.risk.horizons import with_horizons
from riskml.risk.law import numpy_law
from riskml.risk.policy import MarginPolicy
from riskml.risk.sums import sum_by
from riskml.scoring.session import load_bundle
from riskml.tables.book import read_books
from riskml.tables.lake import Lake
from riskml.units import DAY, HOUR, TimeLike, duration_us, to_us

KLINES, OPEN_INTEREST, TRADES = 0, 1, 2
"""Whose price marks a position: bars, open interest in USD over base units, or the record itself."""
Unknown = Literal["peers", "policy"]
_BAR = "1h"
_MAX_AGE = 2 * HOUR
"""A close older than this marks nothing: two bars."""


@dataclass(frozen=True)
class ScoredAccounts:
    """Account snapshots [n_rows] with what was known of them at their time."""

    horizons: tuple[str, ...]
    ts: TimeUs
    account_id: AnyArray
    equity_usd: Float1D
    gross_usd: Float1D
    """Sum of |exposure| of the positions, re-marked."""
    maintenance_usd: Float1D
    """The venue's, moved with exposure: the barrier."""
    probability: Float2D
    """[n_rows, n_horizons] of reaching the barrier."""
    mark_source: Int1D
    """The least good source among the account's positions."""
    forecast_known: Bool1D
    """Every position's market has a forecast of its own."""

    def __len__(self) -> int:
        return len(self.ts)

    @property
    def leverage(self) -> Float1D:
        """Exposure over equity; inf where there is no equity."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.equity_usd > 0.0, self.gross_usd / self.equity_usd, np.inf)

    @property
    def distance(self) -> Float1D:
        """Fraction of exposure that may be lost before maintenance is reached; <= 0 = it is."""
        return np.asarray((self.equity_usd - self.maintenance_usd) / self.gross_usd)

    @property
    def covered(self) -> Bool1D:
        """Marked from klines in every position, and forecast in every position."""
        return np.asarray((self.mark_source == KLINES) & self.forecast_known)

    def select(self, rows: Bool1D) -> ScoredAccounts:
        """Some of the rows."""
        fields = {name: getattr(self, name)[rows] for name in self.__dataclass_fields__ if name != "horizons"}
        return replace(self, **fields)


class MarkFeed:
    """Newest known price of symbols, and whose it is.

    Parameters
    ----------
    lake : tables ``bars`` and ``open_interest``; a symbol that neither has is never priced.
    symbols : markets to mark.
    start, end : range of the queries, microseconds.
    """

    def __init__(self, lake: Lake, symbols: Iterable[str], start: int, end: int) -> None:
        self._series: dict[str, list[tuple[int, AsOfIndex, Float1D]]] = {}
        window = (start - DAY, end + 1)
        for symbol in dict.fromkeys(symbols):
            closes = _columns(lake, "bars", symbol, window, ("close",))
            stated = _columns(lake, "open_interest", symbol, window, ("open_interest_usd", "open_interest"))
            found = [
                *((KLINES, *closes[venue]) for venue in venue_order(closes)),
                *((OPEN_INTEREST, *stated[venue]) for venue in sorted(stated)),
            ]
            self._series[symbol] = [item for item in found if len(item[2])]

    def at(self, ts: int) -> dict[str, tuple[float, int]]:
        """Price and source of every symbol that has one at ``ts`` which is at most two bars old."""
        found: dict[str, tuple[float, int]] = {}
        for symbol, series in self._series.items():
            for source, index, price in series:
                row = index.row(ts, _MAX_AGE)
                if row >= 0:
                    found[symbol] = (float(price[row]), source)
                    break
        return found

    def with_klines(self) -> list[str]:
        """Symbols that have bars anywhere in the range."""
        return [name for name, series in self._series.items() if any(item[0] == KLINES for item in series)]


def _columns(
    lake: Lake, table: str, symbol: str, window: tuple[int, int], names: tuple[str, ...]
) -> dict[str, tuple[AsOfIndex, Float1D]]:
    """Per venue its rows and their price: a column, or the first over the second; unpriced rows left out."""
    if not any(part.keys["symbol"] == symbol for part in lake.partitions(table)):
        return {}
    interval = _BAR if table == "bars" else None
    rows = lake.read(table, symbols=symbol, interval=interval, start=window[0], end=window[1])
    ts, known_at = (rows.column(name).cast(pa.int64()).to_numpy() for name in ("ts", "known_at"))
    values = [rows.column(name).to_numpy().astype(np.float64) for name in names]
    with np.errstate(divide="ignore", invalid="ignore"):
        price = values[0] / values[1] if len(values) > 1 else values[0]
    usable = np.isfinite(price) & (price > 0.0)
    venue = np.asarray(rows.column("venue").to_pylist(), dtype=object)
    return {
        name: (AsOfIndex(ts[mine], known_at[mine]), price[mine])
        for name in dict.fromkeys(venue.tolist())
        if (mine := usable & (venue == name)).any()
    }


def with_peers(forecast: Forecast, symbols: Iterable[str]) -> Forecast:
    """Add markets that have no forecast, on the law of the forecast's markets taken together.

    Scales and variances are geometric means, 1/nu, stress and loadings means over the forecast's markets.

    Parameters
    ----------
    symbols : markets to add; one that the forecast has stays as it is.
    """
    missing = [name for name in dict.fromkeys(symbols) if name not in forecast.market_index]
    sound = np.isfinite(forecast.sigma).all(axis=(1, 2)) & (forecast.sigma > 0.0).all(axis=(1, 2))
    sound &= np.isfinite(forecast.nu).all(axis=1)
    if not missing or not sound.any():
        return forecast

    def added(values: FloatND, peer: FloatND) -> FloatND:
        return np.concatenate([values, np.repeat(peer[None], len(missing), axis=0)])

    return replace(
        forecast,
        markets=(*forecast.markets, *missing),
        sigma=added(forecast.sigma, np.exp(np.log(forecast.sigma[sound]).mean(axis=0))),
        nu=added(forecast.nu, 1.0 / (1.0 / forecast.nu[sound]).mean(axis=0)),
        variance=added(forecast.variance, np.exp(np.log(forecast.variance[sound]).mean(axis=0))),
        stress=added(forecast.stress, forecast.stress[sound].mean(axis=0)),
        loadings=added(forecast.loadings, forecast.loadings[sound].mean(axis=0)),
        degraded=np.append(forecast.degraded, np.ones(len(missing), dtype=np.bool_)),
        venues=(),
        degraded_reasons=(),
    )


def score_accounts(
    folds: str | Path,
    lake: Lake,
    start: TimeLike,
    end: TimeLike,
    horizons: Sequence[str],
    *,
    unknown: Unknown = "peers",
    remark: bool = True,
    guarded: bool = False,
    policy: MarginPolicy | None = None,
) -> ScoredAccounts:
    """Score every account snapshot with ``start <= ts < end`` that has positions and an unseen bundle.

    Parameters
    ----------
    folds : a bundle, or a folder of bundles; each snapshot takes the newest that had not seen it.
    horizons : ascending; those between a bundle's own are interpolated (:mod:`riskml.risk.horizons`).
    unknown : law of a market without bars: ``peers``, or the ``policy``'s unknown scale, as in the engine.
    remark : False keeps the record's own marks.
    guarded : False takes what the graph says, as every evaluation; True what the live scorer would have used
        after its guards, which hold scales up while a source is stale.
    policy : collateral rules; the barrier is the venue's whatever it says.

    Raises
    ------
    DataError : no snapshot in the range, or every bundle had seen all of them.
    """
    first, last = to_us(start), to_us(end)
    rules = venue_policy(horizons, policy)
    choices = find_bundles(folds)
    positions = lake.read("positions", start=first, end=last, columns=["symbol"])
    held = sorted(set(positions.column("symbol").to_pylist()))
    marks = MarkFeed(lake, held, first, last)
    feeds: dict[Path, _ForecastFeed] = {}
    parts = []
    for ts, book in read_books(lake, first, last):
        choice = choose_bundle(choices, ts)
        if choice.in_sample(ts) or not len(book):
            continue
        if choice.path not in feeds:
            feeds[choice.path] = _ForecastFeed(
                choice, choices, lake, marks.with_klines(), (first, last), guarded=guarded
            )
        forecast, known = feeds[choice.path].at(ts, horizons)
        if unknown == "peers":
            forecast = with_peers(forecast, book.positions.symbol.tolist())
        parts.append(_score(book, forecast, known, marks.at(ts) if remark else {}, ts, rules))
    if not parts:
        raise DataError(
            "there is no account snapshot in the range that a bundle had not seen",
            table="accounts",
            fix="choose a later range, or pass a folder with an older bundle",
        )
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    scored = ScoredAccounts(tuple(horizons), **joined)
    return scored.select(scored.gross_usd > 0.0)


def venue_policy(horizons: Sequence[str], policy: MarginPolicy | None = None) -> MarginPolicy:
    """A policy whose barrier is the venue's maintenance, for reading probabilities at any horizons.

    Requirements are not read from it, so they take whatever horizons there are.
    """
    return replace(
        policy or MarginPolicy(),
        barrier="venue",
        maintenance_horizon=horizons[0],
        initial_horizon=horizons[-1],
        action_horizon=horizons[-1],
    )


def _score(
    book: AccountBook,
    forecast: Forecast,
    known: frozenset[str],
    marks: Mapping[str, tuple[float, int]],
    ts: int,
    policy: MarginPolicy,
) -> dict[str, AnyArray]:
    """One snapshot as columns of :class:`ScoredAccounts`."""
    prices = {symbol: price for symbol, (price, _) in marks.items()}
    decisions = decide(book, forecast, policy, law=numpy_law(forecast.power), ts=ts, prices=prices)
    positions, n_accounts = book.positions, len(book)
    mark, _ = current_marks(positions, prices)
    source = np.asarray([marks[name][1] if name in marks else TRADES for name in positions.symbol.tolist()])
    worst = np.full(n_accounts, KLINES)
    np.maximum.at(worst, positions.account, source.astype(np.int64))
    unforecast = np.asarray([name not in known for name in positions.symbol.tolist()], dtype=np.float64)
    return {
        "ts": np.full(n_accounts, ts, dtype=np.int64),
        "account_id": book.account_id,
        "equity_usd": decisions.equity_usd,
        "gross_usd": sum_by(positions.account, np.abs(positions.size * mark), n_accounts),
        "maintenance_usd": decisions.barrier_margin_usd,
        "probability": decisions.liquidation_probability,
        "mark_source": worst,
        "forecast_known": sum_by(positions.account, unforecast, n_accounts) == 0.0,
    }


class _ForecastFeed:
    """Forecasts of one bundle over the part of the range that it scores."""

    def __init__(
        self,
        choice: BundleChoice,
        choices: Sequence[BundleChoice],
        lake: Lake,
        traded: Sequence[str],
        window: tuple[int, int],
        *,
        guarded: bool,
    ) -> None:
        self._bundle = load_bundle(choice.path)
        later = [other.usable_from for other in choices if other.usable_from > choice.usable_from]
        begin, end = max(window[0], choice.usable_from), min([window[1], *later])
        step = duration_us(self._bundle.manifest.interval)
        own = self._bundle.manifest.markets
        self._history = forecast_history(
            self._bundle,
            lake,
            begin - begin % step,
            end - end % step + step,
            markets=[*own, *[name for name in traded if name not in own]],
            guarded=guarded,
        )

    def at(self, ts: int, horizons: Sequence[str]) -> tuple[Forecast, frozenset[str]]:
        """The forecast of the last bar that had closed at ``ts``, and the markets that had this bar."""
        history = self._history
        row = int(np.searchsorted(history.ts, ts, side="right")) - 1
        forecast = forecast_at(history, row, self._bundle.manifest)
        known = np.asarray(history.markets, dtype=object)[history.available[row]]
        return with_horizons(forecast, horizons), frozenset(known.tolist())


def forecast_at(history: ForecastHistory, row: int, manifest: Manifest) -> Forecast:
    """One bar of a forecast history in the form that the risk engine takes."""
    return Forecast(
        ts=int(history.ts[row]),
        markets=history.markets,
        horizons=history.horizons,
        sigma=history.sigma[row],
        nu=history.nu[row],
        variance=history.variance[row],
        stress=history.stress[row],
        loadings=history.loadings[row],
        degraded=history.degraded[row] > 0,
        bundle_id=manifest.bundle_id,
        interval=manifest.interval,
        calibration_power=tuple(manifest.calibration_power),
    )
