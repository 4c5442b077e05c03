"""The account law in numpy, torch and ONNX is one law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from riskml.errors import BundleError
from riskml.learning.account_graph import example_inputs, export_account_graph, torch_law
from riskml.risk.law import LAW_OUTPUTS, account_law

pytestmark = pytest.mark.slow  # exporting takes seconds

HORIZONS = ("1h", "8h", "24h")
POWER = (1.0, 0.97, 1.05)
SIZES = [(1, 1, 1), (2, 3, 30), (64, 16, 5), (300, 4, 12)]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_account_graph(tmp_path_factory.mktemp("graph") / "account.onnx", HORIZONS, POWER)


def _inputs(size: tuple[int, int, int]) -> dict[str, Any]:
    accounts, legs, markets = size
    return example_inputs(3, n_accounts=accounts, n_legs=legs, n_markets=markets, seed=sum(size))


@pytest.mark.parametrize("size", SIZES)
def test_torch_and_graph_equal_numpy_to_1e_9(graph: Path, size: tuple[int, int, int]) -> None:
    inputs = _inputs(size)
    expected = account_law(**inputs, power=POWER)
    by_torch = torch_law(POWER)(**inputs)
    by_graph = onnxruntime.InferenceSession(graph).run(None, inputs)
    for name, found in zip(LAW_OUTPUTS, by_graph, strict=True):
        wanted = getattr(expected, name)
        np.testing.assert_allclose(getattr(by_torch, name), wanted, rtol=1e-9, atol=1e-300, err_msg=name)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-300, err_msg=name)


def test_probabilities_below_1e_20_survive_in_the_graph(graph: Path) -> None:
    inputs = _inputs((200, 1, 6))
    inputs["nu"] = np.full_like(inputs["nu"], 30.0)
    inputs["buffer_ratio"] = np.linspace(0.05, 0.6, 200)
    expected = account_law(**inputs, power=POWER).liquidation_probability
    found = onnxruntime.InferenceSession(graph).run(["liquidation_probability"], inputs)[0]
    assert 0.0 < expected[expected > 0.0].min() < 1e-20
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_two_exports_are_identical_and_carry_no_local_paths(graph: Path, tmp_path: Path) -> None:
    again = export_account_graph(tmp_path / "account.onnx", HORIZONS, POWER)
    content = again.read_bytes()
    assert content == graph.read_bytes()
    assert len(content) < 1_000_000
    for trace in (b"site-packages", b"riskml/", str(Path.cwd()).encode()):
        assert trace not in content
    model = onnx.load_from_string(content)
    assert not model.metadata_props
    assert model.opset_import[0].version == 20
    assert [path.name for path in tmp_path.iterdir()] == ["account.onnx"]


@pytest.mark.parametrize("power", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0)])
def test_unusable_powers_are_refused_and_nothing_is_written(tmp_path: Path, power: tuple[float, ...]) -> None:
    with pytest.raises(BundleError, match="a positive calibration power per horizon is required"):
        export_account_graph(tmp_path / "account.onnx", HORIZONS, power)
    assert list(tmp_path.iterdir()) == []


def test_all_three_agree_where_the_loss_falls_at_first(graph: Path) -> None:
    inputs = _inputs((300, 4, 12))
    # Maintenance of more than the net exposure: collateral cancels most of a position.
    rng = np.random.default_rng(1)
    inputs["leg_mm_rate"] *= 10.0 ** rng.uniform(0.0, 4.0, inputs["leg_mm_rate"].shape)
    expected = account_law(**inputs, power=POWER)
    plain = account_law(**{**inputs, "leg_mm_rate": np.zeros_like(inputs["leg_mm_rate"])}, power=POWER)
    assert (expected.distance != plain.distance).mean() > 0.5
    by_torch = torch_law(POWER)(**inputs)
    by_graph = onnxruntime.InferenceSession(graph).run(["liquidation_probability", "distance"], inputs)
    for name, found in zip(("liquidation_probability", "distance"), by_graph, strict=True):
        wanted = getattr(expected, name)
        np.testing.assert_allclose(getattr(by_torch, name), wanted, rtol=1e-9, atol=1e-300, err_msg=name)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-300, err_msg=name)
