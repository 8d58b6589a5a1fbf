"""The protocol without I/O: messages, their codec, and the state machines of server and peers.

An event goes into a machine together with the time, effects come out, and the same events give the
same effects. Read messages, codec, effects, events; for the server run_spec, aggregation,
membership, outbox, server_part, lease_grants, admission, conflicting_results, early_stopping,
status_report, lifecycle, server; for its clients client_session, worker, observer.

The rules that keep the bits the same; tests/simulation plants a bug for each.

 1. Step k of a shard is computed from its hidden state labelled k. A worker keeps a gradient until
    the weights of step k + 1 arrive: they acknowledge it. The same grant elicits the same bytes.
 2. A gradient names its term, its step and the digest of its input hidden state; the server accepts
    it only where they equal its own.
 3. A grant brings the weights, and the shard's hidden state and ids, of the open step, if the
    shard's gradient is not accepted yet. Weights alone elicit the next gradient from a holder whose
    own one was accepted at the step before; any other holder gets a grant.
 4. A gradient is assessed by its step, then by its inputs. The first of (step, shard) counts, from
    any sender; sums are formed in the tree, never as a running sum.
 5. Results wait by shard and are committed when the step is applied. Checkpoint c holds every
    shard's hidden state of step c.
 6. Weights v elicit step v. A step below the server's is stale; one above it is a PeerError.
 7. Stored hidden states are raw; the computing function zeroes them where a text starts again.
 8. A version of the weights is never written to while it is sent, saved or computed on.
 9. For some steps the server keeps the digests of accepted gradients, and compares repeats.
10. Exactly once means once in the history that survives.
11. A new term voids every lease, hidden state and unsent message of the one before; a message from
    another term is answered with Reset, and no client joins an older term.
12. The run is locked, then the new term is on disk, then the server listens.
13. A grant without an answer is sent again, unless a heartbeat says that it is being computed.
14. The limit is on silence, and doubles with each takeover. A former holder's gradient counts.
15. Lease numbers rise, and the highest of a shard counts. A worker empties its mailbox before it
    computes, and computes its lowest shard first.
19. Where two results differ, the server computes the shard itself, and bans only the wrong worker.

Rules 16 to 18 and 20 of the design are about ranges and relays. Arithmetic is compared by a
fingerprint of a probe and by the libraries' names before anything is granted.
"""
