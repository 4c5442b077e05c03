"""The level controller: bounded, delayed, blind to what is missing, and back on target after a break."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.risk.conformal import LevelControl, LevelController, LevelQuantiles, shifted_level
from riskml.risk.excursion import QUANTILE_POINTS, quantile, survival

LEVEL = 0.995
NU = np.full((1, 1), 4.0)


def controller(
    step: float = 1.0, lower: float = 0.0, bars: tuple[int, ...] = (1,), n: int = 1
) -> LevelController:
    return LevelController(LevelControl(LEVEL, step, 3.0, lower), bars, n)


def push(of: LevelController, low: float, *, sound: bool = True, high: float = 100.0) -> np.ndarray:
    """One bar of one market that closes at 100, with scale 1 % at every horizon."""
    n_horizons = len(of.bars)
    prices = np.array([[high, low, 100.0]])
    return of.step(
        0, prices, np.full((1, n_horizons, 2), 0.01), np.full((1, n_horizons), 4.0), 1.0, np.array([sound])
    )


def test_without_a_closed_window_nothing_moves() -> None:
    assert push(controller(), 50.0).tolist() == [[0.0, 0.0]]


def test_a_breach_raises_its_own_side_by_the_step_less_the_target() -> None:
    of = controller(step=0.8)
    push(of, 100.0)
    assert push(of, 90.0)[0] == pytest.approx([0.8 * (1.0 - 0.005), 0.0])
    assert push(of, 100.0)[0] == pytest.approx([0.8 * (1.0 - 0.010), 0.0])


def test_feedback_on_a_horizon_waits_until_its_window_has_closed() -> None:
    of = controller(bars=(3,))
    shifts = [push(of, low)[0, 0] for low in (100.0, 90.0, 100.0, 100.0)]
    assert shifts[:3] == [0.0, 0.0, 0.0]
    assert shifts[3] == pytest.approx(0.995 / 3)


def test_overlapping_windows_of_one_fall_move_the_level_as_one_window_does() -> None:
    of = controller(bars=(4,))
    for low in (100.0,) * 6 + (80.0,) + (100.0,) * 3:
        push(of, low)
    # the fall lies in four windows, one quarter step each; two sound ones before were clipped at 0
    assert of.shift[0, 0] == pytest.approx(0.995)


def test_markets_are_pooled() -> None:
    of = controller(n=4)
    flat = np.tile([100.0, 100.0, 100.0], (4, 1))
    fell = flat.copy()
    fell[0, 1] = 90.0
    forecast = (np.full((4, 1, 2), 0.01), np.full((4, 1), 4.0), 1.0, np.ones(4, dtype=bool))
    of.step(0, flat, *forecast)
    assert of.step(1, fell, *forecast)[0, 0] == pytest.approx(0.25 - 0.005)


@pytest.mark.parametrize("missing", ["bar", "sound"])
def test_what_is_missing_moves_nothing(missing: str) -> None:
    of = controller()
    push(of, 100.0)
    push(of, 90.0)
    push(of, 100.0, sound=missing != "sound")
    before = of.shift.copy()
    push(of, np.nan if missing == "bar" else 90.0)
    np.testing.assert_array_equal(of.shift, before)


def test_the_shift_stays_within_its_bounds() -> None:
    of = controller(step=1.0)
    for low in [100.0] + [50.0] * 50:
        push(of, low, high=100.0)
    assert of.shift[0].tolist() == [3.0, 0.0]
    two_sided = LevelController(LevelControl(LEVEL, 50.0, 3.0, 0.5), (1,), 1)
    for _ in range(50):
        push(two_sided, 100.0)
    assert two_sided.shift[0].tolist() == [-0.5, -0.5]


def test_one_sided_control_never_asks_for_less_than_without_it() -> None:
    rng = np.random.default_rng(3)
    of, plain = controller(step=2.0, bars=(1, 3)), controller(step=0.0, bars=(1, 3))
    sigma, nu = np.array([[[0.01, 0.012], [0.02, 0.022]]]), np.array([[3.5, 4.5]])
    for _ in range(200):
        push(of, 100.0 * np.exp(-abs(rng.standard_t(3)) * 0.02))
        assert (of.distance(sigma, nu, 1.0) >= plain.distance(sigma, nu, 1.0)).all()
    assert of.shift.max() > 0.0


def test_the_distance_inverts_the_law_at_the_effective_level() -> None:
    of = controller()
    of.shift[:] = [[0.0, 1.3]]
    distance = of.distance(np.full((1, 1, 2), 0.02), NU, 1.25)[0, 0]
    probability = survival((distance / 0.02) ** 1.25, 4.0)
    np.testing.assert_allclose(probability, 1.0 - shifted_level(LEVEL, [0.0, 1.3]), rtol=2e-3)


def test_tabulated_quantiles_grow_with_the_shift_and_agree_with_the_law() -> None:
    table = LevelQuantiles(LEVEL, 1.0, 3.0)
    shifts = np.linspace(-1.0, 3.0, 97)
    rows = table.rows(shifts)
    assert (np.diff(rows, axis=0) > 0.0).all()
    nu = 1.0 / np.linspace(1 / 30.0, 1 / 2.2, QUANTILE_POINTS)
    exact = quantile(shifted_level(LEVEL, shifts)[:, None], nu[None])
    np.testing.assert_allclose(rows, exact, rtol=1e-4)


def test_a_longer_horizon_takes_the_largest_shift_of_those_up_to_it() -> None:
    of = controller(bars=(1, 8, 24))
    of.shift[:] = [[0.2, 0.5], [0.1, 0.0], [0.0, 0.9]]
    assert [of.applied_shift(place) for place in range(3)] == [0.5, 0.5, 0.9]


def test_a_saved_controller_goes_on_as_the_first_one() -> None:
    first, second = controller(bars=(1, 3)), controller(bars=(1, 3))
    lows = [100.0, 95.0, 99.0, 90.0, 100.0, 97.0]
    for low in lows:
        push(first, low)
    second.from_arrays(first.to_arrays())
    for low in lows:
        np.testing.assert_array_equal(push(first, low), push(second, low))
    with pytest.raises(DataError, match="saved level control"):
        controller(bars=(1, 4)).from_arrays(first.to_arrays())


@pytest.mark.parametrize("values", [{"level": 1.0}, {"step": -1.0}, {"max_raise": np.inf}])
def test_a_control_without_bounds_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="has to"):
        LevelControl(**({"level": LEVEL, "step": 1.0, "max_raise": 3.0} | values))


def simulate(step: float, scale: np.ndarray, n_markets: int = 10, seed: int = 0) -> np.ndarray:
    """Breached share per bar of i.i.d. half-t excursions of the given true scale; forecast scale 1 %."""
    rng = np.random.default_rng(seed)
    of = controller(step, n=n_markets)
    sigma, nu = np.full((n_markets, 1, 2), 0.01), np.full((n_markets, 1), 4.0)
    sound, shares, asked = np.ones(n_markets, dtype=bool), np.zeros(len(scale)), np.full(n_markets, np.inf)
    for row, true in enumerate(scale):
        fall = np.abs(rng.standard_t(4.0, n_markets)) * 0.01 * true
        shares[row] = (fall > asked).mean()
        flat = np.full(n_markets, 100.0)
        prices = np.stack([flat, flat * np.exp(-fall), flat], axis=1)
        of.step(row, prices, sigma, nu, 1.0, sound)
        asked = of.distance(sigma, nu, 1.0)[:, 0, 0]
    return shares


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_after_the_scale_doubles_coverage_is_back_within_300_bars(seed: int) -> None:
    scale = np.repeat([1.0, 2.0], 4000)
    without, controlled = simulate(0.0, scale, seed=seed), simulate(0.5, scale, seed=seed)
    assert without[4300:].mean() > 0.03
    assert controlled[4300:].mean() == pytest.approx(0.005, abs=0.0012)


@pytest.mark.slow
def test_a_slow_drift_is_followed() -> None:
    scale = np.exp(np.linspace(0.0, np.log(2.0), 8000))
    assert simulate(0.0, scale)[4000:].mean() > 0.015
    assert simulate(0.5, scale)[4000:].mean() == pytest.approx(0.005, abs=0.0015)
