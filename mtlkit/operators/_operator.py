"""The machinery of operators: the argument check, the choice of a backend, autograd and torch.library, each once.

An operator is declared once, as `Operator(...)`, and is handed one module for each compiled backend, with

    supports(inputs, options) -> str | None          why the backend cannot run the call, in a sentence
    room(inputs, options) -> tuple                   unset tensors for what forward saves for backward, if anything
    forward(inputs, options, save) -> tuple          the outputs, then, if `save`, what is saved
    backward(inputs, options, kept, grads, wanted)   the gradient of each input, None where not needed
        -> sequence

`inputs` and `options` are the operator's named tuples of tensors and of settings. `kept` is what forward saved,
`grads` are the gradients of the outputs (the first is never None), and `wanted` says which inputs need a gradient.
Backends never see empty batches, nor tensors with lazy negation, conjugation or zeros.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, get_type_hints, overload

import torch
from torch import Tensor

from mtlkit.operators._backends import asked_for, choose
from mtlkit.operators._self_check import CHECKED, apart, fault

_OF_TORCH = {Tensor, torch.nn.Parameter}  # other tensor classes intercept the operations on them

_SCHEMA = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    int: "SymInt",
    tuple[int, ...]: "SymInt[]",
    float: "float",
    torch.dtype: "ScalarType",
}


class NoOptions(NamedTuple):
    """The options of an operator without any."""


def schema_of(fields: type[NamedTuple]) -> dict[str, str]:
    """The field types of a named tuple, in the schema language of torch.library."""
    return {field: _SCHEMA[kind] for field, kind in get_type_hints(fields).items()}


# --- tensors ----------------------------------------------------------------------------------------------------------


def wants_grad(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a backward pass through a call with these tensors is possible."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def traced(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call is being traced, so that it must go through the dispatcher instead of running at once."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():  # the second is torch.jit.trace
        return True
    for t in tensors:  # noqa: SIM110 - a generator takes twice the time
        if t is not None and type(t) not in _OF_TORCH:
            return True
    return False


def in_memory(tensors: Iterable[Tensor | None]) -> bool:
    """Whether the memory of all tensors holds their values, without lazy negation, conjugation or zeros."""
    for t in tensors:  # noqa: SIM110 - as above
        if t is not None and (t.is_neg() or t._is_zerotensor()):
            return False
    return True


def direct(tensors: Sequence[Tensor | None]) -> bool:
    """Whether the CPU's kernels may run a call without telling PyTorch.

    All tensors must be dense float32 on the CPU; nothing may trace the call, cast its tensors or intercept torch's
    operators.
    """
    for t in tensors:
        if t is not None and not (t.dtype is torch.float32 and t.is_cpu and t.layout is torch.strided):
            return False
    return (
        not traced(tensors)
        and not torch.is_autocast_enabled("cpu")
        and not (torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())
        and in_memory(tensors)
    )


@overload
def plain(tensor: Tensor) -> Tensor: ...
@overload
def plain(tensor: Tensor | None) -> Tensor | None: ...
def plain(tensor: Tensor | None) -> Tensor | None:
    """The tensor with its values in memory: a lazily negated view or lazy zeros are copied."""
    if tensor is None or not (tensor.is_neg() or tensor._is_zerotensor()):
        return tensor
    return tensor.resolve_neg() if tensor.is_neg() else torch.zeros_like(tensor) + tensor  # differentiable


def fitting(gradient: Tensor, tensor: Tensor) -> Tensor:
    """The gradient, dense and in the dtype of its tensor; copied only if needed."""
    if gradient.dtype == tensor.dtype and (
        gradient.stride() == tensor.stride()
        or gradient.is_contiguous()
        or (gradient.dim() == 4 and gradient.is_contiguous(memory_format=torch.channels_last))
        or (gradient.dim() == 3 and gradient.mT.is_contiguous())
    ):
        return gradient
    return torch.empty_like(tensor).copy_(gradient)


def settled(
    gradients: Sequence[Tensor | None], tensors: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The result of a kernel as autograd expects it: `fitting`, zeros if there is none, None if it is not needed."""
    found = []
    for g, t, want in zip(gradients, tensors, wanted, strict=True):
        if t is None or not want:
            found.append(None)
        elif g is None:
            found.append(torch.zeros_like(t))
        elif g.dtype == t.dtype and g.stride() == t.stride():  # the common case, faster than `fitting`
            found.append(g)
        else:
            found.append(fitting(g, t))
    return found


def like(gradient: Tensor, tensor: Tensor) -> Tensor:
    """The gradient in the dtype and layout of `torch.empty_like` of its tensor; copied only if needed."""
    wanted = torch.empty_like(tensor, device="meta").stride()
    if gradient.dtype == tensor.dtype and gradient.stride() == wanted:
        return gradient
    return torch.empty_like(tensor).copy_(gradient)


class _FirstOrderOnly(torch.autograd.Function):
    """Passes a gradient through; a second differentiation raises an error."""

    @staticmethod
    def forward(ctx: Any, op: str, gradient: Tensor, *_inputs: Tensor) -> Tensor:
        ctx.op = op
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> NoReturn:
        raise RuntimeError(
            f"{ctx.op} has first-order gradients only; use mtlkit.use_backend('torch') for second-order ones"
        )


def first_order_only(
    op: str, gradients: Sequence[Tensor | None], depends: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """Makes a second differentiation of the gradients raise an error, if create_graph=True allows one."""
    if not torch.is_grad_enabled():
        return gradients
    depends = [t for t in depends if t is not None and t.requires_grad]
    return [None if g is None else _FirstOrderOnly.apply(op, g, *depends) for g in gradients]


# --- the operator -----------------------------------------------------------------------------------------------------


class Operator:
    """An operator: its tensors and options, its shape rule, its plain PyTorch forms, and its compiled backends.

    Calling it with the two named tuples gives the tuple of its outputs.

    Args:
        name: name of the node in `torch.ops.mtlkit`.
        function: name of the function in `mtlkit.ops`, for messages; `name` if None.
        inputs: named tuple of the tensors, each annotated as Tensor or Tensor | None. The device of the first decides
            on the backend; if the first has no elements, nothing is launched.
        options: named tuple of the settings, annotated as bool, int, tuple[int, ...], float or torch.dtype.
        check: (inputs, options) -> None, the shape rule; raises a TypeError or ValueError that names the argument.
        new_outputs: (inputs, options) -> tuple, the outputs, uninitialised, in their shapes, dtypes and layouts.
        outputs: number of outputs.
        kept: maximal number of tensors that forward saves for backward, besides the inputs.
        saved_outputs: which outputs backward needs; they come first in its `kept`.
        indices: names of the inputs that hold integers, which have no gradient.
        reference: the formula in plain PyTorch, (*inputs, *options) -> output or tuple of outputs.
        torch_form: the same, vectorised.
        backends: name -> backend as the module's docstring describes it, fastest first.
        in_parts: (backend, inputs, options) -> tuple, the outputs of eager calls with gradients by several nodes of
            autograd, which needs less memory: a part frees what it saved as soon as its gradients are computed.
    """

    def __init__(
        self,
        name: str,
        *,
        inputs: type[NamedTuple],
        options: type[NamedTuple] = NoOptions,
        check: Callable[[Any, Any], None],
        new_outputs: Callable[[Any, Any], tuple[Tensor, ...]],
        outputs: int = 1,
        kept: int = 0,
        saved_outputs: tuple[int, ...] = (),
        indices: tuple[str, ...] = (),
        function: str | None = None,
        reference: Callable[..., Any],
        torch_form: Callable[..., Any],
        backends: Mapping[str, Any],
        in_parts: Callable[[str, Any, Any], tuple[Tensor, ...]] | None = None,
    ) -> None:
        self.name = name
        self.function: str = function or name
        self.inputs = inputs
        self.options = options
        self.saved_outputs = saved_outputs
        self.has_gradient: tuple[bool, ...] = tuple(field not in indices for field in inputs._fields)
        self.check = check
        self.new_outputs = new_outputs
        self.outputs = outputs
        self.kept = kept
        self.backends: dict[str, Any] = dict(backends)
        self.in_parts = in_parts
        self.plain_forms: dict[str, Callable[..., Any]] = {"torch": torch_form, "reference": reference}
        self.served: tuple[str, ...] = (*self.backends, *self.plain_forms)
        self.node: Any = _node(self)

    def __call__(self, inputs: Any, options: Any = NoOptions()) -> tuple[Tensor, ...]:  # noqa: B008 - it is immutable
        """The outputs.

        Raises:
            TypeError, ValueError: from `check`, or the requested backend cannot run this call.
            RuntimeError: the call is made under a transform of torch.func, such as vmap.
        """
        self.check(inputs, options)
        backend = choose(
            self.function,
            self.served,
            inputs[0].device,
            lambda name: self.limit(name, inputs, options) or (self.fault(name, inputs) if name in CHECKED else None),
        )
        return self.run(backend, inputs, options)

    def run(self, backend: str, inputs: Any, options: Any = NoOptions(), caller: str = "") -> tuple[Tensor, ...]:  # noqa: B008 - as above
        """The outputs, computed by a backend that can run the call; the inputs have been checked.

        Args:
            backend: of `served`.
            inputs: the named tuple of the tensors.
            options: the named tuple of the settings.
            caller: name of the function that the user called, for messages; that of this operator if empty.
        """
        if backend in self.plain_forms and inputs[0].device.type != "meta":
            outputs = self.plain_forms[backend](*inputs, *options)
            return outputs if isinstance(outputs, tuple) else (outputs,)
        grad = wants_grad(inputs)
        if backend in self.plain_forms or traced(inputs):  # on "meta" only shapes are computed
            if grad and not torch.compiler.is_compiling() and torch._C._is_tracing():
                raise RuntimeError(
                    f"{self.function}: torch.jit.trace does not record gradients of mtlkit's kernels: trace under "
                    "torch.no_grad(), or call mtlkit.restore(model) before you trace"
                )
            backend = next(iter(self.backends)) if backend in self.plain_forms else backend
            found = self.node(backend, *inputs, *options, *([grad] if self.kept else []))
            return found[: self.outputs] if isinstance(found, tuple) else (found,)
        if not in_memory(inputs):
            inputs = inputs._make(map(plain, inputs))
        if not grad:  # an autograd.Function takes as long as a small kernel
            return self.forward(backend, inputs, options, False)
        if self.in_parts is not None:
            return self.in_parts(backend, inputs, options)
        found = _Call.apply((self, backend, options, caller or self.function), *inputs)
        return found if isinstance(found, tuple) else (found,)

    def limit(self, backend: str, inputs: Any, options: Any) -> str | None:
        """Why a backend cannot run a call, apart from the device; None if it can."""
        return self.backends[backend].supports(inputs, options) if backend in self.backends else None

    def fault(self, backend: str, inputs: Any) -> str | None:
        """Why the kernels failed their check on this GPU, made at their first call; None if they passed."""
        return fault(self.function, backend, inputs[0], asked_for(backend))

    def unset(self, backend: str, inputs: Any, options: Any, save: bool) -> tuple[Tensor, ...]:
        """What `forward` returns, uninitialised."""
        kept = self.backends[backend].room(inputs, options) if save and self.kept else ()
        return *self.new_outputs(inputs, options), *kept

    def forward(self, backend: str, inputs: Any, options: Any, save: bool) -> tuple[Tensor, ...]:
        """Runs the kernel: the outputs, then, if `save`, what backward needs besides the inputs."""
        if inputs[0].numel() == 0:
            return self.unset(backend, inputs, options, save)
        return self.backends[backend].forward(inputs, options, save)

    def backward(
        self,
        backend: str,
        inputs: Any,
        options: Any,
        kept: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """Runs the kernel: the gradient of each input, None where there is no input or no gradient is needed."""
        if inputs[0].numel() == 0:
            gradients = [None] * len(inputs)
        else:
            if grads[0] is None:
                grads = torch.zeros_like(self.new_outputs(inputs, options)[0]), *grads[1:]
            if not in_memory(grads):
                grads = tuple(map(plain, grads))
            gradients = self.backends[backend].backward(inputs, options, kept, grads, wanted)
        return settled(gradients, inputs, wanted)

    # The backend of a graph is chosen when it is traced, but its kernels are checked only when it runs. If they fail #
    # then, PyTorch computes instead.

    def replaced(self, backend: str, inputs: Any) -> bool:
        """Whether PyTorch must replace a backend in a running graph because its kernels failed the check.

        Raises:
            RuntimeError: the backend was requested by name.
        """
        words = self.fault(backend, inputs) if backend in CHECKED and inputs[0].numel() else None
        if words and asked_for(backend):
            raise RuntimeError(f"backend {backend!r} was requested but cannot run {self.function}: {words}")
        return words is not None

    def forward_in_torch(self, backend: str, inputs: Any, options: Any, save: bool) -> tuple[Tensor, ...]:
        """`forward` in PyTorch; what would be saved stays uninitialised."""
        outputs = self.plain_forms["torch"](*inputs, *options)
        found = self.unset(backend, inputs, options, save)
        for new, output in zip(found, outputs if isinstance(outputs, tuple) else (outputs,), strict=False):
            new.copy_(output)
        return found

    def backward_in_torch(
        self, inputs: Any, options: Any, grads: Sequence[Tensor | None], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """`backward` in PyTorch, which recomputes the outputs."""

        def differentiated() -> list[Tensor | None]:
            leaves = [t if t is None else t.detach().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
            outputs = self.plain_forms["torch"](*leaves, *options)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            given = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
            wanting = [t for t, w in zip(leaves, wanted, strict=True) if t is not None and w]
            ys, gs = zip(*given, strict=True)
            found = iter(torch.autograd.grad(ys, wanting, gs, allow_unused=True))
            return [next(found) if t is not None and w else None for t, w in zip(leaves, wanted, strict=True)]

        return settled(apart(differentiated), inputs, wanted)


class _Call(torch.autograd.Function):
    """A call in eager mode."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Operator, str, Any, str], *tensors: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        operator, backend, options, _ = ctx.call = call
        found = operator.forward(backend, operator.inputs._make(tensors), options, True)
        if operator.kept:
            ctx.save_for_backward(*tensors, *(found[i] for i in operator.saved_outputs), *found[operator.outputs :])
        else:
            ctx.save_for_backward(*tensors)
        if operator.outputs == 1:
            return found[0]
        ctx.set_materialize_grads(False)
        return found[: operator.outputs]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (operator, backend, options, function), saved = ctx.call, ctx.saved_tensors
        count = len(operator.inputs._fields)
        inputs = operator.inputs._make(saved[:count])
        gradients = operator.backward(backend, inputs, options, saved[count:], grads, ctx.needs_input_grad[1:])
        return None, *first_order_only(function, gradients, (*grads, *inputs))


# --- for the dispatcher: torch.compile, torch.export ------------------------------------------------------------------


def _node(operator: Operator) -> Callable[..., Any]:
    """Registers mtlkit::<name> and mtlkit::<name>_backward with schema, fake kernels and autograd."""
    kinds, settings = schema_of(operator.inputs), schema_of(operator.options)
    count, many = len(kinds), operator.outputs + operator.kept
    stop = count + len(settings)

    def declared(*parts: str) -> str:
        return ", ".join(["str backend", *parts])

    tensors = [f"{kind} {field}" for field, kind in kinds.items()]
    options = [f"{kind} {field}" for field, kind in settings.items()]
    saves = ["bool save"] if operator.kept else []
    returns = "Tensor" if many == 1 else f"({', '.join(['Tensor'] * many)})"
    grads = [f"Tensor? grad{i}" for i in range(operator.outputs)]
    saved = len(operator.saved_outputs) + operator.kept
    kept = [f"Tensor kept{i}" for i in range(saved)]

    def split(arguments: tuple[Any, ...]) -> tuple[Any, Any, bool]:
        inputs, chosen = operator.inputs._make(arguments[:count]), operator.options._make(arguments[count:stop])
        return inputs, chosen, arguments[stop] if operator.kept else True

    def returned(found: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """Pads to the number of tensors in the schema: some backends save fewer than others."""
        if many == 1:
            return found[0]
        return *found, *(found[0].new_empty(0, dtype=torch.float32) for _ in range(many - len(found)))

    def forward(backend: str, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        inputs, chosen, save = split(arguments)
        run = operator.forward_in_torch if operator.replaced(backend, inputs) else operator.forward
        return returned(run(backend, inputs, chosen, save))

    def fake_forward(backend: str, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        return returned(operator.unset(backend, *split(arguments)))

    def differentiable(inputs: Sequence[Tensor | None]) -> list[bool]:
        """The inputs that the node has gradients for: all that are given and do not hold integers."""
        return [t is not None and has for t, has in zip(inputs, operator.has_gradient, strict=True)]

    def split_backward(arguments: tuple[Any, ...]) -> tuple[Any, Any, tuple[Any, ...], tuple[Any, ...]]:
        grads, rest = arguments[: operator.outputs], arguments[operator.outputs :]
        kept_end = count + saved
        return (
            operator.inputs._make(rest[:count]),
            operator.options._make(rest[kept_end:]),
            rest[count:kept_end],
            grads,
        )

    def backward(backend: str, *arguments: Any) -> list[Tensor]:
        inputs, chosen, kept, grads = split_backward(arguments)
        if operator.replaced(backend, inputs):
            found = operator.backward_in_torch(inputs, chosen, grads, differentiable(inputs))
        else:
            found = operator.backward(backend, inputs, chosen, kept, grads, differentiable(inputs))
        return [like(g, t) for g, t in zip(found, inputs, strict=True) if g is not None]

    def fake_backward(backend: str, *arguments: Any) -> list[Tensor]:
        inputs = split_backward(arguments)[0]
        return [torch.empty_like(t) for t, want in zip(inputs, differentiable(inputs), strict=True) if want]

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.backend, *tensors = inputs[: 1 + count]
        ctx.options = inputs[1 + count : 1 + stop]
        ctx.without_gradients = operator.kept > 0 and not inputs[-1]
        outputs = output if many > 1 else (output,)
        ctx.save_for_backward(*tensors, *(outputs[i] for i in operator.saved_outputs), *outputs[operator.outputs :])

    def gradient(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.without_gradients:
            raise RuntimeError(
                f"{operator.function}: the graph was traced under torch.no_grad() and cannot compute gradients; "
                "to train a traced model, call mtlkit.restore(model) before you trace it"
            )
        tensors = ctx.saved_tensors
        present = iter(backward_node(ctx.backend, *grads[: operator.outputs], *tensors, *ctx.options))
        return (
            None,
            *(next(present) if want else None for want in differentiable(tensors[:count])),
            *[None] * (len(options) + len(saves)),
        )

    def node(name: str, run: Callable[..., Any], schema: str, fake: Callable[..., Any]) -> Any:
        found = torch.library.custom_op(f"mtlkit::{name}", run, mutates_args=(), schema=schema)
        found.register_fake(fake)
        return found

    forward_node = node(operator.name, forward, f"({declared(*tensors, *options, *saves)}) -> {returns}", fake_forward)
    backward_node = node(
        f"{operator.name}_backward",
        backward,
        f"({declared(*grads, *tensors, *kept, *options)}) -> Tensor[]",
        fake_backward,
    )
    forward_node.register_autograd(gradient, setup_context=setup)
    return forward_node
