"""PyTorch, eager, one thread, in whichever of its forms is the fastest here.

The forms: a loop over time with an embedding for the input, or `torch.nn.RNN` on one-hot inputs;
Adagrad fused, over all parameters at once, or one by one; the same for clipping. A short trial at
the start chooses. The text lies ready as (time, stream), so that a batch is a slice and no copy.
"""

import dataclasses
import importlib
import itertools
from collections.abc import Callable
from typing import Any

from tests.benchmarks.pace import per_second
from tests.benchmarks.sides.texts import read_ids
from tests.benchmarks.task import Task

LOOPS = ("embedding", "index_select", "nn.RNN")
ADAGRADS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
}
CLIPS = {"foreach": True, "for-loop": False}
TRIALS, TRIAL_SECONDS = 3, 0.15


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to write the same training step."""

    loop: str = "embedding"
    adagrad: str = "fused"
    clip: str = "for-loop"

    def __str__(self) -> str:
        return f"{self.loop}, Adagrad {self.adagrad}, clip {self.clip}"


def one_thread() -> Any:
    """Import torch and hold it to one thread."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    return torch


class Training:
    """A model in one form, its optimizer, and its place in the text."""

    def __init__(
        self,
        torch: Any,
        task: Task,
        form: Form,
        around: Callable[[Any], Any] = lambda module: module,
    ) -> None:
        """Build it; `around` puts another module around the model, as DDP does."""
        V, ids = read_ids(task.text)
        T, B = task.seq_length, task.streams
        self.T, self.p = T, 0
        length = len(ids) // (task.size * B)
        own = ids[task.rank * B * length : (task.rank + 1) * B * length]
        text = torch.from_numpy(own.astype("int64")).reshape(B, length).T.contiguous()
        self.text, self.last = text, length - T - 1
        torch.manual_seed(0)
        if form.loop == "nn.RNN":
            module = rnn_module(torch, V, task.hidden, B)
        else:
            module = loop_module(torch, V, task.hidden, B, embedding=form.loop == "embedding")
        self.fresh = torch.zeros(B, task.hidden)
        self.h = self.fresh
        self.module = around(module)
        self.parameters = list(module.parameters())
        self.optimizer = torch.optim.Adagrad(
            self.parameters, lr=0.1, eps=1e-8, **ADAGRADS[form.adagrad]
        )
        self._clip, self._foreach = torch.nn.utils.clip_grad_value_, CLIPS[form.clip]

    def step(self) -> None:
        """Select a batch; forward, back, clip, update; carry the hidden state over."""
        if self.p >= self.last:
            self.h, self.p = self.fresh, 0
        piece = self.text[self.p : self.p + self.T + 1]
        loss, h = self.module(piece[:-1], piece[1:], self.h)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._clip(self.parameters, 5.0, foreach=self._foreach)
        self.optimizer.step()
        self.h = h.detach()
        self.p += self.T


def loop_module(torch: Any, V: int, H: int, B: int, *, embedding: bool) -> Any:
    """Return the model with a hand-written loop; Wxh as rows, Whh transposed for the product."""
    functional = torch.nn.functional

    class Loop(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.WxhT = torch.nn.Parameter(0.01 * torch.randn(V, H))
            self.WhhT = torch.nn.Parameter(0.01 * torch.randn(H, H))
            self.Why = torch.nn.Parameter(0.01 * torch.randn(V, H))
            self.bh = torch.nn.Parameter(torch.zeros(H))
            self.by = torch.nn.Parameter(torch.zeros(V))

        def forward(self, inputs: Any, targets: Any, h: Any) -> tuple[Any, Any]:
            rows = self.WxhT + self.bh
            if embedding:
                x = functional.embedding(inputs, rows)
            else:
                x = rows.index_select(0, inputs.reshape(-1)).view(*inputs.shape, H)
            states, WhhT = [], self.WhhT
            for at_time in x.unbind(0):
                h = torch.addmm(at_time, h, WhhT).tanh_()
                states.append(h)
            y = functional.linear(torch.cat(states), self.Why, self.by)
            loss = functional.cross_entropy(y, targets.reshape(-1), reduction="sum")
            return loss / B, h

    return Loop()


def rnn_module(torch: Any, V: int, H: int, B: int) -> Any:
    """Return the model of torch.nn.RNN, whose loop over time is not Python's."""
    functional = torch.nn.functional

    class Recurrent(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.RNN(V, H, nonlinearity="tanh")
            self.linear = torch.nn.Linear(H, V)
            for parameter in self.parameters():
                torch.nn.init.normal_(parameter, std=0.01)
            self.register_buffer("one_hot", torch.eye(V))

        def forward(self, inputs: Any, targets: Any, h: Any) -> tuple[Any, Any]:
            states, h = self.rnn(functional.embedding(inputs, self.one_hot), h[None])
            y = self.linear(states.view(-1, H))
            loss = functional.cross_entropy(y, targets.reshape(-1), reduction="sum")
            return loss / B, h[0]

    return Recurrent()


def fastest(torch: Any, task: Task) -> Form:
    """Try the forms, and return the fastest: first the loop, then optimizer and clip."""
    alone = dataclasses.replace(task, rank=0)
    loop = _best(torch, alone, [Form(loop=name) for name in LOOPS]).loop
    rest = itertools.product(ADAGRADS, CLIPS)
    return _best(torch, alone, [Form(loop, adagrad, clip) for adagrad, clip in rest])


def _best(torch: Any, task: Task, forms: list[Form]) -> Form:
    """Return the form with the best of a few trials, interleaved."""
    trainings = {form: Training(torch, task, form) for form in forms}
    rates = {
        (per_second(training.step, TRIAL_SECONDS), str(form)): form
        for _ in range(TRIALS)
        for form, training in trainings.items()
    }
    return rates[max(rates)]


def prepare(task: Task) -> tuple[str, Callable[[str], float]]:
    """Train on; the figure is characters a second, the note the form that was chosen."""
    torch = one_thread()
    form = fastest(torch, task)
    training = Training(torch, task, form)

    def go(_: str) -> float:
        return task.streams * task.seq_length * per_second(training.step, task.seconds)

    per_second(training.step, min(task.seconds, 0.5))
    return str(form), go
