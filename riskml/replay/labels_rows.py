"""Which bars each account follows, from where to where, and what the walk along them found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, Int1D, Int2D
from riskml.replay.labels_kernel import TOGETHER, Prices, Walked, Walkers, Windows, walk
from riskml.replay.labels_legs import AccountRows
from riskml.replay.labels_path import NEVER, PathBook, PathPanel, Source
from riskml.risk.sums import sum_by


@dataclass(frozen=True)
class ChunkLabels:
    """Labels of account rows [n_rows], without names and units."""

    liquidated: Float2D
    """[n_rows, n_horizons] 1, 0 or NaN."""
    breach_ts: Int2D
    """[n_rows, 3] together, possible, confirmed; NEVER = none seen."""
    known_until: Int1D
    """NEVER = not even the start."""
    whole: Bool1D
    """The longest horizon is known."""
    below_at_start: Bool1D
    equity_usd: Float1D
    maintenance_usd: Float1D
    equity_min_usd: Float1D
    ratio_min: Float1D
    funding_known: Bool1D
    remark_change: Float1D
    interval: AnyArray
    reason: AnyArray
    reason_market: AnyArray


@dataclass(frozen=True)
class _Route:
    """Where the legs of every row can be followed at one interval."""

    panel: PathPanel
    column: Int1D
    """[n_legs] the source of each leg, -1 = none has a price at the start."""
    start_price: Float1D
    """[n_legs]."""
    reach: Int1D
    """[n_legs] to where its path is known, microseconds; NEVER = not even the start."""
    row_reach: Int1D
    """[n_rows] the least of its legs; the end of the window for a row without legs."""
    priced: Int1D
    """[n_rows] legs with a price at the start."""
    funding: list[Int1D]
    """Per rank of preference, the funding column of each pair [n_pairs]; -1 = none."""


def label_rows(
    rows: AccountRows, path: PathBook, intervals: Sequence[str], spans: Int1D, *, remark: bool
) -> ChunkLabels:
    """Label the accounts of one chunk.

    Parameters
    ----------
    intervals : bar lengths to try, finest first.
    spans : [n_horizons] microseconds.
    remark : see :func:`riskml.replay.labels.replay_labels`.
    """
    longest = int(spans.max())
    n_rows = len(rows.ts)
    routes = [_route(rows, path, name, longest) for name in intervals]
    best = np.zeros(n_rows, dtype=np.int64)
    for place, route in enumerate(routes[1:], start=1):
        now = [np.choose(best, [getattr(item, name) for item in routes]) for name in ("row_reach", "priced")]
        further = route.row_reach > now[0]
        best[further | ((route.row_reach == now[0]) & (route.priced > now[1]))] = place
    parts = []
    for place, route in enumerate(routes):
        chosen = np.flatnonzero(best == place)
        if len(chosen):
            parts.append((chosen, _follow(rows, chosen, route, spans, remark)))
    order = np.argsort(np.concatenate([chosen for chosen, _ in parts]), kind="stable")
    joined = {
        name: np.concatenate([getattr(part, name) for _, part in parts])[order]
        for name in ChunkLabels.__dataclass_fields__
    }
    _give_reasons(joined, rows, path, routes, best)
    return ChunkLabels(**joined)


def _route(rows: AccountRows, path: PathBook, interval: str, longest: int) -> _Route:
    panel = path.panel(interval, rows.pairs, int(rows.ts.min()), int(rows.ts.max()) + longest)
    times, at = np.unique(rows.ts, return_inverse=True)
    prices = panel.start_prices(times)
    first, end = panel.bar_at(times) + 1, panel.bar_at(times + longest)
    last = panel.next_unknown[first] - 1
    until = panel.ts[0] + np.minimum(last, end[:, None]) * panel.step
    reach = np.where(last >= end[:, None], (times + longest)[:, None], np.maximum(until, times[:, None]))
    reach = np.where(np.isfinite(prices), reach, NEVER)
    legs = rows.legs
    moment = at[legs.row]
    column = np.full(len(moment), -1, dtype=np.int64)
    leg_reach = np.full(len(moment), NEVER, dtype=np.int64)
    for of_pair in _candidate_columns([path.candidates(*pair) for pair in rows.pairs], panel.sources):
        candidate = of_pair[legs.pair]
        exists = candidate >= 0
        found = np.full(len(moment), NEVER, dtype=np.int64)
        found[exists] = reach[moment[exists], candidate[exists]]
        better = found > leg_reach
        column[better], leg_reach[better] = candidate[better], found[better]
    start_price = np.ones(len(moment))
    has = column >= 0
    start_price[has] = prices[moment[has], column[has]]
    row_reach = rows.ts + longest
    np.minimum.at(row_reach, legs.row, leg_reach)
    funding = _candidate_columns([path.funding_candidates(*pair) for pair in rows.pairs], panel.funding)
    priced = _count(legs.row, has, len(rows.ts))
    return _Route(panel, column, start_price, leg_reach, row_reach, priced, funding)


def _candidate_columns(candidates: Sequence[Sequence[Source]], columns: Mapping[Source, int]) -> list[Int1D]:
    """Per rank of preference, the column of each pair [n_pairs]; -1 = none."""
    width = max((len(sources) for sources in candidates), default=0)
    table = np.full((width, len(candidates)), -1, dtype=np.int64)
    for pair, sources in enumerate(candidates):
        for rank, source in enumerate(sources):
            table[rank, pair] = columns.get(source, -1)
    return list(table)


@dataclass(frozen=True)
class _Party:
    """Legs of the chosen rows [n_legs], sorted by row, pool and source."""

    legs: Int1D
    """Place of each among all legs."""
    row: Int1D
    """Place of its row among the chosen ones."""
    value_usd: Float1D
    """At the start price."""
    is_position: Bool1D
    """A position that is worth something."""

    @classmethod
    def of(cls, rows: AccountRows, chosen: Int1D, route: _Route, remark: bool) -> _Party:
        """Pick, sort and mark the legs of the chosen rows."""
        legs = rows.legs
        place = np.full(len(rows.ts), -1, dtype=np.int64)
        place[chosen] = np.arange(len(chosen))
        mine = np.flatnonzero(place[legs.row] >= 0)
        mine = mine[np.lexsort((route.column[mine], legs.pool[mine], place[legs.row[mine]]))]
        given = legs.value_usd[mine]
        live = (route.column[mine] >= 0) & np.isfinite(legs.amount[mine]) & remark
        value = np.where(live, legs.amount[mine] * route.start_price[mine], given)
        return cls(mine, place[legs.row[mine]], value, legs.is_position[mine] & (given != 0.0))


def _follow(rows: AccountRows, chosen: Int1D, route: _Route, spans: Int1D, remark: bool) -> ChunkLabels:
    """Walk the chosen rows along the bars of one route."""
    panel, legs, n_pools = route.panel, rows.legs, len(rows.pool_row)
    party = _Party.of(rows, chosen, route, remark)
    mine, pool = party.legs, legs.pool[party.legs]
    moved = party.value_usd - legs.value_usd[mine]
    pool_equity = rows.pool_equity_usd + sum_by(pool, moved, n_pools)
    has_legs = np.bincount(pool, minlength=n_pools) > 0
    rest = sum_by(rows.pool_row, np.where(has_legs, 0.0, pool_equity), len(rows.ts))[chosen]
    ts, reach, longest = rows.ts[chosen], route.row_reach[chosen], int(spans.max())
    funding, paid_before, funding_known = _funding(rows, mine, route, longest)
    walkers = Walkers(
        begin=np.searchsorted(party.row, np.arange(len(chosen) + 1)),
        pool=pool,
        source=np.maximum(route.column[mine], 0),
        funding=funding,
        units=party.value_usd / route.start_price[mine],
        start_price=route.start_price[mine],
        rate=legs.rate[mine],
        tier=legs.tier[mine],
        paid_before=paid_before,
    )
    windows = _windows(panel, ts, reach, longest, legs=np.diff(walkers.begin))
    prices = Prices(panel.low, panel.high, panel.close, panel.rate)
    pool_open = _count(pool, party.is_position, n_pools) > 0
    walked = walk(walkers, windows, prices, rows.tiers, pool_equity, pool_open, rest)
    labels = _labels(walked, panel, ts, reach, spans, rows.barrier[chosen])
    gross, changed = (
        sum_by(party.row, np.abs(usd) * party.is_position, len(chosen))
        for usd in (legs.value_usd[mine], moved)
    )
    flat = gross == 0.0
    labels.liquidated[flat] = 0.0
    labels.reason[flat] = "no-positions"
    labels.interval[np.diff(walkers.begin) == 0] = ""
    change = np.divide(changed, gross, out=np.zeros(len(chosen)), where=~flat)
    return replace(labels, funding_known=_all_by(party.row, funding_known, len(chosen)), remark_change=change)


def _labels(
    walked: Walked, panel: PathPanel, ts: Int1D, reach: Int1D, spans: Int1D, barrier: AnyArray
) -> ChunkLabels:
    """What the walk says of rows that have positions; re-marking and funding are filled in later."""
    breach_ts = np.where(walked.breach >= 0, panel.ts[walked.breach], NEVER)
    breach_ts[walked.below_at_start] = ts[walked.below_at_start, None]
    has_barrier = barrier != ""
    liquidated = _outcomes(panel, ts, reach, breach_ts[:, TOGETHER], walked.below_at_start, spans)
    liquidated[~has_barrier] = np.nan
    return ChunkLabels(
        liquidated=liquidated,
        breach_ts=breach_ts,
        known_until=reach,
        whole=has_barrier & (reach >= ts + spans.max()),
        below_at_start=walked.below_at_start,
        equity_usd=walked.equity_start,
        maintenance_usd=np.where(has_barrier, walked.maintenance_start, np.nan),
        equity_min_usd=walked.equity_min,
        ratio_min=walked.ratio_min,
        funding_known=np.ones(len(ts), dtype=np.bool_),
        remark_change=np.zeros(len(ts)),
        interval=np.where(reach >= ts, panel.interval, "").astype(object),
        reason=np.full(len(ts), "", dtype=object),
        reason_market=np.full(len(ts), "", dtype=object),
    )


def _windows(panel: PathPanel, ts: Int1D, reach: Int1D, longest: int, legs: Int1D) -> Windows:
    first = panel.bar_at(ts) + 1
    last = np.where(
        reach >= ts + longest, panel.bar_at(ts + longest), panel.bar_at(np.maximum(reach, panel.ts[0]))
    )
    stopped = (reach <= ts) | (legs == 0)
    return Windows(first, np.where(stopped, first - 1, last), (ts - panel.ts[0]) % panel.step == 0)


def _outcomes(
    panel: PathPanel, ts: Int1D, reach: Int1D, breach_ts: Int1D, below: Bool1D, spans: Int1D
) -> Float2D:
    """1, 0 or NaN [n_rows, n_horizons]."""
    out = np.full((len(ts), len(spans)), np.nan)
    for column, span in enumerate(spans.tolist()):
        end = ts + span
        known = reach >= panel.ts[0] + panel.bar_at(end) * panel.step
        hit = (breach_ts != NEVER) & (breach_ts <= end)
        out[:, column] = np.where(below, 1.0, np.where(known, hit.astype(np.float64), np.nan))
    return out


def _funding(rows: AccountRows, mine: Int1D, route: _Route, longest: int) -> tuple[Int1D, Float1D, Bool1D]:
    """Funding column (-1 = none), rates paid before the row's time, and whether the series is known."""
    panel, legs = route.panel, rows.legs
    ts, pair, held = rows.ts[legs.row[mine]], legs.pair[mine], legs.is_position[mine]
    column = np.full(len(mine), -1, dtype=np.int64)
    before = np.zeros(len(mine))
    begin = panel.ts[0] + panel.bar_at(ts) * panel.step
    for of_pair in route.funding:
        candidate = np.where((column < 0) & held, of_pair[pair], -1)
        for place in np.unique(candidate[candidate >= 0]).tolist():
            asked = np.flatnonzero(candidate == place)
            payments = panel.payments[place]
            asked = asked[payments.known(ts[asked], ts[asked] + longest)]
            column[asked] = place
            before[asked] = payments.sum_between(begin[asked], ts[asked])
    return column, before, (column >= 0) | ~held


def _give_reasons(
    joined: dict[str, AnyArray], rows: AccountRows, path: PathBook, routes: Sequence[_Route], best: Int1D
) -> None:
    """Say in ``reason`` and ``reason_market`` why the longest horizon of a row is not known."""
    reason, market = joined["reason"], joined["reason_market"]
    open_rows = reason == ""
    unknown = open_rows & ~joined["whole"]
    reason[open_rows & (rows.barrier == "")] = "no-barrier"
    legs = rows.legs
    reach = np.choose(best[legs.row], [route.reach for route in routes])
    column = np.choose(best[legs.row], [route.column for route in routes])
    order = np.lexsort((reach, legs.row))
    firsts = order[np.unique(legs.row[order], return_index=True)[1]]
    for leg in firsts[unknown[legs.row[firsts]] & (reason[legs.row[firsts]] == "")].tolist():
        row = int(legs.row[leg])
        pair = rows.pairs[legs.pair[leg]]
        panel = routes[best[row]].panel
        market[row] = pair[1]
        if not path.candidates(*pair):
            reason[row] = "no-bars"
        elif column[leg] < 0:
            reason[row] = "no-price"
        else:
            source = list(panel.sources)[column[leg]]
            reason[row] = path.end_of(source, panel.interval, int(reach[leg]))


def _count(group: Int1D, flag: Bool1D, n_groups: int) -> Int1D:
    return np.bincount(group[flag], minlength=n_groups).astype(np.int64)


def _all_by(group: Int1D, flag: Bool1D, n_groups: int) -> Bool1D:
    """Whether a flag holds for every member of each group; True for an empty one."""
    return _count(group, ~flag, n_groups) == 0
