"""Coverage of the 99.5 % stand-alone requirement: breaches, tests, level and procyclicality.

Windows that do not overlap are tested, every phase of them, and the median over phases counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from riskml import metrics
from riskml.arrays import Bool1D, Bool2D, Float2D, Int1D
from riskml.learning.metric_rows import ALL, SIDES, MetricRow, days_of, first_baseline
from riskml.learning.protocol import COVERAGE_LEVEL, MIN_EXPECTED_BREACHES, Scored, simple_requirement
from riskml.units import DAY, YEAR, duration_us

COVERAGE_BASELINES = ("fhs_ewma", "fhs_slow")
SIGNIFICANCE = 0.05
ZONES = ("green", "yellow", "red")
ROLLING_DAYS = 250


def coverage_rows(scored: Scored) -> Iterator[MetricRow]:
    """Breach rate, its tests, level and procyclicality of the 99.5 % stand-alone requirement."""
    baseline = first_baseline(COVERAGE_BASELINES, scored.margin)
    required = {name: simple_requirement(margin) for name, margin in scored.margin.items()}
    moved = simple_requirement(scored.excursion)
    usable = np.isfinite(scored.excursion)
    for margin in scored.margin.values():
        usable &= np.isfinite(margin)
    for index, horizon in enumerate(scored.horizons):
        for side, side_name in enumerate(SIDES):
            table = {
                name: _coverage_of(
                    scored,
                    index,
                    usable[:, :, index, side],
                    scored.excursion[:, :, index, side] > scored.margin[name][:, :, index, side],
                    required[name][:, :, index, side],
                    moved[:, :, index, side],
                )
                for name in scored.margin
            }
            volatility = scored.variance.get("ewma", next(iter(scored.variance.values())))[:, :, 0]
            for name in table:
                breach = scored.excursion[:, :, index, side] > scored.margin[name][:, :, index, side]
                table[name].update(
                    coverage_extras(scored, index, usable[:, :, index, side], breach, volatility)
                )
                table[name].update(_passed(table[name]))
            for name, measured in table.items():
                for (metric, market), row in measured.items():
                    against = table[baseline][metric, market].value if baseline else math.nan
                    yield MetricRow(
                        metric, name, horizon, market, side_name, row.value, against, row.n,
                        row.low, row.high, baseline, row.p_value, row.verdict,
                    )  # fmt: skip


def coverage_extras(
    scored: Scored, horizon: int, usable: Bool2D, breach: Bool2D, volatility: Float2D
) -> dict[tuple[str, str], _Measured]:
    """Where coverage fails first: in the most volatile tenth of hours, and in any 250 days.

    ``volatility`` is that of a baseline, the tuned EWMA, so that no model chooses its own hours; its decile
    is taken over the scored rows themselves, in hindsight, the same for every model. A
    rolling window is red where the number of breaches has a probability below 1e-4 of being exceeded;
    each phase of windows that do not overlap is looked at, and the median over phases counts.
    """
    bars = scored.horizon_bars[horizon]
    phase = scored.ts // duration_us(scored.interval) % bars
    length = ROLLING_DAYS * DAY // duration_us(scored.interval) // bars
    result: dict[tuple[str, str], _Measured] = {}
    wild = np.zeros_like(usable)
    red = []
    for market, name in enumerate(scored.markets):
        rows = usable[:, market] & np.isfinite(volatility[:, market])
        if not rows.any():
            continue
        wild[:, market] = rows & (volatility[:, market] >= np.quantile(volatility[rows, market], 0.9))
        hit = breach[wild[:, market], market]
        result["breach_rate_top_decile", name] = _Measured(float(hit.mean()), int(hit.size))
        shares = [_red_share(breach[usable[:, market] & (phase == k), market], length) for k in range(bars)]
        known = [share for share in shares if math.isfinite(share)]
        if known:
            value = float(np.median(known))
            red.append(value)
            verdict = "pass" if value == 0.0 else "fail"
            result["rolling_red_share", name] = _Measured(value, int(length), verdict=verdict)
    if wild.any():
        day = np.broadcast_to(days_of(scored)[:, None], wild.shape)
        result["breach_rate_top_decile", ALL] = _breach_rate(breach[wild], day[wild])
    if red:
        verdict = "pass" if max(red) == 0.0 else "fail"
        result["rolling_red_share", ALL] = _Measured(float(np.mean(red)), len(red), verdict=verdict)
    return result


def _red_share(hit: Bool1D, length: int) -> float:
    """Share of rolling windows of ``length`` outcomes in the red zone; NaN where none fits."""
    if hit.size < length or length < 1:
        return math.nan
    total = np.concatenate([[0], np.cumsum(hit)])
    counts = total[length:] - total[:-length]
    rate = 1.0 - COVERAGE_LEVEL
    zones = {int(n): metrics.basel_zone(int(n), length, rate) == "red" for n in np.unique(counts)}
    return float(np.mean([zones[int(n)] for n in counts]))


def _passed(measured: Mapping[tuple[str, str], _Measured]) -> dict[tuple[str, str], _Measured]:
    """Share of markets that pass each test, of those where it has power."""
    result = {}
    for metric, name in (("kupiec_p", "kupiec_share"), ("christoffersen_p", "christoffersen_share")):
        rows = [row for (kind, market), row in measured.items() if kind == metric and market != ALL]
        judged = [row.verdict == "pass" for row in rows if row.verdict != "no power"]
        if judged:
            result[name, ALL] = _Measured(float(np.mean(judged)), len(judged))
    return result


@dataclass(frozen=True)
class _Measured:
    value: float
    n: int
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    verdict: str = ""


def _coverage_of(
    scored: Scored, horizon: int, usable: Bool2D, breach: Bool2D, required: Float2D, moved: Float2D
) -> dict[tuple[str, str], _Measured]:
    """Measures of one model, horizon and side, by (metric, market)."""
    bars = scored.horizon_bars[horizon]
    phase = scored.ts // duration_us(scored.interval) % bars
    window, day_bars = (span // duration_us(scored.interval) for span in (YEAR, DAY))
    result: dict[tuple[str, str], _Measured] = {}
    for market, name in enumerate(scored.markets):
        rows = usable[:, market]
        n = int(rows.sum())
        if n == 0:
            continue
        hit = breach[rows, market]
        margin = required[:, market]
        phases = [hit[phase[rows] == k] for k in range(bars)]
        excess = moved[rows, market][hit] - margin[rows][hit]
        result["breach_rate", name] = _breach_rate(hit, days_of(scored)[rows])
        result["kupiec_p", name] = _kupiec(phases)
        result["christoffersen_p", name] = _christoffersen(phases)
        result["basel_zone", name] = _basel(phases)
        result["average_margin", name] = _Measured(float(margin[rows].mean()), n)
        result["mean_breach_excess", name] = _Measured(
            float(excess.mean()) if hit.any() else math.nan, int(hit.sum())
        )
        result["peak_to_trough", name] = _Measured(
            metrics.peak_to_trough(np.where(rows, margin, np.nan), window), n
        )
        result["largest_daily_rise", name] = _Measured(
            metrics.largest_rise(np.where(rows, margin, np.nan), max(day_bars, 1)), n
        )
    if result:
        result.update(_pooled_coverage(scored, result, usable, breach, phase, bars))
    return result


def _pooled_coverage(
    scored: Scored,
    per_market: dict[tuple[str, str], _Measured],
    usable: Bool2D,
    breach: Bool2D,
    phase: Int1D,
    bars: int,
) -> dict[tuple[str, str], _Measured]:
    """The market ``all``. Its Kupiec test treats markets as independent, so it is a strict one."""
    names = {name for _, name in per_market}
    day = np.broadcast_to(days_of(scored)[:, None], usable.shape)
    phases = [breach[phase == k][usable[phase == k]] for k in range(bars)]
    pooled = {
        ("breach_rate", ALL): _breach_rate(breach[usable], day[usable]),
        ("kupiec_p", ALL): _kupiec(phases),
        ("basel_zone", ALL): _basel(phases),
    }
    for metric in ("average_margin", "mean_breach_excess", "peak_to_trough", "largest_daily_rise"):
        rows = [per_market[metric, name] for name in sorted(names)]
        values = np.array([row.value for row in rows])
        counts = np.array([row.n for row in rows])
        known = np.isfinite(values)
        if not known.any():
            pooled[metric, ALL] = _Measured(math.nan, int(counts.sum()))
        elif metric in ("peak_to_trough", "largest_daily_rise"):
            pooled[metric, ALL] = _Measured(float(np.median(values[known])), int(counts.sum()))
        else:
            mean = np.average(values[known], weights=counts[known])
            pooled[metric, ALL] = _Measured(float(mean), int(counts.sum()))
    return pooled


def _breach_rate(hit: Bool1D, day: Int1D) -> _Measured:
    sums = metrics.block_sums(np.column_stack([hit, np.ones(hit.size)]), day)
    low, high = metrics.block_bootstrap(sums, lambda drawn: drawn[:, 0] / drawn[:, 1])
    return _Measured(float(hit.mean()), hit.size, low, high)


def _kupiec(phases: list[Bool1D]) -> _Measured:
    rate = 1.0 - COVERAGE_LEVEL
    tests = [metrics.kupiec(int(hit.sum()), hit.size, rate).p_value for hit in phases if hit.size]
    return _median_test(tests, phases)


def _christoffersen(phases: list[Bool1D]) -> _Measured:
    return _median_test([metrics.christoffersen(hit).p_value for hit in phases if hit.size > 1], phases)


def _median_test(p_values: list[float], phases: list[Bool1D]) -> _Measured:
    """Median p over the phases; without power unless a phase expects enough breaches."""
    n_windows = int(np.median([hit.size for hit in phases]))
    p = float(np.median(p_values)) if p_values else math.nan
    expected = n_windows * (1.0 - COVERAGE_LEVEL)
    # 1 - .995 is 0.0050000000000000044: do not let rounding decide at exactly 5
    if math.isnan(p) or expected < MIN_EXPECTED_BREACHES - 1e-9:
        verdict = "no power"
    else:
        verdict = "pass" if p >= SIGNIFICANCE else "fail"
    return _Measured(p, n_windows, p_value=p, verdict=verdict)


def _basel(phases: list[Bool1D]) -> _Measured:
    rate = 1.0 - COVERAGE_LEVEL
    zones = [ZONES.index(metrics.basel_zone(int(hit.sum()), hit.size, rate)) for hit in phases if hit.size]
    zone = int(np.median(zones))
    return _Measured(float(zone), int(np.median([hit.size for hit in phases])), verdict=ZONES[zone])
