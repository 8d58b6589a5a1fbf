"""A trained model for PyTorch: one safetensors file that is a state dict of its modules.

The modules are `rnn = nn.RNN(V, H, batch_first=True)`, whose default is tanh, and
`linear = nn.Linear(H, V)`. PyTorch has a second bias of the hidden units: it is 0. The metadata
has the vocabulary (a character's id is its position in it) and the dimensions.
"""

from pathlib import Path

import numpy as np

from manychar.numerics.model import Parameters
from manychar.storage.atomic_files import write_output
from manychar.storage.canonical_safetensors import as_safetensors


def write_state_dict(parameters: Parameters, vocabulary: str, target: Path) -> None:
    """Write the state dict to `target`, whole or not at all. Raises UserError."""
    view = parameters.named()
    named = {
        "rnn.weight_ih_l0": view["Wxh"],
        "rnn.weight_hh_l0": view["Whh"],
        "rnn.bias_ih_l0": view["bh"],
        "rnn.bias_hh_l0": np.zeros_like(view["bh"]),
        "linear.weight": view["Why"],
        "linear.bias": view["by"],
    }
    metadata = {
        "format": "pt",
        "vocabulary": vocabulary,
        "vocabulary_size": str(parameters.vocabulary_size),
        "hidden": str(parameters.hidden_size),
        "nonlinearity": "tanh",
    }
    write_output(target, as_safetensors(named, metadata))
