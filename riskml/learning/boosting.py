"""Gradient boosting on top of the log-HAR, through LightGBM: a baseline, and an expert of the market graph.

The gamma deviance with a log link is QLIKE up to a constant, so trees that start at a log-HAR's log
forecast (``init_score``) learn by QLIKE what the log-HAR misses: ``ln x = log-HAR + sum of trees``.
One booster per horizon. Missing features go their own way in every split, as LightGBM learns it.

Source: Ke et al. 2017, *LightGBM*; Patton 2011 for QLIKE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D
from riskml.errors import DataError, missing_extra


@dataclass(frozen=True)
class BoostingSpec:
    """Size of the trees; the defaults suit some 300,000 rows of 80 features."""

    n_trees: int = 0
    """Most trees per horizon; 0 = no boosted expert."""
    learning_rate: float = 0.04
    num_leaves: int = 31
    min_leaf_rows: int = 400
    """Rows in a leaf; fewer remember single episodes."""
    feature_fraction: float = 0.35
    """Features that a tree may look at."""
    row_fraction: float = 0.5
    """Rows that a tree is fitted on."""
    l2: float = 5.0
    """Shrinkage of leaf values."""
    max_bins: int = 127
    patience: int = 50
    """Trees without a better validation loss before the fit ends."""


@dataclass(frozen=True)
class GammaExpert:
    """Fitted trees, one booster per output: the horizons' variances, then, where classified, their stress."""

    boosters: tuple[Any, ...]
    """``lightgbm.Booster`` per output."""
    n_trees: tuple[int, ...]
    """Trees of each that count."""
    losses: tuple[Float1D, ...] = ()
    """Mean loss on the validation rows after each tree, per booster; empty without such rows."""

    def predict_delta(self, features: AnyArray, *, n_threads: int = 1) -> Float2D:
        """Sums of the trees [n, n_outputs]: added to the starting log variance, then logits of stress.

        Parameters
        ----------
        features : [n, n_features] in the order of the fit.

        Notes
        -----
        NaN handling: a missing feature follows the direction that each split learnt for it.
        """
        columns = [
            booster.predict(features, raw_score=True, num_iteration=trees, num_threads=n_threads)
            for booster, trees in zip(self.boosters, self.n_trees, strict=True)
        ]
        return np.stack(columns, axis=1).astype(np.float64)

    def to_text(self) -> list[str]:
        """The boosters in LightGBM's text form; nothing is pickled."""
        return [
            booster.model_to_string(num_iteration=trees)
            for booster, trees in zip(self.boosters, self.n_trees, strict=True)
        ]

    def cut(self, n_trees: int) -> GammaExpert:
        """The same boosters with their first ``n_trees`` trees alone."""
        return replace(self, n_trees=tuple(min(n_trees, booster.num_trees()) for booster in self.boosters))

    @classmethod
    def from_text(cls, texts: Sequence[str]) -> GammaExpert:
        """Read :meth:`to_text` back.

        Raises
        ------
        DataError : a text is not a booster.
        """
        lightgbm = import_lightgbm()
        try:
            boosters = tuple(lightgbm.Booster(model_str=text) for text in texts)
        except (lightgbm.basic.LightGBMError, ValueError) as error:
            raise DataError(f"a boosted expert cannot be read: {error}", fix="fit again") from error
        return cls(boosters, tuple(booster.num_trees() for booster in boosters))

    @classmethod
    def join(cls, experts: Sequence[GammaExpert]) -> GammaExpert:
        """Experts of several horizons as one, in the order given."""
        boosters = tuple(booster for expert in experts for booster in expert.boosters)
        return cls(boosters, tuple(trees for expert in experts for trees in expert.n_trees))


def fit_gamma(
    features: AnyArray,
    variance: AnyArray,
    start_log: AnyArray,
    rows: Bool1D,
    validation: Bool1D | None,
    spec: BoostingSpec,
    *,
    seed: int,
    n_threads: int,
    weights: Float1D | None = None,
    held_features: AnyArray | None = None,
) -> GammaExpert:
    """Fit trees by gamma deviance on top of a log forecast.

    Parameters
    ----------
    features : float32 [n, n_features], NaN = missing.
    variance : [n, n_horizons] realised variance, > 0 on the rows used.
    start_log : [n, n_horizons] log variance that the trees start at.
    rows : [n] rows to fit on.
    validation : [n] rows that end the fit early; None fits all of ``spec.n_trees``.
    weights : [n] row weights, or None.
    held_features : of the validation rows, where they are others than ``features``; same shape.
    seed, n_threads : the same of both give the same trees.

    Raises
    ------
    DataError : no row to fit on, or a target among them that is not positive and finite.
    ConfigError : LightGBM is not installed.
    """
    lightgbm = import_lightgbm()
    used = rows if validation is None else rows | validation
    targets = np.asarray(variance, dtype=np.float64)
    if not rows.any() or not ((targets[used] > 0.0) & np.isfinite(targets[used])).all():
        raise DataError(
            "boosting needs rows whose targets are positive and finite", fix="leave out rows without a target"
        )
    parameters = lightgbm_parameters(spec, seed, n_threads, objective="gamma", metric="gamma")
    boosters, counts, losses = [], [], []
    for h in range(targets.shape[1]):
        parts = [(rows, features)]
        if validation is not None:
            parts.append((validation, features if held_features is None else held_features))
        sets = [
            lightgbm.Dataset(
                source[chosen],
                targets[chosen, h],
                init_score=start_log[chosen, h],
                weight=None if weights is None else weights[chosen],
                params=parameters,
            )
            for chosen, source in parts
        ]
        curve: dict[str, dict[str, list[float]]] = {}
        stop = []
        if validation is not None:
            stop.append(lightgbm.early_stopping(spec.patience, verbose=False))
            stop.append(lightgbm.record_evaluation(curve))
        for held in sets[1:]:
            held.set_reference(sets[0])
        booster = lightgbm.train(parameters, sets[0], spec.n_trees, valid_sets=sets[1:], callbacks=stop)
        boosters.append(booster)
        counts.append(booster.num_trees() if validation is None else booster.best_iteration)
        losses += [np.array(curve[held]["gamma"]) for held in curve]
    return GammaExpert(tuple(boosters), tuple(counts), tuple(losses))


def fit_stress(
    features: AnyArray,
    stress: AnyArray,
    rows: Bool1D,
    spec: BoostingSpec,
    *,
    seed: int,
    n_threads: int,
) -> GammaExpert:
    """Fit classifiers of stress, one per horizon; their raw score is a logit.

    The number of trees is ``spec.n_trees`` as it is: a validation tail holds too few onsets to say.

    Parameters
    ----------
    features : float32 [n, n_features], NaN = missing.
    stress : [n, n_horizons] 0 or 1; NaN = unknown, such a row takes no part at its horizon.
    rows : [n] rows to fit on.

    Raises
    ------
    DataError : a horizon without a row of each kind.
    """
    lightgbm = import_lightgbm()
    parameters = lightgbm_parameters(spec, seed, n_threads, objective="binary", metric="binary_logloss")
    boosters = []
    for h in range(stress.shape[1]):
        chosen = rows & np.isfinite(stress[:, h])
        outcome = stress[chosen, h]
        if not (outcome == 1.0).any() or not (outcome == 0.0).any():
            raise DataError(
                "the rows of the fit hold no stress, or nothing else, so no classifier can be fitted",
                fix="give a longer range, or set [expert] n_stress_trees = 0",
            )
        held = lightgbm.Dataset(features[chosen], outcome, params=parameters)
        boosters.append(lightgbm.train(parameters, held, spec.n_trees))
    return GammaExpert(tuple(boosters), tuple(booster.num_trees() for booster in boosters))


def lightgbm_parameters(
    spec: BoostingSpec, seed: int, n_threads: int, *, objective: str, metric: str
) -> dict[str, Any]:
    """What LightGBM is told, whatever it fits: the size of the trees, and that equal runs are equal."""
    return {
        "objective": objective,
        "metric": metric,
        "learning_rate": spec.learning_rate,
        "num_leaves": spec.num_leaves,
        "min_data_in_leaf": spec.min_leaf_rows,
        "feature_fraction": spec.feature_fraction,
        "bagging_fraction": spec.row_fraction,
        "bagging_freq": 1,
        "lambda_l2": spec.l2,
        "max_bin": spec.max_bins,
        "seed": seed,
        "num_threads": n_threads,
        # the same sums in the same order, whatever the machine's cache looks like
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }


def import_lightgbm() -> Any:
    """LightGBM, or an error that names the extra that brings it."""
    try:
        import lightgbm
    except ImportError as error:
        raise missing_extra("lightgbm", "train") from error
    return lightgbm
