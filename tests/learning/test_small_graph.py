"""A small network through the exporter: what the default run checks of the graph of section 2."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from riskml.errors import BundleError
from riskml.learning.account_graph import example_inputs, torch_law
from riskml.learning.market_graph import (
    check_parity,
    export_market_graph,
    parity_cases,
    relative_difference,
    run_graph,
    run_network,
    stripped,
)
from riskml.learning.networks.market import FeatureRoles, MarketNet
from riskml.learning.recipe import NetworkSpec
from riskml.risk.law import LAW_OUTPUTS, account_law

SPEC = NetworkSpec(channels=4, hidden=8, dilations=(1, 2), n_bars=8)


@pytest.fixture(scope="module")
def net(toy: Any) -> MarketNet:
    torch.manual_seed(2)
    net = MarketNet(SPEC, FeatureRoles.of(toy.feature_names, SPEC, {}), 3).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.fixture(scope="module")
def traced(net: MarketNet) -> tuple[bytes, str]:
    """The graph, and what came out on stdout and stderr while it was made."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("torch.onnx")
    logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            graph = export_market_graph(net)
    finally:
        logger.removeHandler(handler)
    return graph, said.getvalue()


@pytest.fixture(scope="module")
def graph(traced: tuple[bytes, str]) -> bytes:
    return traced[0]


def test_an_export_says_nothing(traced: tuple[bytes, str]) -> None:
    assert traced[1] == ""


def test_the_graph_equals_the_network_on_every_size_and_kind_of_input(net: MarketNet, graph: bytes) -> None:
    shapes = {case.features.shape[:2] for case in parity_cases(net)}
    assert {(1, 8), (30, 8), (4, 45)} <= shapes
    assert check_parity(net, graph) < 1e-5


def test_another_network_is_not_taken_for_it(net: MarketNet, graph: bytes) -> None:
    moved = MarketNet(SPEC, net.roles, 3).eval()
    moved.load_state_dict(net.state_dict())
    with torch.no_grad():
        moved.sigma_constant.add_(1e-3)
    with pytest.raises(BundleError, match=r"differs from the network by more than 1e-05: .*sigma"):
        check_parity(moved, graph)


def test_nan_and_infinity_do_not_come_out_again(net: MarketNet, graph: bytes) -> None:
    case = parity_cases(net)[0]
    for value in (np.nan, np.inf, -np.inf):
        broken = dataclasses.replace(
            case, features=np.full_like(case.features, value), feature_mask=np.ones_like(case.feature_mask)
        )
        for name, output in run_graph(graph, broken).items():
            assert np.isfinite(output).all(), name


def test_a_market_outside_the_pool_is_scored_like_one_inside(net: MarketNet, graph: bytes) -> None:
    case = parity_cases(net)[0]
    case.features[1], case.feature_mask[1] = case.features[0], case.feature_mask[0]
    case.market_mask[1] = False
    for run in (run_graph(graph, case), run_network(net, case)):
        for name, output in run.items():
            assert relative_difference(output[0], output[1]) < 1e-6, name


def test_the_graph_carries_no_metadata_and_no_local_path(graph: bytes) -> None:
    repository = str(Path(__file__).resolve().parents[2]).encode()
    for trace in (repository, b"site-packages", b"riskml/"):
        assert trace not in graph
    assert onnx.load_from_string(graph).opset_import[0].version == 20


def test_what_differs_in_metadata_alone_has_the_same_bytes() -> None:
    def model(note: str) -> Any:
        node = onnx.helper.make_node("Relu", ["x"], ["y"], doc_string=note)
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=note)
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1], note)
        value.metadata_props.add(key="source", value=note)
        made = onnx.helper.make_graph([node], "g", [value], [value], doc_string=note)
        found = onnx.helper.make_model(made, doc_string=note)
        found.metadata_props.add(key="path", value=note)
        return found

    one, other = stripped(model("/home/one/riskml")), stripped(model("/home/other/riskml"))
    assert one == other
    assert b"/home" not in one


def test_torch_and_numpy_agree_on_the_account_law_far_below_1e_6() -> None:
    power = (1.0, 0.97, 1.05)
    for size in ((1, 1, 1), (64, 4, 5)):
        accounts, legs, markets = size
        inputs = example_inputs(3, n_accounts=accounts, n_legs=legs, n_markets=markets, seed=sum(size))
        inputs["buffer_ratio"] = np.linspace(0.05, 0.6, accounts)
        expected, found = account_law(**inputs, power=power), torch_law(power)(**inputs)
        for name in LAW_OUTPUTS:
            np.testing.assert_allclose(
                getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-300, err_msg=name
            )
    tail = expected.liquidation_probability
    assert ((tail > 0.0) & (tail < 1e-6)).any()
