"""The generated accounts: who holds what, and who is liquidated on the path.

One hour is: fills in its first minute, liquidations minute by minute, fills of resting
orders, then funding, deposits and withdrawals, then a snapshot. Cash is what realised
profit and the ledger make of it: between two snapshots an account's cash changes by its
ledger entries and its realised profit, and by nothing else.

Equity of an account = cash + collateral + open profit. The margin of an isolated
position is set aside out of it: the stored cash holds it, the simulation keeps it apart.
There are no haircuts and no trading fees: a liquidation happens when the equity of the
pool at the worst price of a minute is below its maintenance margin.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from riskml.arrays import Bool1D, Bool2D, Float1D, Float2D, Float3D, FloatND, Int1D
from riskml.tables.synthetic_chain import CHAINS
from riskml.units import HOUR, MINUTE, SECOND

MODES = ("cross", "isolated", "portfolio")
ASSETS = ("USDC", "USDT", "ETH")
LIQUIDATION_FEE = 0.01
"""Share of the closed value that a liquidation costs."""
_MAX_POSITIONS = 6
_MAINTENANCE_SHARE = 0.6
"""New exposure is capped where maintenance would take this share of equity."""


@dataclass(frozen=True)
class AccountMarket:
    """The part of the market that the accounts live in; n_hours hours, times in microseconds."""

    start_us: int
    price: Float2D
    """Last price at the start and at the end of each hour [n_hours + 1, n_markets]."""
    minute_high: Float3D
    """[n_hours, 60, n_markets]"""
    minute_low: Float3D
    funding: Float2D
    """Rate paid at the end of the hour, 0 when none is due [n_hours, n_markets]."""
    collateral_price: Float2D
    """Price of ASSETS at the start and at the end of each hour [n_hours + 1, n_assets]."""
    maintenance_rate: Float1D
    symbols: tuple[str, ...]


@dataclass
class AccountState:
    """Every account now. Signed sizes, [n_accounts, n_markets] unless said otherwise."""

    mode: Int1D
    """Index into MODES [n_accounts]."""
    appetite: Float1D
    """Gross exposure over equity that the account aims at [n_accounts]."""
    wealth: Float1D
    """Equity at the start [n_accounts]."""
    cash: Float1D
    """Cash without the margin of isolated positions [n_accounts]."""
    collateral: Float3D
    """Units [n_accounts, n_chains, n_assets]."""
    size: Float2D
    entry: Float2D
    isolated: Bool2D
    isolated_margin: Float2D


@dataclass
class AccountHistory:
    """What happened: snapshots [n_hours, ...] and event rows."""

    cash: list[Float1D] = field(default_factory=list)
    """With the margin of isolated positions."""
    maintenance: list[Float1D] = field(default_factory=list)
    collateral: list[Float3D] = field(default_factory=list)
    size: list[Float2D] = field(default_factory=list)
    entry: list[Float2D] = field(default_factory=list)
    isolated: list[Bool2D] = field(default_factory=list)
    isolated_margin: list[Float2D] = field(default_factory=list)
    orders: list[FloatND] = field(default_factory=list)
    """Per hour rows of (account, market, size, price, order number, reduce only)."""
    trades: list[tuple[int, int, int, float, float, bool]] = field(default_factory=list)
    """(ts, account, market, size, price, is taker)"""
    ledger: list[tuple[int, int, float, str]] = field(default_factory=list)
    """(ts, account, delta_usd, kind)"""
    liquidations: list[tuple[int, int, int, float, float]] = field(default_factory=list)
    """(ts, account, market, signed size that was closed, price)"""


class AccountSimulation:
    """Runs the accounts over the hours of an :class:`AccountMarket`."""

    def __init__(self, rng: np.random.Generator, market: AccountMarket, n_accounts: int) -> None:
        self.rng = rng
        self.market = market
        self.history = AccountHistory()
        self.state = _open_accounts(rng, market, n_accounts)
        self.orders = np.zeros((0, 6))
        self.order_number = 0
        for account in range(n_accounts):
            for _ in range(int(rng.integers(1, _MAX_POSITIONS + 1))):
                self._open_position(account, 0, market.start_us - int(rng.integers(1, 600)) * SECOND)

    def run(self) -> AccountHistory:
        """Simulate every hour and return the history."""
        for hour in range(len(self.market.minute_low)):
            start = self.market.start_us + hour * HOUR
            self._trade(hour, start)
            liquidated = self._liquidate_cross(hour, start) | self._liquidate_isolated(hour, start)
            self._fill_orders(hour, start, liquidated)
            self._pay_funding(hour, start + HOUR)
            self._move_cash(hour, start + HOUR)
            self._renew_orders(hour)
            self._snapshot(hour)
        return self.history

    def equity(self, price: Float1D, assets: Float1D) -> Float1D:
        """Cash, collateral and profit of the cross pool at the given prices [n_accounts]."""
        state = self.state
        profit = np.where(state.isolated, 0.0, state.size * (price - state.entry)).sum(axis=1)
        return state.cash + (state.collateral * assets).sum(axis=(1, 2)) + profit

    def _trade(self, hour: int, start: int) -> None:
        state, rng = self.state, self.rng
        count = (state.size != 0).sum(axis=1)
        chance = np.where(count == 0, 0.15, 0.03)
        for account in np.flatnonzero(rng.random(len(chance)) < chance).tolist():
            ts = start + int(rng.integers(1, 60)) * SECOND
            held = np.flatnonzero(state.size[account])
            if len(held) and rng.random() < 0.45:
                market = int(rng.choice(held))
                share = 1.0 if rng.random() < 0.5 else 0.5
                closing = -state.size[account, market] * share
                self._fill(account, market, closing, self.market.price[hour, market], ts, True)
            elif len(held) < _MAX_POSITIONS:
                self._open_position(account, hour, ts)

    def _open_position(self, account: int, hour: int, ts: int) -> None:
        """Open or add to a position, as far as equity and maintenance allow."""
        state, rng = self.state, self.rng
        price = self.market.price[hour]
        popularity = (state.size[account] == 0) + 0.2
        popularity = popularity / (2.0 + np.arange(len(price)))
        market = int(rng.choice(len(price), p=popularity / popularity.sum()))
        rate = self.market.maintenance_rate[market]
        equity = self.equity(price, self.market.collateral_price[hour])[account]
        own = np.where(state.isolated[account], 0.0, np.abs(state.size[account]) * price)
        held = state.size[account, market]
        side = np.sign(held) if held else (1.0 if rng.random() < 0.6 else -1.0)
        share = rng.uniform(0.2, 0.6)
        alone = bool(state.isolated[account, market])
        if not held:
            alone = bool(state.mode[account] == 1 or (state.mode[account] == 0 and rng.random() < 0.06))
        if alone:
            leverage = min(state.appetite[account], _MAINTENANCE_SHARE / rate)
            margin = min(share * equity, 0.5 * state.cash[account])
            notional = margin * leverage
        else:
            room = _MAINTENANCE_SHARE * equity - (own * self.market.maintenance_rate).sum()
            aim = state.appetite[account] * equity
            notional = min(share * aim, aim - own.sum(), room / rate)
            margin = 0.0
        if notional < 50.0:
            return
        state.isolated[account, market] = alone
        if alone:
            margin = round(float(margin), 2)
            state.cash[account] -= margin
            state.isolated_margin[account, market] += margin
        size = side * float(_lot(notional / price[market]))
        self._fill(account, market, size, float(price[market]), ts, True)

    def _fill(self, account: int, market: int, size: float, price: float, ts: int, taker: bool) -> None:
        """Book a fill: average entry when it adds, realised profit when it reduces."""
        state = self.state
        held, entry = state.size[account, market], state.entry[account, market]
        after = held + size
        if abs(after) < 1e-9 * abs(held):
            after = 0.0
        if held * size >= 0:
            state.entry[account, market] = (abs(held) * entry + abs(size) * price) / abs(after)
        else:
            closed = min(abs(size), abs(held)) * np.sign(held)
            state.cash[account] += closed * (price - entry)
            if held * after < 0:
                state.entry[account, market] = price
            if after == 0.0:
                state.entry[account, market] = 0.0
        state.size[account, market] = after
        self.history.trades.append((ts, account, market, float(size), float(price), taker))
        if after == 0.0 and state.isolated[account, market]:
            state.cash[account] += state.isolated_margin[account, market]
            state.isolated_margin[account, market] = 0.0
            state.isolated[account, market] = False

    def _post(self, ts: int, account: int, delta: float, kind: str) -> None:
        # The ledger is stored in cents, so cash moves by cents, too.
        delta = round(float(delta), 2)
        if delta:
            self.state.cash[account] += delta
            self.history.ledger.append((ts, account, delta, kind))

    def _worst_prices(self, hour: int, size: Float2D) -> Float3D:
        """The price against each position per minute [n_accounts, 60, n_markets]."""
        against_long = self.market.minute_low[hour]
        against_short = self.market.minute_high[hour]
        return np.where((size > 0)[:, None, :], against_long, against_short)

    def _liquidate_cross(self, hour: int, start: int) -> Bool1D:
        """Close every cross position of the accounts whose equity fell below maintenance."""
        state, market = self.state, self.market
        size = np.where(state.isolated, 0.0, state.size)
        worst = self._worst_prices(hour, size)
        assets = np.minimum(market.collateral_price[hour], market.collateral_price[hour + 1])
        backing = state.cash + (state.collateral[:, :, :2] * assets[:2]).sum(axis=(1, 2))
        equity = backing[:, None] + (size[:, None, :] * (worst - state.entry[:, None, :])).sum(axis=2)
        if "ETH" in market.symbols:
            low = market.minute_low[hour][:, market.symbols.index("ETH")]
            equity += state.collateral[:, :, 2].sum(axis=1)[:, None] * low
        need = maintenance(state.mode[:, None], size[:, None, :] * worst, market.maintenance_rate)
        breached = (equity < need) & (need > 0)
        hit = breached.any(axis=1)
        for account in np.flatnonzero(hit).tolist():
            minute = int(np.argmax(breached[account]))
            ts = start + (minute + 1) * MINUTE
            for leg in np.flatnonzero(size[account]).tolist():
                self._close_by_force(account, leg, float(worst[account, minute, leg]), ts)
            self._settle(account, ts, market.collateral_price[hour + 1])
        return hit

    def _liquidate_isolated(self, hour: int, start: int) -> Bool1D:
        state = self.state
        size = np.where(state.isolated, state.size, 0.0)
        worst = self._worst_prices(hour, size)
        value = state.isolated_margin[:, None, :] + size[:, None, :] * (worst - state.entry[:, None, :])
        need = np.abs(size[:, None, :]) * worst * self.market.maintenance_rate
        breached = (value < need) & (size != 0)[:, None, :]
        for account, leg in zip(*np.nonzero(breached.any(axis=1)), strict=True):
            minute = int(np.argmax(breached[account, :, leg]))
            ts = start + (minute + 1) * MINUTE
            margin = state.isolated_margin[account, leg]
            held, entry = state.size[account, leg], state.entry[account, leg]
            price = float(worst[account, minute, leg])
            self._close_by_force(int(account), int(leg), price, ts)
            # An isolated position cannot lose more than its margin.
            result = held * (price - entry) - LIQUIDATION_FEE * abs(held) * price
            self._post(ts, int(account), max(-margin - result, 0.0), "other")
        return breached.any(axis=(1, 2))

    def _close_by_force(self, account: int, leg: int, price: float, ts: int) -> None:
        held = float(self.state.size[account, leg])
        self.history.liquidations.append((ts, account, leg, held, price))
        self._fill(account, leg, -held, price, ts, True)
        self._post(ts, account, -LIQUIDATION_FEE * abs(held) * price, "other")

    def _settle(self, account: int, ts: int, assets: Float1D) -> None:
        """Sell collateral for owed cash; the insurance fund takes what is left."""
        state = self.state
        worth = float((state.collateral[account] * assets).sum())
        owed = max(-float(state.cash[account]), 0.0)
        sold = min(owed, worth)
        if sold > 0.0:
            state.collateral[account] *= 1.0 - sold / worth
        self._post(ts, account, owed, "other")

    def _fill_orders(self, hour: int, start: int, liquidated: Bool1D) -> None:
        """Fill the resting orders that the hour's range crossed; the liquidated lose theirs."""
        if not len(self.orders):
            return
        account, market = self.orders[:, 0].astype(int), self.orders[:, 1].astype(int)
        price, buy = self.orders[:, 3], self.orders[:, 2] > 0
        low, high = self.market.minute_low[hour][:, market], self.market.minute_high[hour][:, market]
        crossed = np.where(buy, low <= price, high >= price)
        keep = ~liquidated[account]
        done = crossed.any(axis=0) & keep
        for row in np.flatnonzero(done).tolist():
            owner, leg, wanted = account[row], market[row], self.orders[row, 2]
            held = self.state.size[owner, leg]
            if held * wanted < 0:
                closing = float(np.sign(wanted) * min(abs(wanted), abs(held)))
                ts = start + (int(np.argmax(crossed[:, row])) + 1) * MINUTE
                self._fill(int(owner), int(leg), closing, float(price[row]), ts, False)
        self.orders = self.orders[keep & ~done]

    def _renew_orders(self, hour: int) -> None:
        """Cancel some resting orders and orders without a position; place new ones.

        All resting orders reduce a position: take profit on one side of the price.
        """
        state, rng = self.state, self.rng
        price = self.market.price[hour + 1]
        if len(self.orders):
            account, market = self.orders[:, 0].astype(int), self.orders[:, 1].astype(int)
            reduces = state.size[account, market] * self.orders[:, 2] < 0
            self.orders = self.orders[reduces & (rng.random(len(reduces)) > 0.03)]
        placed = []
        for owner in np.flatnonzero(rng.random(len(state.cash)) < 0.05).tolist():
            held = np.flatnonzero(state.size[owner])
            if len(held):
                leg = int(rng.choice(held))
                size = state.size[owner, leg]
                limit = price[leg] * np.exp(np.sign(size) * rng.uniform(0.01, 0.06))
                self.order_number += 1
                amount = -float(_lot(0.5 * size)) or -size
                placed.append((owner, leg, amount, float(_lot(limit)), self.order_number, 1.0))
        if placed:
            self.orders = np.concatenate((self.orders, np.array(placed)))

    def _pay_funding(self, hour: int, ts: int) -> None:
        rate = self.market.funding[hour]
        if not rate.any():
            return
        paid = -(self.state.size * self.market.price[hour + 1] * rate).sum(axis=1)
        for account in np.flatnonzero(np.abs(paid) >= 0.01).tolist():
            self._post(ts, account, float(paid[account]), "funding")

    def _move_cash(self, hour: int, ts: int) -> None:
        """Deposits (likelier for the ruined) and withdrawals of free cash."""
        state, rng = self.state, self.rng
        equity = self.equity(self.market.price[hour + 1], self.market.collateral_price[hour + 1])
        draws = rng.random(len(equity))
        deposit = draws < np.where(equity < 0.2 * state.wealth, 0.06, 0.003)
        for account in np.flatnonzero(deposit).tolist():
            self._post(ts, account, state.wealth[account] * rng.uniform(0.1, 0.6), "deposit")
        free = np.minimum(state.cash, 0.3 * equity)
        for account in np.flatnonzero((draws > 0.997) & (free > 100.0) & ~deposit).tolist():
            self._post(ts, account, -free[account] * rng.uniform(0.1, 0.8), "withdrawal")

    def _snapshot(self, hour: int) -> None:
        state, history = self.state, self.history
        notional = state.size * self.market.price[hour + 1]
        cross = np.where(state.isolated, 0.0, notional)
        need = maintenance(state.mode, cross, self.market.maintenance_rate)
        need = need + (np.abs(notional - cross) * self.market.maintenance_rate).sum(axis=1)
        history.maintenance.append(need)
        history.cash.append(state.cash + state.isolated_margin.sum(axis=1))
        for name in ("collateral", "size", "entry", "isolated", "isolated_margin"):
            getattr(history, name).append(getattr(state, name).copy())
        history.orders.append(self.orders.copy())


def maintenance(mode: Int1D, notional: FloatND, rate: Float1D) -> FloatND:
    """Maintenance margin of signed exposures [..., n_markets] in USD.

    Cross and isolated: the sum of |exposure| x rate. Portfolio: the larger of the long
    and the short side in full, half of the smaller one.
    """
    long = (np.maximum(notional, 0.0) * rate).sum(axis=-1)
    short = (np.maximum(-notional, 0.0) * rate).sum(axis=-1)
    return np.where(mode == 2, np.maximum(long, short) + 0.5 * np.minimum(long, short), long + short)


def _lot(size: FloatND | float) -> FloatND:
    """Round sizes and limit prices down to four significant digits."""
    array = np.asarray(size, dtype=np.float64)
    step = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(array), 1e-12))) - 3)
    return np.round(np.trunc(array / step + np.sign(array) * 1e-9) * step, 9)


def _open_accounts(rng: np.random.Generator, market: AccountMarket, n_accounts: int) -> AccountState:
    """Draw modes, wealth, appetite for leverage (with a high tail) and collateral."""
    n_markets = len(market.symbols)
    mode = rng.choice(3, size=n_accounts, p=(0.6, 0.25, 0.15))
    wealth = 20_000.0 * np.exp(1.5 * rng.standard_normal(n_accounts))
    high = rng.random(n_accounts) < 0.2
    appetite = np.clip(np.exp(0.7 * rng.standard_normal(n_accounts)) * np.where(high, 14.0, 3.0), 0.3, 40.0)
    backed = wealth * np.where(mode == 1, 0.2, rng.uniform(0.4, 1.0, n_accounts))
    shares = rng.exponential(1.0, (n_accounts, len(CHAINS), len(ASSETS)))
    # Each account keeps its collateral in a few places only.
    shares *= rng.random(shares.shape) < np.array([0.45, 0.25, 0.25 if "ETH" in market.symbols else 0.0])
    total = shares.sum(axis=(1, 2))
    shares[total == 0, 0, 0] = 1.0
    shares /= shares.sum(axis=(1, 2))[:, None, None]
    shape = (n_accounts, n_markets)
    return AccountState(
        mode=mode.astype(np.int64),
        appetite=appetite,
        wealth=wealth,
        cash=np.round(wealth - backed, 2),
        collateral=np.asarray(_lot(shares * backed[:, None, None] / market.collateral_price[0])),
        size=np.zeros(shape),
        entry=np.zeros(shape),
        isolated=np.zeros(shape, dtype=np.bool_),
        isolated_margin=np.zeros(shape),
    )
