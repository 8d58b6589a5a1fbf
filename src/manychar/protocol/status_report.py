"""The run's status as observers see it: figures, worker statistics, and what a late step awaits."""

import collections
import dataclasses
import math
from collections.abc import Mapping

from manychar.numerics.run_definition import Definition
from manychar.protocol import messages
from manychar.protocol.counters import Counter
from manychar.protocol.effects import Level
from manychar.protocol.events import DiskWaited
from manychar.protocol.field_types import MAX_INTEGER
from manychar.protocol.member import Member, PeerState
from manychar.protocol.messages import HOST_LENGTH, PAGE_LENGTH, Peer, Status, Weights, one_line
from manychar.protocol.range_cut import shards_named
from manychar.protocol.server_part import ServerPart, Shared
from manychar.protocol.worker_tally import WITHOUT_WORKERS, WorkerStats

FIGURES_EVERY = 0.2
PAGES_EVERY = 1.0
WORKERS_A_SECOND = 250  # in pages: a second's work must not grow with the number of workers
FIRST_STALL_AFTER = 1.0
LONG_STEP = 4  # usual steps
STALL_EVERY = 10.0
NAMES_SHOWN = 5
LOSS_STEPS = 100  # of which a status gives the mean loss
FEW_STREAMS, STEPS_OF_FEW_STREAMS = 8, 1000  # their first losses vary too much to tell a divergence
FAR_ABOVE = 10.0  # times the loss of the untrained model: no noise reaches that
MOST_BELOW = 10_000
MOST_GONE = 100  # relays that are gone, by instance: one that connects again counts on
SILENT = PeerState.SILENT.value


def mean_loss(now: Status, before: Status | None) -> float:
    """Return the mean loss of the steps since an earlier status, in nats a character.

    Where that is not known, it is the mean of the last LOSS_STEPS.
    """
    if before is None or before.term != now.term or now.step <= before.step:
        return now.loss_nats_per_character
    loss_sum = now.loss_sum_nats_per_character - before.loss_sum_nats_per_character
    return loss_sum / (now.step - before.step)


def is_divergence(definition: Definition, vocabulary_size: int, step: int, nats: float) -> bool:
    """Whether a loss is above that of the untrained model, at a step after the first ones.

    A loss that is many times as high is no noise of the first steps.
    """
    untrained = math.log(vocabulary_size)
    few = definition.total_streams < FEW_STREAMS
    first = definition.warmup + (STEPS_OF_FEW_STREAMS if few else LOSS_STEPS)
    return nats > (untrained if step >= first else FAR_ABOVE * untrained)


# Many methods: what is shown, and what is logged of a late or diverging step, are the same figures.
class StatusReport(ServerPart):
    """Makes Status messages, and sends them when it is time; warns of a step that is late."""

    def __init__(self, shared: Shared, *, now: float) -> None:
        super().__init__(shared)
        self.waits_for_disk = False
        self._began_at = now - self._spec.seconds_before
        self._figures_at = self._pages_at = self._changes_at = self._applied_at = now
        self._shown_holders: set[Peer] = set()
        self._relayed: dict[str, collections.Counter[str]] = {}  # by instance, the last heard last
        self._forgotten: collections.Counter[str] = collections.Counter()
        self._shown_step = -1
        self._checkpoint, self._saved_at = self._spec.state.step, now
        self.divergence = ""
        self._warned_of_divergence = False
        self._nobody_yet = True
        self._loss_sums = collections.deque([0.0], maxlen=LOSS_STEPS + 1)
        self._late_from = self._stall_at = now + FIRST_STALL_AFTER
        self._look_for_divergence(self._smooth_loss)  # of an earlier server

    def saved(self, step: int, now: float) -> None:
        self._checkpoint, self._saved_at = max(self._checkpoint, step), now
        self.waits_for_disk &= step < self._step

    def disk_waited(self, event: DiskWaited, now: float) -> None:
        """Show what this server's loop waits for, before it does."""
        text = f"step {self._step:,} waits for the disk: earlier checkpoints are being written"
        self._outbox.warn(text)
        self.waits_for_disk = True
        self.show(now, pages=True)
        self.waits_for_disk = self._aggregation.closed  # then the last checkpoint is awaited

    def applied(self, now: float) -> None:
        """Note that a step was applied: the next one may take several times as long."""
        usual = LONG_STEP * (now - self._applied_at)
        self._applied_at = now
        self._late_from = now + max(FIRST_STALL_AFTER, min(usual, STALL_EVERY))
        self._stall_at = self._late_from

    def suspended(self, seconds: float) -> None:
        self._began_at += seconds
        self._applied_at += seconds
        self._late_from += seconds
        self._stall_at += seconds

    def note_loss(self) -> None:
        """Note the loss of the step that was applied, and look for divergence now and then."""
        nats = self._aggregation.loss / self._spec.definition.seq_length
        self._loss_sums.append(self._loss_sums[-1] + nats)
        steps = len(self._loss_sums) - 1
        is_due = self._step % LOSS_STEPS == 0 and steps == LOSS_STEPS
        if is_due or self._step == self._spec.operation.steps:
            mean = (self._loss_sums[-1] - self._loss_sums[0]) / steps
            before = self._smooth_loss if self.divergence else mean  # it keeps a warning up
            self._look_for_divergence(max(mean, before))

    def _look_for_divergence(self, nats: float) -> None:
        """Warn where a mean loss is above that of the untrained model, once."""
        definition, size = self._spec.definition, self._spec.dimensions.vocabulary_size
        if not is_divergence(definition, size, self._step, nats):
            self.divergence = ""
        elif not self.divergence:
            self.divergence = (
                f"training diverges with --learning-rate {definition.learning_rate:g}: the mean"
                f" loss of {min(LOSS_STEPS, self._step)} steps is above ln {size:,} ="
                f" {math.log(size):.3f}, that of the untrained model: {self._new_run}"
            )
            if not self._warned_of_divergence:  # of a text like noise the loss crosses that often
                self._outbox.warn(self.divergence)
            self._warned_of_divergence = True

    @property
    def _smooth_loss(self) -> float:
        return self._aggregation.state.smooth_loss / self._spec.definition.seq_length

    def tick(self, now: float) -> None:
        """Show all pages when they are due, and the figures alone when a step was applied."""
        figures = now >= self._figures_at and self._step != self._shown_step
        if figures or self._pages_are_due(now):
            self.show(now)

    def _pages_are_due(self, now: float) -> bool:
        """Whether it is time for all pages: at intervals, and when others hold the shards."""
        changed = self._membership.holders() != self._shown_holders
        return now >= (self._changes_at if changed else self._pages_at)

    def report_stall(self, now: float) -> None:
        """Log what the run is waiting for, every STALL_EVERY seconds of a late step.

        It is no fault that a server is there before its workers, that the first step takes long, or
        that training is faster than disk and validation, whose process is watched on its own.
        """
        if self._nobody_yet and (workers := self._membership.workers()):
            self._nobody_yet = False
            self._applied_at = min(each.heard_at for each in workers)  # `now` may be much later
            self._stall_at = self._applied_at + FIRST_STALL_AFTER
        if now < self._stall_at:
            return
        self._stall_at = now + STALL_EVERY
        if self._nobody_yet and not self._aggregation.closed:
            count = self._spec.started_workers or f"up to {self._spec.definition.shards}"
            self._outbox.log(f"waiting for workers (0 of {count})")
            return
        waited = now - self._applied_at
        is_usual = self._awaits_validation() or (
            waited < STALL_EVERY and (self.waits_for_disk or self._step == self._spec.state.step)
        )
        text = f"step {self._step:,} has waited {waited:.0f} s for {self._awaited()}"
        self._outbox.log(text, Level.INFO if is_usual else Level.WARNING)

    def _awaits_validation(self) -> bool:
        ends = self._aggregation.closed or self._early_stopping.waits(self._step)
        return ends and not self.waits_for_disk

    def show(self, now: float, *, pages: bool = False) -> None:
        """Show the run's figures, and all workers as well where `pages`, or they are due."""
        pages = pages or self._pages_are_due(now)
        self._figures_at = now + FIGURES_EVERY
        self._shown_step = self._step
        shown = self.pages(now) if pages else [self.figures(now)]
        if pages:
            self._changes_at = now + shown[0].total / WORKERS_A_SECOND
            self._pages_at = max(now + PAGES_EVERY, self._changes_at)
            self._shown_holders = self._membership.holders()
        self._outbox.show(*shown)

    def figures(self, now: float) -> Status:
        """Return the run's figures, with an empty page behind the last worker."""
        state, losses = self._aggregation.state, self._early_stopping.validation_losses
        validated = max(losses, default=None)
        late = self.waits_for_disk or now >= self._late_from
        holders = self._membership.holders()
        total, sums, counts = len(self._listed()), self._loss_sums, self._outbox.counts.copy()
        for each in (self._forgotten, *self._relayed.values()):
            counts.update(each)
        return Status(
            **self._spec.run_and_term,
            step=state.step,
            steps=self._spec.operation.steps,
            loss_nats_per_character=(sums[-1] - sums[0]) / (len(sums) - 1 or math.nan),
            loss_sum_nats_per_character=sums[-1],
            characters=state.step * self._spec.definition.characters_per_step,
            seconds=now - self._began_at,
            checkpoint=self._checkpoint,
            checkpoint_age_seconds=now - self._saved_at,
            validated=validated,
            validation_loss_nats_per_character=None if validated is None else losses[validated],
            smooth_loss_nats_per_character=self._smooth_loss,
            best=self._early_stopping.best,
            divergence=self.divergence,
            idle_workers=sum(
                worker.workers
                for worker in self._membership.workers()
                if worker.peer not in holders and not worker.speed.is_too_slow
            ),
            waiting_for=one_line(self._awaited()) if late else "",
            counts={name: min(n, MAX_INTEGER) for name, n in counts.items()},
            first=total,
            total=total,
            workers=(),
        )

    def pages(self, now: float) -> list[Status]:
        """Return the run's figures and all workers, in as many messages as it takes."""
        shards: dict[Peer, list[int]] = {}
        for lease in self._membership.leases.values():
            if not lease.duplicate:
                shards.setdefault(lease.peer, []).extend(lease.numbers)
        entries = []
        for member in self._listed():
            entries.append(self._entry(member, shards.get(member.peer, []), now))
            below = [each._replace(relay=each.relay or member.name) for each in member.below]
            if member.state is PeerState.SILENT:  # its last report is out of date
                below = [w._replace(state=SILENT, shards=0, late_seconds=0.0) for w in below]
            entries += below
        figures = dataclasses.replace(self.figures(now), total=len(entries))
        return [
            dataclasses.replace(
                figures, first=first, workers=tuple(entries[first : first + PAGE_LENGTH])
            )
            for first in range(0, max(len(entries), 1), PAGE_LENGTH)
        ]

    def note_below(self, member: Member, page: Status, now: float) -> None:
        """Note the workers and the counts of a relay, cut so that a page of this server holds them.

        The first page begins anew.
        """
        most = HOST_LENGTH
        named = [w._replace(host=w.host[:most], relay=w.relay[:most]) for w in page.workers]
        member.below = (*member.below[: page.first], *named)[:MOST_BELOW]
        if member.is_relay:
            self._note_counts(member.instance, page.counts)

    def _note_counts(self, instance: str, counts: Mapping[str, int]) -> None:
        """Keep the counts of a relay, also when it is gone: no sum of them ever falls in a term."""
        known = {name: n for name, n in counts.items() if name in tuple(Counter)}
        before = self._relayed.pop(instance, collections.Counter())
        self._relayed[instance] = before | collections.Counter(known)
        if len(self._relayed) > MOST_GONE + len(self._membership.relays()):
            self._forgotten.update(self._relayed.pop(next(iter(self._relayed))))

    def _listed(self) -> list[Member]:
        """Return the workers, and those that are silent and have no successor of their name."""
        names = {member.name for member in self._membership.workers()}
        return [
            each
            for each in self._membership.members.values()
            if each.state is PeerState.WORKING
            or (each.state is PeerState.SILENT and each.name not in names)
        ]

    def _entry(self, member: Member, shards: list[int], now: float) -> WorkerStats:
        tally, is_missing = member.tally, self._aggregation.is_missing
        leases = self._membership.leases_of(member.peer)  # a duplicate, too
        asked = sum(is_missing(shard) for lease in leases for shard in lease.numbers)
        state = "slow" if member.speed.is_too_slow else "idle"
        state = state if member.workers else WITHOUT_WORKERS
        state = SILENT if member.state is PeerState.SILENT else "working" if shards else state
        return WorkerStats(
            name=member.name,
            host=member.host,
            state=state,
            shards=len(shards),
            gradients=tally.gradients,
            dropped=tally.dropped,
            shard_seconds=member.speed.seconds_a_shard or 0.0,
            late_seconds=now - self._applied_at if any(map(is_missing, shards)) else 0.0,
            longest_piece_seconds=member.longest_piece,
            **tally.recent(now, expected=member.seconds_for(asked)),
        )

    def weights(self) -> Weights:
        weights = self._aggregation.weights
        return Weights(**self._spec.run_and_term, version=self._step, weights=weights)

    def send_weights(self, member: Member, message: messages.WeightsRequest, now: float) -> None:
        self._outbox.send(member.peer, self.weights())

    def _awaited(self) -> str:
        if self.waits_for_disk:
            return f"the disk: the checkpoint of step {self._step:,} is being written"
        if self._awaits_validation():
            awaited = self._early_stopping.awaited_before(self._step) or [self._step]
            return f"the validation loss of step {', '.join(f'{each:,}' for each in awaited)}"
        late = [
            f"{self._membership.members[lease.peer].name} ({shards_named(lease.shards)})"
            for lease in self._membership.leases.values()
            if any(map(self._aggregation.is_missing, lease.numbers))
        ]
        more = f" and {len(late) - NAMES_SHOWN} more" if len(late) > NAMES_SHOWN else ""
        return ", ".join(late[:NAMES_SHOWN]) + more if late else "a worker to connect"
