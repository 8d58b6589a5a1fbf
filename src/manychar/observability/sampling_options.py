"""The options of how text is sampled from a model."""

import dataclasses
import functools

from manychar.numerics.option import StrPath, option

_option = functools.partial(option, roles=("sample",))


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How text is sampled from a model."""

    length: int = _option(2000, "Characters to sample.", least=0, most=10**15)
    _: dataclasses.KW_ONLY
    prime: str = _option("", "Text to continue; it is printed first.")
    prime_file: StrPath | None = _option(None, "File with the text to continue.")
    temperature: float = _option(
        1.0, "Below 1: likelier characters, above 1: rarer ones, 0: likeliest.", least=0, most=1e3
    )
    top_k: int = _option(0, "Sample from the N likeliest characters; 0: from all.", least=0)
    seed: int | None = _option(None, "The same seed, the same text.", least=0, without="random")
    connect_timeout: float = _option(10.0, "Seconds to wait for the connection.", least=0)
