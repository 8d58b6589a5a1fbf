"""min-char-rnn as pure functions over numpy arrays; the run definition; the corpus as streams.

Read in the order of the data: option, run_definition, corpus, model, kernel, tree_reduction,
clipped_adagrad, training_step, evaluation, numerics_fingerprint. numpy is imported by modules, not
here: the command line reads options before it pins the numerics.
"""
