"""Random markets, books and policies for the property tests, and how a violation is counted.

Every property is looked at on at least :data:`CASES` seeded cases, in blocks of columns: each account has
markets of its own, so that one call of ``decide`` sees thousands of unrelated markets and books.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from riskml.arrays import Float2D, FloatND
from riskml.bundle import ACCOUNT_GRAPH, Manifest, read_manifest
from riskml.risk import AccountBook, AccountLawFn, Decisions, Forecast, MarginPolicy, decide, numpy_law
from riskml.scoring.session import AccountGraph, make_session
from riskml.units import to_us

CASES = 10_000
"""Least number of random cases of a property."""
N_LEGS = 4
N_POLICIES = 20
TS = to_us("2024-05-01")
HORIZONS = ("1h", "8h", "24h")
HOURS = np.array([1.0, 8.0, 24.0])
ROUNDING = 0.01 + 1e-9
"""USD: what rounding up to cents may add to one side of a comparison."""
KINDS = ("release", pytest.param("wide", marks=pytest.mark.slow))
"""Markets of :func:`random_forecast`; the wide ones, whose bounds are wide as well, wait for the slow run."""
PRODUCTS = ("initial_margin_usd", "maintenance_margin_usd")

_MODELS = Path(__file__).resolve().parents[2] / "models"
RELEASE = _MODELS / (_MODELS / "RELEASE").read_text(encoding="utf-8").strip()

BARE = MarginPolicy(
    offset_cap=1.0,
    correlation_stress=0.0,
    floor=0.0,
    initial_floor=0.0,
    concentration_rate=0.0,
    liquidity_rate=0.0,
)
"""The account law alone: no floor, no add-on, full offsets."""


def release_manifest() -> Manifest:
    """Manifest of the released bundle."""
    return read_manifest(RELEASE)


def make_law(kind: str) -> AccountLawFn:
    """``numpy``: the reference with the release's calibration; ``graph``: the release's account.onnx."""
    if kind == "numpy":
        return numpy_law(release_manifest().calibration_power or (1.0,) * len(HORIZONS))
    return AccountGraph(make_session(RELEASE / ACCOUNT_GRAPH))


def random_forecast(rng: np.random.Generator, n_markets: int, *, kind: str = "wide") -> Forecast:
    """Markets without a common shape.

    ``wide``: 1 h scales of .2-3 %, tails of 2.5-9 degrees of freedom, any loadings, horizons that may be out
    of order. ``release``: what the released bundles say, 1 h scales of .2-1 %, tails of 3.3-4.3 degrees,
    loadings of .5-.95 on one factor and up to .3 on the other.
    """
    wide = kind == "wide"
    scale = np.exp(rng.uniform(np.log(0.002), np.log(0.03 if wide else 0.01), (n_markets, 1, 1)))
    spread = rng.normal(0.0, 0.5 if wide else 0.05, (n_markets, len(HORIZONS), 2))
    sigma = scale * np.sqrt(HOURS)[:, None] * np.exp(spread)
    if wide:
        direction = rng.normal(size=(n_markets, 2))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        loadings = direction * rng.uniform(0.0, 0.99, (n_markets, 1))
    else:
        loadings = np.stack([rng.uniform(0.5, 0.95, n_markets), rng.uniform(-0.3, 0.3, n_markets)], axis=1)
    return Forecast(
        ts=TS,
        markets=tuple(f"m{row}" for row in range(n_markets)),
        horizons=HORIZONS,
        sigma=sigma,
        nu=rng.uniform(*((2.5, 9.0) if wide else (3.3, 4.3)), (n_markets, len(HORIZONS))),
        variance=sigma.mean(axis=2) ** 2,
        stress=np.full((n_markets, len(HORIZONS)), 0.01),
        loadings=loadings,
        degraded=np.zeros(n_markets, dtype=np.bool_),
        calibration_power=tuple(release_manifest().calibration_power),
    )


def random_usd(
    rng: np.random.Generator, shape: tuple[int, ...], low: float = 1e2, high: float = 1e8
) -> FloatND:
    """Signed exposures, log-uniform in size."""
    size = np.exp(rng.uniform(np.log(low), np.log(high), shape))
    return np.asarray(size * rng.choice([-1.0, 1.0], shape))


def random_legs(rng: np.random.Generator, n_accounts: int, n_legs: int = N_LEGS) -> Float2D:
    """Exposures [n_accounts, n_legs]: legs of one account are alike in size, accounts are not."""
    return np.asarray(random_usd(rng, (n_accounts, 1)) * rng.normal(size=(n_accounts, n_legs)))


def random_policy(rng: np.random.Generator, **fixed: Any) -> MarginPolicy:
    """Any policy that validates: every fraction, floor and rate that a requirement is made from."""
    low, high = np.sort(rng.uniform(0.0, 0.1, 2)).tolist()
    values: dict[str, Any] = {
        "maintenance_level": float(rng.uniform(0.9, 0.9995)),
        "initial_level": float(rng.uniform(0.9, 0.9995)),
        "floor": low,
        "initial_floor": high,
        "offset_cap": float(rng.uniform()),
        "correlation_stress": float(rng.uniform()),
        "concentration_start": float(rng.uniform(0.0, 0.9)),
        "concentration_rate": float(rng.uniform(0.0, 0.5)),
        "concentration_min_usd": float(10.0 ** rng.uniform(3.0, 7.0)),
        "liquidity_rate": float(rng.uniform(0.0, 0.2)),
        "chain_stress_haircut": float(rng.uniform()),
        "barrier": str(rng.choice(["riskml", "auto"])),
    }
    return MarginPolicy(**(values | fixed))


def policies(rng: np.random.Generator, **fixed: Any) -> list[MarginPolicy]:
    """The defaults and random policies, :data:`N_POLICIES` in all."""
    return [MarginPolicy(**fixed), *(random_policy(rng, **fixed) for _ in range(N_POLICIES - 1))]


def make_book(
    forecast: Forecast,
    usd: Float2D,
    *,
    cash: ArrayLike = 1e12,
    collateral: dict[str, Any] | None = None,
    orders: dict[str, Any] | None = None,
    accounts: dict[str, Any] | None = None,
    **positions: Any,
) -> AccountBook:
    """Account a holds ``usd[a, l]`` in the forecast's market ``a * n_legs + l``, at a price of 1."""
    n_accounts, n_legs = usd.shape
    ids = account_ids(n_accounts)
    return AccountBook.from_arrays(
        {"account_id": ids, "cash_usd": np.broadcast_to(np.asarray(cash, dtype=np.float64), n_accounts)}
        | (accounts or {}),
        {
            "account_id": np.repeat(ids, n_legs),
            "venue": np.full(usd.size, "sim", dtype=object),
            "symbol": np.asarray(forecast.markets[: usd.size], dtype=object),
            "size": usd.ravel(),
            "mark_price": np.ones(usd.size),
        }
        | positions,
        collateral,
        orders,
    )


def account_ids(n_accounts: int) -> np.ndarray:
    """Names of a book's accounts."""
    return np.array([f"a{row}" for row in range(n_accounts)], dtype=object)


def decide_on(
    forecast: Forecast, usd: Float2D, policy: MarginPolicy, law: AccountLawFn, **more: Any
) -> Decisions:
    """Decide on the book of ``usd``; ``decide``'s own keywords go there, the others to the book."""
    names = ("prices", "conditions", "liquidity_usd", "maintenance_sigma")
    of_decide = {name: more.pop(name) for name in names if name in more}
    return decide(make_book(forecast, usd, **more), forecast, policy, law=law, ts=TS, **of_decide)


def scaled(forecast: Forecast, factor: ArrayLike) -> Forecast:
    """The forecast with its scales multiplied."""
    return replace(forecast, sigma=forecast.sigma * np.asarray(factor))


def shares_of(decisions: Decisions, usd: Float2D) -> Float2D:
    """Euler shares in the shape of ``usd``; every leg of it has to be there."""
    return np.asarray(decisions.contributions.share.reshape(usd.shape))


def assert_never_above(found: ArrayLike, limit: ArrayLike, slack: ArrayLike = 0.0) -> int:
    """Fail where ``found > limit + slack``, with the count and the worst case; returns the cases seen.

    NaN counts as a violation.
    """
    low, high, free = np.broadcast_arrays(
        np.asarray(found, dtype=np.float64), np.asarray(limit, dtype=np.float64), np.asarray(slack)
    )
    bad = ~(low <= high + free)
    if bad.any():
        worst = np.unravel_index(int(np.nanargmax(np.where(bad, low - high - free, -np.inf))), low.shape)
        message = f"{int(bad.sum())} of {bad.size} cases, worst at {worst}: {low[worst]!r} > {high[worst]!r}"
        raise AssertionError(message)
    return bad.size


def assert_enough(seen: int) -> None:
    """Fail where a property was looked at on too few cases."""
    assert seen >= CASES, f"{seen} cases are fewer than {CASES}"
