"""The account law in torch, and its export as ``account.onnx``.

The same law as :mod:`riskml.risk.law`, in the same order, written for few nodes: the cost of one
account is the cost of walking the graph. Everything is float64, because ``1 - exp`` of small moves
and tail probabilities below 1e-30 are lost in float32. The survival table is embedded.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riskml.arrays import Float1D
from riskml.errors import BundleError
from riskml.risk.excursion import (
    MAX_DISTANCE,
    NU_MAX,
    NU_MIN,
    QUANTILE_POINTS,
    quantile_table,
    survival_table,
)
from riskml.risk.law import (
    BARRIER_STEPS,
    FAR_LOSS,
    LAW_INPUTS,
    LAW_OUTPUTS,
    MAX_EXPONENT,
    MIN_ARGUMENT,
    MIN_REMAINDER,
    MIN_SCALE,
    REACHED,
    AccountLawFn,
    LawOutput,
    account_law,
)

OPSET = 20
PARITY = 1e-9
"""Largest difference between torch, graph and numpy, relative to 1 + |value|."""

_DIMENSIONS: dict[str, tuple[str, ...]] = {
    "leg_market": ("n_accounts", "n_legs"),
    "leg_weight": ("n_accounts", "n_legs"),
    "leg_mm_rate": ("n_accounts", "n_legs"),
    "buffer_ratio": ("n_accounts",),
    "sigma": ("n_scenarios", "n_markets", "", ""),
    "nu": ("n_scenarios", "n_markets", ""),
    "loadings": ("n_markets", "n_factors"),
    "quantile_table": ("n_levels", ""),
}
"""Names of the dynamic sizes; an empty one is fixed (horizons, sides, points of 1/nu)."""


class AccountLaw(nn.Module):
    """Account law of :func:`riskml.risk.law.account_law` with fixed calibration powers.

    Parameters
    ----------
    power : b [n_horizons] of g(z) = z**b.
    """

    values: Tensor
    power: Tensor
    inverse_power: Tensor
    origin: Tensor
    spacing: Tensor
    last_cell: Tensor
    stride: Tensor
    row: Tensor
    nu_low: Tensor
    nu_high: Tensor
    inv_nu_low: Tensor
    inv_nu_high: Tensor
    points_per_inv_nu: Tensor
    half_pi: Tensor
    until: Tensor
    beyond: Tensor

    def __init__(self, power: Sequence[float]) -> None:
        super().__init__()
        table = survival_table()
        n_z, n_nu = table.values.shape
        n_horizons = len(power)
        inv_nu_step = (n_nu - 1) / (table.inv_nu_max - table.inv_nu_min)
        earlier = np.tril(np.ones((n_horizons, n_horizons)))
        flat = table.values.ravel()
        # Each entry carries its neighbour in 1/nu: two gathers serve the bilinear form.
        neighbour = np.minimum(np.arange(flat.size) + 1, flat.size - 1)
        buffers: dict[str, Any] = {
            "values": np.stack([flat, flat[neighbour]], axis=1),
            "power": np.asarray(power, dtype=np.float64)[:, None],
            "inverse_power": (1.0 / np.asarray(power, dtype=np.float64))[:, None, None],
            "origin": np.array([0.0, table.inv_nu_min])[:, None, None],
            "spacing": np.array([(n_z - 1) / table.log1p_z_max, inv_nu_step])[:, None, None],
            "last_cell": np.array([n_z - 2.0, n_nu - 2.0])[:, None, None],
            "stride": np.array([float(n_nu), 1.0])[:, None, None],
            "row": np.array(n_nu),
            # Constants that float32 cannot hold travel as float64 buffers.
            "nu_low": np.array(NU_MIN),
            "nu_high": np.array(NU_MAX),
            "inv_nu_low": np.array(1.0 / NU_MAX),
            "inv_nu_high": np.array(1.0 / NU_MIN),
            "points_per_inv_nu": np.array((QUANTILE_POINTS - 1) / (1.0 / NU_MIN - 1.0 / NU_MAX)),
            "half_pi": np.array(0.5 * math.pi),
            "until": earlier[:, :, None],
            "beyond": ((1.0 - earlier) * MAX_DISTANCE)[:, :, None],
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.from_numpy(np.array(value, order="C")))

    def forward(
        self,
        leg_market: Tensor,
        leg_weight: Tensor,
        leg_mm_rate: Tensor,
        buffer_ratio: Tensor,
        sigma: Tensor,
        nu: Tensor,
        loadings: Tensor,
        quantile_table: Tensor,
    ) -> tuple[Tensor, ...]:
        """Outputs of :data:`riskml.risk.law.LAW_OUTPUTS`; shapes as in the numpy law.

        Inside, accounts are the last axis (s scenarios, h horizons, l legs, a accounts): the
        runtime's loops then run over contiguous accounts.
        """
        weight = leg_weight.t()  # [l, a]
        legs = leg_market.t()
        market_major = self._of_legs(sigma.permute(3, 0, 2, 1), legs)  # [side, s, h, l, a]
        down, up = market_major[0], market_major[1]
        alone = torch.where(weight >= 0.0, down, -up)
        scale, slope = self._portfolio(weight, down, up, alone, self._of_legs(loadings.t(), legs))
        divisor = scale.clamp(min=MIN_SCALE)
        pull = weight * slope
        share = pull / divisor[:, :, None]
        inv_nu = self._mixed_inv_nu(share, 1.0 / self._between(nu, self.nu_low, self.nu_high), legs)
        level = self._level_distance(inv_nu, quantile_table)

        rate = (pull * slope).sum(2) / divisor
        margin = self._requirement(scale, rate, level)

        distance = _barrier(weight, leg_mm_rate.t(), buffer_ratio, slope[0])  # [h, a]
        log_survival = self._log_survival(distance**self.power, inv_nu[0])
        probability = torch.where(distance >= MAX_DISTANCE, 0.0, log_survival.exp())
        return (
            (probability * self.until).amax(1).t(),
            (distance + self.beyond).amin(1).t(),
            margin,
            scale.permute(2, 0, 1),
            share[0].permute(2, 1, 0),
        )

    @staticmethod
    def _of_legs(table: Tensor, legs: Tensor) -> Tensor:
        """Values per market (last axis) gathered for every leg [..., l, a]."""
        return table.index_select(-1, legs.reshape(-1)).unflatten(-1, legs.shape)

    def _requirement(self, scale: Tensor, rate: Tensor, level: Tensor) -> Tensor:
        """Loss at each level, rising over horizons [a, s, h, level]; see ``law.loss_at``."""
        distance = level.permute(3, 0, 1, 2)  # [level, s, h, a]
        argument = (rate * distance).clamp(min=-MAX_EXPONENT)
        safe = torch.where(argument.abs() < MIN_ARGUMENT, MIN_ARGUMENT, argument)
        loss = scale * distance * ((1.0 - (-safe).exp()) / safe)
        rising = (loss[:, :, None] * self.until).amax(3)  # [level, s, h, a]
        return rising.permute(3, 1, 2, 0)

    def _portfolio(
        self, weight: Tensor, down: Tensor, up: Tensor, alone: Tensor, loading: Tensor
    ) -> tuple[Tensor, Tensor]:
        b = loading[:, None, None]  # [k, 1, 1, l, a]
        rising, falling = b.relu(), (-b).relu()
        load_down = rising * down - falling * up
        load_up = falling * down - rising * up
        sum_down, sum_up = (weight * load_down).sum(3), (weight * load_up).sum(3)
        worst = torch.maximum(sum_down, sum_up).relu()
        worst_down = torch.where(sum_down >= sum_up, worst, 0.0)
        worst_up = worst - worst_down
        own = (1.0 - (b * b).sum(0)).relu().sqrt() * alone
        own_loss = weight * own
        scale = ((worst * worst).sum(0) + (own_loss * own_loss).sum(2)).sqrt()
        common = (worst_down[:, :, :, None] * load_down + worst_up[:, :, :, None] * load_up).sum(0)
        slope = (common + own_loss * own) / scale.clamp(min=MIN_SCALE)[:, :, None]
        return scale, slope

    def _mixed_inv_nu(self, share: Tensor, inv_nu: Tensor, legs: Tensor) -> Tensor:
        adding = share.relu()
        of_legs = self._of_legs(inv_nu.transpose(1, 2), legs)
        mixed = (adding * of_legs).sum(2) / adding.sum(2).clamp(min=MIN_SCALE)
        return self._between(mixed, self.inv_nu_low, self.inv_nu_high)

    def _level_distance(self, inv_nu: Tensor, table: Tensor) -> Tensor:
        """Distance at each level [s, h, a, level]."""
        position = (inv_nu - self.inv_nu_low) * self.points_per_inv_nu
        cell = position.floor().clamp(0.0, QUANTILE_POINTS - 2.0)
        part = (position - cell)[..., None]
        index, columns = cell.long(), table.t()
        low = torch.nn.functional.embedding(index, columns)
        high = torch.nn.functional.embedding(index + 1, columns)
        return torch.pow(low * (1.0 - part) + high * part, self.inverse_power)

    @staticmethod
    def _between(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(values, low), high)

    def _log_survival(self, z: Tensor, inv_nu: Tensor) -> Tensor:
        """ln S by the embedded table; the order of operations is that of the numpy form."""
        z = z.clamp(0.0, MAX_DISTANCE)
        nu = 1.0 / inv_nu
        square = z * z
        ratio = square / nu
        tail = -0.5 * (nu * torch.log(1.0 + ratio) + torch.log(1.0 + self.half_pi * square / (1.0 + ratio)))
        place = (torch.stack([torch.log(1.0 + z), inv_nu]) - self.origin) * self.spacing
        place = torch.minimum(place.relu(), self.last_cell + 1.0)
        cell = torch.minimum(place.floor(), self.last_cell)
        row_part, column_part = (place - cell).unbind(0)
        corner = (cell * self.stride).sum(0).long()
        across = torch.stack([1.0 - column_part, column_part], -1)
        low = (torch.nn.functional.embedding(corner, self.values) * across).sum(-1)
        high = (torch.nn.functional.embedding(corner + self.row, self.values) * across).sum(-1)
        return tail + low * (1.0 - row_part) + high * row_part


def _barrier(weight: Tensor, mm_rate: Tensor, buffer: Tensor, slope: Tensor) -> Tensor:
    """Distance to the barrier [h, a]; ``slope`` [h, l, a]."""
    stake = weight - mm_rate * weight.abs()
    target, move = buffer.relu(), -slope
    rise = stake * slope
    stake = torch.where(torch.maximum(rise.sum(1, keepdim=True), rise) <= 0.0, 0.0, stake)
    slope_stake = stake * slope
    curve_stake = slope_stake * slope
    z = _advance(target, slope_stake.sum(1), curve_stake.sum(1))
    for _ in range(BARRIER_STEPS - 1):
        growth = (z[:, None] * move).clamp(max=MAX_EXPONENT).exp()
        missing = target - (stake * (1.0 - growth)).sum(1)
        ahead = _advance(missing, (slope_stake * growth).sum(1), (curve_stake * growth).sum(1))
        z = (z + ahead).clamp(0.0, MAX_DISTANCE)
    reached = (stake * (1.0 - (z[:, None] * move).clamp(max=MAX_EXPONENT).exp())).sum(1)
    far = torch.where(move > 0.0, FAR_LOSS, slope.sign().relu())
    at_infinity = (stake * far).sum(1)
    z = torch.where(torch.maximum(reached, at_infinity) >= REACHED * target, z, MAX_DISTANCE + 0.0 * reached)
    return torch.where(buffer <= 0.0, 0.0, z)


def _advance(missing: Tensor, slope: Tensor, curve: Tensor) -> Tensor:
    positive = slope.clamp(min=MIN_SCALE)
    linear = missing / positive
    argument = linear * curve / positive
    safe = torch.where(argument.abs() < MIN_ARGUMENT, MIN_ARGUMENT, argument)
    bent = -(1.0 - safe).clamp(min=MIN_REMAINDER).log() / safe
    return (linear * bent).clamp(-MAX_DISTANCE, MAX_DISTANCE)


def torch_law(power: Sequence[float]) -> AccountLawFn:
    """The torch law as a function of numpy arrays, for comparisons."""
    module = AccountLaw(power).eval()

    def law(**inputs: Any) -> LawOutput:
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in LAW_INPUTS))
        return LawOutput(*(output.numpy() for output in outputs))

    return law


def example_inputs(
    n_horizons: int, *, n_accounts: int = 6, n_legs: int = 5, n_markets: int = 7, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs of the account law, edge cases included (padding, no exposure, no buffer)."""
    rng = np.random.default_rng(seed)
    base = (
        rng.uniform(0.003, 0.02, (2, n_markets, 1, 2)) * np.sqrt(np.linspace(1.0, 24.0, n_horizons))[:, None]
    )
    weight = rng.normal(size=(n_accounts, n_legs))
    weight[:, n_legs - n_legs // 3 :] = 0.0
    weight /= np.maximum(np.abs(weight).sum(1, keepdims=True), 1e-9)
    weight[-1] = 0.0
    buffer = 10.0 ** rng.uniform(-3.0, 0.5, n_accounts)
    buffer[0] = 0.0
    return {
        "leg_market": np.where(weight == 0.0, 0, rng.integers(0, n_markets, weight.shape)),
        "leg_weight": weight,
        "leg_mm_rate": rng.uniform(0.0, 0.05, weight.shape),
        "buffer_ratio": buffer,
        "sigma": np.ascontiguousarray(base),
        "nu": rng.uniform(NU_MIN, 12.0, (2, n_markets, n_horizons)),
        "loadings": rng.uniform(-0.6, 0.7, (n_markets, 2)),
        "quantile_table": quantile_table([0.995, 0.99]),
    }


def export_account_graph(
    path: str | Path, horizons: Sequence[str], calibration: Sequence[float] | Float1D
) -> Path:
    """Write ``account.onnx`` and check it against numpy on inputs other than the traced ones.

    Parameters
    ----------
    path : file to write (atomically).
    horizons : names of the horizons, fixes the length of the horizon axis.
    calibration : power b [n_horizons] of g(z) = z**b.

    Raises
    ------
    BundleError : as many powers as horizons are required; or the graph differs from numpy by more
        than 1e-9, in which case nothing is written.
    """
    power = [float(value) for value in calibration]
    if len(power) != len(horizons) or not all(math.isfinite(value) and value > 0.0 for value in power):
        raise BundleError(
            f"a positive calibration power per horizon is required: {power} for {list(horizons)}"
        )
    content = _graph_bytes(power)
    _check_parity(content, power)
    target = Path(path)
    staging = target.with_name(f".{target.name}.tmp")
    staging.write_bytes(content)
    os.replace(staging, target)
    return target


def _graph_bytes(power: Sequence[float]) -> bytes:
    import onnx

    inputs = example_inputs(len(power))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation notices
        program = torch.onnx.export(
            AccountLaw(power).eval(),
            tuple(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in LAW_INPUTS),
            input_names=list(LAW_INPUTS),
            output_names=list(LAW_OUTPUTS),
            dynamic_shapes={
                name: {axis: label for axis, label in enumerate(_DIMENSIONS[name]) if label}
                for name in LAW_INPUTS
            },
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise BundleError("the exporter returned no graph")
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _strip(model: Any) -> None:
    """Remove what carries local paths or changes from export to export."""
    model.producer_name, model.producer_version, model.doc_string = "riskml", "", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "account", ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]


def _check_parity(content: bytes, power: Sequence[float]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for accounts, legs, markets in ((1, 1, 1), (3, 4, 30), (40, 16, 5)):
        inputs = example_inputs(
            len(power), n_accounts=accounts, n_legs=legs, n_markets=markets, seed=accounts
        )
        expected = account_law(**inputs, power=power)
        for name, found in zip(LAW_OUTPUTS, session.run(None, inputs), strict=True):
            wanted = getattr(expected, name)
            gap = float(np.max(np.abs(found - wanted) / (1.0 + np.abs(wanted)), initial=0.0))
            if not gap <= PARITY:
                raise BundleError(
                    f"account graph and numpy differ by {gap:.1e} in {name}; {PARITY:.0e} is allowed",
                    fix="check the versions of torch, onnxscript and onnxruntime against constraints.txt",
                )
