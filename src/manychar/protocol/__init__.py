"""The protocol without I/O: messages, their codec, and the state machines of server and peers.

An event goes into a machine together with the time, effects come out, and the same events give the
same effects. Read messages, unit_payload, codec, effects, events; for the server run_spec,
aggregation, range_cut, membership, outbox, server_part, lease_grants, admission,
conflicting_results, early_stopping, status_report, lifecycle, server; for its clients
client_session, worker, observer.

The rules that keep the bits the same; tests/simulation plants a bug for each.

 1. Step k of a shard is computed from its hidden state labelled k. A worker keeps its results until
    the weights of step k + 1 arrive: they acknowledge them. The same grant elicits the same bytes.
 2. A result names its term and session as they were when it was begun, its step, and the digests of
    its weights and of each shard's input hidden state; the server accepts it only where they equal
    its own.
 3. A lease is of a range of shards. A grant brings the weights, hidden states and ids of a run of
    its shards whose results of the open step are not accepted yet; each run has a grant of its own.
    Weights alone elicit the whole range from a holder that computed all of it at the step before,
    under this lease; any other holder gets grants. A grant voids older leases that it overlaps.
 4. A result is assessed by its step, by its inputs, by its shards that are accepted already (if one
    differs, nothing is taken), then node by node of its cover: the sum of a node that is complete,
    or lies in a complete one, is a repeat; any other replaces all that was held below it, and its
    shards are accepted. Sums are formed in the tree, never as a running sum.
 5. Results wait by shard and are committed when the step is applied. Checkpoint c holds every
    shard's hidden state of step c.
 6. Weights v elicit step v. A step below the server's is stale; one above it is a PeerError.
 7. Stored hidden states are raw; the computing function zeroes them where a text starts again.
 8. A version of the weights is never written to while it is sent, saved or computed on.
 9. For some steps the server keeps the digests of accepted shards, and of sums as they were
    delivered. A repeat is compared shard by shard, and node by node where the node is the same.
10. Exactly once means once in the history that survives.
11. A new term or session voids every lease, hidden state and unsent message of the one before; a
    message from another one is answered with Reset, and no client joins an older term.
12. The run is locked, then the new term is on disk, then the server listens.
13. What asks for a unit is numbered, and a heartbeat echoes the number. A unit that its worker was
    asked for, and does not have, is granted again; so is one without an answer, by a timer.
14. The limit is on silence, and doubles with each takeover of a shard. A worker whose lease is
    revoked sends the unit in hand once; it is taken like any other.
15. Lease numbers rise; messages of another lease are ignored. A worker empties its mailbox before
    each shard, and begins its lowest unit first. A unit whose step is applied, or whose term is
    over, is abandoned between two shards.
16. Ranges move between steps only: when a step is applied, before its weights are sent. Within a
    step, shards that nobody holds are leased at once, in addition, to the present workers.
19. Where two results differ, the server computes the shards itself, and bans only the wrong worker.
    Losses and hidden states name their worker, sums only their sender. A result that is not finite
    is wrong only where the server gets another one.
20. A worker holds one finished result of each shard, for the step of its newest weights; the server
    holds no more sums than the tree has nodes.

Rules 17 and 18 of the design are about relays. Arithmetic is compared by a fingerprint of a probe
and by the libraries' names before anything is granted.
"""
