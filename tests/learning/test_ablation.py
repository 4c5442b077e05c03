"""Variants on equal rows: the forecast of a run is the graph's, and ratios are those of mean losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from riskml import metrics
from riskml.errors import DataError
from riskml.learning.ablation import compare, run_forecast
from riskml.learning.fit import fit_run
from riskml.learning.market_graph import MarketCase, export_market_graph, run_graph
from riskml.learning.protocol import MODEL, Cases, Scored
from riskml.learning.recipe import ExpertSpec, NetworkSpec, Recipe, TrainingSpec
from riskml.learning.runs import Run, read_run
from riskml.units import HOUR, to_us

from .conftest import FEATURES, make_toy

HORIZONS = ("1h", "8h", "24h")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe(
        "toy",
        network=NetworkSpec(hidden=8, encoder="none", n_bars=1),
        training=TrainingSpec(epochs=1, chunk_bars=64, warmup_steps=3),
        expert=ExpertSpec(n_trees=8, min_leaf_rows=20, n_blocks=2, n_stress_trees=4, family_dropout=0.1),
    )
    return read_run(fit_run(make_toy(), recipe, tmp_path_factory.mktemp("ablation") / "run").path)


@pytest.mark.parametrize("lost", [(), ("funding_rate_8h", "return_1h")])
def test_the_forecast_of_a_run_is_what_its_graph_says(run: Run, lost: tuple[str, ...]) -> None:
    toy = make_toy()
    start, end = int(toy.ts[-40]), int(toy.ts[-1]) + 1
    found = run_forecast(run, toy, start, end, lost=lost)
    assert found.ts.tolist() == toy.ts[-40:].tolist()
    graph = export_market_graph(run.net, run.expert)
    gone = [index for index, name in enumerate(FEATURES) if name in lost]
    for row in (0, 17, 39):
        bar = len(toy.ts) - 40 + row
        values = toy.features[bar][:, None].astype(np.float32)
        mask = np.isfinite(values)
        mask[..., gone] = False
        present = np.isfinite(toy.close[bar])
        mask[~present] = False
        said = run_graph(graph, MarketCase("one", values, mask, np.ones(len(toy.markets), dtype=np.bool_)))
        for name in ("sigma", "nu", "variance", "stress"):
            np.testing.assert_allclose(getattr(found, name)[row][present], said[name][present], rtol=2e-5)


def test_a_lost_feature_changes_the_forecast_and_an_unknown_dataset_is_refused(run: Run) -> None:
    toy = make_toy()
    start, end = int(toy.ts[-40]), int(toy.ts[-1]) + 1
    whole = run_forecast(run, toy, start, end)
    assert not np.array_equal(whole.sigma, run_forecast(run, toy, start, end, lost=("return_1h",)).sigma)
    fewer = replace(toy, feature_names=FEATURES[1:], features=toy.features[:, :, 1:])
    with pytest.raises(DataError, match="lacks log_parkinson_1h"):
        run_forecast(run, fewer, start, end)
    with pytest.raises(DataError, match="no bar in the range"):
        run_forecast(run, toy, "2010-01-01", "2010-02-01")


def scored(scale: float, **changes: Any) -> Scored:
    """40 days of two markets whose true variance is 1; the forecast is ``scale`` of it."""
    n = 24 * 40
    ts = to_us("2024-01-01") + HOUR * np.arange(n)
    draw = np.random.default_rng(0)
    shape = (n, 2, len(HORIZONS))
    realised = np.exp(0.3 * draw.standard_normal(shape))
    stressed = (draw.random(shape) < 0.1).astype(np.float64)
    row = np.repeat(np.arange(n), 2)
    market = np.tile([0, 1], n)
    outcome = (draw.random(len(row)) < 0.2).astype(np.float64)
    probability = np.full(len(row), min(0.2 * scale, 0.9))
    cases = Cases(ts[row], market, market, np.zeros(len(row)), outcome, {MODEL: probability})
    whole = Scored(
        ts, ("A", "B"), "1h", HORIZONS, realised, {MODEL: np.full(shape, scale)},
        np.zeros((*shape, 2)), {}, stressed, {MODEL: np.full(shape, min(0.1 * scale, 0.9))},
        (cases,) * len(HORIZONS),
    )  # fmt: skip
    return replace(whole, **changes)


def test_ratios_are_those_of_mean_losses_on_the_rows_that_count() -> None:
    worse, better = scored(2.0), scored(1.0)
    rows = np.zeros(worse.realised.shape[:2], dtype=np.bool_)
    rows[: 24 * 20, 0] = True
    found = {(r.measure, r.horizon): r for r in compare(("w", worse), ("b", better), ("half", rows))}
    assert len(found) == 9
    qlike = found["qlike", "8h"]
    losses = [metrics.qlike_losses(worse.realised[..., 1], np.full((960, 2), x))[rows] for x in (2.0, 1.0)]
    assert qlike.ratio == pytest.approx(losses[0].mean() / losses[1].mean())
    assert qlike.n == 480
    assert (qlike.variant, qlike.reference, qlike.rows) == ("w", "b", "half")
    loss = found["log_loss", "1h"]
    outcome = worse.cases[0].outcome[(worse.cases[0].market == 0) & (worse.cases[0].ts < worse.ts[480])]
    parts = [metrics.log_losses(outcome, np.full(480, p)).mean() for p in (0.4, 0.2)]
    assert loss.ratio == pytest.approx(parts[0] / parts[1])
    for row in found.values():
        assert 1.0 < row.low < row.ratio < row.high


def test_a_variant_against_itself_is_one() -> None:
    for row in compare(("a", scored(1.5)), ("b", scored(1.5)), ("all", None)):
        assert row.ratio == row.low == row.high == pytest.approx(1.0)


def test_other_rows_are_refused() -> None:
    one = scored(1.0)
    with pytest.raises(DataError, match="scored on other rows"):
        list(compare(("a", one), ("b", replace(one, ts=one.ts + HOUR)), ("all", None)))
