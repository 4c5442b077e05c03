"""The catalogue as a build computes it: blocks of rows through a compiled stream, markets over threads."""

from __future__ import annotations

import numpy as np
from bench_inputs import INTERVAL, InputFolder, input_axes
from digest import Digest

from riskml.features.catalog import CATALOG
from riskml.tables.sharded import ShardedStream

_ROWS = 16384
"""Bars read and handed over at a time; bounds the memory, whatever the length of the history."""


def run_ours(folder: InputFolder, digest: Digest, threads: int) -> None:
    """Compute every feature and hand each block to the digest."""
    compile_kernels(folder)
    out = np.empty((len(CATALOG), _ROWS, len(folder.markets)))
    digest.start()
    with ShardedStream(CATALOG, folder.markets, interval=INTERVAL, threads=threads) as stream:
        for begin in range(0, folder.n_bars, _ROWS):
            end = min(begin + _ROWS, folder.n_bars)
            with digest.paused():
                inputs = {name: folder.read(name, begin, end) for name in input_axes()}
            digest.add_block(stream.push(folder.ts[begin:end], inputs, out[:, : end - begin]), begin)


def compile_kernels(folder: InputFolder) -> None:
    """A build finds its kernels compiled on disk; a first run on a machine compiles them here, untimed."""
    inputs = {name: folder.read(name, 0, 64) for name in input_axes()}
    with ShardedStream(CATALOG, folder.markets, interval=INTERVAL, threads=1) as stream:
        stream.push(np.asarray(folder.ts[:64]), inputs)
