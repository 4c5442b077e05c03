"""Stress of chains and bridges: what is required while a chain is out of reach, or transfers crawl.

**Outage** of chain c for o hours (policy ``chain_outage_h``). What settles or lies on c can neither be
moved nor netted with the rest, so the account is two: what is *there*, and the *rest*. Positions there
cannot be closed for o hours either, so their law reaches o hours further, at every horizon h by
``sqrt((h + o) / h)``::

    stand_alone = requirement(there, reaching o hours further) + requirement(rest)
    requirement = max(requirement(whole book), stand_alone)

It is never below the stand-alone number by construction. A shortfall is the sum of what the parts lack
on their own: equity there does not help the rest, nor the other way round, and within a part that of one
pool no other (:mod:`riskml.risk.shortfall`). Cash of an account with positions in several parts may be in
any; the one where it helps least counts. It is never below what the account lacks without an outage.

**Several chains at once** are a part each: what is out of reach on one helps nothing on another. Requirement
and shortfall are also never below those of any of the outages alone. The sum of more parts can be lower:
moving collateral that is cut off from every position asks for nothing, as it backs nothing.

**Bridge latency**: the same book with every transfer as slow as :func:`slow_bridges` says; longer transfers
raise the haircut of remote collateral (:mod:`riskml.risk.haircuts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Bool2D, Float1D, Float2D, Float3D
from riskml.errors import ConfigError, DataError, nearest
from riskml.facts import load_facts
from riskml.risk.accounts import AccountBook, Collateral, Orders, Positions
from riskml.risk.assess import INITIAL, MAINTENANCE, MarketLaw
from riskml.risk.collateral import Conditions, chain_facts
from riskml.risk.decisions import decide
from riskml.risk.forecast import Forecast
from riskml.risk.law import AccountLawFn
from riskml.risk.margin import slow_scale
from riskml.risk.outcome import Decisions
from riskml.risk.policy import MarginPolicy
from riskml.risk.settlement import book_chains, on_chain
from riskml.units import HOUR, duration_us


@dataclass(frozen=True)
class ChainOutage:
    """Requirements with one chain out of reach; rows are (initial, maintenance)."""

    chain: AnyArray
    """[n_accounts] the chain that is out of reach: of :func:`worst_chain_outage`, each account's worst; of
    several at once, those that touch the account, joined by "+"; "" where none touches it."""
    requirement_usd: Float2D
    """[2, n_accounts] never below ``stand_alone_usd``, the requirement without an outage, nor that of any of
    several outages alone."""
    stand_alone_usd: Float2D
    """[2, n_accounts] what is on each chain out of reach and the rest, each on its own."""
    shortfall_usd: Float2D
    """[2, n_accounts] what the pools of the parts lack, each on its own equity."""


def chain_outage(
    book: AccountBook,
    chain: str | Sequence[str],
    forecast: Forecast,
    policy: MarginPolicy,
    *,
    law: AccountLawFn,
    ts: int,
    prices: Mapping[str, float] | None = None,
    maintenance_sigma: Float3D | None = None,
    conditions: Conditions | None = None,
    liquidity_usd: Mapping[str, float] | None = None,
    outage_h: float | None = None,
    quantiles: Float2D | None = None,
) -> ChainOutage:
    """Requirements of a book with ``chain`` out of reach.

    Parameters
    ----------
    chain : one, or several that are out of reach at once. Each has facts, is a venue's home, or is one of the
        book.
    outage_h : hours; None = the policy's ``chain_outage_h``.
    quantiles : as of :meth:`riskml.risk.assess.MarketLaw.make`; None = those of the policy's levels.
    Others as in :func:`riskml.risk.decisions.decide`.

    Raises
    ------
    ConfigError : an outage that is negative, NaN, infinite or no number; no chain at all.
    DataError : a chain that is not known; as in :func:`riskml.risk.decisions.decide`.
    """
    hours = policy.chain_outage_h if outage_h is None else outage_h
    if not (_is_number(hours) and np.isfinite(hours) and hours >= 0.0):
        raise ConfigError(f"an outage lasts a finite number of hours, found {hours!r}", fix="write 1.0")
    chains = _known_chains(book, chain)
    # Whose maintenance liquidates does not enter a requirement, and parts of a book have no venue's own.
    policy = replace(policy, barrier="riskml")
    slow = slow_scale(forecast, None, 0.0, policy).sigma if maintenance_sigma is None else maintenance_sigma
    further = _reach_factor(forecast.horizons, hours)[None, :, None]

    def reaching(factor: AnyArray | float) -> Callable[[AccountBook], Decisions]:
        reached = replace(forecast, sigma=forecast.sigma * factor)
        market_law = MarketLaw.make(reached, slow * factor, policy, quantiles)
        return lambda part: decide(
            part,
            reached,
            policy,
            law=law,
            ts=ts,
            prices=prices,
            conditions=conditions,
            liquidity_usd=liquidity_usd,
            market_law=market_law,
        )

    as_ever, held_up = reaching(1.0), reaching(further)
    there = [_Part.of(book, on_chain(book, name), held_up) for name in chains]
    whole = as_ever(book)
    # Each outage alone, and all of them at once.
    outages = [[part] for part in there] + ([there] if len(there) > 1 else [])
    found = [_outage(book, parts, as_ever) for parts in outages]
    touched = np.stack([part.touched for part in there])
    return ChainOutage(
        _joined(chains, touched),
        np.max([_requirements(whole), *(stand_alone for stand_alone, _ in found)], axis=0),
        found[-1][0],
        np.max([_shortfalls(whole), *(shortfall for _, shortfall in found)], axis=0),
    )


def _known_chains(book: AccountBook, chain: str | Sequence[str]) -> list[str]:
    """The chains that are out of reach, each once."""
    if isinstance(chain, str):
        chain = [chain]
    if not isinstance(chain, Iterable):
        raise DataError(
            f"a chain has to be a name, found {chain!r}",
            table="chains",
            fix="write 'solana', or a list of names",
        )
    chains = list(chain)
    if not chains:
        raise ConfigError("an outage of no chain at all is none", fix="name at least one chain")
    facts = load_facts("chains")
    known = sorted({*facts["chain"], *facts["venue_home"].values(), *book_chains(book)})
    for row, name in enumerate(chains):
        if not isinstance(name, str) or name not in known:
            raise DataError(
                f"the chain {name!r} is not known.{nearest(str(name), known)}",
                table="chains",
                row=row,
                fix=f"use one of {', '.join(known)}",
            )
    return list(dict.fromkeys(chains))


@dataclass(frozen=True)
class _Part:
    """What of a book is on one chain or, of the rest, on none of those out of reach."""

    rows: tuple[Bool1D, Bool1D, Bool1D]
    """Positions, collateral and orders of the book that are in it."""
    holds: Bool1D
    """[n_accounts] has a position in it."""
    touched: Bool1D
    """[n_accounts] has a position or collateral in it."""
    required_usd: Float2D
    """[2, n_accounts]."""
    lacking_usd: Float2D
    """[2, n_accounts] what its pools lack without cash."""
    lacking_with_cash_usd: Float2D
    """[2, n_accounts] the same with the account's cash."""

    @classmethod
    def of(
        cls, book: AccountBook, rows: tuple[Bool1D, Bool1D, Bool1D], score: Callable[[AccountBook], Decisions]
    ) -> _Part:
        part = _part(book, *rows)
        decisions = score(part)
        with_cash = score(replace(part, cash_usd=book.cash_usd)) if book.cash_usd.any() else decisions
        holds, touched = (np.zeros(len(book), dtype=np.bool_) for _ in range(2))
        holds[book.positions.account[rows[0]]] = True
        touched |= holds
        touched[book.collateral.account[rows[1]]] = True
        return cls(
            rows, holds, touched, _requirements(decisions), _shortfalls(decisions), _shortfalls(with_cash)
        )


def _outage(
    book: AccountBook, there: Sequence[_Part], score: Callable[[AccountBook], Decisions]
) -> tuple[Float2D, Float2D]:
    """Stand-alone number and shortfall [2, n_accounts] with some parts out of reach, and the rest."""
    positions, collateral, orders = (
        ~np.logical_or.reduce(masks) for masks in zip(*(p.rows for p in there), strict=True)
    )
    rest = _Part.of(book, (positions, collateral, orders), score)
    parts = [*there, rest]
    return np.sum([part.required_usd for part in parts], axis=0), _shortfall(book, parts)


def _joined(chains: Sequence[str], touched: Bool2D) -> AnyArray:
    """Names of the chains [n_chains, n_accounts] that touch each account, joined by "+"."""
    names = [
        "+".join(name for name, is_on in zip(chains, column, strict=True) if is_on) for column in touched.T
    ]
    return np.asarray(names, dtype=object)


def worst_chain_outage(
    book: AccountBook,
    forecast: Forecast,
    policy: MarginPolicy,
    *,
    law: AccountLawFn,
    ts: int,
    chains: Sequence[str] | None = None,
    prices: Mapping[str, float] | None = None,
    maintenance_sigma: Float3D | None = None,
    conditions: Conditions | None = None,
    liquidity_usd: Mapping[str, float] | None = None,
) -> ChainOutage:
    """The largest requirement and shortfall over the outage of each chain, one at a time.

    Parameters
    ----------
    chains : None = every chain of the book. Others as in :func:`chain_outage`.
    """
    # Of a book without chains any will do: it touches nothing.
    own = book_chains(book) or sorted(load_facts("chains")["chain"])[:1]
    wanted = own if chains is None else _known_chains(book, chains)
    every = [
        chain_outage(
            book,
            chain,
            forecast,
            policy,
            law=law,
            ts=ts,
            prices=prices,
            maintenance_sigma=maintenance_sigma,
            conditions=conditions,
            liquidity_usd=liquidity_usd,
        )
        for chain in wanted
    ]
    lack = np.stack([found.shortfall_usd[INITIAL] for found in every])
    need = np.stack([found.requirement_usd[INITIAL] for found in every])
    # The chain without which most is lacking; where nothing lacks, that with the largest requirement.
    worst = np.where(lack.max(axis=0) > 0.0, lack.argmax(axis=0), need.argmax(axis=0))
    accounts = np.arange(len(book))
    return ChainOutage(
        np.stack([found.chain for found in every])[worst, accounts],
        np.max([found.requirement_usd for found in every], axis=0),
        np.max([found.stand_alone_usd for found in every], axis=0),
        np.max([found.shortfall_usd for found in every], axis=0),
    )


def slow_bridges(conditions: Conditions, ts: int, hours: float | None = None) -> Conditions:
    """The conditions with every transfer ``hours`` slower; None = by each chain's canonical exit.

    Never faster than they are. Chains without facts already count with the longest exit.

    Raises
    ------
    ConfigError : a delay that is negative, NaN or no number.
    """
    if hours is not None and not (_is_number(hours) and hours >= 0.0):
        raise ConfigError(f"a delay is a number of hours >= 0, found {hours!r}", fix="write 24.0")
    delays = dict(conditions.transfer_delay_h)
    for chain in load_facts("chains")["chain"]:
        facts = chain_facts(chain, ts)
        if facts is None:
            continue
        exits = max(float(facts["exit_s"]) - float(facts["transfer_s"]), 0.0) / 3600.0
        # NaN, no end known, stays.
        delays[chain] = float(np.maximum(delays.get(chain, 0.0), exits if hours is None else hours))
    return replace(conditions, transfer_delay_h=delays)


def _reach_factor(horizons: Sequence[str], outage_h: float) -> Float1D:
    """How much further the law reaches over h + o than over h [n_horizons]."""
    hours = np.asarray([duration_us(horizon) / HOUR for horizon in horizons])
    return np.asarray(np.sqrt((hours + outage_h) / hours))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _shortfalls(decisions: Decisions) -> Float2D:
    rows = [np.empty(0), np.empty(0)]
    rows[INITIAL], rows[MAINTENANCE] = decisions.initial_shortfall_usd, decisions.maintenance_shortfall_usd
    return np.stack(rows)


def _requirements(decisions: Decisions) -> Float2D:
    rows = [np.empty(0), np.empty(0)]
    rows[INITIAL], rows[MAINTENANCE] = decisions.initial_margin_usd, decisions.maintenance_margin_usd
    return np.stack(rows)


def _shortfall(book: AccountBook, parts: Sequence[_Part]) -> Float2D:
    """What the parts lack [2, n_accounts], with cash in the one where it helps least.

    Cash is where a position needs it: in any part that has one, in the last part (the rest) where none has.
    """
    nowhere = ~np.any([part.holds for part in parts], axis=0)
    worst = np.full((2, len(book)), -np.inf)
    for number, part in enumerate(parts):
        lacking = [
            one.lacking_with_cash_usd if place == number else one.lacking_usd
            for place, one in enumerate(parts)
        ]
        allowed = part.holds | (nowhere if number == len(parts) - 1 else False)
        worst = np.where(allowed, np.maximum(worst, np.sum(lacking, axis=0)), worst)
    return worst


def _part(book: AccountBook, positions: Bool1D, collateral: Bool1D, orders: Bool1D) -> AccountBook:
    """The same accounts with some of their rows, without cash and without a venue's own maintenance."""
    held, backing, placed = book.positions, book.collateral, book.orders
    nothing = np.zeros(len(book))
    return replace(
        book,
        cash_usd=nothing,
        maintenance_margin_usd=np.full(len(book), np.nan),
        positions=Positions(*(getattr(held, name)[positions] for name in Positions.__dataclass_fields__)),
        collateral=Collateral(
            *(getattr(backing, name)[collateral] for name in Collateral.__dataclass_fields__)
        ),
        orders=Orders(*(getattr(placed, name)[orders] for name in Orders.__dataclass_fields__)),
    )
