"""The open step of a relay: an Aggregation of what it was granted, which applies nothing."""

import collections
import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manychar.numerics.corpus import Streams, id_dtype
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import start
from manychar.numerics.tree_reduction import Range, cover
from manychar.protocol.aggregation import INPUT_BYTES, STEPS_COMPARED, Aggregation, Digests
from manychar.protocol.counters import Counter
from manychar.protocol.field_types import TEXT_LENGTH
from manychar.protocol.messages import Dispute, Frame, Identities, UnitResult, Welcome
from manychar.protocol.range_cut import numbers_of
from manychar.protocol.run_operation import Operation
from manychar.protocol.run_spec import RunSpec, dimensions_of
from manychar.protocol.unit_payload import Payload, as_frame, differs, digest, sparse_form

STEPS_REMEMBERED = 64  # the server asks for a sender when it has computed the unit again


def spec_of(welcome: Welcome, instance: str) -> RunSpec:
    """Return what the server of a relay needs, in a session of its own: nothing is applied here."""
    size: dict[str, Any] = dataclasses.asdict(welcome.dimensions)
    vocabulary = "?" * size.pop("vocabulary_size")
    known: dict[str, Any] = {"seed": welcome.seed, "numerics": welcome.numerics}
    definition = Definition(corpus_sha256="", **known, **size)
    shape = definition.shards, definition.streams, definition.seq_length
    ids = np.zeros(math.prod(shape[:2]) * (shape[2] + 1), id_dtype(len(vocabulary)))
    return RunSpec(
        run_id=welcome.run_id,
        term=welcome.term,
        session=welcome.session ^ zlib.crc32(instance.encode()),
        definition=definition,
        operation=Operation(workers=1, compute=False, steps=0, lease_timeout=welcome.silence),
        corpus=Streams(ids, *shape),
        vocabulary=vocabulary,
        state=dataclasses.replace(start(definition, len(vocabulary)), step=-1),
        fingerprint=welcome.fingerprint,
        libraries=welcome.libraries,
        relays=f"{welcome.relays} {instance}".strip()[-TEXT_LENGTH:],
    )


class RelayStep(Aggregation):
    """The step that is open at a relay: `wanted` are the shards that it was asked for.

    Results stay until the step ends, whatever happens to the leases above: in one step of one
    session a shard has one result.
    """

    complete = False  # it applies nothing
    knows_next_ids = False  # they come with the weights

    def __init__(self, *run: Any, **limit: Any) -> None:
        super().__init__(*run, **limit)
        fit = INPUT_BYTES // (2 * self.state.hidden.nbytes)
        self.steps_compared = max(STEPS_COMPARED, min(fit, STEPS_REMEMBERED))
        self._passed_up: collections.deque[tuple[Identities, int, Digests]] = collections.deque(
            maxlen=STEPS_REMEMBERED
        )

    def _start_step(self) -> None:
        for past in self._steps.values():  # the weights are needed for the open step alone
            past.inputs = past.inputs and (np.empty(0), *past.inputs[1:])
        super()._start_step()
        self._open.hidden_digests = [b""] * self.definition.shards
        self.wanted = ()

    def open(self, step: int, weights: Frame, *, is_fresh: bool) -> None:
        """Begin a step without inputs and results."""
        state, hidden = self.state, np.empty_like(self.state.hidden)
        parameters = state.parameters.like(np.frombuffer(weights, self._dtype))
        self.state = dataclasses.replace(state, step=step, parameters=parameters, hidden=hidden)
        self._start_step()
        self._is_fresh = is_fresh

    def is_fresh_at(self, step: int) -> bool:
        return self._is_fresh

    def add(self, shards: Range, hidden: Sequence[Frame], ids: Sequence[Frame]) -> None:
        here = slice(shards[0], shards[1] + 1)
        for inputs, frames in ((self.state.hidden, hidden), (self.corpus.ids, ids)):
            rows = inputs.reshape(self.definition.shards, -1)[here]
            rows[:] = np.frombuffer(b"".join(frames), inputs.dtype).reshape(rows.shape)
        self._open.hidden_digests[here] = map(digest, hidden)

    def assess(self, result: UnitResult) -> Counter | None:
        """Return None where this result is wanted: only the open step's is."""
        is_past = result.step < self.state.step
        return Counter.UNITS_NOT_COMPARED if is_past else super().assess(result)

    def has_inputs(self, shards: Range) -> bool:
        return all(self._open.hidden_digests[shards[0] : shards[1] + 1])

    # Blame.

    def note_passed_up(self, result: UnitResult, sender: Identities) -> None:
        self._passed_up.append((sender, result.step, self.digests_of(result)))

    def senders_of_wrong(self, dispute: Dispute) -> set[Identities]:
        """Return the senders of what differs from what is right, as far as it is remembered."""
        step, shards = dispute.step, dispute.shards
        claims = [(sender, claim) for sender, past, claim in self._passed_up if past == step]
        if step in self._steps and self._steps[step].inputs is not None:
            claims += self.accepted(step, shards)
        count = self.definition.shards
        return {each for each, claim in claims if differs(claim, dispute.digests, count, shards)}

    # The unit that goes up.

    def unit_of(self, run: Range) -> Range | None:
        """Return the smallest range with this run whose cover is summed; None while it is not.

        It is larger than the run where sums have been joined already: none is taken apart.
        """
        if not all(shard in self._open.senders for shard in numbers_of(run)):
            return None
        nodes = [self._sums.container(node) or node for node in cover(self._sums.count, run)]
        return nodes[0][0], nodes[-1][1]

    def payload(self, unit: Range) -> Payload:
        here = slice(unit[0], unit[1] + 1)
        return Payload(
            tuple(as_frame(self._sum(node)) for node in cover(self._sums.count, unit)),
            as_frame(self._next_hidden[here]),
            tuple(self._open.losses[shard] for shard in numbers_of(unit)),
            b"".join(self._open.hidden_digests[here]),
            sparse_form(dimensions_of(self.definition, self.state.parameters.vocabulary_size)),
        )

    def next_hidden(self, shards: Range) -> list[Frame]:
        return [as_frame(self._next_hidden[shard]) for shard in numbers_of(shards)]

    def _sum(self, node: Range) -> NDArray[Any]:
        held = self._sums.nodes.get(node)
        return self._sums.result() if held is None else held  # the root's two halves
