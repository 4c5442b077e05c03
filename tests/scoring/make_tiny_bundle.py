"""Make a tiny bundle: a market graph of a few kilobytes with known weights, built by hand.

The graph follows the contract of every ``market.onnx`` (DESIGN section 2) without a fitted
network: log variance is the newest log-variance feature plus a little of the window's mean
return and of the pooled market, so windows, masks and pooling all matter to the result.
The account graph is the real one.

Run ``python tests/scoring/make_tiny_bundle.py OUT`` to look at one.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import riskml
from riskml.bundle import Manifest, write_bundle
from riskml.features.catalog import fingerprint, select
from riskml.features.evaluate import lookback_bars
from riskml.units import duration_bars

HORIZONS = ("1h", "8h", "24h")
N_BARS = 8
FEATURES = (
    "log_parkinson_1h",
    "log_har_24h",
    "log_har_7d",
    "log_har_28d",
    "log_ewm_variance_24h",
    "log_ewm_variance_60d",
    "return_1h",
    "vol_of_vol_7d",
    "funding_rate_8h",
    "funding_z_7d",
    "funding_dispersion",
    "open_interest_change_24h",
    "basis_bps",
    "venue_gap_bps",
    "liquidation_imbalance_24h",
    "bridge_flow_z_30d",
    "stablecoin_supply_change_7d",
    "tvl_drawdown_30d",
    "peg_deviation_24h",
    "market_return_24h",
    "factor_loading_1",
    "factor_loading_2",
    "hour_of_week",
)
"""Every family and every kind of input, and few enough that a scorer warms up in a moment."""
LEVEL_FEATURE = "log_ewm_variance_24h"
MISSING_LOG_VARIANCE = -9.0


def _constants(feature_names: list[str], horizons: tuple[str, ...]) -> dict[str, np.ndarray]:
    n_features = len(feature_names)
    defaults = np.zeros(n_features, dtype=np.float32)
    defaults[feature_names.index(LEVEL_FEATURE)] = MISSING_LOG_VARIANCE
    level = np.zeros((n_features, 1), dtype=np.float32)
    level[feature_names.index(LEVEL_FEATURE)] = 1.0
    window = np.zeros((n_features, 1), dtype=np.float32)
    window[feature_names.index("return_1h")] = -0.05
    loading_columns = [feature_names.index(f"factor_loading_{k}") for k in (1, 2)]
    log_bars = np.log([duration_bars(horizon, "1h") for horizon in horizons]).astype(np.float32)
    return {
        "defaults": defaults,
        "level": level,
        "window": window,
        "zero": np.float32(0.0),
        "one": np.float32(1.0),
        "half": np.float32(0.5),
        "tenth": np.float32(0.1),
        "log_bars": log_bars,
        "nu_row": np.linspace(3.6, 4.2, len(horizons)).astype(np.float32),
        "side": np.array([1.1, 0.95], dtype=np.float32),
        "last": np.int64(-1),
        "columns": np.array(loading_columns, dtype=np.int64),
        "low": np.float32(-0.7),
        "high": np.float32(0.7),
        "axis_bars": np.array([1], dtype=np.int64),
        "axis_markets": np.array([0], dtype=np.int64),
        "axis_end": np.array([-1], dtype=np.int64),
    }


def _nodes() -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("Where", ["feature_mask", "features", "defaults"], ["filled"]),
        node("Gather", ["filled", "last"], ["newest"], axis=1),
        node("MatMul", ["newest", "level"], ["own_level"]),
        node("ReduceMean", ["filled", "axis_bars"], ["window_mean"], keepdims=0),
        node("MatMul", ["window_mean", "window"], ["drift"]),
        # the mask-weighted mean of the level over markets
        node("Cast", ["market_mask"], ["weight_flat"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["weight_flat", "axis_end"], ["weight"]),
        node("Mul", ["own_level", "weight"], ["weighted"]),
        node("ReduceSum", ["weighted", "axis_markets"], ["sum_level"], keepdims=1),
        node("ReduceSum", ["weight", "axis_markets"], ["sum_weight_raw"], keepdims=1),
        node("Max", ["sum_weight_raw", "one"], ["sum_weight"]),
        node("Div", ["sum_level", "sum_weight"], ["pooled"]),
        node("Sub", ["pooled", "own_level"], ["relative"]),
        node("Mul", ["relative", "tenth"], ["pull"]),
        node("Add", ["own_level", "drift"], ["with_drift"]),
        node("Add", ["with_drift", "pull"], ["log_variance_bar"]),
        node("Add", ["log_variance_bar", "log_bars"], ["log_variance"]),
        node("Exp", ["log_variance"], ["variance"]),
        node("Sqrt", ["variance"], ["scale"]),
        node("Unsqueeze", ["scale", "axis_end"], ["scale_side"]),
        node("Mul", ["scale_side", "side"], ["sigma"]),
        node("Mul", ["log_variance", "zero"], ["nothing"]),
        node("Add", ["nothing", "nu_row"], ["nu"]),
        node("Mul", ["log_variance", "half"], ["half_log"]),
        node("Sigmoid", ["half_log"], ["stress"]),
        node("Gather", ["newest", "columns"], ["raw_loadings"], axis=1),
        node("Clip", ["raw_loadings", "low", "high"], ["loadings"]),
    ]


def market_graph(feature_names: list[str], horizons: tuple[str, ...] = HORIZONS) -> bytes:
    """The bytes of a small ``market.onnx`` over the given features."""
    shape = ["n_markets", "n_bars", len(feature_names)]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        _nodes(),
        "tiny_market",
        [
            value("features", TensorProto.FLOAT, shape),
            value("feature_mask", TensorProto.BOOL, shape),
            value("market_mask", TensorProto.BOOL, ["n_markets"]),
        ],
        [
            value("sigma", TensorProto.FLOAT, ["n_markets", len(horizons), 2]),
            value("nu", TensorProto.FLOAT, ["n_markets", len(horizons)]),
            value("variance", TensorProto.FLOAT, ["n_markets", len(horizons)]),
            value("stress", TensorProto.FLOAT, ["n_markets", len(horizons)]),
            value("loadings", TensorProto.FLOAT, ["n_markets", 2]),
        ],
        [
            numpy_helper.from_array(np.asarray(array), name)
            for name, array in _constants(feature_names, horizons).items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@cache
def account_graph(horizons: tuple[str, ...] = HORIZONS) -> bytes:
    """The bytes of the real ``account.onnx``, without calibration.

    Exporting takes seconds, so the graph is kept in the temporary folder under a name that
    changes with its sources.
    """
    sources = ("learning/account_graph.py", "risk/law.py", "risk/excursion.py")
    digest = hashlib.sha256(f"{horizons}{version('torch')}".encode())
    for source in sources:
        digest.update((Path(str(riskml.__file__)).parent / source).read_bytes())
    kept = Path(tempfile.gettempdir()) / f"riskml-test-account-{digest.hexdigest()[:16]}.onnx"
    if not kept.is_file():
        from riskml.learning.account_graph import export_account_graph

        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            path = Path(folder) / "account.onnx"
            export_account_graph(path, horizons, (1.0,) * len(horizons))
            os.replace(path, kept)
    return kept.read_bytes()


def golden_cases(market: bytes, account: bytes, n_features: int) -> bytes:
    """Inputs and outputs of both graphs as ``golden.npz`` bytes."""
    import onnxruntime as ort

    from riskml.risk.excursion import quantile_table

    random = np.random.default_rng(3)
    arrays: dict[str, Any] = {}
    n_markets, n_horizons = 3, len(HORIZONS)
    inputs = {
        "market": {
            "features": random.normal(size=(n_markets, N_BARS, n_features)).astype(np.float32),
            "feature_mask": random.random((n_markets, N_BARS, n_features)) > 0.2,
            "market_mask": np.array([True, True, False]),
        },
        "account": {
            "leg_market": np.array([[0, 1], [2, 0]], dtype=np.int64),
            "leg_weight": np.array([[0.6, -0.4], [1.0, 0.0]]),
            "leg_mm_rate": np.array([[0.01, 0.02], [0.02, 0.0]]),
            "buffer_ratio": np.array([0.1, 0.05]),
            "sigma": np.full((1, n_markets, n_horizons, 2), 0.02),
            "nu": np.full((1, n_markets, n_horizons), 4.0),
            "loadings": np.full((n_markets, 2), 0.5),
            "quantile_table": quantile_table((0.99, 0.995)),
        },
    }
    for graph, model in (("market", market), ("account", account)):
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        used = {item.name for item in session.get_inputs()}
        feed = {name: array for name, array in inputs[graph].items() if name in used}
        for name, array in feed.items():
            arrays[f"{graph}_input_{name}"] = array
        names = [item.name for item in session.get_outputs()]
        for name, array in zip(names, session.run(names, feed), strict=True):
            arrays[f"{graph}_output_{name}"] = array
    buffer = BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def make_tiny_bundle(
    out: Path,
    *,
    markets: tuple[str, ...] = ("BTC", "ETH", "SOL"),
    venue: str = "sim",
    data_end: str = "2024-01-01T00:00:00Z",
    card: str = "# Tiny bundle\n\nHand-made weights; for tests and benchmarks only.\n",
    **changes: Any,
) -> Manifest:
    """Write a bundle that riskml can load.

    Parameters
    ----------
    card : another card gives another ``bundle_id``.
    changes : replace manifest fields.
    """
    features = select(FEATURES)
    names = [feature.name for feature in features]
    market, account = market_graph(names), account_graph()
    stressed = [[0.02, 0.018], [0.05, 0.045], [0.08, 0.07]]
    fields: dict[str, Any] = {
        "bundle_id": "",
        "riskml_version": riskml.__version__,
        "features": [
            {
                "name": feature.name,
                "unit": feature.unit,
                "lookback": lookback_bars((feature,), "1h"),
                "inputs": list(feature.inputs),
            }
            for feature in features
        ],
        "feature_fingerprint": fingerprint(features, "1h"),
        "interval": "1h",
        "horizons": list(HORIZONS),
        "markets": list(markets),
        "venues": [venue] * len(markets),
        "n_bars": N_BARS,
        "fit_start": "2023-01-01T00:00:00Z",
        "fit_end": "2023-10-01T00:00:00Z",
        "calibrate_start": "2023-10-01T00:00:00Z",
        "calibrate_end": data_end,
        "data_end": data_end,
        "seed": 0,
        "recipe": {},
        "data_hashes": {},
        "metrics": {},
        "feature_bounds": {},
        "files": {},
        "calibration_power": [1.0] * len(HORIZONS),
        "reference_sigma": {
            "stressed": {"*": stressed},
            "long_run": {"*": [[value / 2 for value in row] for row in stressed]},
        },
    }
    contents = {
        "market.onnx": market,
        "account.onnx": account,
        "golden.npz": golden_cases(market, account, len(names)),
        "CARD.md": card.encode(),
    }
    return write_bundle(out, contents, Manifest(**(fields | changes)))


if __name__ == "__main__":
    sys.stdout.write(make_tiny_bundle(Path(sys.argv[1])).bundle_id + "\n")
