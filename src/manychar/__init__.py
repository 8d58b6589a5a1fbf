"""manychar: min-char-rnn, trained by any number of processes to the same bytes."""

__version__ = "0.1.0"
