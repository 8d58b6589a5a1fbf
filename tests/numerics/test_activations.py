"""The hidden states over a text, against the plain form's arithmetic."""

import numpy as np

from manychar.numerics.model import activations, initialize


def test_the_states_are_those_of_the_recurrence() -> None:
    parameters = initialize(5, 4, dtype="float32", seed=3)
    parameters.flat[:] = np.random.default_rng(3).standard_normal(len(parameters.flat))
    ids = np.array([0, 4, 2, 2, 1])
    states = activations(parameters, ids)
    assert states.shape == (5, 4)
    assert states.dtype == np.float64
    h, w = np.zeros(4), {name: view.astype(float) for name, view in parameters.named().items()}
    for t, character in enumerate(ids):
        x = np.eye(5)[character]
        h = np.tanh(w["Wxh"] @ x + w["Whh"] @ h + w["bh"])
        np.testing.assert_allclose(states[t], h, rtol=1e-12, atol=1e-15)
    assert np.abs(states).max() > 0.3


def test_no_character_has_no_state() -> None:
    assert activations(initialize(5, 4), np.array([], np.intp)).shape == (0, 4)
