"""The model card: what a bundle is for, what it was made from, and what it reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from riskml.learning.card_evaluation import evaluation_section

_HEAD = """# Model card

{intro}

| | |
|---|---|
| riskml | {riskml_version} |
| recipe | {recipe_name} (seed {seed}) |
| bars | {interval}, window of {n_bars} bars |
| horizons | {horizons} |
| markets in the cross-section | {markets} |
| markets fitted | {fitted} |
| fit | {fit_start} to {fit_end} ({epoch_rule}) |
| calibrated | {calibrate_start} to {calibrate_end}, together with the fit part |
| data end | {data_end}; nothing at or after it was read |
| features | {n_features}, fingerprint {fingerprint} |
| weights | sha256 {weights} |
"""

_INTRO = (
    "Forecasts, for every market and horizon, the law of the maximum adverse excursion (half-Student-t "
    "with scale and degrees of freedom per side), the realised variance and the chance of a stress onset; "
    "and, for every account, the probability of liquidation, the distance to it and the margin."
)

_USE = """
## Use and limits
- For linear (USD-margined) perpetual futures at the interval above. A market that was never fitted can be
  scored, with the stressed reference scale of `*` in the manifest.
- Volatility alone cannot margin a cascade: keep the stressed floor and the circuit breaker of the policy on.
- Missing features count as their fit mean inside the graph; the scorer's guards keep requirements from
  falling while a source is away.
- The figures of the fit, above, are of rows that it learnt from, or were used to choose: do not quote them.
  With crossed blocks those of the train part are of networks and trees of the other blocks, beside a log-HAR
  of all of them.
"""


def model_card(
    record: Mapping[str, Any],
    parity: Mapping[str, float],
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """Markdown text of ``CARD.md``.

    Parameters
    ----------
    record : ``run.json``.
    parity : largest relative difference between network and graph, per graph.
    evaluation : evaluate JSON of the recipe's folds, which the card of a release prints.
    """
    head = _HEAD.format(
        intro=_INTRO,
        riskml_version=record["riskml_version"],
        recipe_name=record["recipe"]["name"],
        seed=record["seed"],
        interval=record["interval"],
        n_bars=record["recipe"]["network"]["n_bars"],
        horizons=", ".join(record["horizons"]),
        markets=", ".join(record["markets"]),
        fitted=", ".join(record["fitted_markets"]),
        fit_start=record["fit_start"],
        fit_end=record["fit_end"],
        epoch_rule="every epoch run, the last kept"
        if record["validation_start"] == record["fit_end"]
        else f"epoch chosen from {record['validation_start']} on",
        calibrate_start=record["calibrate_start"],
        calibrate_end=record["calibrate_end"],
        data_end=record["data_end"],
        n_features=len(record["features"]),
        fingerprint=record["feature_fingerprint"][:12],
        weights=record["weights_sha256"][:12],
    )
    graphs = ", ".join(f"{name} {value:.1e}" for name, value in sorted(parity.items()))
    return "\n".join(
        [
            head,
            "## Figures of the fit",
            "",
            *_metric_table(record["metrics"], record["horizons"]),
            "",
            f"Kept epoch: {int(record['metrics']['epoch'])} (-1 = the log-HAR starting point).",
            f"Calibration: scale {_matrix(record['calibration_log_scale'])} (log, down and up per horizon), "
            f"power {_row(record['calibration_power'])}.",
            f"Largest relative difference between network and graph: {graphs}.",
            "",
            "Behind data end: run `riskml evaluate` on data after the purge.",
            "",
            *([] if evaluation is None else [evaluation_section(evaluation)]),
            _USE.strip("\n"),
            "",
        ]
    )


def _metric_table(metrics: Mapping[str, float], horizons: Sequence[str]) -> list[str]:
    lines = [
        "| part | horizon | QLIKE | log-HAR | ratio | breaches of the 99.5 % margin |",
        "|---|---|---|---|---|---|",
    ]
    for part in ("train", "validation", "calibrate"):
        for horizon in horizons:
            name = f"{part}_qlike_{horizon}"
            if name in metrics:
                lines.append(
                    f"| {part} | {horizon} | {metrics[name]:.4f} | {metrics[name + '_log_har']:.4f} | "
                    f"{metrics[name + '_ratio']:.3f} | {metrics[f'{part}_breach_rate_{horizon}']:.2%} |"
                )
    return lines


def _row(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _matrix(values: Sequence[Sequence[float]]) -> str:
    return " / ".join(_row(row) for row in values)
