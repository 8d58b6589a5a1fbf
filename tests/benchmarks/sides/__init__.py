"""What runs in the processes that are compared: each module prepares, and returns how to go.

`prepare(task)` returns (what it says about itself, go); `go(argument)` returns a figure. A module
is imported by its own process alone, with the arithmetic pinned or set by the environment.
"""
