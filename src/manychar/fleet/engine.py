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
from manychar.protocol.unit_payload import as_frame, folded_digest


class PieceTimer:
    """A progress callback: times the pieces of computations, and calls back when that is due.

    `on_due` returns when it is due again. After each of the next `yields` pieces, other threads may
    have the core; what they take of it counts as part of a piece, because nothing is handled then.
    `others_seconds` is what they and `on_due` took since the start.
    """

    def __init__(self, on_due: Callable[[], float] = lambda: math.inf) -> None:
        self.longest_piece = self.others_seconds = 0.0
        self.yields = 0
        self._due = 0.0
        self.start(on_due)

    def start(self, on_due: Callable[[], float]) -> None:
        """Begin another computation; when `on_due` is due, and the yields that are left, stay."""
        self.longest_piece = self.others_seconds = 0.0
        self._on_due = on_due
        self._last = time.monotonic()
        if self._due == math.inf:
            self._due = 0.0

    def __call__(self) -> None:
        ended = now = time.monotonic()
        if self.yields:
            self.yields -= 1
            os.sched_yield()
            now = time.monotonic()
        self.longest_piece = max(self.longest_piece, now - self._last)
        if now >= self._due:
            self._due = self._on_due()
            now = time.monotonic()
        self.others_seconds += now - ended
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
        self.digest_of: Callable[[Frame], bytes] = folded_digest
        self.timer = PieceTimer()

    def compute_fingerprint(self) -> FingerprintComputed:
        """Return the fingerprint of this process in the run's shapes and dtype; computed once."""
        if self._fingerprint is None:
            names, timer = libraries(), PieceTimer()
            found = fingerprint(self._kernel, names, timer)
            self._loaded = None  # the kernel holds the weights of the probe
            self._fingerprint = FingerprintComputed(found, names | kernels(), timer.longest_piece)
        return self._fingerprint

    def compute(self, shard: Compute, on_due: Callable[[], float]) -> Computed:
        """Return the result of a shard; `on_due` is as in PieceTimer."""
        timer = self.timer
        timer.start(on_due)  # to load weights is a piece, too
        if shard.weights is not self._loaded:
            self._kernel.load(np.frombuffer(shard.weights, self._dtype))
            self._loaded = shard.weights  # held on to, so that no other frame can be this one
            self._digest = self.digest_of(shard.weights)
        hidden = np.frombuffer(shard.hidden, self._dtype).reshape(self._kernel.streams, -1)
        ids = np.frombuffer(shard.ids, self._ids_dtype).reshape(self._kernel.streams, -1)
        began = time.monotonic()
        loss, gradient, after = compute_shard(self._kernel, Batch(ids, shard.fresh), hidden, timer)
        return Computed(
            shard.shard,
            shard.step,
            self._digest,
            loss=loss,
            gradient=gradient.flat,
            hidden=as_frame(after),
            longest_piece=timer.longest_piece,
            seconds=time.monotonic() - began - timer.others_seconds,
        )
