"""Export: from a RUN folder to a bundle that runs without the training stack.

Everything is made and checked in memory and in a scratch folder; the bundle appears whole
or not at all.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from riskml.arrays import AnyArray
from riskml.bundle import ACCOUNT_GRAPH, CARD, GOLDEN, MARKET_GRAPH, Manifest, write_bundle
from riskml.errors import BundleError, DataError
from riskml.facts import fact_names, fact_text
from riskml.learning.card import model_card
from riskml.learning.market_graph import (
    check_parity,
    export_market_graph,
    quiet_export,
    random_case,
    run_graph,
    stripped,
)
from riskml.learning.recipe import recipe_digest
from riskml.learning.runs import Run, read_run
from riskml.learning.tracking import track_bundle
from riskml.risk.excursion import quantile_table
from riskml.risk.law import LAW_OUTPUTS, LawOutput, numpy_law

ACCOUNT_TOLERANCE = 1e-5
GOLDEN_MARKETS = 5
GOLDEN_ACCOUNTS = 12
_LEVELS = (0.95, 0.995, 0.999)
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def export_bundle(
    run: str | Path,
    out: str | Path,
    *,
    created: str = "",
    evaluation: Mapping[str, Any] | None = None,
) -> Path:
    """Write the bundle of a finished run.

    Parameters
    ----------
    run : RUN folder.
    out : bundle folder; an earlier bundle in it is replaced.
    created : ISO date for the manifest; not part of the identity.
    evaluation : evaluate JSON of the folds of the same recipe, for the model card.

    Returns
    -------
    Path : ``out``.

    Raises
    ------
    DataError : ``run`` is not a finished run.
    DataError : the evaluation is in sample, holds no folds, or is of another recipe.
    BundleError : a graph differs from what it was made from, features that the catalogue does
        not know or defines otherwise, or ``out`` holds something else. Nothing is written.
    """
    finished = read_run(run)
    if evaluation is not None:
        _check_evaluation(finished, evaluation)
    features = _feature_records(finished)
    market = export_market_graph(finished.net, finished.expert)
    parity = {"market.onnx": check_parity(finished.net, market, finished.expert)}
    account = _account_graph(finished)
    golden, parity["account.onnx"] = _golden(finished, market, account)
    contents = {
        MARKET_GRAPH: market,
        ACCOUNT_GRAPH: account,
        GOLDEN: npz_bytes(golden),
        CARD: model_card(finished.record, parity, evaluation).encode(),
        **{f"facts/{name}.toml": fact_text(name).encode() for name in fact_names()},
    }
    target = Path(out)
    write_bundle(target, contents, _manifest(finished, features, created))
    track_bundle(finished.path, target)
    return target


def _check_evaluation(run: Run, evaluation: Mapping[str, Any]) -> None:
    fix = "pass what 'riskml evaluate --walk-forward' wrote for the recipe of this run"
    if not evaluation.get("folds"):
        raise DataError("the evaluation for the model card holds no folds", fix=fix)
    if evaluation.get("recipe_sha256") != recipe_digest(run.record["recipe"]):
        raise DataError("the evaluation for the model card is of another recipe than the run", fix=fix)


def npz_bytes(arrays: Mapping[str, AnyArray]) -> bytes:
    """An uncompressed npz archive without dates: the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE), content.getvalue())
    return buffer.getvalue()


def account_case(run: Run, *, n_accounts: int = GOLDEN_ACCOUNTS, seed: int = 0) -> dict[str, AnyArray]:
    """Inputs of the account graph: single legs, books, padding, empty and breached buffers.

    Buffers reach from far below to far above the scale, so that survival below 1e-6 is covered.
    """
    draw = np.random.default_rng(seed)
    n_markets, n_legs, n_horizons = GOLDEN_MARKETS, 4, len(run.record["horizons"])
    weight = draw.standard_normal((n_accounts, n_legs))
    weight[: n_accounts // 3, 1:] = 0.0
    weight[n_accounts // 3 : n_accounts // 2, 3:] = 0.0
    weight /= np.abs(weight).sum(axis=1, keepdims=True)
    market = np.where(weight != 0.0, draw.integers(0, n_markets, weight.shape), 0)
    sigma = 0.005 * np.sqrt(np.arange(1, n_horizons + 1))[None, None, :, None]
    sigma = sigma * np.exp(0.3 * draw.standard_normal((2, n_markets, n_horizons, 2)))
    buffer = np.geomspace(1e-4, 0.9, n_accounts)
    buffer[0] = -0.01
    return {
        "leg_market": market.astype(np.int64),
        "leg_weight": weight,
        "leg_mm_rate": np.full(weight.shape, 0.0125),
        "buffer_ratio": buffer,
        "sigma": sigma,
        "nu": draw.uniform(2.5, 12.0, (2, n_markets, n_horizons)),
        "loadings": draw.uniform(-0.6, 0.6, (n_markets, 2)),
        "quantile_table": quantile_table(_LEVELS),
    }


def _account_graph(run: Run) -> bytes:
    import onnx

    from riskml.learning.account_graph import export_account_graph

    with tempfile.TemporaryDirectory(prefix="riskml-export-") as scratch, quiet_export():
        file = Path(scratch) / ACCOUNT_GRAPH
        export_account_graph(file, tuple(run.record["horizons"]), np.array(run.record["calibration_power"]))
        return stripped(onnx.load_from_string(file.read_bytes()))


def _golden(run: Run, market: bytes, account: bytes) -> tuple[dict[str, AnyArray], float]:
    """Golden cases of both graphs, and the account graph's largest difference from numpy."""
    case = random_case(run.net, "golden", n_markets=GOLDEN_MARKETS, n_bars=run.net.spec.n_bars, seed=11)
    golden: dict[str, AnyArray] = {f"market_input_{name}": value for name, value in case.feed().items()}
    golden |= {f"market_output_{name}": value for name, value in run_graph(market, case).items()}
    inputs = account_case(run)
    worst = 0.0
    for seed, n_accounts in ((1, 1), (2, 40), (0, GOLDEN_ACCOUNTS)):
        inputs = account_case(run, n_accounts=n_accounts, seed=seed)
        outputs = _run_account(account, inputs)
        worst = max(worst, _account_difference(run, inputs, outputs))
    if not worst <= ACCOUNT_TOLERANCE:
        raise BundleError(
            f"account.onnx differs from the numpy law by {worst:.1e} relative (limit {ACCOUNT_TOLERANCE:g})",
            fix="export with the torch and onnxscript versions of constraints.txt",
        )
    golden |= {f"account_input_{name}": value for name, value in inputs.items()}
    golden |= {f"account_output_{name}": value for name, value in outputs.items()}
    return golden, worst


def _run_account(graph: bytes, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    wanted = {item.name for item in session.get_inputs()}
    feed = {name: value for name, value in inputs.items() if name in wanted}
    return dict(zip(LAW_OUTPUTS, session.run(list(LAW_OUTPUTS), feed), strict=True))


def _account_difference(run: Run, inputs: Mapping[str, Any], outputs: Mapping[str, AnyArray]) -> float:
    """Largest relative difference from the numpy law; infinite for a value that is not finite."""
    law: LawOutput = numpy_law(run.record["calibration_power"])(**inputs)
    worst = 0.0
    for name, found in outputs.items():
        expected = np.asarray(getattr(law, name))
        if expected.shape != found.shape or not np.isfinite(found).all():
            return float("inf")
        # The floor lies far below the smallest probability that matters, so the far tail is compared too.
        worst = max(
            worst, float((np.abs(expected - found) / np.maximum(np.abs(expected), 1e-25)).max(initial=0.0))
        )
    return worst


def _feature_records(run: Run) -> list[dict[str, Any]]:
    """The manifest's feature list, from a catalogue that still defines them as the run's dataset did."""
    from riskml.features.catalog import fingerprint, select

    names, interval = list(run.record["features"]), str(run.record["interval"])
    try:
        features = select(names)
    except ValueError as error:
        raise BundleError(
            f"{run.path} uses features that the catalogue lacks: {error}", fix="build and fit again"
        ) from error
    if fingerprint(features, interval) != run.record["feature_fingerprint"]:
        raise BundleError(
            f"{run.path} was fitted on other feature definitions than this version's",
            fix="build the dataset and fit again",
        )
    return [
        {
            "name": feature.name,
            "unit": feature.unit,
            "lookback": feature.lookback_bars(interval),
            "inputs": list(feature.inputs),
        }
        for feature in features
    ]


def _manifest(run: Run, features: list[dict[str, Any]], created: str) -> Manifest:
    record = run.record
    return Manifest(
        bundle_id="",
        riskml_version=record["riskml_version"],
        features=features,
        feature_fingerprint=record["feature_fingerprint"],
        interval=record["interval"],
        horizons=list(record["horizons"]),
        markets=list(record["markets"]),
        venues=list(record["venues"]),
        n_bars=run.recipe.network.n_bars,
        fit_start=record["fit_start"],
        fit_end=record["fit_end"],
        calibrate_start=record["calibrate_start"],
        calibrate_end=record["calibrate_end"],
        data_end=record["data_end"],
        seed=record["seed"],
        recipe=dict(record["recipe"]),
        data_hashes=dict(record["data_hashes"]),
        metrics=dict(record["metrics"]),
        feature_bounds=dict(record["feature_bounds"]),
        files={},
        created=created,
        calibration_power=list(record["calibration_power"]),
        reference_sigma=dict(record["reference_sigma"]),
        fallback=dict(record["fallback"]),
    )
