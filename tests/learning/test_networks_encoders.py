"""Every sequence part: what it sees, what it must not see, and that its graph says the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from riskml.errors import ConfigError
from riskml.learning.market_graph import check_parity, export_market_graph, random_case
from riskml.learning.networks.encoders import make_encoder
from riskml.learning.networks.market import FeatureRoles, MarketNet
from riskml.learning.recipe import ENCODERS, NetworkSpec, parse_recipe

from .conftest import FEATURES

SEASON = FEATURES.index("hour_of_week")
N_INPUTS = 3
BARS = {"tcn": 63, "gru": 48, "patch": 48, "none": 1}
each_encoder = pytest.mark.parametrize("encoder", ENCODERS)
each_sequence = pytest.mark.parametrize("encoder", ["tcn", "gru", "patch"])


def make_net(encoder: str) -> MarketNet:
    """A network that left its starting point, with inputs to its sequence part."""
    torch.manual_seed(0)
    spec = NetworkSpec(encoder=encoder, channels=6, hidden=8)
    net = MarketNet(spec, FeatureRoles.of(FEATURES, spec, {}), 3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        net.sequence_map.copy_(torch.randn_like(net.sequence_map))
    return net.eval()


def chunk(n_bars: int, n_markets: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    features = torch.randn(n_markets, n_bars, len(FEATURES))
    features[..., SEASON] = torch.arange(n_bars, dtype=torch.float32) % 168
    return features, torch.rand(features.shape) > 0.1, torch.ones(n_markets, dtype=torch.bool)


@each_encoder
def test_a_recipe_knows_how_many_bars_its_encoder_sees(encoder: str) -> None:
    spec = NetworkSpec(encoder=encoder, channels=4)
    made = make_encoder(N_INPUTS, spec)
    assert made.receptive_field == spec.receptive_field == BARS[encoder]
    channels = 0 if encoder == "none" else 4
    assert made(torch.zeros(2, N_INPUTS, BARS[encoder] + 4)).shape == (2, channels, 5)


@each_sequence
def test_an_output_reads_its_whole_window_and_nothing_else(encoder: str) -> None:
    torch.manual_seed(2)
    made = make_encoder(N_INPUTS, NetworkSpec(encoder=encoder, channels=4, dropout=0.0))
    bars = BARS[encoder]
    x = torch.randn(1, N_INPUTS, bars + 20, requires_grad=True)
    made(x)[0, :, 7].square().sum().backward()
    assert x.grad is not None
    read = x.grad[0].abs().sum(dim=0) > 0
    assert read.nonzero().flatten().tolist() == list(range(7, 7 + bars))


@each_encoder
def test_dense_output_equals_the_last_bar_of_each_window(encoder: str) -> None:
    net = make_net(encoder)
    bars = net.receptive_field
    features, mask, present = chunk(bars + 30)
    with torch.inference_mode():
        dense = net.law(features[None], mask[None], present[None])
        assert dense.log_sigma.shape == (1, 3, 31, 3, 2)
        for step in (0, 11, 30):
            part = slice(step, step + bars)
            sigma, nu, variance, stress, _ = net(features[:, part], mask[:, part], present)
            torch.testing.assert_close(sigma, torch.exp(dense.log_sigma[0, :, step]), rtol=1e-5, atol=0)
            torch.testing.assert_close(nu, dense.nu[0, :, step], rtol=1e-5, atol=0)
            torch.testing.assert_close(variance, torch.exp(dense.log_variance[0, :, step]), rtol=1e-5, atol=0)
            torch.testing.assert_close(stress, 1 - torch.exp(-dense.hazard[0, :, step]), rtol=1e-4, atol=1e-7)


@each_encoder
def test_a_forecast_never_depends_on_a_later_bar(encoder: str) -> None:
    net = make_net(encoder)
    features, mask, present = chunk(100)
    other = features.clone()
    other[:, 80:, :SEASON] += 1.0
    with torch.inference_mode():
        one = net.law(features[None], mask[None], present[None])
        two = net.law(other[None], mask[None], present[None])
    before = 80 - (net.receptive_field - 1)
    assert torch.equal(one.log_sigma[:, :, :before], two.log_sigma[:, :, :before])
    assert torch.equal(one.hazard[:, :, :before], two.hazard[:, :, :before])
    assert not torch.equal(one.log_sigma[:, :, before], two.log_sigma[:, :, before])


@each_encoder
def test_markets_may_come_in_any_order(encoder: str) -> None:
    net, order = make_net(encoder), torch.tensor([2, 0, 1])
    features, mask, present = chunk(64)
    with torch.inference_mode():
        plain = net(features, mask, present)
        shuffled = net(features[order], mask[order], present[order])
    for one, other in zip(plain, shuffled, strict=True):
        torch.testing.assert_close(one[order], other, rtol=1e-5, atol=1e-7)


@each_encoder
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e29])
def test_any_input_gives_a_finite_law_and_gradient(encoder: str, value: float) -> None:
    net = make_net(encoder)
    features, mask, present = chunk(64)
    features[0], mask[0] = value, True
    features[1, 30:], mask[1, 30:] = value, True
    mask[2] = False
    outputs = net(features, mask, present)
    torch.stack([output.sum() for output in outputs]).sum().backward()
    for output in outputs:
        assert torch.isfinite(output).all()
    for parameter in net.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@each_encoder
def test_half_precision_stays_near_full_precision(encoder: str) -> None:
    net = make_net(encoder)
    features, mask, present = chunk(64)
    with torch.inference_mode():
        full = net(features, mask, present)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = net(features, mask, present)
    for one, other in zip(full, half, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=0.2, atol=1e-2)


@each_encoder
def test_the_sequence_part_matters_unless_there_is_none(encoder: str) -> None:
    net = make_net(encoder)
    features, mask, present = chunk(64)
    other = features.clone()
    other[:, -20:-1, :SEASON] += 1.0
    with torch.inference_mode():
        one, two = net(features, mask, present), net(other, mask, present)
    assert torch.equal(one[0], two[0]) == (encoder == "none")


# The exporter writes out every step of the recurrent part, which takes it half a minute and more.
@pytest.mark.parametrize("encoder", ["tcn", pytest.param("gru", marks=pytest.mark.slow), "patch", "none"])
def test_the_graph_equals_the_network(encoder: str) -> None:
    net = make_net(encoder)
    assert check_parity(net, export_market_graph(net)) <= 1e-5


@each_encoder
def test_described_inputs_are_those_of_graph_and_cases(encoder: str) -> None:
    net = make_net(encoder)
    feed = random_case(net, "described", n_markets=4, n_bars=70, seed=0).feed()
    described = net.describe_inputs()
    sizes = {"n_markets": 4, "n_bars": 70}
    assert [item.name for item in described] == list(feed)
    for item in described:
        value = feed[item.name]
        shape = tuple(size if isinstance(size, int) else sizes[size] for size in item.shape)
        assert (value.shape, str(value.dtype)) == (shape, item.dtype)
    assert f"at least {BARS[encoder]} bars" in described[0].meaning


def test_the_recurrent_cell_is_the_one_of_torch() -> None:
    torch.manual_seed(3)
    ours = make_encoder(N_INPUTS, NetworkSpec(encoder="gru", channels=4, window_bars=6, dropout=0.0))
    theirs = torch.nn.GRU(N_INPUTS, 4, batch_first=True)
    parts = ("weight_ih_l0", "entry.weight"), ("weight_hh_l0", "recurrent.weight")
    parts += ("bias_ih_l0", "entry.bias"), ("bias_hh_l0", "recurrent.bias")
    state = ours.state_dict()  # type: ignore[attr-defined]
    theirs.load_state_dict({name: state[own] for name, own in parts})
    x = torch.randn(2, N_INPUTS, 6)
    torch.testing.assert_close(ours(x)[:, :, 0], theirs(x.transpose(1, 2))[0][:, -1], rtol=1e-5, atol=1e-6)


def test_weights_saved_under_the_old_name_are_read() -> None:
    net = make_net("tcn")
    old = {name.replace("encoder.", "tcn."): value for name, value in net.state_dict().items()}
    assert "tcn.entry.weight" in old
    fresh = MarketNet(net.spec, net.roles, 3)
    holder, wrapped = torch.nn.ModuleDict({"members": fresh}), {f"members.{k}": v for k, v in old.items()}
    holder.load_state_dict(wrapped)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, net.state_dict()[name])


def test_an_unknown_encoder_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"no encoder 'gro'.*'gru'"):
        make_encoder(N_INPUTS, replace(NetworkSpec(), encoder="gro"))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"encoder": "lstm"}, "encoder has to be one of tcn, gru, patch, none, found 'lstm'"),
        ({"encoder": "gru", "window_bars": 65}, "gru encoder sees 65 bars, more than n_bars = 64"),
        ({"encoder": "patch", "patch_bars": 7}, "patch_bars has to divide window_bars"),
        ({"encoder": "patch", "attention_heads": 5}, "attention_heads has to divide channels"),
        ({"encoder": "patch", "patch_bars": 0}, "have to be at least 1"),
    ],
)
def test_a_recipe_with_an_impossible_encoder_is_refused(network: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe({"name": "toy", "network": network})


@pytest.mark.parametrize("network", [{"encoder": "gru", "patch_bars": 7}, {"encoder": "none", "n_bars": 1}])
def test_sizes_that_an_encoder_does_not_read_do_not_bind_it(network: dict[str, object]) -> None:
    assert parse_recipe({"name": "toy", "network": network}).network.encoder == network["encoder"]
