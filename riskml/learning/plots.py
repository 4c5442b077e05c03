"""Two pictures of a run: how the loss went, and how often margins were breached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from riskml.arrays import AnyArray, FloatND
from riskml.errors import missing_extra
from riskml.learning.inference import DenseForecast
from riskml.risk import excursion

_LEVELS = 1.0 - np.geomspace(0.5, 0.002, 12)
_FIXED = {"Software": None}
"""Keeps the version of matplotlib out of the file."""


def write_plots(
    folder: Path,
    history: Sequence[Mapping[str, float]],
    forecast: DenseForecast,
    mae: FloatND,
    power: AnyArray,
    horizons: Sequence[str],
) -> None:
    """Write ``history.png`` and ``coverage.png``.

    Parameters
    ----------
    folder : created when missing.
    history : one row per epoch.
    forecast, mae : of the rows to check coverage on, bar first.
    power : [n_horizons] exponent of the calibration.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "train") from error
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    part = "validation" if "validation_loss" in history[0] else "train"
    axes.plot(epochs, [row[f"{part}_loss"] for row in history], marker="o")
    axes.set(xlabel="epoch", ylabel=f"{part} loss", title=f"Loss on the {part} part")
    figure.savefig(folder / "history.png", dpi=100, metadata=_FIXED)

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    nominal = 1.0 - _LEVELS
    axes.plot(nominal, nominal, color="grey", linewidth=1)
    for h, horizon in enumerate(horizons):
        for side, label in enumerate(("down", "up")):
            axes.plot(
                nominal, _breach_rates(forecast, mae, power, h, side), marker=".", label=f"{horizon} {label}"
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="nominal",
        ylabel="observed",
        title="Share of excursions beyond margin",
    )
    axes.legend(fontsize=7)
    figure.savefig(folder / "coverage.png", dpi=100, metadata=_FIXED)


def _breach_rates(forecast: DenseForecast, mae: FloatND, power: AnyArray, h: int, side: int) -> list[float]:
    sigma, nu, observed = forecast.sigma[:, :, h, side], forecast.nu[:, :, h], mae[:, :, h, side]
    known = np.isfinite(sigma) & np.isfinite(observed)
    if not known.any():
        return [float("nan")] * len(_LEVELS)
    z = observed[known] / sigma[known]
    survival = np.asarray(excursion.survival(z ** power[h], nu[known]))
    return [float((survival < 1.0 - level).mean()) for level in _LEVELS]
