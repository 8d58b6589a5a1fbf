"""The run's status as observers see it: its figures, each worker's statistics, newest weights.

A worker reports its own computing time. It waits from the moment its last gradient is accepted
until the weights of a step that it can compute are sent; the rest of its time is the exchange.
"""

import dataclasses

from manychar.protocol.aggregation import Aggregation, as_frame
from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.membership import Member, Membership, PeerState
from manychar.protocol.messages import PAGE_LENGTH, Peer, Status, Weights, WorkerStats, one_line
from manychar.protocol.outbox import Outbox
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.stall_report import StallReport

FIGURES_EVERY = 0.2
PAGES_EVERY = 1.0
COUNTS_SHOWN = 24  # with the longest names they fit into a header


class StatusReport:
    """Makes Status messages, and sends them when it is time. Times are of any steady clock."""

    def __init__(
        self,
        run: RunSpec,
        aggregation: Aggregation,
        membership: Membership,
        early_stopping: EarlyStopping,
        stall_report: StallReport,
        outbox: Outbox,
        *,
        now: float,
    ) -> None:
        self._run = run
        self._aggregation = aggregation
        self._membership = membership
        self._early_stopping = early_stopping
        self._stall_report = stall_report
        self._outbox = outbox
        self._began_at = now - run.seconds_before
        self._figures_at = self._pages_at = now
        self._shown_step = -1
        self._checkpoint, self._saved_at = run.state.step, now

    def saved(self, step: int, now: float) -> None:
        """Note that a checkpoint is on disk."""
        self._checkpoint, self._saved_at = max(self._checkpoint, step), now

    def delivers(self, member: Member, now: float) -> None:
        """Note an accepted gradient."""
        member.tally.counted += 1
        member.tally.delivered_at = now

    def broadcasts(self, now: float) -> None:
        """Note, before new weights are sent, which workers have waited for them."""
        for peer in {lease.peer for lease in self._membership.leases.values()}:
            self._membership.members[peer].tally.waits_until(now)

    def tick(self, now: float) -> None:
        """Show all pages once a second, and the figures alone when a step was applied."""
        if now >= self._pages_at:
            self.show_pages(now)
        elif now >= self._figures_at and self._aggregation.state.step != self._shown_step:
            self.show(now)

    def show(self, now: float) -> None:
        """Show the run's figures."""
        self._figures_at = now + FIGURES_EVERY
        self._shown_step = self._aggregation.state.step
        self._outbox.show(self.figures(now))

    def show_pages(self, now: float) -> None:
        """Show the run's figures and all workers."""
        self._pages_at = now + PAGES_EVERY
        self._figures_at = now + FIGURES_EVERY
        self._shown_step = self._aggregation.state.step
        for page in self.pages(now):
            self._outbox.show(page)

    def figures(self, now: float) -> Status:
        """Return the run's figures, with an empty page behind the last worker."""
        state = self._aggregation.state
        validated = self._early_stopping.newest
        losses = self._early_stopping.validation_losses
        holding = {lease.peer for lease in self._membership.leases.values()}
        workers = self._membership.workers()
        total = len(self._listed())
        return Status(
            run=self._run.run,
            term=self._run.term,
            step=state.step,
            steps=self._run.operation.steps,
            loss=self._aggregation.loss,
            smooth_loss=state.smooth_loss,
            characters=state.step * self._run.definition.characters_per_step,
            seconds=now - self._began_at,
            checkpoint=self._checkpoint,
            checkpoint_age=now - self._saved_at,
            validated=validated,
            validation=None if validated is None else losses[validated],
            best=self._early_stopping.best,
            idle_workers=sum(member.peer not in holding for member in workers),
            waiting_for=one_line(self._stall_report.waiting_for(now)),
            counts=dict(self._outbox.counts.most_common(COUNTS_SHOWN)),
            first=total,
            total=total,
            workers=(),
        )

    def pages(self, now: float) -> list[Status]:
        """Return the run's figures and all workers, in as many messages as it takes."""
        shards: dict[Peer, list[int]] = {}
        for shard, lease in self._membership.leases.items():
            shards.setdefault(lease.peer, []).append(shard)
        entries = [self._entry(m, shards.get(m.peer, []), now) for m in self._listed()]
        figures = self.figures(now)
        return [
            dataclasses.replace(
                figures, first=first, workers=tuple(entries[first : first + PAGE_LENGTH])
            )
            for first in range(0, max(len(entries), 1), PAGE_LENGTH)
        ]

    def _listed(self) -> list[Member]:
        """Return the workers, and those that fell silent and have not come back, by age."""
        workers = self._membership.workers()
        here = {member.name for member in workers}
        workers += [
            member
            for member in self._membership.members.values()
            if member.state is PeerState.SILENT and member.name not in here
        ]
        return sorted(workers, key=lambda member: member.joined)

    def _entry(self, member: Member, shards: list[int], now: float) -> WorkerStats:
        tally = member.tally
        awaited = any(map(self._aggregation.is_missing, shards))
        state = "silent" if member.state is PeerState.SILENT else "working" if shards else "standby"
        return WorkerStats(
            name=member.name,
            host=member.host,
            state=state,
            leases=len(shards),
            units=tally.counted,
            dropped=tally.dropped,
            present=now - tally.since,
            computing=tally.computing_by(now),
            waiting=tally.waited + (0.0 if awaited else now - tally.delivered_at),
            late=now - self._stall_report.since if awaited else 0.0,
        )

    def weights(self) -> Weights:
        """Return the newest weights, from which an observer draws samples."""
        state = self._aggregation.state
        return Weights(
            run=self._run.run,
            term=self._run.term,
            version=state.step,
            weights=as_frame(state.parameters.flat),
            units=(),
            ids=(),
        )
