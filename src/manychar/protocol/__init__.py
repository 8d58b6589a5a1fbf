"""The protocol without I/O: messages, their codec, and the state machines of server and peers.

An event goes into a machine together with the time, effects come out, and the same events give the
same effects. README.md beside this file has the rules and the order in which to read.
"""
