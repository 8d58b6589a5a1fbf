"""Options that a user of another program gives."""

import re

import pytest

from manychar.fleet.launch_options import RUN_OPTIONS, instead_of
from manychar.numerics.option import options_of

TORCH_RNN = "rnn_size num_layers dropout model_type batch_size max_epochs grad_clip gpu start_text"
NANOGPT = "n_layer n_head n_embd block_size max_iters warmup_iters out_dir device max_new_tokens"


@pytest.mark.parametrize("name", [*f"{TORCH_RNN} {NANOGPT} cuda optimizer model lr".split()])
def test_the_spellings_of_others_are_answered_with_an_option_that_there_is(name: str) -> None:
    flags = options_of(*RUN_OPTIONS)
    for spelled in (name, f"--{name}", f"--{name.replace('_', '-')}", f"-{name}"):
        instead = instead_of(spelled, flags, near=False)
        named = re.findall(r"--([a-z-]+)", instead)
        assert named, spelled
        assert {each.replace("-", "_") for each in named} <= flags.keys()
    assert instead_of(name, ["other"], near=False) == "", "a command without such an option"
