"""From guarded forecasts to decisions: the state that a requirement carries from bar to bar.

Shared by the live scorer and the backfill. Besides the guarded forecast it keeps

- the slow scale behind maintenance, whose rise is rate-limited;
- while a market is degraded, the whole forecast of that market's last sound bar (the
  *anchor*). A hedge may make a book's requirement fall when one scale rises, so holding up
  scales alone is not enough: an account that touches a degraded market gets the largest of
  its requirements under the guarded forecast, under the anchors, and under the fallback law's
  and the stressed scale's own values (the *floors*);
- each account's last action and since when, for hysteresis and cool-down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float2D, Float3D, FloatND
from riskml.errors import ConfigError, nearest
from riskml.markets import Market
from riskml.risk.accounts import AccountBook
from riskml.risk.assess import MarketLaw
from riskml.risk.decisions import Conditions, decide
from riskml.risk.forecast import Forecast
from riskml.risk.margin import ReferenceSigma, reference_sigma, slow_scale
from riskml.risk.outcome import Decisions
from riskml.risk.policy import MarginPolicy
from riskml.risk.reasons import reason_bit
from riskml.scoring.guards import GuardedForecast, degraded_names
from riskml.scoring.levels import make_level_feed
from riskml.scoring.session import LoadedBundle
from riskml.units import HOUR, duration_us

OVERDUE_BARS = 2
"""From this age in bars on a forecast is held up by the stressed scale."""

_ARRAYS = ("sigma", "nu", "variance", "stress", "loadings")


@dataclass(frozen=True)
class Scales:
    """A forecast with the slow scale that belongs to it."""

    forecast: Forecast
    maintenance: Float3D
    """[n_markets, n_horizons, 2]."""
    rate_limited: Bool1D
    """The rise of the slow scale was limited [n_markets]."""
    anti_procyclical: Bool1D
    """The policy's ``apc`` option raised it [n_markets]."""
    policy: MarginPolicy
    target: Float3D
    """``maintenance`` before its rate limit."""
    quantiles: Float2D | None = None
    """Quantiles at the controlled levels [2 (initial, maintenance), n_nu]; None = the policy's own."""

    @cached_property
    def market_law(self) -> MarketLaw:
        """What the account law needs of them; the same for every book until the next bar."""
        return MarketLaw.make(self.forecast, self.maintenance, self.policy, self.quantiles)

    @cached_property
    def announced(self) -> Scales:
        """The same with maintenance where it is going: its notice."""
        return replace(self, maintenance=np.fmax(self.target, self.maintenance))


class Requirements:
    """Turns the stream of guarded forecasts into requirements for books.

    Parameters
    ----------
    bundle : gives the account law and the reference scales.
    policy : what is asked.
    """

    def __init__(self, bundle: LoadedBundle, policy: MarginPolicy) -> None:
        self.bundle = bundle
        self.policy = policy
        self.scales: Scales | None = None
        """The newest bar."""
        self.anchors: dict[int, Scales] = {}
        """Sound bars by their time, kept while a degraded market's last sound bar is theirs."""
        self.floors: tuple[Scales, ...] = ()
        """The newest bar under what holds its degraded markets up; empty while all are sound."""
        self.last_sound: dict[str, int] = {}
        """Time of each market's last sound bar."""
        self.actions: dict[str, tuple[int, int]] = {}
        """Last action of each account and when it began; ``normal`` is not kept."""
        self._overdue: tuple[Scales, Scales] | None = None
        self.level = make_level_feed(bundle, policy)
        """The level control; None = off."""
        known = bundle.manifest.horizons
        for name in ("maintenance_horizon", "initial_horizon", "action_horizon"):
            horizon = getattr(policy, name)
            if horizon not in known:
                raise ConfigError(
                    f"the policy's {name} is '{horizon}'; the bundle forecasts {', '.join(known)}."
                    f"{nearest(horizon, known)}",
                    fix="use a horizon of the bundle, or fit one with that horizon",
                )

    @property
    def forecast(self) -> Forecast | None:
        """The newest guarded forecast."""
        return None if self.scales is None else self.scales.forecast

    def take(self, guarded: GuardedForecast, markets: Sequence[Market]) -> Forecast:
        """Take the next bar; returns it as a :class:`Forecast`."""
        forecast = make_forecast(self.bundle, guarded, markets)
        reference = self._reference(forecast.markets)
        previous, previous_nu, elapsed_h = None, None, 0.0
        if self.scales is not None:
            previous = _widened(self.scales.maintenance, len(markets))
            previous_nu = _widened(self.scales.forecast.nu, len(markets))
            elapsed_h = (forecast.ts - self.scales.forecast.ts) / HOUR
        slow = slow_scale(forecast, previous, elapsed_h, self.policy, reference, previous_nu)
        self._keep_anchors(forecast)
        quantiles = None if self.level is None else self.level.take(guarded, forecast)
        self.scales = Scales(
            forecast,
            slow.sigma,
            slow.rate_limited,
            slow.anti_procyclical,
            self.policy,
            slow.target,
            quantiles,
        )
        self.floors = self._make_floors(guarded, markets, self.scales, reference)
        return forecast

    def decide(
        self,
        book: AccountBook,
        ts: int,
        prices: Mapping[str, float],
        *,
        conditions: Conditions | None = None,
        liquidity_usd: Mapping[str, float] | None = None,
        remember: bool = True,
        announced: bool = False,
    ) -> Decisions:
        """Decide on a book at ``ts``; ``remember=False`` leaves the accounts' actions as they were.

        ``announced`` asks as if maintenance had reached where its rate limit lets it go to. ``prices``,
        ``conditions`` and ``liquidity_usd`` as in :func:`riskml.risk.decisions.decide`.
        """
        newest, *others = self.views_at(ts)

        def under(which: Scales) -> Decisions:
            which = which.announced if announced else which
            return decide(
                book,
                which.forecast,
                self.policy,
                law=self.bundle.account,
                ts=ts,
                prices=prices,
                bundle_id=self.bundle.manifest.bundle_id,
                conditions=conditions,
                liquidity_usd=liquidity_usd,
                previous=self.actions,
                notes={"rate-limited": which.rate_limited, "anti-procyclical": which.anti_procyclical},
                market_law=which.market_law,
            )

        decisions = under(newest)
        touched = (decisions.reasons & np.uint64(reason_bit("degraded-forecast"))) > 0
        if touched.any():
            for other in others:
                decisions = _stricter(decisions, under(other), touched)
        if remember:
            self._remember_actions(decisions)
        return decisions

    def views_at(self, ts: int) -> list[Scales]:
        """What a decision at ``ts`` is made from: the newest bar, held up when it is overdue, then what an
        account that touches a degraded market has to meet as well."""
        if self.scales is None:
            raise AssertionError("take a bar before deciding")
        newest = self._held_if_overdue(self.scales, ts)
        # What was sound until it was overdue is an anchor as well: a scale held up may serve a hedge.
        overdue = () if newest is self.scales else (self.scales,)
        return [newest, *self.anchors.values(), *self.floors, *overdue]

    def _reference(self, markets: tuple[str, ...]) -> ReferenceSigma | None:
        raw = self.bundle.manifest.reference_sigma
        return reference_sigma(raw, markets, len(self.bundle.manifest.horizons)) if raw else None

    def _make_floors(
        self,
        guarded: GuardedForecast,
        markets: Sequence[Market],
        scales: Scales,
        reference: ReferenceSigma | None,
    ) -> tuple[Scales, ...]:
        """The bar under each of ``guarded.floors``, and with maintenance at its own stressed floor."""
        if not guarded.floors:
            return ()
        floors = [
            replace(scales, forecast=make_forecast(self.bundle, replace(guarded, output=output), markets))
            for output in guarded.floors
        ]
        if reference is not None:
            least = self.policy.stressed_floor * reference.stressed
            held = (guarded.degraded > 0)[:, None, None] & (least > 0.0)
            floors[-1] = replace(floors[-1], maintenance=np.where(held, least, scales.maintenance))
        return tuple(floors)

    def _keep_anchors(self, forecast: Forecast) -> None:
        if self.scales is not None:
            self.anchors[self.scales.forecast.ts] = self.scales
        for market, degraded in zip(forecast.markets, forecast.degraded, strict=True):
            if not degraded:
                self.last_sound[market] = forecast.ts
        wanted = {
            self.last_sound.get(market)
            for market, degraded in zip(forecast.markets, forecast.degraded, strict=True)
            if degraded
        }
        self.anchors = {ts: scales for ts, scales in self.anchors.items() if ts in wanted}

    def _held_if_overdue(self, scales: Scales, ts: int) -> Scales:
        forecast = scales.forecast
        if ts - forecast.ts < OVERDUE_BARS * duration_us(forecast.interval):
            return scales
        if self._overdue is not None and self._overdue[0] is scales:
            return self._overdue[1]
        reference = self._reference(forecast.markets)
        stressed = np.full_like(forecast.sigma, np.nan) if reference is None else reference.stressed
        old = tuple("|".join(filter(None, (reason, "overdue"))) for reason in forecast.degraded_reasons)
        held = replace(
            scales,
            forecast=replace(
                forecast,
                sigma=np.fmax(forecast.sigma, stressed),
                degraded=np.ones(len(forecast.markets), dtype=np.bool_),
                degraded_reasons=old,
            ),
            maintenance=np.fmax(scales.maintenance, self.policy.stressed_floor * stressed),
        )
        self._overdue = (scales, held)
        return held

    def _remember_actions(self, decisions: Decisions) -> None:
        for account, action in zip(decisions.account_id.tolist(), decisions.action.tolist(), strict=True):
            known = self.actions.get(account)
            if action == 0:
                self.actions.pop(account, None)
            elif known is None or known[0] != action:
                self.actions[account] = (action, decisions.ts)

    def to_arrays(self) -> dict[str, AnyArray]:
        """Everything that is remembered, for a saved state."""
        kept = [*self.anchors.values(), *([self.scales] if self.scales is not None else []), *self.floors]
        arrays: dict[str, AnyArray] = {
            "n_anchors": np.array(len(self.anchors)),
            "n_floors": np.array(len(self.floors)),
            "n_scales": np.array(len(kept)),
            "sound/market": np.array(list(self.last_sound), dtype=np.str_),
            "sound/ts": np.array(list(self.last_sound.values()), dtype=np.int64),
            "action/account": np.array(list(self.actions), dtype=np.str_),
            "action/value": np.array(list(self.actions.values()), dtype=np.int64).reshape(-1, 2),
        }
        for number, scales in enumerate(kept):
            forecast = scales.forecast
            arrays |= {f"{number}/{name}": getattr(forecast, name) for name in (*_ARRAYS, "degraded")}
            arrays |= {
                f"{number}/ts": np.array(forecast.ts),
                f"{number}/reasons": np.array(forecast.degraded_reasons, dtype=np.str_),
                f"{number}/maintenance": scales.maintenance,
                f"{number}/rate_limited": scales.rate_limited,
                f"{number}/anti_procyclical": scales.anti_procyclical,
                f"{number}/target": scales.target,
            }
            if scales.quantiles is not None:
                arrays[f"{number}/quantiles"] = scales.quantiles
        if self.level is not None:
            arrays |= {f"level/{name}": array for name, array in self.level.controller.to_arrays().items()}
        return arrays

    def from_arrays(self, arrays: Mapping[str, AnyArray], markets: Sequence[Market]) -> None:
        """The inverse of :meth:`to_arrays`; an anchor may lack the newest markets."""
        kept = []
        for number in range(int(arrays["n_scales"])):
            values = {name: arrays[f"{number}/{name}"] for name in (*_ARRAYS, "degraded")}
            reasons = tuple(arrays[f"{number}/reasons"].tolist())
            known = list(markets)[: len(values["nu"])]
            forecast = _forecast(self.bundle, int(arrays[f"{number}/ts"]), known, reasons, **values)
            parts = ("maintenance", "rate_limited", "anti_procyclical")
            maintenance, limited, raised = (arrays[f"{number}/{name}"] for name in parts)
            quantiles = None if self.level is None else arrays.get(f"{number}/quantiles")
            # A state of before 0.5 has no target: nothing is announced until the next bar.
            target = arrays.get(f"{number}/target", maintenance)
            kept.append(Scales(forecast, maintenance, limited, raised, self.policy, target, quantiles))
        if self.level is not None and "level/shift" in arrays:
            prefix = "level/"
            saved = {name.removeprefix(prefix): at for name, at in arrays.items() if name.startswith(prefix)}
            self.level.controller.from_arrays(saved)
        n_anchors, n_floors = int(arrays["n_anchors"]), int(arrays.get("n_floors", np.array(0)))
        self.floors = tuple(kept[len(kept) - n_floors :])
        kept = kept[: len(kept) - n_floors]
        self.anchors = {scales.forecast.ts: scales for scales in kept[:n_anchors]}
        self.scales = kept[n_anchors] if len(kept) > n_anchors else None
        self.last_sound = dict(zip(arrays["sound/market"].tolist(), arrays["sound/ts"].tolist(), strict=True))
        self.actions = {
            account: (int(action), int(since))
            for account, (action, since) in zip(
                arrays["action/account"].tolist(), arrays["action/value"].tolist(), strict=True
            )
        }


def make_forecast(bundle: LoadedBundle, guarded: GuardedForecast, markets: Sequence[Market]) -> Forecast:
    """A guarded bar in the public form."""
    reasons = tuple(degraded_names(int(bits)) for bits in guarded.degraded)
    values: dict[str, Any] = {name: getattr(guarded.output, name) for name in _ARRAYS}
    return _forecast(bundle, guarded.ts, markets, reasons, degraded=guarded.degraded > 0, **values)


def _forecast(
    bundle: LoadedBundle, ts: int, markets: Sequence[Market], reasons: tuple[str, ...], **values: AnyArray
) -> Forecast:
    manifest = bundle.manifest
    return Forecast(
        ts=ts,
        markets=tuple(market.symbol for market in markets),
        venues=tuple(market.venue for market in markets),
        horizons=tuple(manifest.horizons),
        degraded_reasons=reasons,
        bundle_id=manifest.bundle_id,
        interval=manifest.interval,
        calibration_power=tuple(manifest.calibration_power),
        **values,
    )


def _widened(maintenance: Float3D, n_markets: int) -> Float3D:
    """Rows of NaN for markets that joined since: they start without a past."""
    missing = n_markets - len(maintenance)
    return np.concatenate([maintenance, np.full((missing, *maintenance.shape[1:]), np.nan)])


def _stricter(ours: Decisions, other: Decisions, accounts: Bool1D) -> Decisions:
    """The worse of two decisions for the marked accounts; the first one's for the rest."""

    def worse(name: str, *, smaller: bool = False) -> FloatND:
        first, second = getattr(ours, name), getattr(other, name)
        worst = np.minimum(first, second) if smaller else np.maximum(first, second)
        return np.asarray(np.where(accounts.reshape(-1, *([1] * (first.ndim - 1))), worst, first))

    changes: dict[str, Any] = {
        name: worse(name)
        for name in (
            "initial_margin_usd",
            "maintenance_margin_usd",
            "liquidation_probability",
            "risk_score",
            "action",
            "barrier_margin_usd",
            "unrounded_usd",
            "initial_shortfall_usd",
            "maintenance_shortfall_usd",
        )
    }
    lesser = ("equity_usd", "collateral_usd", "distance", "initial_spare_usd")
    changes |= {name: worse(name, smaller=True) for name in lesser}
    changes["reasons"] = np.where(accounts, ours.reasons | other.reasons, ours.reasons)
    return replace(ours, **changes)
