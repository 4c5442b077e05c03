"""Boosted trees: what they learn, what they do with a missing value, and their exact form in ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from riskml.errors import BundleError, DataError
from riskml.learning.boosting import BoostingSpec, GammaExpert, fit_gamma
from riskml.learning.tree_graph import _missing_left, _threshold, insert_trees, last_bar_delta
from riskml.metrics import qlike

SPEC = BoostingSpec(n_trees=40, min_leaf_rows=20, learning_rate=0.1, patience=10)
N, K = 4000, 6


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    """A log variance that bends where a linear start is straight; a tenth of the features missing."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((N, K)).astype(np.float32)
    signal = 0.8 * np.abs(x[:, 0]) + 0.3 * (x[:, 1] > 0)
    x[draw.random((N, K)) < 0.1] = np.nan
    variance = np.exp(signal[:, None] + 0.3 * draw.standard_normal((N, 2)))
    return {"x": x, "variance": variance, "start": np.full((N, 2), float(np.log(variance.mean())))}


@pytest.fixture(scope="module")
def expert(sample: dict[str, Any]) -> GammaExpert:
    rows = np.arange(N) < 3000
    return fit_gamma(sample["x"], sample["variance"], sample["start"], rows, ~rows, SPEC, seed=1, n_threads=1)


def test_trees_lower_the_qlike_of_their_start_on_rows_that_they_did_not_see(
    sample: dict[str, Any], expert: GammaExpert
) -> None:
    unseen = slice(3000, N)
    delta = expert.predict_delta(sample["x"][unseen])
    for h in range(2):
        y, start = sample["variance"][unseen, h], sample["start"][unseen, h]
        assert qlike(y, np.exp(start + delta[:, h])) < 0.8 * qlike(y, np.exp(start))


def test_the_same_seed_gives_the_same_trees(sample: dict[str, Any], expert: GammaExpert) -> None:
    rows = np.arange(N) < 3000
    again = fit_gamma(
        sample["x"], sample["variance"], sample["start"], rows, ~rows, SPEC, seed=1, n_threads=1
    )
    assert again.to_text() == expert.to_text()


def test_trees_survive_their_text_form(sample: dict[str, Any], expert: GammaExpert) -> None:
    again = GammaExpert.from_text(expert.to_text())
    assert again.n_trees == expert.n_trees
    np.testing.assert_array_equal(again.predict_delta(sample["x"]), expert.predict_delta(sample["x"]))


def test_a_damaged_text_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        GammaExpert.from_text(["not trees"])


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_target_that_is_no_variance_is_refused(sample: dict[str, Any], bad: float) -> None:
    variance = sample["variance"].copy()
    variance[5, 0] = bad
    rows = np.ones(N, dtype=np.bool_)
    with pytest.raises(DataError, match="positive and finite"):
        fit_gamma(sample["x"], variance, sample["start"], rows, None, SPEC, seed=1, n_threads=1)


def test_no_row_is_refused(sample: dict[str, Any]) -> None:
    rows = np.zeros(N, dtype=np.bool_)
    with pytest.raises(DataError, match="rows whose targets"):
        fit_gamma(sample["x"], sample["variance"], sample["start"], rows, None, SPEC, seed=1, n_threads=1)


def shell(n_features: int, n_horizons: int) -> Any:
    """A network that gives back what the expert says."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["expert"], ["out"])],
        "shell",
        [
            info("features", TensorProto.FLOAT, ["n_markets", "n_bars", n_features]),
            info("feature_mask", TensorProto.BOOL, ["n_markets", "n_bars", n_features]),
            info("expert", TensorProto.FLOAT, ["n_markets", n_horizons]),
        ],
        [info("out", TensorProto.FLOAT, ["n_markets", n_horizons])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_the_graph_decides_every_split_as_lightgbm_does(sample: dict[str, Any], expert: GammaExpert) -> None:
    model = insert_trees(shell(K, 2), expert)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert {item.name for item in session.get_inputs()} == {"features", "feature_mask"}
    features = np.stack([np.zeros_like(sample["x"]), sample["x"]], axis=1)
    # values on the very thresholds, where one rounding more would turn the decision
    splits = [
        node["threshold"]
        for booster in expert.boosters
        for tree in booster.dump_model()["tree_info"]
        for node in _splits(tree["tree_structure"])
    ]
    exact = np.array(splits[: 6 * 200], dtype=np.float32)
    features[: len(exact), 1, :] = exact[:, None]
    features[2000, 1], features[2001, 1], features[2002, 1] = np.inf, -np.inf, 1e31
    mask = np.ones(features.shape, dtype=np.bool_)
    mask[2003, 1] = False
    found = session.run(None, {"features": features, "feature_mask": mask})[0]
    np.testing.assert_allclose(found, last_bar_delta(expert, features, mask), atol=2e-6)
    # what is masked, infinite or huge is one thing: missing
    np.testing.assert_array_equal(found[2000:2004], np.repeat(found[2000:2001], 4, axis=0))


def _splits(node: dict[str, Any]) -> Any:
    if "split_feature" in node:
        yield node
        yield from _splits(node["left_child"])
        yield from _splits(node["right_child"])


def test_thresholds_are_rounded_down() -> None:
    for value in (0.1, -0.1, 1.0, 3.3e-39, 123456789.123):
        rounded = _threshold({"decision_type": "<=", "threshold": value})
        assert rounded <= value
        assert float(np.nextafter(np.float32(rounded), np.float32(np.inf))) > value
    zero = float(np.float32(1e-35))
    assert _threshold({"decision_type": "<=", "threshold": -zero}) < -zero
    assert _threshold({"decision_type": "<=", "threshold": zero}) == zero


def test_a_split_on_being_missing_alone_is_exact_too(sample: dict[str, Any]) -> None:
    x = sample["x"].copy()
    gone = np.random.default_rng(5).random(N) < 0.3
    x[gone, 2] = np.nan
    variance = np.exp(np.where(gone, 3.0, 0.0))[:, None]
    start = np.zeros((N, 1))
    expert = fit_gamma(x, variance, start, np.ones(N, dtype=np.bool_), None, SPEC, seed=1, n_threads=1)
    thresholds = [
        node["threshold"]
        for tree in expert.boosters[0].dump_model()["tree_info"]
        for node in _splits(tree["tree_structure"])
    ]
    assert max(thresholds) > float(np.finfo(np.float32).max)  # the case that this test is for
    session = ort.InferenceSession(
        insert_trees(shell(K, 1), expert).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    mask = np.ones((N, 1, K), dtype=np.bool_)
    found = session.run(None, {"features": x[:, None], "feature_mask": mask})[0]
    np.testing.assert_allclose(found, last_bar_delta(expert, x[:, None], mask), atol=2e-6)
    assert abs(found[gone].mean() - found[~gone].mean()) > 1.0


@pytest.mark.parametrize(
    ("kind", "default_left", "threshold", "left"),
    [("NaN", True, -1.0, 1), ("NaN", False, 1.0, 0), ("None", True, 0.5, 1), ("None", True, -0.5, 0)],
)
def test_a_missing_value_goes_where_lightgbm_sends_it(
    kind: str, default_left: bool, threshold: float, left: int
) -> None:
    entry = {"missing_type": kind, "default_left": default_left, "threshold": threshold}
    assert _missing_left(entry) == left


def test_splits_without_an_exact_form_are_refused() -> None:
    with pytest.raises(BundleError, match="no exact form"):
        _threshold({"decision_type": "==", "threshold": 1.0})
    with pytest.raises(BundleError, match="no exact form"):
        _missing_left({"missing_type": "Zero", "default_left": True, "threshold": 1.0})


def test_a_network_without_the_input_is_refused(expert: GammaExpert) -> None:
    model = shell(K, 2)
    model.graph.input.pop()
    with pytest.raises(BundleError, match="has no input 'expert'"):
        insert_trees(model, expert)
