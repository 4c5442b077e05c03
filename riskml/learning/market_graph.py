"""From the fitted network to ``market.onnx``, and the proof that both say the same.

The exporter writes local source paths and stack traces into the graph's metadata; they
are stripped, which also makes two exports byte-identical.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from riskml.arrays import AnyArray
from riskml.errors import BundleError, missing_extra
from riskml.learning.boosting import GammaExpert
from riskml.learning.networks.ensemble import EnsembleNet
from riskml.learning.networks.market import MarketNet
from riskml.learning.tree_graph import EXPERT, insert_trees, last_bar_delta

INPUTS = ("features", "feature_mask", "market_mask")
OUTPUTS = ("sigma", "nu", "variance", "stress", "loadings")
OPSET = 20
RELATIVE_TOLERANCE = 1e-5
_TRACED_MARKETS = 3


@dataclass(frozen=True)
class MarketCase:
    """Inputs of the market graph for one check."""

    name: str
    features: AnyArray
    """float32 [n_markets, n_bars, n_features]."""
    feature_mask: AnyArray
    """bool, same shape."""
    market_mask: AnyArray
    """bool [n_markets]."""

    def feed(self) -> dict[str, AnyArray]:
        """The inputs by name."""
        return {name: getattr(self, name) for name in INPUTS}


def export_market_graph(net: MarketNet | EnsembleNet, expert: GammaExpert | None = None) -> bytes:
    """Serialise the network as ONNX (opset 20, n_markets and n_bars dynamic).

    The same weights give the same bytes.

    Parameters
    ----------
    net : network, or members with or without a boosted expert.
    expert : the trees, if the network has an expert; they become part of the graph.

    Raises
    ------
    BundleError : the exporter refuses the network.
    """
    case = random_case(net, "traced", n_markets=_TRACED_MARKETS, n_bars=net.spec.n_bars, seed=0)
    arguments = _arguments(case, expert)
    shapes: dict[str, dict[int, str]] = {
        "features": {0: "n_markets", 1: "n_bars"},
        "feature_mask": {0: "n_markets", 1: "n_bars"},
        "market_mask": {0: "n_markets"},
    }
    if expert is not None:
        shapes[EXPERT] = {0: "n_markets"}
    try:
        with quiet_export():
            program = torch.onnx.export(
                net.eval(),
                arguments,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=list(shapes),
                output_names=list(OUTPUTS),
                dynamic_shapes=shapes,
            )
    except ImportError as error:
        raise missing_extra("onnxscript", "train") from error
    except Exception as error:  # the exporter raises errors of many kinds
        raise BundleError(f"the network cannot be exported: {error}") from error
    model = program.model_proto
    return stripped(model if expert is None else insert_trees(model, expert))


def stripped(model: Any) -> bytes:
    """Deterministic bytes of an ONNX model without metadata, doc strings and local paths."""
    del model.metadata_props[:]
    model.doc_string = ""
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        graph.doc_string = ""
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for item in (*graph.value_info, *getattr(graph, "initializer", ())):
            del item.metadata_props[:]
            item.doc_string = ""
    for item in (*model.graph.input, *model.graph.output):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    data = model.SerializeToString(deterministic=True)
    return bytes(data)


def _arguments(case: MarketCase, expert: GammaExpert | None) -> tuple[torch.Tensor, ...]:
    """What the network is called with: the graph's inputs, and the forecast of the trees."""
    values = list(case.feed().values())
    if expert is not None:
        values.append(last_bar_delta(expert, case.features, case.feature_mask))
    return tuple(torch.from_numpy(value) for value in values)


def random_case(
    net: MarketNet | EnsembleNet, name: str, *, n_markets: int, n_bars: int, seed: int
) -> MarketCase:
    """Features around their fit means, a tenth of them missing; every value is finite."""
    draw = np.random.default_rng([seed, n_markets, n_bars])
    shape = (n_markets, n_bars, len(net.roles.names))
    features = draw.standard_normal(shape) * net.scale.numpy() + net.mean.numpy()
    if net.roles.season is not None:
        features[..., net.roles.season] = np.arange(n_bars) % 168
    mask = draw.random(shape) >= 0.1
    return MarketCase(name, features.astype(np.float32), mask, np.ones(n_markets, dtype=np.bool_))


def parity_cases(net: MarketNet | EnsembleNet) -> list[MarketCase]:
    """Inputs that differ from the traced ones in every size and in kind."""
    n_bars = net.spec.n_bars
    plain = random_case(net, "other values", n_markets=5, n_bars=n_bars, seed=1)
    absent = random_case(net, "absent markets", n_markets=6, n_bars=n_bars, seed=2)
    absent.market_mask[[1, 4]] = False
    wild = random_case(net, "infinite and huge values", n_markets=4, n_bars=n_bars, seed=3)
    wild.features[0, ::3], wild.features[1, ::4], wild.features[2] = np.inf, -np.inf, 1e20
    empty = random_case(net, "all NaN", n_markets=3, n_bars=n_bars, seed=4)
    empty.features[:] = np.nan
    empty.feature_mask[:] = True
    masked = random_case(net, "all masked", n_markets=3, n_bars=n_bars, seed=5)
    masked.feature_mask[:] = False
    masked.market_mask[:] = False
    return [
        plain,
        random_case(net, "one market", n_markets=1, n_bars=n_bars, seed=6),
        random_case(net, "thirty markets", n_markets=30, n_bars=n_bars, seed=7),
        random_case(net, "longer window", n_markets=4, n_bars=n_bars + 37, seed=8),
        absent,
        wild,
        empty,
        masked,
    ]


def run_network(
    net: MarketNet | EnsembleNet, case: MarketCase, expert: GammaExpert | None = None
) -> dict[str, AnyArray]:
    """The network's outputs by name, the trees by LightGBM."""
    with torch.inference_mode():
        outputs = net.eval()(*_arguments(case, expert))
    return {name: output.numpy() for name, output in zip(OUTPUTS, outputs, strict=True)}


def run_graph(graph: bytes, case: MarketCase) -> dict[str, AnyArray]:
    """The graph's outputs by name, in onnxruntime on one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), case.feed()), strict=True))


def check_parity(net: MarketNet | EnsembleNet, graph: bytes, expert: GammaExpert | None = None) -> float:
    """Compare network and graph on :func:`parity_cases`.

    Returns
    -------
    float : the largest relative difference seen.

    Raises
    ------
    BundleError : an output is not finite, or differs by more than 1e-5 relative.
    """
    worst, wrong = 0.0, []
    for case in parity_cases(net):
        expected, found = run_network(net, case, expert), run_graph(graph, case)
        for name in OUTPUTS:
            difference = relative_difference(expected[name], found[name])
            worst = max(worst, difference)
            if not difference <= RELATIVE_TOLERANCE:
                wrong.append(f"{case.name}: {name} by {difference:.1e}")
    if wrong:
        raise BundleError(
            f"market.onnx differs from the network by more than {RELATIVE_TOLERANCE:g}: {'; '.join(wrong)}",
            fix="export with the torch and onnxscript versions of constraints.txt",
        )
    return worst


def relative_difference(expected: AnyArray, found: AnyArray) -> float:
    """Largest |difference| / max(|expected|, 1e-6); infinite for a wrong shape or a NaN or infinity."""
    if expected.shape != found.shape or not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return float("inf")
    scale = np.maximum(np.abs(expected), 1e-6)
    return float((np.abs(expected.astype(np.float64) - found) / scale).max())


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Keep torch's exporter quiet about itself; what it says about our network still comes through.

    Kept back are its progress on stdout, its word on torchvision (which nothing here needs), the
    deprecations between torch and onnxscript, and its advice on names of axes.
    """
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx\.")
            yield
    finally:
        registry.setLevel(level)
