"""A forecast between the horizons of its bundle."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.errors import ConfigError
from riskml.risk.forecast import Forecast
from riskml.risk.horizons import with_horizons


def forecast(
    sigma: tuple[float, ...] = (0.01, 0.03, 0.05), nu: tuple[float, ...] = (4.0, 5.0, 8.0)
) -> Forecast:
    return Forecast(
        ts=0,
        markets=("BTC",),
        horizons=("1h", "8h", "24h"),
        sigma=np.repeat(np.asarray(sigma)[None, :, None], 2, axis=2),
        nu=np.asarray([nu]),
        variance=np.asarray([[1e-4, 8e-4, 24e-4]]),
        stress=np.asarray([[0.01, 0.05, 0.2]]),
        loadings=np.zeros((1, 2)),
        degraded=np.zeros(1, dtype=np.bool_),
        calibration_power=(0.9, 1.0, 1.1),
    )


def test_a_horizon_of_its_own_comes_back_to_the_last_bit() -> None:
    before = forecast()
    after = with_horizons(before, ("1h", "8h", "24h"))
    for name in ("sigma", "nu", "variance", "stress", "calibration_power"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    assert with_horizons(before, ("24h",)).sigma[0, 0, 0] == 0.05


def test_a_scale_that_obeys_the_square_root_of_time_is_met_exactly_in_between() -> None:
    found = with_horizons(forecast(tuple(0.01 * np.sqrt([1, 8, 24]))), ("6h", "12h"))
    assert found.horizons == ("6h", "12h")
    assert found.sigma[0, :, 0] == pytest.approx(0.01 * np.sqrt([6, 12]), rel=1e-12)
    assert found.variance[0] == pytest.approx([6e-4, 12e-4], rel=1e-12)


def test_the_shape_is_interpolated_as_documented() -> None:
    weight = np.log(6) / np.log(8)
    found = with_horizons(forecast(), ("6h",))
    assert found.sigma[0, 0, 1] == pytest.approx(0.01 ** (1 - weight) * 0.03**weight)
    assert 1.0 / found.nu[0, 0] == pytest.approx((1 - weight) / 4.0 + weight / 5.0)
    assert found.calibration_power[0] == pytest.approx(0.9 * (1 - weight) + weight)
    hazard = (-np.log(0.99)) ** (1 - weight) * (-np.log(0.95)) ** weight
    assert found.stress[0, 0] == pytest.approx(1.0 - np.exp(-hazard))


def test_what_lies_in_between_lies_between_its_neighbours() -> None:
    found = with_horizons(forecast(), ("1h", "2h", "6h", "8h", "9h", "23h", "24h"))
    assert (np.diff(found.sigma[0, :, 0]) > 0.0).all()
    assert (np.diff(found.stress[0]) > 0.0).all()
    assert (np.diff(found.nu[0]) > 0.0).all()


def test_an_unknown_scale_stays_unknown_in_between() -> None:
    found = with_horizons(forecast((0.01, np.nan, 0.05)), ("1h", "6h", "24h"))
    assert np.isnan(found.sigma[0, :, 0]).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("horizons", "message"),
    [
        (("30m",), "30m lies outside"),
        (("1h", "48h"), "48h lies outside"),
        (("8h", "1h"), "have to ascend"),
        (("8h", "8h"), "have to ascend"),
        ((), "have to ascend"),
    ],
)
def test_nothing_is_extrapolated_or_reordered(horizons: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_horizons(forecast(), horizons)
