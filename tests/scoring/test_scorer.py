"""The scorer from the outside: forecasts, decisions, time, state and what-if."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from riskml.errors import BundleError, ConfigError, DataError
from riskml.scoring import AccountBook, Decisions, MarginPolicy, Scorer

from .conftest import N_HISTORY, PRICES, SYMBOLS, Feed, make_feed, position, slot

NUMBERS = (
    "equity_usd",
    "collateral_usd",
    "initial_margin_usd",
    "maintenance_margin_usd",
    "liquidation_probability",
    "distance",
    "risk_score",
    "action",
    "reasons",
)


def assert_same(first: Decisions, second: Decisions, rtol: float = 0.0) -> None:
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=rtol, err_msg=name)


def one_account(book: AccountBook, row: int) -> AccountBook:
    """The book with one of its accounts."""

    def part(table: object, names: tuple[str, ...]) -> dict[str, object]:
        mine = table.account == row
        ids = {"account_id": [book.account_id[row]] * int(mine.sum())}
        return ids | {name: getattr(table, name)[mine] for name in names}

    positions = part(
        book.positions, ("venue", "symbol", "size", "entry_price", "mark_price", "isolated_margin_usd")
    )
    alone = book.positions.isolated[book.positions.account == row]
    return AccountBook.from_arrays(
        accounts={
            "account_id": [book.account_id[row]],
            "cash_usd": book.cash_usd[[row]],
            "margin_mode": book.margin_mode[[row]],
            "maintenance_margin_usd": book.maintenance_margin_usd[[row]],
        },
        positions=positions | {"margin_mode": np.where(alone, "isolated", "cross")},
        collateral=part(book.collateral, ("chain", "asset", "amount", "price_usd")),
    )


def test_a_forecast_covers_the_bundles_markets_and_is_finite(warm: Scorer) -> None:
    forecast = warm.forecast
    assert forecast.markets == SYMBOLS
    assert forecast.sigma.shape == (3, 3, 2)
    for name in ("sigma", "nu", "variance", "stress", "loadings"):
        assert np.isfinite(getattr(forecast, name)).all(), name
    assert not forecast.degraded.any()
    assert forecast.bundle_id == warm.bundle.manifest.bundle_id


def test_a_book_scored_whole_and_account_by_account_agrees(
    make_warm: Callable[..., Scorer], book: AccountBook
) -> None:
    scorer = make_warm()
    whole = scorer.score(book)
    for row, name in enumerate(book.account_id):
        alone = make_warm().score(one_account(book, row))
        assert alone.account_id.tolist() == [name]
        for field in NUMBERS:
            np.testing.assert_allclose(
                getattr(alone, field)[0], getattr(whole, field)[row], rtol=1e-6, err_msg=field
            )


def test_the_order_of_accounts_changes_nothing(warm: Scorer) -> None:
    accounts = [
        {"account_id": name, "cash_usd": 900.0, "positions": [position(symbol, usd)]}
        for name, symbol, usd in (("a", "BTC", 5e3), ("b", "ETH", -4e3), ("c", "SOL", 3e3))
    ]
    forth = warm.score(AccountBook.from_dicts(accounts))
    back = warm.score(AccountBook.from_dicts(accounts[::-1]))
    np.testing.assert_allclose(forth.maintenance_margin_usd, back.maintenance_margin_usd[::-1], rtol=1e-12)


def test_closing_bars_one_by_one_or_skipping_to_the_last_gives_one_forecast(
    make_warm: Callable[..., Scorer], feed: Feed
) -> None:
    steady, late = make_warm(), make_warm()
    for number in range(N_HISTORY, N_HISTORY + 6):
        feed.observe(steady, number)
        one = steady.close_bar(slot(number))
    feed.observe(late, N_HISTORY, N_HISTORY + 5)
    other = late.close_bar(slot(N_HISTORY + 5))
    np.testing.assert_allclose(one.sigma, other.sigma, rtol=1e-6)


def test_a_late_row_never_changes_a_closed_bar(make_warm: Callable[..., Scorer], feed: Feed) -> None:
    scorer = make_warm()
    scorer.close_bar(slot(N_HISTORY))
    before = scorer.forecast.sigma.copy()
    assert scorer.observe("bars", feed.rows("bars", N_HISTORY)).late == 3
    np.testing.assert_array_equal(scorer.forecast.sigma, before)


def test_on_bars_observes_and_closes_with_the_bundles_interval(
    make_warm: Callable[..., Scorer], feed: Feed
) -> None:
    long, short = make_warm(), make_warm()
    rows = feed.rows("bars", N_HISTORY)
    long.observe("bars", rows)
    one = long.close_bar(slot(N_HISTORY))
    given = {
        name: rows[name]
        for name in ("venue", "symbol", "open", "high", "low", "close", "volume", "taker_buy_volume")
    }
    other = short.on_bars(slot(N_HISTORY), given)
    np.testing.assert_array_equal(one.sigma, other.sigma)


@pytest.mark.parametrize("back", [0, 1, 5])
def test_a_bar_that_was_closed_is_not_closed_again(warm: Scorer, back: int) -> None:
    with pytest.raises(DataError, match=r"the clock went backwards: .* had been closed"):
        warm.close_bar(slot(N_HISTORY - 1 - back))


def test_a_time_off_the_grid_is_no_bar(warm: Scorer) -> None:
    with pytest.raises(DataError, match=r"is not the close of a 1h bar"):
        warm.close_bar(slot(N_HISTORY) + 1)


def test_scoring_in_the_past_is_refused(warm: Scorer, book: AccountBook) -> None:
    warm.on_price("BTC", 50_000.0, slot(N_HISTORY - 1) + 10)
    with pytest.raises(DataError, match=r"the clock went backwards: .*Fix: score with the newest time"):
        warm.score(book, slot(N_HISTORY - 1))


def test_scoring_before_the_first_bar_is_refused(tiny_bundle: Path, book: AccountBook) -> None:
    with pytest.raises(DataError, match=r"no bar was closed yet.*call close_bar first"):
        Scorer.load(tiny_bundle).score(book)


def test_a_newer_price_marks_the_book_again_and_an_older_one_does_not(
    warm: Scorer, book: AccountBook
) -> None:
    now = slot(N_HISTORY - 1)
    warm.on_price("BTC", PRICES["BTC"], now + 2)
    before = warm.score(book).equity_usd[0]
    warm.on_price("BTC", PRICES["BTC"] * 0.9, now + 3)
    fallen = warm.score(book).equity_usd[0]
    warm.on_price("BTC", PRICES["BTC"] * 2.0, now + 1)
    assert fallen == pytest.approx(before - 1_000.0)
    assert warm.score(book).equity_usd[0] == pytest.approx(fallen)
    assert warm.telemetry.value("late_prices") == 1


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused_and_the_last_one_stays(
    warm: Scorer, book: AccountBook, price: float
) -> None:
    before = warm.score(book)
    with pytest.raises(DataError, match=r"market 'BTC': a price has to be positive and finite"):
        warm.on_price("BTC", price, slot(N_HISTORY))
    assert_same(warm.score(book), before)


def test_a_book_newer_than_our_prices_keeps_its_own_marks(warm: Scorer) -> None:
    account = {"account_id": "a", "cash_usd": 1_000.0, "positions": [position("BTC", 5_000.0)]}
    newer = AccountBook.from_dicts([account | {"ts": slot(N_HISTORY - 1) + 1}])
    assert warm.score(newer).equity_usd[0] == pytest.approx(1_000.0)


def test_another_policy_asks_for_another_margin(make_warm: Callable[..., Scorer], book: AccountBook) -> None:
    mild = make_warm(policy=MarginPolicy(maintenance_level=0.9, initial_level=0.9)).score(book)
    strict = make_warm(policy=MarginPolicy(maintenance_level=0.999, initial_level=0.999)).score(book)
    assert (strict.initial_margin_usd > mild.initial_margin_usd).all()


def test_a_policy_file_that_is_not_there_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no policy file .*policy.toml"):
        Scorer.load(tiny_bundle, policy=tmp_path / "policy.toml")


def test_a_market_that_the_bundle_never_saw_is_scored_and_changes_no_other(
    make_warm: Callable[..., Scorer], tiny_bundle: Path, feed: Feed
) -> None:
    usual = make_warm()
    more = make_feed((*SYMBOLS, "NEW"))
    from_start = make_warm(more)
    joins_later = make_warm()
    joins_later.observe(
        "bars", {name: v[more.tables["bars"]["symbol"] == "NEW"] for name, v in more.tables["bars"].items()}
    )
    for scorer, source in ((usual, feed), (from_start, feed), (joins_later, feed)):
        source.observe(scorer, N_HISTORY)
    from_start.observe("bars", more.rows("bars", N_HISTORY))
    forecasts = [scorer.close_bar(slot(N_HISTORY)) for scorer in (usual, from_start, joins_later)]
    for forecast in forecasts[1:]:
        assert forecast.markets == (*SYMBOLS, "NEW")
        np.testing.assert_allclose(forecast.sigma[:3], forecasts[0].sigma, rtol=1e-6)
        assert np.isfinite(forecast.sigma[3]).all()
    book = AccountBook.from_dicts(
        [{"account_id": "a", "cash_usd": 500.0, "positions": [position("NEW", 1e3)]}]
    )
    assert from_start.score(book).maintenance_margin_usd[0] > 0.0


def test_a_saved_state_gives_identical_later_decisions(
    make_warm: Callable[..., Scorer], tiny_bundle: Path, feed: Feed, book: AccountBook, tmp_path: Path
) -> None:
    original = make_warm()
    feed.observe(original, N_HISTORY)
    original.close_bar(slot(N_HISTORY))
    original.close_bar(slot(N_HISTORY + 1))  # a missing bar: guards and anchors are in use
    original.on_price("ETH", 2_400.0, slot(N_HISTORY + 1) + 5)
    original.score(book)
    path = original.save_state(tmp_path / "state.npz")
    restored = Scorer.load(tiny_bundle)
    restored.load_state(path)
    assert_same(restored.score(book), original.score(book))
    for number in (N_HISTORY + 2, N_HISTORY + 3, N_HISTORY + 4):
        for scorer in (original, restored):
            feed.observe(scorer, number)
        one, other = original.close_bar(slot(number)), restored.close_bar(slot(number))
        np.testing.assert_array_equal(one.sigma, other.sigma)
        assert one.degraded_reasons == other.degraded_reasons
        assert_same(restored.score(book), original.score(book))


def test_a_state_of_another_bundle_is_refused_and_changes_nothing(
    warm: Scorer, feed: Feed, maker: ModuleType, book: AccountBook, tmp_path: Path
) -> None:
    maker.make_tiny_bundle(tmp_path / "other", card="# Another\n")
    other = Scorer.load(tmp_path / "other")
    feed.observe(other, 0, 0)
    other.close_bar(slot(0))
    path = other.save_state(tmp_path / "state.npz")
    before = warm.score(book)
    with pytest.raises(BundleError, match=r"state.npz was saved with bundle .*load the bundle that wrote"):
        warm.load_state(path)
    assert_same(warm.score(book), before)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"not a state"])
def test_a_damaged_state_is_refused_and_changes_nothing(
    warm: Scorer, book: AccountBook, tmp_path: Path, content: bytes
) -> None:
    before = warm.score(book)
    (tmp_path / "state.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"state.npz is not a usable state"):
        warm.load_state(tmp_path / "state.npz")
    assert_same(warm.score(book), before)


def test_a_failed_save_leaves_the_old_state_and_no_other_file(
    warm: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = warm.save_state(tmp_path / "state.npz")
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        warm.save_state(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


def test_what_if_remembers_nothing(warm: Scorer, book: AccountBook) -> None:
    before = warm.score(book)
    shocked = warm.what_if(book, shock=-0.3)
    assert shocked.equity_usd[0] < before.equity_usd[0]
    assert shocked.action[0] > before.action[0]
    assert_same(warm.score(book), before)


def test_a_shock_of_one_market_moves_its_holders_only(warm: Scorer, book: AccountBook) -> None:
    before = warm.what_if(book).equity_usd
    after = warm.what_if(book, shock={"SOL": 0.1}).equity_usd
    changed = dict(zip(book.account_id.tolist(), (after != before).tolist(), strict=True))
    assert changed == {"long": False, "short": True, "hedged": False, "isolated": False, "pledged": False}


def test_a_shock_moves_volatile_collateral_and_not_a_stablecoin(warm: Scorer, book: AccountBook) -> None:
    before = warm.what_if(book).collateral_usd
    after = warm.what_if(book, shock=-0.1).collateral_usd
    ratio = dict(zip(book.account_id.tolist(), (after / np.maximum(before, 1e-9)).tolist(), strict=True))
    assert ratio["pledged"] == pytest.approx(0.9)
    assert ratio["short"] == pytest.approx(1.0)


def test_trades_open_reduce_and_flip_positions(warm: Scorer) -> None:
    held = AccountBook.from_dicts(
        [{"account_id": "a", "cash_usd": 5_000.0, "positions": [position("BTC", 10_000.0)]}]
    )
    base = warm.what_if(held)

    def after(size: float, symbol: str = "BTC") -> Decisions:
        return warm.what_if(held, [{"account_id": "a", "venue": "sim", "symbol": symbol, "size": size}])

    assert after(0.2).maintenance_margin_usd[0] > base.maintenance_margin_usd[0]
    assert after(-0.1).maintenance_margin_usd[0] < base.maintenance_margin_usd[0]
    flipped = after(-0.4).contributions
    assert flipped.exposure_usd[0] < 0.0
    assert after(-0.1).equity_usd[0] == pytest.approx(base.equity_usd[0])
    assert set(after(10.0, "SOL").contributions.symbol.tolist()) == {"BTC", "SOL"}


@pytest.mark.parametrize(
    ("trade", "message"),
    [
        (
            {"account_id": "lng", "venue": "sim", "symbol": "BTC", "size": 1.0},
            r"'lng' is not in the book. Did you mean 'long'",
        ),
        (
            {"account_id": "long", "venue": "sim", "symbol": "DOGE", "size": 1.0},
            r"market 'DOGE', row 0: the trade has no positive price",
        ),
        ({"account_id": "long", "venue": "sim", "symbol": "BTC"}, r"the trade has no 'size'"),
        (
            {"account_id": "long", "venue": "sim", "symbol": "BTC", "size": np.nan},
            r"size has to be a finite number",
        ),
    ],
)
def test_a_trade_that_cannot_be_done_is_refused(
    warm: Scorer, book: AccountBook, trade: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        warm.what_if(book, [trade])


@pytest.mark.parametrize("shock", [-1.0, {"BTC": float("nan")}])
def test_a_shock_that_leaves_no_price_is_refused(warm: Scorer, book: AccountBook, shock: object) -> None:
    with pytest.raises(DataError, match=r"a shock has to be a fraction above -1"):
        warm.what_if(book, shock=shock)


def test_the_venues_maintenance_goes_with_what_a_trade_makes_of_the_position(warm: Scorer) -> None:
    account = {"account_id": "a", "cash_usd": 1_000.0, "maintenance_margin_usd": 100.0}
    held = AccountBook.from_dicts([account | {"positions": [position("BTC", 5_000.0)]}])
    size = float(held.positions.size[0])
    more = [{"account_id": "a", "venue": "sim", "symbol": "BTC", "size": 3.0 * size}]
    before, after = warm.what_if(held), warm.what_if(held, more)
    assert after.barrier_margin_usd[0] == pytest.approx(4.0 * before.barrier_margin_usd[0])


@pytest.mark.parametrize("price", ["1.0", None, True])
def test_a_price_that_is_no_number_is_refused_like_a_bad_one(warm: Scorer, price: object) -> None:
    with pytest.raises(DataError, match=r"market 'BTC': a price has to be positive and finite"):
        warm.on_price("BTC", price, slot(N_HISTORY))  # type: ignore[arg-type]


def test_a_shock_of_an_unknown_market_is_refused(warm: Scorer, book: AccountBook) -> None:
    with pytest.raises(DataError, match=r"the shock names 'BTCUSDT', which is no market here"):
        warm.what_if(book, shock={"BTCUSDT": -0.2})
