"""The command `export`."""

import logging

from manychar.cli.options import ConnectTimeout, Key, Output, Source
from manychar.cli.sample import weights_of
from manychar.processes.numerics_pinning import pin

logger = logging.getLogger(__name__)


def export(
    source: Source, output: Output, connect_timeout: ConnectTimeout = 10.0, key: Key = None
) -> None:
    """Write the weights as a state dict that PyTorch's nn.RNN and nn.Linear load."""
    pin("portable")
    from manychar.storage.torch_export import export as write_state_dict

    parameters, vocabulary = weights_of(source, key, connect_timeout)
    write_state_dict(parameters, vocabulary, output)
    characters, hidden = parameters.vocabulary_size, parameters.hidden_size
    logger.info(
        f"{output}: rnn = nn.RNN({characters}, {hidden}, batch_first=True),"
        f" linear = nn.Linear({hidden}, {characters})"
    )
