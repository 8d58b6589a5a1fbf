"""Floor 1: who says what to whom, and what follows from it. No socket, clock, file or thread.

Every machine here is driven from outside: an event goes in together with the time, effects come
out, and the same events give the same effects. Read messages, codec, effects; for the server run,
steps, membership, manners, outbox, leasing, reception, disputes, judging, waiting, attendance,
reporting, server; for its peers session, worker, observer.

The rules that hold the bits together; tests/simulation plants a bug for each. D is the delay.

 1. Step k is computed from the hidden state labelled k. A worker keeps its gradient until the
    weights that follow step k arrive, and sends the same bytes again when asked again.
 2. A gradient names the weights and the hidden state it came from; only the server's own count.
 3. A grant begins at the shard's lowest step without an accepted gradient, with that step's state.
 4. Results wait by (step, shard); a checkpoint holds every shard's hidden state of its own step.
 5. Server and checkpoint hold the last D versions of the weights and the current one.
 6. Steps s … s + D are open; one below is a repeat, one above a fault of the sender.
 7. Within a shard, results are accepted in order of steps.
 8. Hidden states are stored raw; only the computation zeroes them where a text starts again.
 9. Weights are never written to while they are sent, saved or computed on.
10. What was accepted is kept as a digest for some steps, and a repeat is compared with it.
11. Exactly once means once in the history that survives.
12. A new term voids every lease, state and message of earlier ones; an older term is never joined.
13. The run is locked, then the new term is on disk, then the server listens.
14. What got no answer is asked for again, unless a heartbeat says that it is being computed.
15. The limit for silence doubles with each takeover; what a former holder delivers still counts.
16. Lease numbers rise, and the highest counts. A worker reads all its mail before it computes, and
    takes its lowest (step, shard) first.
17. Arithmetic is compared by a probe and by the names of the libraries.
"""
