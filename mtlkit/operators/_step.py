"""The machinery of decoding steps: operators that write a new state over the old one, and have no gradients.

A step is declared once, as `Step(...)`, and each of its backends is a function

    backend(inputs, options) -> Tensor          the output, with the state written in place

of the operator's named tuples of tensors and of settings.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtlkit.operators._backends import choose
from mtlkit.operators._operator import NoOptions, in_memory, plain, schema_of, traced


def check_rows(name: str, rows: Tensor, state: Tensor) -> None:
    """Raises an IndexError if an index is beyond the rows of the state; a GPU would have to wait for this."""
    if rows.numel() and int(rows.max()) >= state.shape[0]:
        raise IndexError(f"{name}: expected rows below {state.shape[0]}, the rows of the state, got {int(rows.max())}")


class Step:
    """A decoding step: its tensors and options, its shape rule, its plain PyTorch form, and its compiled backends.

    Calling it with the two named tuples returns the output. It has no gradients.

    Args:
        name: name of the function in `mtlkit.ops` and of the node in `torch.ops.mtlkit`.
        state: name of the input that is updated in place.
        inputs: named tuple of the tensors, each annotated as Tensor or Tensor | None. The device of the first decides
            on the backend.
        options: named tuple of the settings, annotated as bool, float or torch.dtype.
        check: (inputs, options) -> None, the shape rule; raises a TypeError or ValueError that names the argument.
        new_output: (inputs, options) -> Tensor, the output, uninitialised.
        torch_form: the formula in plain PyTorch, (inputs, options) -> output.
        backends: name -> backend, fastest first.
    """

    def __init__(
        self,
        name: str,
        *,
        state: str,
        inputs: type[NamedTuple],
        options: type[NamedTuple] = NoOptions,
        check: Callable[[Any, Any], None],
        new_output: Callable[[Any, Any], Tensor],
        torch_form: Callable[[Any, Any], Tensor],
        backends: Mapping[str, Callable[[Any, Any], Tensor]],
    ) -> None:
        self.name = name
        self.state = state
        self.inputs = inputs
        self.options = options
        self.check = check
        self.new_output = new_output
        self.backends: dict[str, Any] = {**backends, "torch": torch_form, "reference": torch_form}
        self.node: Callable[..., Any] = self._node()

    def __call__(self, inputs: Any, options: Any = NoOptions()) -> Tensor:  # noqa: B008 - it is immutable
        """The output; the state is written in place.

        Raises:
            TypeError, ValueError: from `check`, the state is an expanded tensor, or the requested backend cannot run
                this call.
            RuntimeError: the call is made under a transform of torch.func, such as vmap.
        """
        self.check(inputs, options)
        state = getattr(inputs, self.state)
        if any(stride == 0 and size > 1 for size, stride in zip(state.shape, state.stride(), strict=True)):
            raise ValueError(f"{self.state}: expected a tensor that can be written to, got an expanded one")
        backend = choose(self.name, self.backends, inputs[0].device, lambda name: None)
        with torch.no_grad():
            if traced(inputs):
                return self.node(backend, *inputs, *options)
            return self.run(backend, inputs, options)

    def run(self, backend: str, inputs: Any, options: Any) -> Tensor:
        """The output, computed by a backend; the inputs have been checked."""
        if inputs[0].numel() == 0:
            return self.new_output(inputs, options)
        if in_memory(inputs):
            return self.backends[backend](inputs, options)
        copies = inputs._make(map(plain, inputs))
        output = self.backends[backend](copies, options)
        getattr(inputs, self.state).copy_(getattr(copies, self.state))
        return output

    def _node(self) -> Callable[..., Any]:
        """Registers mtlkit::<name>, which mutates its state, with schema and fake kernel."""
        tensors, options = schema_of(self.inputs), schema_of(self.options)
        tensors[self.state] = "Tensor(a!)"
        declared = ", ".join(["str backend", *(f"{kind} {field}" for field, kind in {**tensors, **options}.items())])

        def split(arguments: tuple[Any, ...]) -> tuple[Any, Any]:
            return self.inputs._make(arguments[: len(tensors)]), self.options._make(arguments[len(tensors) :])

        def run(backend: str, *arguments: Any) -> Tensor:
            return self.run(backend, *split(arguments))

        def fake(_backend: str, *arguments: Any) -> Tensor:
            return self.new_output(*split(arguments))

        schema = f"({declared}) -> Tensor"
        node = torch.library.custom_op(f"mtlkit::{self.name}", run, mutates_args=(self.state,), schema=schema)
        node.register_fake(fake)
        return node
