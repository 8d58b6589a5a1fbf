"""Two results for one unit that are not the same bytes: somebody's arithmetic is broken.

The server computes the unit itself from what it holds. Who was wrong is barred by name; if the
wrong result counts, the run goes back to a checkpoint before it did.
"""

from manychar.protocol.effects import GoBack, Result
from manychar.protocol.membership import Member
from manychar.protocol.messages import Gradient, Level
from manychar.protocol.outbox import Outbox
from manychar.protocol.reception import Reception
from manychar.protocol.steps import Digest, Steps, digest_of


class Disputes:
    """Those that are open: who said what of each (shard, step), what counts first."""

    def __init__(self, steps: Steps, reception: Reception, outbox: Outbox) -> None:
        self.open: dict[tuple[int, int], list[tuple[str, Digest]]] = {}
        self._steps = steps
        self._reception = reception
        self._outbox = outbox

    def begin(self, member: Member, gradient: Gradient) -> None:
        """Have this server compute what two results differ on."""
        shard, step = gradient.shard, gradient.step
        accepted = self._steps.accepted(shard, step)
        self._outbox.warn(
            f"{member.name} sent other bytes for step {step}, shard {shard}"
            f" than {accepted.sender} did"
        )
        if self._reception.mixed:
            return  # other arithmetic was let in: nobody is to blame
        if (shard, step) not in self.open:
            self.open[shard, step] = [(accepted.sender, accepted.digest)]
            self._outbox.add(self._steps.unit(shard, step))
        self.open[shard, step].append((member.name, digest_of(gradient)))

    def settle(self, shard: int, step: int, result: Result, now: float) -> GoBack | None:
        """Bar who was wrong; return the way back to take if what counts was."""
        (_, accepted), *_ = said = self.open.pop((shard, step))
        truth = digest_of(result)
        for name in sorted({name for name, digest in said if digest != truth}):
            self._reception.bar(name, f"it computed step {step}, shard {shard} wrongly", now)
        if accepted == truth:
            return None
        barred = self._reception.barred
        first = self._steps.first_from(barred, at_most=step)
        text = f"a wrong gradient was accepted: going back before step {first}"
        self._outbox.notice(text, Level.ERROR)
        return GoBack(first, dict(barred))
