"""The boosted expert of a fit: trees on the log-HAR, and what they would have said out of fold.

Boosted trees (gamma deviance, which is QLIKE) and the network err differently, so the mean of
their log variances beats both. Two things have to be kept honest:

* **How many trees.** The number with the least loss out of block: the fit part is cut into contiguous
  blocks, trees of the *other* blocks are scored on each after every step, and the mean of these curves
  decides. One validation tail of some months decided erratically (1 to 312 trees for like data).
* **What they said about the rows that they were fitted on.** Trees follow their own rows more closely
  than any later one, so a law calibrated on those would be too narrow. On the fit part the
  expert's forecast is therefore *cross-fitted*: each block is forecast by the trees of the others, a purge
  apart. Behind the fit part trees of the whole of it speak.

Trees of stress, where a recipe asks for them, classify "does a drop follow within the horizon"; they have as
many trees as the recipe says and no cross-fit, because nothing is calibrated on what they say.

The expert's weight beside the network is one half. Weights chosen on the validation tail ran from 0 to .7,
and equal ones are hard to beat (Bates and Granger 1969).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from riskml.arrays import Bool1D, Bool2D, Float2D, Float3D, Float32ND, TimeUs
from riskml.errors import DataError
from riskml.learning.boosting import BoostingSpec, GammaExpert, fit_gamma, fit_stress
from riskml.learning.splits import Splits

WEIGHT = 0.5
"""Of the expert in the log variance, beside the networks."""


@dataclass(frozen=True)
class ExpertData:
    """Rows of a fit, bar first."""

    ts: TimeUs
    """[n_bars]."""
    features: Float32ND
    """[n_bars, n_markets, n_features], NaN = missing."""
    variance: Float3D
    """[n_bars, n_markets, n_horizons], NaN = unknown."""
    start_log: Float3D
    """Log variance of the network's starting point, same shape."""
    usable: Bool2D
    """[n_bars, n_markets] rows with any feature of the skip."""
    stress: Float3D | None = None
    """[n_bars, n_markets, n_horizons] 1 where stress follows, else 0, NaN = unknown; None: not classified."""
    families: tuple[tuple[int, ...], ...] = ()
    """Columns of features that a source gives or takes together."""


@dataclass(frozen=True)
class ExpertFit:
    """The final trees and the forecasts that calibration may look at."""

    expert: GammaExpert
    delta: Float32ND
    """Log variance relative to the starting point [n_bars, n_markets, n_outputs]: cross-fitted on the
    fit part, of the final trees behind it. With trees of stress their logits follow, as fitted, since nothing
    is calibrated on them."""
    n_trees: tuple[int, ...]
    """Per output."""


def fit_expert(
    data: ExpertData,
    splits: Splits,
    spec: BoostingSpec,
    *,
    n_blocks: int,
    n_stress_trees: int = 0,
    family_dropout: float = 0.0,
    seed: int,
    n_threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> ExpertFit:
    """Fit the trees of every horizon; no row behind the fit part is learnt from.

    Parameters
    ----------
    data : all rows before ``data_end``; with its stress where there are trees for that.
    splits : seams.
    spec : size of the trees; ``n_trees`` is the most.
    n_blocks : blocks of the cross-fit.
    n_stress_trees : trees per horizon that classify stress; 0 = none.
    family_dropout : share of the rows that a family of features is missing on in the fit.
    progress : called with (fits done, fits in all).

    Raises
    ------
    DataError : a part without a row that has features and a target; stress trees without stress.
    """
    rows = _rows(data, splits.rows(data.ts, "fit"))
    if not rows.any():
        raise DataError(
            "no row of the fit part has features and targets for the boosted expert",
            fix="give a longer range, or set [expert] n_trees = 0",
        )
    learnt = _thinned(data, family_dropout, seed)
    n_fits = data.variance.shape[2] * (n_blocks + (2 if n_stress_trees else 1))
    fitter = _Fitter(data, learnt, splits, spec, n_blocks, seed, n_threads, n_fits, progress)
    parts = [fitter.horizon(h, rows) for h in range(data.variance.shape[2])]
    experts, deltas = [expert for expert, _ in parts], [delta for _, delta in parts]
    if n_stress_trees:
        classifiers, logits = fitter.stress(replace(spec, n_trees=n_stress_trees))
        experts.append(classifiers)
        deltas += list(np.moveaxis(logits, 2, 0))
    expert = GammaExpert.join(experts)
    return ExpertFit(expert, np.stack(deltas, axis=2).astype(np.float32), expert.n_trees)


@dataclass
class _Fitter:
    """The fits of all horizons, counted for the progress."""

    data: ExpertData
    learnt: Float32ND
    """Features [n_bars * n_markets, n_features] that are fitted on."""
    splits: Splits
    spec: BoostingSpec
    n_blocks: int
    seed: int
    n_threads: int
    n_fits: int
    progress: Callable[[int, int], None] | None
    done: int = 0

    def horizon(self, h: int, rows: Bool1D) -> tuple[GammaExpert, Float2D]:
        """Final trees of one horizon, and their cross-fitted forecast [n_bars, n_markets]."""
        n_bars, n_markets = self.data.usable.shape
        by_block, curves = [], []
        for bars, apart in self.splits.blocks(self.data.ts, self.n_blocks):
            others = _rows(self.data, apart)
            held = np.zeros((n_bars, n_markets), dtype=np.bool_)
            held[bars] = True
            held = held.reshape(-1) & rows
            if not others.any() or not held.any():
                self._report(1)  # a block in a gap of the data
                continue
            fitted = self._fit(h, others, held, self.spec.n_trees)
            by_block.append((bars, fitted))
            curves.append(fitted.losses[0])
        if not by_block:
            raise DataError(
                "the fit part is too short to be cut into blocks for the boosted expert",
                fix="give a longer range, fewer [expert] n_blocks, or set n_trees = 0",
            )
        longest = max(map(len, curves))  # boosting ends early where no split is left
        curves = [np.pad(curve, (0, longest - len(curve)), mode="edge") for curve in curves]
        count = 1 + int(np.argmin(np.mean(curves, axis=0)))
        final = self._fit(h, rows, None, count)
        delta = self._predict(final, slice(0, n_bars))[..., 0]
        for bars, fitted in by_block:
            delta[bars] = self._predict(fitted.cut(count), bars)[..., 0]
        return final, delta

    def stress(self, spec: BoostingSpec) -> tuple[GammaExpert, Float3D]:
        """Classifiers of every horizon, and their logits [n_bars, n_markets, n_horizons]."""
        data = self.data
        if data.stress is None:
            raise DataError("trees of stress need to know where stress was")
        rows = (data.usable & self.splits.rows(data.ts, "fit")[:, None]).reshape(-1)
        outcome = data.stress.reshape(-1, data.stress.shape[2])
        expert = fit_stress(self.learnt, outcome, rows, spec, seed=self.seed, n_threads=self.n_threads)
        self._report(outcome.shape[1])
        return expert, self._predict(expert, slice(0, len(data.ts)))

    def _predict(self, expert: GammaExpert, bars: slice) -> Float3D:
        rows = self.data.features[bars]
        flat = rows.reshape(-1, rows.shape[2])
        return expert.predict_delta(flat, n_threads=self.n_threads).reshape(*rows.shape[:2], -1)

    def _fit(self, h: int, rows: Bool1D, held: Bool1D | None, trees: int) -> GammaExpert:
        # every tree of a block is scored: the blocks together say where to end
        data, spec = self.data, replace(self.spec, n_trees=trees, patience=trees)
        target, start = data.variance[..., h].reshape(-1, 1), data.start_log[..., h].reshape(-1, 1)
        expert = fit_gamma(
            self.learnt,
            target,
            start,
            rows,
            held,
            spec,
            seed=self.seed,
            n_threads=self.n_threads,
            held_features=data.features.reshape(self.learnt.shape),
        )
        self._report(1)
        return expert

    def _report(self, fits: int) -> None:
        self.done += fits
        if self.progress is not None:
            self.progress(self.done, self.n_fits)


def _thinned(data: ExpertData, share: float, seed: int) -> Float32ND:
    """Features [n_bars * n_markets, n_features] with each family missing on a share of the rows."""
    flat = data.features.reshape(-1, data.features.shape[2])
    if not share or not data.families:
        return flat
    flat = flat.copy()
    draw = np.random.default_rng([seed, len(flat)])
    for family in data.families:
        taken = draw.random(len(flat)) < share
        for column in family:
            flat[taken, column] = np.nan
    return flat


def _rows(data: ExpertData, bars: Bool1D) -> Bool1D:
    """Rows [n_bars * n_markets] of the bars that have features and every target."""
    known = data.usable & np.isfinite(data.variance).all(axis=2) & bars[:, None]
    return np.asarray(known.reshape(-1))
