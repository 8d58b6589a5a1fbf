"""The command `export`."""

from manychar.cli.options import ConnectTimeout, Key, Output, Source
from manychar.processes.errors import UserError
from manychar.processes.log import logger


def export(
    source: Source, output: Output, connect_timeout: ConnectTimeout = 10.0, key: Key = None
) -> None:
    """Write the weights as a state dict that PyTorch's nn.RNN and nn.Linear load."""
    from manychar.observability.model_source import load
    from manychar.storage.torch_export import write_state_dict

    if output.suffix.lower() not in ("", ".safetensors"):
        raise UserError(f"{output}: the format is safetensors; give -o FILE.safetensors")
    parameters, vocabulary = load(source, key, connect_timeout=connect_timeout)
    write_state_dict(parameters, vocabulary, output)
    characters, hidden = parameters.vocabulary_size, parameters.hidden_size
    logger.info(
        f"{output}: rnn = nn.RNN({characters}, {hidden}, batch_first=True),"
        f" linear = nn.Linear({hidden}, {characters})"
    )
