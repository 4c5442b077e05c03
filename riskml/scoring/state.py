"""Saving and restoring a scorer: one npz file, no pickle, written atomically.

Everything that a later decision depends on is in it: the rows that wait in the store, the
feature stream and window, what the guards and the requirements remember, the market states and the newest
prices. Keys are ``<part>/<name>``; ``header`` is a JSON text with the bundle's id.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from riskml.arrays import AnyArray
from riskml.contracts import contract
from riskml.errors import BundleError, DataError
from riskml.features.series import SeriesKey, SeriesStore
from riskml.markets import Market
from riskml.risk.breaker import BreakerState
from riskml.risk.policy import MarginPolicy
from riskml.scoring.live import LiveFeatures
from riskml.scoring.prices import PriceBook
from riskml.scoring.requirements import Requirements
from riskml.scoring.session import LoadedBundle

STATE_PROTOCOL = 2
"""Version of the layout; a loader refuses every other one."""


def save_state(
    path: Path,
    live: LiveFeatures,
    requirements: Requirements,
    prices: PriceBook,
    breaker: BreakerState | None,
    now: int | None,
) -> Path:
    """Write the state of a scorer; an existing file is replaced when the new one is complete."""
    header = {
        "protocol": STATE_PROTOCOL,
        "bundle_id": live.bundle.manifest.bundle_id,
        "markets": [[market.symbol, market.venue] for market in live.markets],
        "last_bar": live.last_bar,
        "bars_since_prune": live.bars_since_prune,
        "now": now,
    }
    arrays: dict[str, AnyArray] = {"header": np.array(json.dumps(header))}
    arrays |= _prefixed("store", _store_arrays(live.store))
    arrays |= _prefixed("live", live.to_arrays())
    arrays |= _prefixed("requirements", requirements.to_arrays())
    arrays |= _prefixed("prices", prices.to_arrays())
    arrays |= _prefixed("breaker", {} if breaker is None else breaker.to_arrays())
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub confuses names with allow_pickle
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def load_state(
    path: Path, bundle: LoadedBundle, policy: MarginPolicy
) -> tuple[LiveFeatures, Requirements, PriceBook, BreakerState | None, int | None]:
    """Read a state; nothing is changed when it is not usable.

    The market states are None in a file of before the circuit breaker.

    Raises
    ------
    BundleError : the state belongs to another bundle.
    DataError : there is no such file, it is damaged or of another layout.
    """
    arrays = _read(path)
    try:
        header = json.loads(str(arrays["header"]))
        if header["protocol"] != STATE_PROTOCOL:
            raise DataError(
                f"{path} has state protocol {header['protocol']}; this runtime reads {STATE_PROTOCOL}",
                fix="start from the history instead of the state",
            )
        if header["bundle_id"] != bundle.manifest.bundle_id:
            raise BundleError(
                f"{path} was saved with bundle {header['bundle_id'][:12]}; {bundle.path} is "
                f"{bundle.manifest.bundle_id[:12]}",
                fix="load the bundle that wrote the state, or start from the history",
            )
        live = LiveFeatures(bundle, policy)
        live.set_markets([Market(symbol, venue) for symbol, venue in header["markets"]])
        live.from_arrays(_part(arrays, "live"))
        _fill_store(live.store, _part(arrays, "store"))
        live.last_bar = header["last_bar"]
        live.bars_since_prune = int(header["bars_since_prune"])
        requirements = Requirements(bundle, policy)
        requirements.from_arrays(_part(arrays, "requirements"), live.markets)
        breaker = _breaker(path, _part(arrays, "breaker"), requirements)
        return live, requirements, PriceBook.from_arrays(_part(arrays, "prices")), breaker, header["now"]
    except (KeyError, TypeError, IndexError) as error:
        raise _damaged(path, error) from error


def _breaker(path: Path, arrays: Mapping[str, AnyArray], requirements: Requirements) -> BreakerState | None:
    """The market states; None where the file has none at all."""
    if not arrays:
        return None
    try:
        state = BreakerState.from_arrays(arrays)
    except ValueError as error:  # DataError is one
        raise _damaged(path, error) from error
    newest = None if requirements.forecast is None else requirements.forecast.ts
    if state.ts != newest:
        raise _damaged(path, DataError("its market states are not of its newest bar"))
    return state


def _read(path: Path) -> dict[str, AnyArray]:
    try:
        # Opened here, because numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise DataError(f"there is no state file {path}", fix="save a state first") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is not a usable state: {error!r}", fix="start from the history instead of the state"
    )


def _store_arrays(store: SeriesStore) -> dict[str, AnyArray]:
    """Per table the keys and lengths of its series and their rows, one series after the other."""
    arrays: dict[str, AnyArray] = {}
    for name, table in store.tables.items():
        places = table.rows.places(np.arange(len(table)))
        arrays[f"{name}/keys"] = np.array(table.keys, dtype=np.str_).reshape(len(table), 4)
        arrays[f"{name}/length"] = table.rows.length[: len(table)]
        arrays[f"{name}/times"] = np.stack([table.rows.ts[places], table.rows.known_at[places]])
        arrays |= {f"{name}/value/{column}": at[places] for column, at in table.rows.columns.items()}
    return arrays


def _fill_store(store: SeriesStore, arrays: Mapping[str, AnyArray]) -> None:
    for name in dict.fromkeys(key.partition("/")[0] for key in arrays):
        of_table = _part(arrays, name)
        columns: dict[str, AnyArray] = _part(of_table, "value")
        columns |= {"ts": of_table["times"][0], "known_at": of_table["times"][1]}
        keys = [SeriesKey(*parts) for parts in of_table["keys"].tolist()]
        for column, values in _key_columns(name, keys).items():
            columns[column] = np.repeat(values, of_table["length"])
        store.append(name, columns)


def _key_columns(table: str, keys: Sequence[SeriesKey]) -> dict[str, AnyArray]:
    """The key columns that series were split by, [n_series] each."""
    names = [name for name in contract(table).key if name != "ts"]
    n_details = len(names) - 2
    # An account id may hold the separator, the columns behind it may not.
    parts = [
        (key.place, key.name, *(key.detail.rsplit("|", n_details - 1) if n_details > 0 else ()))
        for key in keys
    ]
    columns: dict[str, AnyArray] = {}
    for name, texts in zip(names, zip(*parts, strict=True), strict=False):
        is_number = contract(table).column(name).kind == "float"
        columns[name] = np.array(texts, dtype=np.float64 if is_number else np.str_)
    return columns


def _prefixed(part: str, arrays: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    return {f"{part}/{name}": array for name, array in arrays.items()}


def _part(arrays: Mapping[str, AnyArray], part: str) -> dict[str, AnyArray]:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
