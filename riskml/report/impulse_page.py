"""The page about a step in volatility: how a bundle's markets would be asked for more, bar by bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from riskml.bundle import read_manifest
from riskml.errors import DataError
from riskml.report.page import Section, picture
from riskml.risk.impulse import VOLATILITY_STEP, measure_response, step_response
from riskml.risk.margin import reference_sigma
from riskml.risk.policy import MarginPolicy

NU = 4.0
"""Degrees of freedom of the step: the middle of what is fitted on hourly data."""
SIDES = ("long", "short")


def impulse_sections(path: Path, policy: MarginPolicy | None = None) -> list[Section]:
    """Responses of every market of a bundle under a policy (default: the default policy).

    Raises
    ------
    DataError : the bundle has no reference scales.
    BundleError : the bundle is damaged.
    """
    manifest, rules = read_manifest(path), policy or MarginPolicy()
    if not manifest.reference_sigma:
        raise DataError(f"{path} has no reference scales", fix="export the bundle again: the step needs them")
    markets, horizons = tuple(manifest.markets), tuple(manifest.horizons)
    reference = reference_sigma(manifest.reference_sigma, markets, len(horizons))
    nu = np.full((len(markets), len(horizons)), NU)
    asked = step_response(rules, horizons, reference, nu, tuple(manifest.calibration_power))
    hours = np.arange(len(asked["initial"]), dtype=np.float64)
    rows = []
    for product, values in asked.items():
        for place, market in enumerate(markets):
            for side, name in enumerate(SIDES):
                found = measure_response(hours, values[:, place, side])
                rows.append(
                    [product, market, name, 100.0 * found.before, 100.0 * found.after,
                     100.0 * found.overshoot, found.half_life_h, 100.0 * found.largest_hourly_rise]
                )  # fmt: skip

    def draw(axes: Any) -> None:
        for product, values in asked.items():
            axes.plot(hours, 100.0 * values[:, 0, 0], label=f"{product}, {markets[0]} long")
        axes.set_xlabel("hours since the step")
        axes.set_ylabel("% of notional")
        axes.legend()

    text = (
        f"The forecast scale of every market steps from its long-run value to {VOLATILITY_STEP:g} times that "
        f"within one bar. Maintenance may rise by {rules.rate_limit_per_hour:.4g} of itself per hour."
    )
    headers = [
        "product", "market", "side", "before %", "new level %", "overshoot %", "half-life h",
        "largest hourly rise %",
    ]  # fmt: skip
    return [Section("Step", text, headers, rows), Section("Course", image=picture(draw))]
