"""Loading a bundle: the one place that makes onnxruntime sessions.

A bundle is verified completely before anything of it runs: the hash of every file, the
protocol, the fingerprint of the feature definitions against this runtime's catalogue, the
names of the graphs' inputs and outputs, and the golden cases. Sessions run on one thread
without spinning, because a risk engine shares its cores, and are warmed up here, because
the first run of a session costs a hundred later ones.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from riskml.arrays import AnyArray, BoolND, Float1D, Float2D, Float3D, Float32ND, FloatND, Int2D
from riskml.bundle import ACCOUNT_GRAPH, GOLDEN, MARKET_GRAPH, Manifest, verify_bundle
from riskml.errors import BundleError, ConfigError
from riskml.features.catalog import fingerprint, select
from riskml.features.spec import Feature
from riskml.risk.law import LAW_INPUTS, LAW_OUTPUTS, LawOutput

MARKET_INPUTS = ("features", "feature_mask", "market_mask")
MARKET_OUTPUTS = ("sigma", "nu", "variance", "stress", "loadings")
GOLDEN_TOLERANCE = {"market": 1e-4, "account": 1e-6}
"""Relative tolerance: the market graph is float32 and its sums are ordered by the processor's
vector width, the account graph is float64."""


@dataclass(frozen=True)
class MarketOutput:
    """What the market graph says for one bar, as float64."""

    sigma: Float3D
    """Half-t scale of the adverse excursion, log return [n_markets, n_horizons, 2]."""
    nu: Float2D
    """Degrees of freedom [n_markets, n_horizons]."""
    variance: Float2D
    """Forecast of the realised variance, squared log return [n_markets, n_horizons]."""
    stress: Float2D
    """Probability of a stress onset [n_markets, n_horizons]."""
    loadings: Float2D
    """Factor loadings [n_markets, n_factors]."""


class MarketGraph:
    """``market.onnx``: from the feature windows of all markets to their forecasts."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def run(self, features: Float32ND, feature_mask: BoolND, market_mask: BoolND) -> MarketOutput:
        """Run the graph once.

        Parameters
        ----------
        features : float32 [n_markets, n_bars, n_features]; anything finite where masked.
        feature_mask : bool, same shape; True = present.
        market_mask : bool [n_markets]; True = the market takes part in pooling. Others are scored too.
        """
        outputs = self._session.run(
            MARKET_OUTPUTS,
            {"features": features, "feature_mask": feature_mask, "market_mask": market_mask},
        )
        return MarketOutput(*(np.asarray(output, dtype=np.float64) for output in outputs))


class AccountGraph:
    """``account.onnx`` as a law that :func:`riskml.risk.decisions.decide` can call."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        # An exporter drops an input that no node reads.
        self._names = [item.name for item in session.get_inputs()]

    def __call__(
        self,
        *,
        leg_market: Int2D,
        leg_weight: Float2D,
        leg_mm_rate: Float2D,
        buffer_ratio: Float1D,
        sigma: FloatND,
        nu: Float3D,
        loadings: Float2D,
        quantile_table: Float2D,
    ) -> LawOutput:
        """Run the graph on one block of accounts; shapes as in :func:`riskml.risk.law.account_law`."""
        values = (leg_market, leg_weight, leg_mm_rate, buffer_ratio, sigma, nu, loadings, quantile_table)
        feed = dict(zip(LAW_INPUTS, values, strict=True))
        return LawOutput(*self._session.run(LAW_OUTPUTS, {name: feed[name] for name in self._names}))


@dataclass(frozen=True)
class LoadedBundle:
    """A verified bundle, ready to run."""

    manifest: Manifest
    """What the bundle is and what it needs."""
    market: MarketGraph
    """Forecasts of all markets."""
    account: AccountGraph
    """The account law."""
    golden: dict[str, AnyArray]
    """Inputs and outputs that the exporter recorded, ``<graph>_<input|output>_<name>``."""
    path: Path
    """The folder."""
    features: tuple[Feature, ...]
    """The catalogue's definitions, in the order of the graph's last axis."""


def make_session(file: Path, *, threads: int = 1) -> ort.InferenceSession:
    """Build a session with the settings that riskml runs everywhere.

    Raises
    ------
    BundleError : onnxruntime cannot load the graph.
    ConfigError : ``threads`` is below 1.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}; at least 1 is required")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen unrelated types of its own here
        raise BundleError(
            f"{file} cannot be loaded by onnxruntime {ort.__version__}: {error}",
            fix="export the bundle again",
        ) from error


def load_bundle(path: str | Path, *, public_key: bytes | None = None, threads: int = 1) -> LoadedBundle:
    """Verify a bundle folder and load both graphs.

    Parameters
    ----------
    path : folder that ``riskml export`` wrote.
    public_key : raw Ed25519 key; when given, the bundle has to be signed by it.
    threads : onnxruntime threads within an operator.

    Raises
    ------
    BundleError : a file is missing or changed, the protocol or the feature definitions are not
        this runtime's, a graph has other inputs or outputs, or a golden case does not come out.
    """
    folder = Path(path)
    manifest = verify_bundle(folder, public_key)
    features = _check_features(folder, manifest)
    market = make_session(folder / MARKET_GRAPH, threads=threads)
    account = make_session(folder / ACCOUNT_GRAPH, threads=threads)
    _check_names(folder / MARKET_GRAPH, market, MARKET_INPUTS, MARKET_OUTPUTS)
    _check_names(folder / ACCOUNT_GRAPH, account, LAW_INPUTS, LAW_OUTPUTS)
    golden = read_golden(folder / GOLDEN)
    check_golden(folder / GOLDEN, golden, {"market": market, "account": account})
    return LoadedBundle(manifest, MarketGraph(market), AccountGraph(account), golden, folder, features)


def read_golden(file: Path) -> dict[str, AnyArray]:
    """Read the golden cases; a damaged file is a BundleError."""
    try:
        # Opened here, because numpy leaves a damaged file open.
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{file} cannot be read: {error}", fix="export the bundle again") from error


def check_golden(
    file: Path, golden: Mapping[str, AnyArray], sessions: Mapping[str, ort.InferenceSession]
) -> None:
    """Run the golden inputs and compare with the golden outputs.

    NaN handling: a golden output holds no NaN; one that comes out is a difference.

    Raises
    ------
    BundleError : a graph has no golden case, or its outputs differ on this machine.
    """
    for graph, session in sessions.items():
        expected = _part(golden, f"{graph}_output_")
        if not expected:
            raise BundleError(f"{file} has no case for {graph}.onnx", fix="export the bundle again")
        outputs = session.run(list(expected), _part(golden, f"{graph}_input_"))
        for name, found in zip(expected, outputs, strict=True):
            wanted, tolerance = expected[name], GOLDEN_TOLERANCE[graph]
            if wanted.shape != found.shape or not np.allclose(
                found, wanted, rtol=tolerance, atol=tolerance**2
            ):
                raise BundleError(
                    f"{file}: output '{name}' of {graph}.onnx differs from the golden case by more than "
                    f"{tolerance:g} on this machine",
                    fix="use an onnxruntime release within the range in pyproject.toml, or export again",
                )


def _part(golden: Mapping[str, AnyArray], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


def _check_features(folder: Path, manifest: Manifest) -> tuple[Feature, ...]:
    names = [str(item["name"]) for item in manifest.features]
    fix = "export the bundle again with this riskml version, or install the version in its manifest"
    try:
        features = tuple(select(names))
    except ValueError as error:
        raise BundleError(
            f"{folder / 'manifest.json'} uses features that this runtime does not have: {error}", fix=fix
        ) from error
    found = fingerprint(features, manifest.interval)
    if found != manifest.feature_fingerprint:
        raise BundleError(
            f"{folder / 'manifest.json'} was made with other feature definitions (riskml "
            f"{manifest.riskml_version}, fingerprint {manifest.feature_fingerprint[:12]}; this runtime has "
            f"{found[:12]})",
            fix=fix,
        )
    return features


def _check_names(
    file: Path, session: ort.InferenceSession, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    for kind, wanted, items in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        found = {item.name for item in items}
        # Another output does no harm: bundles of before 0.5 have two more.
        unknown = found - set(wanted) if kind == "input" else set()
        missing = set(wanted) - found if kind == "output" else set()
        if unknown or missing:
            raise BundleError(
                f"{file} has {kind}s {sorted(found)}; {sorted(wanted)} are required",
                fix="export the bundle again with this riskml version",
            )
