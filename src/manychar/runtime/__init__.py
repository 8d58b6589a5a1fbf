"""Floor 2: the only sockets, clocks, files and processes.

The shells around the machines of `protocol`: read serve, work, launch, observe, replay.
"""
