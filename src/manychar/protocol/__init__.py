"""Floor 1: who says what to whom, and what follows from it. No socket, clock, file or thread.

Every machine here is driven from outside: an event goes in together with the time, effects come
out, and the same events give the same effects. Read messages, codec, effects; for the server run,
steps, membership, outbox, leasing, reception, reporting, server; for its peers session, worker,
observer.
"""
