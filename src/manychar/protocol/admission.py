"""Admits, refuses and bans peers, and detects silent workers."""

import math
from collections.abc import Iterable, Mapping

from manychar.numerics.option import counted
from manychar.protocol import events, messages
from manychar.protocol.counters import Counter
from manychar.protocol.effects import Level, RememberBans
from manychar.protocol.lease_grants import LeaseGrants
from manychar.protocol.member import OWN_PEER, SHARE_NAME, Member, PeerState
from manychar.protocol.membership import FORGET_SILENT_AFTER
from manychar.protocol.messages import KeyRole, Owner, Peer, Refused, Role, one_line
from manychar.protocol.range_cut import shards_named
from manychar.protocol.server_part import ServerPart, Shared
from manychar.protocol.worker_tally import WorkerTally

WARN_EVERY = 1.0
RENEWALS = 2
NAMESAKE_AFTER = 1.0  # what a worker sent before it was restarted has come by then
ADD_KEY = "`manychar keys add KEYS NAME --role {}` makes another"


# Many methods: one for each way in which a peer comes, stays or leaves.
class Admission(ServerPart):
    """Admits peers. `banned` gives the reason for each ban by name."""

    def __init__(self, shared: Shared, lease_grants: LeaseGrants) -> None:
        super().__init__(shared)
        self.banned = dict(self._spec.banned)
        self._lease_grants = lease_grants
        self._next_warning = -math.inf
        self._told_of_idle = False

    def connect(
        self, peer: Peer, hello: messages.Hello, owner: Owner | None, now: float
    ) -> Member | None:
        """Admit a new connection, in the place of its predecessors; None if it is refused."""
        if reason := self._reason_to_refuse(peer, hello, owner):
            who = hello.name if hello.role == Role.WORKER else f"{hello.role} {hello.name}"
            self.refuse(peer, who, reason)
            return None
        known = self._membership.members.get(peer)
        if known and known.state is PeerState.ADMITTED and known.instance == hello.instance:
            self._welcome(known)  # the same Hello again, of which many may wait
            return known
        for former in self._membership.predecessors(peer, hello):
            if former.peer == peer or former.instance == hello.instance:
                self._remove(former, now)
                continue
            former.namesake_at = min(former.namesake_at, now)
            if former.state is PeerState.WORKING:  # it may be dead, and this its next process
                why = f"another worker named {hello.name} connected"
                self._mark_silent(former, why, now, Level.INFO)
        member = self._membership.admit(peer, hello, owner, now)
        self._welcome(member)
        return member

    def refuse(self, peer: Peer, name: str, reason: str) -> None:
        self._outbox.count(Counter.CLIENTS_REFUSED)
        self._outbox.send(peer, Refused(reason=one_line(reason)))
        self._outbox.warn(f"{name} was refused: {reason}")

    def _reason_to_refuse(self, peer: Peer, hello: messages.Hello, owner: Owner | None) -> str:
        if hello.wire != messages.WIRE_VERSION:
            ours = messages.WIRE_VERSION
            return f"its wire version is {hello.wire}, this server has {ours}"
        if hello.role not in tuple(Role):
            return f"there is no role {hello.role}"
        if owner is not None and (reason := _not_by_this_key(hello, owner)):
            return reason
        if hello.name == SHARE_NAME and peer != OWN_PEER:
            return f"the name {SHARE_NAME} is that of the server's own share"
        for name in (hello.name, owner.name if owner else hello.name):
            if hello.role == Role.WORKER and name in self.banned:
                return f"banned: {self.banned[name]}"
        return ""

    def _welcome(self, member: Member) -> None:
        observer = member.role is Role.OBSERVER
        welcome = messages.Welcome(
            **self._spec.run_and_term,
            dimensions=self._spec.dimensions,
            numerics=self._spec.definition.numerics,
            seed=self._spec.definition.seed,
            silence=self._spec.operation.lease_timeout,
            vocabulary=self._spec.vocabulary.encode() if observer else b"",
            fingerprint=self._spec.fingerprint,
            libraries=self._spec.libraries,
            relays=self._spec.relays,
        )
        self._outbox.send(member.peer, welcome)

    def not_ready(self, member: Member, message: messages.UnitResult, now: float) -> None:
        self._outbox.count(Counter.MESSAGES_BEFORE_READY)
        self._welcome(member)

    def ready(self, member: Member, ready: messages.Ready, now: float) -> None:
        """Start a worker with the run's numerics; refuse another one."""
        member.tally = WorkerTally(since=now, delivered_at=now)
        member.longest_piece = ready.longest_piece
        if not member.is_relay and ready.fingerprint != self._spec.fingerprint:
            reason = (
                f"its arithmetic gives other bits than the run's (--numerics"
                f" {self._spec.definition.numerics}): it has {as_words(ready.libraries)};"
                f" the run has {as_words(self._spec.libraries)}"
            )
            self.refuse(member.peer, member.name, reason)
            self._remove(member, now)
        elif member.state is PeerState.ADMITTED:
            self._start(member, now)

    def _start(self, member: Member, now: float) -> None:
        member.state = PeerState.WORKING
        self._outbox.log(f"{member.name} has joined")
        self._lease_grants.joined(now)
        shards, workers = self._spec.definition.shards, self._membership.workers()
        if len(workers) > shards and not self._told_of_idle:
            self._told_of_idle = True
            self._outbox.log(
                f"{member.name} is idle: this run has {counted(shards, 'shard')} (--shards) and"
                f" {counted(sum(each.workers for each in workers), 'worker')}"
            )

    def heartbeat(self, member: Member, heartbeat: messages.Heartbeat, now: float) -> None:
        """Note the progress of a peer, and answer; a worker that is not ready is welcomed again."""
        member.units, member.units_at = heartbeat.units, now
        member.longest_piece = heartbeat.longest_piece
        if now >= member.namesake_at + NAMESAKE_AFTER:
            self._warn_of_namesake(member)
        self._note_workers(member, heartbeat, now)
        self._lease_grants.heard(member, heartbeat.heard, now)
        for unit in heartbeat.units:
            if unit.lease not in self._membership.leases:
                revoke = messages.Revoke(**self._spec.run_and_term, lease=unit.lease)
                self._outbox.send(member.peer, revoke)
        if member.is_relay:  # every time: a message may be lost
            self._tell_relays([member], self.banned)
        if member.state is PeerState.ADMITTED:
            self._welcome(member)
        self._outbox.send(member.peer, messages.Alive(**self._spec.run_and_term))

    def _warn_of_namesake(self, member: Member) -> None:
        """Warn, once, that a worker lives that was connected before another one of its name."""
        member.namesake_at = math.inf
        alive = PeerState.ADMITTED, PeerState.WORKING
        others = [m for m in self._membership.members.values() if m is not member]
        if hosts := [m.host for m in others if m.name == member.name and m.state in alive]:
            self._outbox.warn(
                f"another worker named {member.name} is here: on {member.host} and {hosts[-1]};"
                " give each its own --name, or key"
            )

    def _note_workers(self, member: Member, heartbeat: messages.Heartbeat, now: float) -> None:
        """Take the leases of a relay with no worker below it; it gets some when one is there."""
        before, member.workers = member.workers, heartbeat.workers
        member.levels = heartbeat.levels
        if member.is_relay and (before != member.workers or member.speed.is_due(now)):
            member.speed.note_range()  # it is tried again: duplicates come too late through it
            self._membership.workers_changed()
        if before and not member.workers:
            self._lease_grants.lost(member, now)
        elif member.workers and not before and member.state is PeerState.WORKING:
            if (own := self._membership.members.get(OWN_PEER)) is not None:
                self._lease_grants.lost(own, now)  # with relays the server does not compute
            self._lease_grants.joined(now)

    # Members that leave or fall silent.

    def goodbye(self, member: Member, goodbye: messages.Goodbye, now: float) -> None:
        self._leave(member, goodbye.reason, now)

    def peer_lost(self, event: events.PeerLost, now: float) -> None:
        if (member := self._membership.members.get(event.peer)) is not None:
            self._leave(member, "its connection is gone", now)

    def key_revoked(self, event: events.KeyRevoked, now: float) -> None:
        self._outbox.count(Counter.MESSAGES_FROM_REVOKED_KEY)
        if (member := self._membership.members.get(event.peer)) is not None:
            why = "its key was revoked; manychar keys add makes another"
            self.refuse(member.peer, member.name, why)
            self._remove(member, now)

    def _leave(self, member: Member, why: str, now: float) -> None:
        if member.role is Role.WORKER:
            self._outbox.log(f"{member.name} has left: {why}")
        self._remove(member, now)

    def _remove(self, member: Member, now: float) -> None:
        del self._membership.members[member.peer]
        if member.role is Role.WORKER:
            self._lease_grants.lost(member, now)

    def check_silence(self, now: float) -> None:
        for member in list(self._membership.members.values()):
            silent_for = now - member.heard_at
            if silent_for < self._membership.silence:
                continue
            limit = self._membership.limit(member)
            if member.state is PeerState.WORKING and silent_for >= limit:
                self._mark_silent(member, f"it has sent nothing for {silent_for:.1f} s", now)
            elif silent_for >= max(FORGET_SILENT_AFTER, 2 * limit):
                self._remove(member, now)

    def _mark_silent(
        self, member: Member, why: str, now: float, level: Level = Level.WARNING
    ) -> None:
        member.state = PeerState.SILENT
        self._outbox.log(f"the shards of {member.name} are reassigned: {why}", level)
        self._lease_grants.lost(member, now)

    def end_silence(self, member: Member, now: float) -> None:
        member.state = PeerState.WORKING
        self._outbox.log(f"{member.name} answers again")
        self._lease_grants.joined(now)

    # Faults.

    def malformed(self, event: events.Malformed, now: float) -> None:
        """Count a message that could not be read, or that its sender may not send."""
        member, owner = self._membership.members.get(event.peer), event.owner
        name = member.name if member else owner.name if owner else "an unknown peer"
        self._outbox.count(Counter.MESSAGES_MALFORMED)
        if member is not None:
            member.tally.dropped += 1
        if now >= self._next_warning:
            self._next_warning = now + WARN_EVERY
            total = self._outbox.counts[Counter.MESSAGES_MALFORMED]
            self._outbox.warn(f"{name}: dropped a message: {event.reason} ({total:,} in total)")

    def from_wrong_state(self, member: Member, result: messages.UnitResult, now: float) -> None:
        """Renew the lease of a unit that was computed from a wrong state, or ban its holder.

        A worker that sends RENEWALS + 1 of them in a row would otherwise block its shards forever.
        """
        shards = shards_named(result.shards)
        self._outbox.warn(
            f"{member.name} computed step {result.step:,}, {shards} from another state: dropped"
        )
        lease = self._membership.leases.get(result.lease)
        if lease is None or lease.peer != member.peer:
            return  # not under its present lease
        if member.renewals < RENEWALS:
            member.renewals += 1
            self._lease_grants.renew(lease, now)
        else:
            why = f"it computed {shards} from another state {RENEWALS + 1} times"
            self.ban(member.identities, why, now)

    def ban(self, identities: messages.Identities, why: str, now: float) -> None:
        """Refuse this worker from now on, on any connection."""
        self.banned.update(dict.fromkeys(identities, why))
        self._outbox.add(RememberBans(dict(self.banned)))
        self._outbox.log(f"{identities[0]} is banned: {why}", Level.ERROR)
        for member in list(self._membership.members.values()):
            if member.role is Role.WORKER and not {*identities}.isdisjoint(member.identities):
                self._outbox.send(member.peer, Refused(reason=f"banned: {why}"))
                self._remove(member, now)
        self._tell_relays(self._membership.relays(), dict.fromkeys(identities, why))

    def _tell_relays(self, relays: Iterable[Member], banned: Mapping[str, str]) -> None:
        for relay in relays:
            for name, why in banned.items():
                ban = messages.Ban(**self._spec.run_and_term, name=name, reason=one_line(why))
                self._outbox.send(relay.peer, ban)

    def ban_from_above(self, ban: messages.Ban, now: float) -> None:
        if not ban.reason:
            self.banned.pop(ban.name, None)
            self._tell_relays(self._membership.relays(), {ban.name: ""})
        elif ban.name not in self.banned:
            self.ban((ban.name, ban.name), ban.reason, now)

    def unban(self, member: Member, message: messages.Unban, now: float) -> None:
        if self.is_operator(member, "lift a ban"):
            before = self.banned
            self.banned, text = lift_ban(before, message.name)
            self._tell_relays(self._membership.relays(), {message.name: ""})
            if lifted := self.banned != before:
                self._outbox.add(RememberBans(dict(self.banned)))
                self._outbox.log(f"{text} (requested by {member.name})")
            run, line = self._spec.run_and_term, one_line(text)
            self._outbox.send(member.peer, messages.Unbanned(**run, text=line, lifted=lifted))

    def is_operator(self, member: Member, what: str) -> bool:
        """Whether a member may do this; where its key is not an operator's, it is refused."""
        if member.owner is None or member.owner.role is KeyRole.OPERATOR:
            return True
        reason = f"the key of {member.owner.name} is not an operator's: it cannot {what}"
        advice = ADD_KEY.format(KeyRole.OPERATOR)
        self._outbox.send(member.peer, Refused(reason=f"{reason}: {advice}"))
        return False


def lift_ban(banned: Mapping[str, str], name: str) -> tuple[dict[str, str], str]:
    """Return the bans without this name, and the answer to the user."""
    left = {each: why for each, why in banned.items() if each != name}
    text = f"{name} is no longer banned" if name in banned else f"{name} is not banned"
    return left, f"{text}; banned: {', '.join(left)}" if left else text


def _not_by_this_key(hello: messages.Hello, owner: Owner) -> str:
    """Return what the owner of a key may not do, or nothing."""
    if (hello.role == Role.WORKER) != (owner.role is KeyRole.WORKER):
        other = f"the key of {owner.name} is for {owner.role.value}s, not for {hello.role}s"
        to_stop = " (`--role operator`: to stop a run)" * (hello.role == Role.OBSERVER)
        return f"{other}: {ADD_KEY.format(hello.role)}{to_stop}"
    number = hello.name.removeprefix(f"{owner.name}-")
    if hello.name != owner.name and not (number != hello.name and number.isdecimal()):
        other = f"the key of {owner.name} does not let it be called {hello.name}"
        return f"{other}: leave out --name, or {ADD_KEY.format(hello.role)}"
    return ""


def as_words(libraries: Mapping[str, str]) -> str:
    """Return the names and versions of libraries on one line."""
    return ", ".join(f"{name} {value}" for name, value in sorted(libraries.items()))
