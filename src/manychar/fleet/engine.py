"""Carries out ComputeFingerprint and Compute; imports numpy, so pin the numerics first."""

import math
import os
import time
from collections.abc import Callable

import numpy as np

from manychar.numerics.corpus import Batch
from manychar.numerics.kernel import Kernel
from manychar.numerics.numerics_fingerprint import fingerprint
from manychar.numerics.training_step import compute_shard
from manychar.processes.numeric_libraries import kernels, libraries
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.effects import Compute
from manychar.protocol.events import Computed, FingerprintComputed
from manychar.protocol.messages import Frame
from manychar.protocol.unit_payload import as_frame, digest


class PieceTimer:
    """A progress callback: times the pieces of a computation, and calls `heartbeat` when it is due.

    `due` is when, first; `heartbeat` returns when it is due again. After so many pieces as `yields`
    other threads may have the core.
    """

    def __init__(
        self, heartbeat: Callable[[], float] = lambda: math.inf, due: float = 0, *, yields: int = 0
    ) -> None:
        self.longest_piece = 0.0
        self.due = due
        self.yields = yields
        self._heartbeat = heartbeat
        self._last = time.monotonic()

    def __call__(self) -> None:
        if self.yields:
            self.yields -= 1
            os.sched_yield()
        now = time.monotonic()
        self.longest_piece = max(self.longest_piece, now - self._last)
        if now >= self.due:
            self.due = self._heartbeat()
            now = time.monotonic()
        self._last = now


class Engine:
    """Computes shards of one run, in the buffers of its kernel."""

    def __init__(self, dimensions: Dimensions) -> None:
        self._dtype = np.dtype(dimensions.dtype).newbyteorder("<")
        self._ids_dtype = np.dtype(f"<u{dimensions.id_bytes}")
        self._kernel = Kernel(
            dimensions.vocabulary_size,
            dimensions.hidden,
            seq_length=dimensions.seq_length,
            streams=dimensions.streams,
            dtype=dimensions.dtype,
        )
        self._fingerprint: FingerprintComputed | None = None
        self._loaded: Frame | None = None
        self._digest = b""
        self._due = 0.0  # when the heartbeat is due, kept from shard to shard
        self.digest_of: Callable[[Frame], bytes] = digest
        self.yields = 0  # as in PieceTimer

    def compute_fingerprint(self) -> FingerprintComputed:
        """Return the fingerprint of this process in the run's shapes and dtype; computed once."""
        if self._fingerprint is None:
            names, timer = libraries(), PieceTimer()
            found = fingerprint(self._kernel, names, timer)
            self._loaded = None  # the kernel holds the weights of the probe
            self._fingerprint = FingerprintComputed(found, names | kernels(), timer.longest_piece)
        return self._fingerprint

    def compute(self, unit: Compute, heartbeat: Callable[[], float]) -> Computed:
        """Return the result of a shard; `heartbeat` is as in PieceTimer."""
        if unit.weights is not self._loaded:
            self._kernel.load(np.frombuffer(unit.weights, self._dtype))
            self._loaded = unit.weights  # held on to, so that no other frame can be this one
            self._digest = self.digest_of(unit.weights)
        hidden = np.frombuffer(unit.hidden, self._dtype).reshape(self._kernel.streams, -1)
        ids = np.frombuffer(unit.ids, self._ids_dtype).reshape(self._kernel.streams, -1)
        timer = PieceTimer(heartbeat, self._due, yields=self.yields)
        began = time.monotonic()
        loss, gradient, after = compute_shard(self._kernel, Batch(ids, unit.fresh), hidden, timer)
        self.yields = timer.yields
        if math.isfinite(timer.due):
            self._due = timer.due
        return Computed(
            unit.shard,
            unit.step,
            self._digest,
            loss=loss,
            gradient=gradient.flat,
            hidden=as_frame(after),
            longest_piece=timer.longest_piece,
            seconds=time.monotonic() - began,
        )
