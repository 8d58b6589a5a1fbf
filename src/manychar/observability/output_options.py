"""The options of what a run is exported to, and of how text is sampled from a model."""

import dataclasses
import os

from manychar.numerics.option import option

StrPath = str | os.PathLike[str]

EXPORTING = ("train", "follow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What a live run is exported to."""

    metrics_port: int | None = option(
        None,
        "Serve Prometheus metrics on this port of the loopback interface.",
        roles=EXPORTING,
        least=0,
        most=65_535,
    )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How text is sampled from a model."""

    length: int = option(2000, "Characters to sample.", roles=("sample",), least=0)
    _: dataclasses.KW_ONLY
    prime: str = option("", "Text to continue; it is printed first.", roles=("sample",))
    prime_file: StrPath | None = option(None, "File with the text to continue.", roles=("sample",))
    temperature: float = option(
        1.0,
        "Below 1: likelier characters, above 1: rarer ones, 0: likeliest.",
        roles=("sample",),
        least=0,
        most=1e3,
    )
    top_k: int = option(
        0, "Sample from the N likeliest characters; 0: from all.", roles=("sample",), least=0
    )
    seed: int | None = option(
        None, "The same seed, the same text.", roles=("sample",), least=0, without="random"
    )
    connect_timeout: float = option(
        10.0, "Seconds to wait for the connection.", roles=("sample",), least=0
    )
