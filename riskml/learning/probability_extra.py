"""The calibration report: what was predicted beside what happened, by bins of the forecast."""

from __future__ import annotations

import numpy as np

from riskml.learning.protocol import MODEL, Scored
from riskml.metrics import ECE_BINS


def reliability(scored: Scored, model: str = MODEL, n_bins: int = ECE_BINS) -> list[dict[str, object]]:
    """Mean probability and frequency per quantile bin, horizon by horizon, all markets together.

    The bins are those of the expected calibration error; an empty one is left out. Rows where any
    model lacks a probability do not count, as in the measures.

    Returns
    -------
    records ``{"model", "horizon", "bin", "n", "predicted", "observed"}``.
    """
    records: list[dict[str, object]] = []
    for horizon, cases in zip(scored.horizons, scored.cases, strict=True):
        if model not in cases.probability:
            continue
        usable = np.all([np.isfinite(p) for p in cases.probability.values()], axis=0)
        predicted, happened = cases.probability[model][usable], cases.outcome[usable]
        if not predicted.size:
            continue
        edges = np.quantile(predicted, np.linspace(0.0, 1.0, n_bins + 1))
        bins = np.searchsorted(edges[1:-1], predicted)
        for place in np.unique(bins).tolist():
            rows = bins == place
            records.append(
                {
                    "model": model,
                    "horizon": horizon,
                    "bin": place,
                    "n": int(rows.sum()),
                    "predicted": float(predicted[rows].mean()),
                    "observed": float(happened[rows].mean()),
                }
            )
    return records
