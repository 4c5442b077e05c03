"""A build in progress: a folder beside the dataset, and a journal of what is finished.

The dataset appears in one move when everything is there. Until then a killed build leaves only
the staging folder, whose finished chunks a later build of exactly the same thing can keep.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from riskml.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # not on every system; builds into one folder then have to be kept apart by hand
    fcntl = None  # type: ignore[assignment]

_JOURNAL = "journal"
_PLAN = "plan.json"
_ROWS = "rows"
_STOP = "stop"


@dataclass(frozen=True)
class ChunkRecord:
    """A finished chunk, as the journal has it."""

    name: str
    rows: int
    """Rows of all markets."""
    files: dict[str, int]
    """Files that it wrote, relative to the staged dataset, and their bytes."""
    off_grid_bars: int = 0
    """Bars of the lake that close between two bars of the grid, and were left out."""


class Staging:
    """The folder ``.<name>.building`` beside a dataset; a context that keeps others out.

    Parameters
    ----------
    target : the dataset's folder.
    plan : everything that decides a value of the result; finished chunks are kept only under an
        equal plan.
    resume : keep what an interrupted build of the same plan finished.

    Raises
    ------
    ConfigError : another process is building the same dataset.
    DataError : ``resume``, and the unfinished build is of something else.
    """

    def __init__(self, target: Path, plan: Mapping[str, Any], *, resume: bool) -> None:
        self.target = target
        self.folder = target.with_name(f".{target.name}.building")
        self.rows = self.folder / _ROWS
        self._journal = self.folder / _JOURNAL
        self._plan = json.dumps(plan, sort_keys=True, default=str)
        self._resume = resume
        self._lock: int | None = None

    def __enter__(self) -> Staging:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            if not (self._resume and self._check_plan()):
                self._clear()
        except BaseException:
            self._release()
            raise
        for folder in (self.rows, self._journal):
            folder.mkdir(exist_ok=True)
        (self.folder / _STOP).unlink(missing_ok=True)
        write_atomic(self.folder / _PLAN, self._plan)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Finished chunks of a failed build stay: they are what a resumed one begins with.
        if kind is not None and not any(record.rows for record in self.finished().values()):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._release()

    def finished(self) -> dict[str, ChunkRecord]:
        """Chunks whose record and files are whole, by name."""
        found = {}
        for file in sorted(self._journal.glob("*.json")):
            record = _read_record(file)
            if record is not None and all(
                _size(self.rows / name) == size for name, size in record.files.items()
            ):
                found[record.name] = record
        return found

    def stop_workers(self) -> None:
        """Ask the workers to leave off after the block at hand, see :func:`is_stopped`."""
        (self.folder / _STOP).touch()

    def publish(self) -> None:
        """Put the staged dataset in the place of the target, and drop the rest."""
        staged = self.rows
        for leftover in staged.rglob(".*"):  # of chunks that a killed worker had begun
            leftover.unlink()
        if self.target.exists():
            retired = self.folder / "old"
            os.replace(self.target, retired)
            try:
                os.replace(staged, self.target)
            except OSError:
                os.replace(retired, self.target)
                raise
        else:
            os.replace(staged, self.target)
        shutil.rmtree(self.folder)

    def _check_plan(self) -> bool:
        """Whether there is an unfinished build, which then has to be of the same plan."""
        file = self.folder / _PLAN
        if not file.exists():
            return False
        stored = file.read_text(encoding="utf-8")
        if stored == self._plan:
            return True
        raise DataError(
            f"the unfinished build in {self.folder} differs in {', '.join(_differences(stored, self._plan))}",
            fix="build without --resume, which begins anew",
        )

    def _clear(self) -> None:
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            raise ConfigError(
                f"another process is building {self.target}", fix="wait for it, or choose another --out"
            ) from None

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def write_record(staging: Path, record: ChunkRecord) -> None:
    """Enter a finished chunk into the journal of a staging folder; its files are in place by now."""
    write_atomic(staging / _JOURNAL / f"{record.name}.json", json.dumps(asdict(record)))


def is_stopped(staging: Path) -> bool:
    """Whether the build of a staging folder has failed elsewhere."""
    return (staging / _STOP).exists()


def write_atomic(file: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)


def _read_record(file: Path) -> ChunkRecord | None:
    """A record, or None when it is not whole: its chunk is then built again."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return ChunkRecord(str(raw["name"]), int(raw["rows"]), dict(raw["files"]), int(raw["off_grid_bars"]))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return None


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


def _differences(one: str, other: str) -> list[str]:
    try:
        first = json.loads(one)
    except json.JSONDecodeError:
        return ["everything: its plan is damaged"]
    second = json.loads(other)
    return sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
