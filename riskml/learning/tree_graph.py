"""Boosted trees as one ONNX node, exact to the split, and their place in the market graph.

LightGBM compares in float64, the graph in float32. A feature is a float32, so ``x <= t`` is the same
decision as ``x <= t'`` with ``t'`` the largest float32 not above ``t``: the thresholds are rounded down,
never to the nearest. A missing value takes the direction that the split learnt; an infinite one
is taken away before, as everywhere in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from riskml.arrays import AnyArray
from riskml.errors import BundleError
from riskml.learning.boosting import GammaExpert
from riskml.learning.networks.market import LARGE

EXPERT = "expert"
"""Input of the exported network that the trees feed."""
TREE_DOMAIN, TREE_OPSET = "ai.onnx.ml", 3
_ZERO = float(np.float32(1e-35))
_LARGEST = float(np.finfo(np.float32).max)


@dataclass
class _Nodes:
    """Columns of the node table of a ``TreeEnsembleRegressor``."""

    tree: list[int] = field(default_factory=list)
    node: list[int] = field(default_factory=list)
    feature: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    mode: list[str] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    missing_left: list[int] = field(default_factory=list)
    leaf_tree: list[int] = field(default_factory=list)
    leaf_node: list[int] = field(default_factory=list)
    leaf_target: list[int] = field(default_factory=list)
    leaf_value: list[float] = field(default_factory=list)


def tree_node(expert: GammaExpert, source: str, result: str) -> Any:
    """The trees of every horizon as one ``TreeEnsembleRegressor``: [n, n_features] -> [n, n_outputs].

    Parameters
    ----------
    expert : fitted trees.
    source, result : names of the values that the node reads and writes.

    Raises
    ------
    BundleError : a split of a kind that the graph has no exact form for.
    """
    import onnx

    table = _Nodes()
    number = 0
    for target, (booster, n_trees) in enumerate(zip(expert.boosters, expert.n_trees, strict=True)):
        for tree in booster.dump_model(num_iteration=n_trees)["tree_info"]:
            _add_tree(table, number, tree["tree_structure"], target)
            number += 1
    return onnx.helper.make_node(
        "TreeEnsembleRegressor",
        [source],
        [result],
        name="expert_trees",
        domain=TREE_DOMAIN,
        n_targets=len(expert.boosters),
        aggregate_function="SUM",
        post_transform="NONE",
        nodes_treeids=table.tree,
        nodes_nodeids=table.node,
        nodes_featureids=table.feature,
        nodes_values=table.threshold,
        nodes_modes=table.mode,
        nodes_truenodeids=table.left,
        nodes_falsenodeids=table.right,
        nodes_missing_value_tracks_true=table.missing_left,
        target_treeids=table.leaf_tree,
        target_nodeids=table.leaf_node,
        target_ids=table.leaf_target,
        target_weights=table.leaf_value,
    )


def _add_tree(table: _Nodes, number: int, root: Mapping[str, Any], target: int) -> None:
    """Append one tree; its nodes are numbered in the order of :func:`_walk`."""
    for node, (entry, children) in enumerate(_walk(root)):
        table.tree.append(number)
        table.node.append(node)
        if children is None:
            _add_row(table, 0, 0.0, "LEAF", (0, 0), 0)
            table.leaf_tree.append(number)
            table.leaf_node.append(node)
            table.leaf_target.append(target)
            table.leaf_value.append(float(entry["leaf_value"]))
        else:
            feature = int(entry["split_feature"])
            _add_row(table, feature, _threshold(entry), "BRANCH_LEQ", children, _missing_left(entry))


def _add_row(
    table: _Nodes, feature: int, threshold: float, mode: str, children: tuple[int, int], missing_left: int
) -> None:
    table.feature.append(feature)
    table.threshold.append(threshold)
    table.mode.append(mode)
    table.left.append(children[0])
    table.right.append(children[1])
    table.missing_left.append(missing_left)


def _walk(root: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], tuple[int, int] | None]]:
    """Nodes breadth first with the numbers of their children; None for a leaf."""
    queue = [root]
    for entry in queue:  # the list grows while it is read
        if "split_feature" in entry:
            children = len(queue), len(queue) + 1
            queue += [entry["left_child"], entry["right_child"]]
            yield entry, children
        else:
            yield entry, None


def _threshold(entry: Mapping[str, Any]) -> float:
    if entry["decision_type"] != "<=":
        raise BundleError(
            f"a split '{entry['decision_type']}' has no exact form in the graph",
            fix="fit the expert on numeric features",
        )
    # a split of "missing or not" has the largest float64; every feature lies below the largest float32 too
    threshold = min(max(float(entry["threshold"]), -_LARGEST), _LARGEST)
    rounded = np.float32(threshold)
    # LightGBM reads a value of 1e-35 or less, either sign, as zero, and zero lies above this threshold
    if float(rounded) > threshold or float(rounded) == -_ZERO:
        rounded = np.nextafter(rounded, np.float32(-np.inf))
    return float(rounded)


def _missing_left(entry: Mapping[str, Any]) -> int:
    """1 if a missing value goes left. Without a learnt direction LightGBM reads it as zero."""
    kind = entry["missing_type"]
    if kind == "NaN":
        return int(bool(entry["default_left"]))
    if kind == "None":
        return int(float(entry["threshold"]) >= 0.0)
    raise BundleError(
        f"missing values of kind '{kind}' have no exact form in the graph",
        fix="leave zero_as_missing off",
    )


def insert_trees(model: Any, expert: GammaExpert) -> Any:
    """Feed the network's input ``expert`` from trees over the last bar's features.

    Parameters
    ----------
    model : exported network with the inputs ``features`` [n_markets, n_bars, n_features],
        ``feature_mask`` and ``expert`` [n_markets, n_outputs]; it is changed in place.
    expert : fitted trees.

    Returns
    -------
    The model without the input ``expert``.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = model.graph
    constants = {
        "expert_last": np.array(-1, dtype=np.int64),
        "expert_large": np.array(LARGE, dtype=np.float32),
        "expert_nan": np.array(np.nan, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["features", "expert_last"], ["expert_values"], axis=1),
        helper.make_node("Gather", ["feature_mask", "expert_last"], ["expert_present"], axis=1),
        helper.make_node("Abs", ["expert_values"], ["expert_size"]),
        # false for NaN, so that NaN is taken away with what is too large
        helper.make_node("Less", ["expert_size", "expert_large"], ["expert_finite"]),
        helper.make_node("And", ["expert_present", "expert_finite"], ["expert_known"]),
        helper.make_node("Where", ["expert_known", "expert_values", "expert_nan"], ["expert_features"]),
        tree_node(expert, "expert_features", EXPERT),
    ]
    kept = [item for item in graph.input if item.name != EXPERT]
    if len(kept) == len(graph.input):
        raise BundleError(f"the exported network has no input '{EXPERT}'")
    del graph.input[:]
    graph.input.extend(kept)
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    body = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(body)
    if TREE_DOMAIN not in {item.domain for item in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(TREE_DOMAIN, TREE_OPSET))
    graph.value_info.append(helper.make_tensor_value_info(EXPERT, TensorProto.FLOAT, None))
    return model


def last_bar_delta(expert: GammaExpert, features: AnyArray, feature_mask: AnyArray) -> AnyArray:
    """What :func:`insert_trees` computes, by LightGBM: float32 [n_markets, n_outputs].

    Parameters
    ----------
    features : float32 [n_markets, n_bars, n_features]. feature_mask : bool, same shape.
    """
    values = features[:, -1]
    with np.errstate(invalid="ignore"):
        known = feature_mask[:, -1] & (np.abs(values) < LARGE)
    return expert.predict_delta(np.where(known, values, np.nan).astype(np.float32)).astype(np.float32)
