"""The benchmark suite: `python -m tests.benchmarks`, from the repository's root.

Every side of a comparison is a process of its own that is ready before the first round; the rounds
ask the sides in turn, A B C A B C …, so that what disturbs the machine meets all of them alike.
`rows` are the comparisons and studies, `sides` what runs in the processes.
"""
