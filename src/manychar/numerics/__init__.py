"""Floor 0: min-char-rnn as pure functions over numpy arrays.

Read in the order of the data: definition, corpus, model, kernel, gradient, adagrad, fused, train,
evaluation.
"""

from manychar.numerics import adagrad
from manychar.numerics.corpus import Batch, CorpusError, Streams, encode
from manychar.numerics.evaluation import Evaluation, evaluate
from manychar.numerics.kernel import Kernel, loss_and_gradient
from manychar.numerics.model import Parameters, initialize, sample
from manychar.numerics.run_definition import Definition, DefinitionError
from manychar.numerics.training_step import TrainingState, advance, start, weights_sha256
from manychar.numerics.tree_reduction import average, clip

__all__ = [
    "Batch",
    "CorpusError",
    "Definition",
    "DefinitionError",
    "Evaluation",
    "Kernel",
    "Parameters",
    "Streams",
    "TrainingState",
    "adagrad",
    "advance",
    "average",
    "clip",
    "encode",
    "evaluate",
    "initialize",
    "loss_and_gradient",
    "sample",
    "start",
    "weights_sha256",
]
