"""The tests that every operator must pass on each of its backends.

A folder's test_matrix.py derives classes for its backends: from OperatorMatrix for compiled kernels (with OnCPU on the
CPU), or from Results and EmptyBatch for plain PyTorch.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import mtlkit
from harness.calls import NARROW, Call, assert_meets, assert_same
from harness.cases import Operator
from harness.fence import after_a_fence, before_a_fence, fence
from harness.layouts import as_in, chained, dense, kept, misalignments, ones, rearrangements, spread
from mtlkit import _native
from mtlkit.testing import assert_accurate

DTYPES = (torch.float64, torch.float32, *NARROW)
GRADIENT = "the gradient of the output"
ROUGH = 2e-2  # for bfloat16 results, which plain PyTorch under autocast rounds differently


def over(*axes: str) -> Callable[[Callable], Callable]:
    """Runs a test for all combinations of an operator's attributes: over("shapes", "dense") yields (case, layout)."""

    def mark(test: Callable) -> Callable:
        test.axes = axes
        return test

    return mark


def _id(choice: Any) -> str:
    return " ".join(map(str, choice)) if type(choice) is tuple else str(choice)


def nodes(operator: Operator) -> tuple[Callable, Callable]:
    """The nodes of an operator and of its gradients in torch.ops."""
    return tuple(getattr(torch.ops.mtlkit, operator.name + suffix).default for suffix in ("", "_backward"))


def assert_fake_as_real(node: Callable, arguments: tuple) -> None:
    """Compares shapes, dtypes, and strides that matter."""
    with FakeTensorMode() as mode:
        fake = node(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
    real = node(*arguments)
    for one in zip(*(found if isinstance(found, tuple | list) else [found] for found in (fake, real)), strict=True):
        kinds = [(t.shape, t.dtype, [s for s, size in zip(t.stride(), t.shape, strict=True) if size > 1]) for t in one]
        assert kinds[0] == kinds[1]


def spoil(call: Call, name: str, value: float) -> Call:
    """Puts a value into the middle of an argument."""
    flat = call.inputs[name].flatten().clone()
    flat[len(flat) // 2] = value
    return call._replace(inputs=call.inputs | {name: flat.view(call.inputs[name].shape)})


class _Matrix:
    """Runs each test for the operators and backends of a derived class; the backends compute in `dtypes`."""

    operators: tuple[Operator, ...] = ()
    backends: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = DTYPES

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        axes = getattr(metafunc.function, "axes", None)
        if axes is None:
            return
        names, rows = [name for name in metafunc.fixturenames if name in ("case", "layout", "dtype", "spoilt")], []
        for backend, operator in itertools.product(self.backends, self.operators):
            values = {
                "dtypes": self.dtypes,
                "spoilt": [(name, value) for name, many in operator.spoilt.items() for value in many],
            }
            choices = [values[axis] if axis in values else tuple(getattr(operator, axis)) for axis in axes]
            for choice in itertools.product(*choices):
                rows.append(
                    pytest.param(backend, operator, *choice, id="-".join(map(_id, (backend, operator, *choice))))
                )
        assert len(names) == len(axes), f"{metafunc.function.__name__}: expected one argument an axis of {axes}"
        metafunc.parametrize(["backend", "operator", *names], rows, indirect=["backend"])

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest) -> Iterator[str]:
        """Selects the backend, so that a call that it does not support fails."""
        if request.param == "cpu" and _native.C is None:
            pytest.skip(f"no compiled kernels: {_native.why_not}")
        with mtlkit.use_backend(request.param):
            yield request.param

    @staticmethod
    def _present(operator: Operator, case: Any, layout: dict) -> dict:
        """The positions of those arguments that the case has."""
        return {name: place for name, place in layout.items() if name in operator.call(case, torch.float32).inputs}

    @staticmethod
    def _tensors(operator: Operator, leaves: dict[str, Tensor]) -> list[Tensor | None]:
        """The arguments of the operator's node between the backend and the options."""
        _, *names = (argument.name for argument in nodes(operator)[0]._schema.arguments)
        return [leaves.get(name) for name in names[: len(names) - len(operator.node_options)]]

    @staticmethod
    def _backward_arguments(operator: Operator, backend: str, tensors: list[Tensor | None]) -> tuple:
        """The arguments of the node of the gradients, with the outputs themselves as their gradients."""
        forward, backward = nodes(operator)
        found = forward(backend, *tensors, *operator.node_options)
        found = found if isinstance(found, tuple) else (found,)
        outputs = sum(argument.name.startswith("grad") for argument in backward._schema.arguments)
        saves = forward._schema.arguments[-1].name == "save"
        options = operator.node_options[:-1] if saves else operator.node_options
        return (backend, *found[:outputs], *tensors, *found[outputs:], *options)


class EmptyBatch(_Matrix):
    """Empty results, and zero gradients."""

    @over("empty")
    def test_empty_batch(self, operator, backend, case, device):
        call = operator.call(case, torch.float32)
        with mtlkit.use_backend("reference"):
            wanted = call.run()
        got = call.run(device)
        assert {name: t.shape for name, t in got.items()} == {name: t.shape for name, t in wanted.items()}
        for name, t in call.inputs.items():
            assert got[f"d{name}"].shape == t.shape
            assert not got[f"d{name}"].any(), name


class Results(EmptyBatch):
    """Correct results."""

    @over("shapes", "dense", "dtypes")
    def test_output_and_gradients(self, operator, backend, case, layout, dtype, device, poisoned):
        """Also with the gradient of the output in another of the layouts."""
        call = operator.call(case, dtype).placed(**self._present(operator, case, operator.dense[layout]))
        others = list(operator.dense)
        place = next(iter(operator.dense[others[others.index(layout) - 1]].values()), None)
        got = call.run(device, place=place)
        assert next(iter(got.values())).dtype == dtype
        for name, t in call.inputs.items():
            assert got[f"d{name}"].dtype == t.dtype, name
        for name in operator.wide.intersection(got):
            assert got[name].dtype == torch.promote_types(dtype, torch.float32), name
        if backend != "torch":
            operator.result_layout(call.leaves(device), got)
        assert_meets(got, operator.expected(case, dtype), device)

    @over("options")
    def test_options(self, operator, backend, case, device):
        assert_meets(operator.call(case, torch.float32).run(device), operator.expected(case, torch.float32), device)


class OperatorMatrix(Results):
    """All guarantees of compiled kernels."""

    @over("small", "layouts")
    def test_layouts(self, operator, backend, case, layout, device):
        call = operator.call(case, torch.float32)
        placed = call.placed(**operator.layouts[layout])
        if layout in operator.other_numbers:
            same = call._replace(inputs={name: dense(t.detach()) for name, t in placed.leaves().items()})
            expected = same.expected()
        else:
            assert_same(placed.leaves(), call.inputs)
            same, expected = call, operator.expected(case, torch.float32)
        got = placed.run(device)
        assert_meets(got, expected, device)
        if operator.exact_layouts:
            assert_same(got, same.run(device))

    @over("small", "dense")
    def test_layout_of_each_argument(self, operator, backend, case, layout, device):
        """Changes the layout of one argument, or of the output's gradient, at a time."""
        call = operator.call(case, torch.float32).placed(**self._present(operator, case, operator.dense[layout]))
        out = next(iter(call.function(**call.leaves(device)).values())).detach()
        for name, t in (call.inputs | {GRADIENT: out}).items():
            for kind, place in rearrangements(t).items():
                print(name, kind)
                if name == GRADIENT:
                    got = call.run(device, place=place)
                else:
                    got = call.placed(**{name: place}).run(device)
                assert_meets(got, operator.expected(case, torch.float32), device)

    @over()
    def test_layouts_of_the_gradient(self, operator, backend, device):
        """The bits do not depend on the layout of the output's gradient: strided, or one number expanded."""
        call = operator.call(operator.small[0], torch.float32)
        assert_same(call.run(device, place=spread(-1)), call.run(device))
        call.check(device, place=ones)
        assert_same(call.run(device, place=ones), call.run(device, place=lambda t: ones(t).contiguous()))

    @over()
    def test_mixed_dtypes(self, operator, backend, device):
        """Activations in 16 bits and parameters in 32, as under autocast, or any other mixture."""
        if not operator.mixed:
            return
        call = operator.call(operator.small[0], torch.float32)
        call = call._replace(inputs={name: t.to(operator.mixed.get(name, t.dtype)) for name, t in call.inputs.items()})
        got, expected = call.run(device), call.expected()
        assert next(iter(got.values())).dtype == next(iter(call.inputs.values())).dtype
        for name, t in call.inputs.items():
            assert got[f"d{name}"].dtype == t.dtype, name
        computed = {name: t.float() if t.dtype == torch.float64 else t for name, t in got.items()}
        assert_meets(computed, expected, device)

    @over("spoilt")
    def test_what_is_not_finite_spreads_as_in_the_reference(self, operator, backend, spoilt, device):
        name, value = spoilt
        call = spoil(operator.call(operator.small[0], torch.float32), name, value)
        got = {n: t.cpu() for n, t in call.run(device).items()}
        with mtlkit.use_backend("reference"):
            wanted = call.run()
        assert not operator.spoilt_gradients or not next(iter(got.values())).isfinite().all()
        for key, exact in wanted.items():
            if key.startswith("d") and not operator.spoilt_gradients:
                continue
            finite = exact.isfinite()
            assert torch.equal(got[key].isfinite(), finite), key
            if not key.startswith("d"):
                assert torch.equal(got[key].isnan(), exact.isnan()), key
                assert_accurate(f"finite part of {key}", got[key][finite], exact[finite].double())
            if key.startswith("d") and operator.spoilt_gradients == "finite":
                torch.testing.assert_close(got[key][finite], exact[finite], rtol=1e-4, atol=1e-5, msg=key)
            else:
                torch.testing.assert_close(got[key], exact, rtol=1e-4, atol=1e-5, equal_nan=True, msg=key)

    # --- the same bits ------------------------------------------------------------------------------------------------

    @over("repeated", "dense")
    def test_repeats_bit_by_bit(self, operator, backend, case, layout, device):
        call = operator.call(case, torch.float32).placed(**operator.dense[layout])
        assert_same(call.run(device), call.run(device))

    @over()
    def test_what_needs_no_gradient(self, operator, backend, device):
        """Each gradient is bitwise the same if no other gradient is needed."""
        call = operator.call(operator.small[0], torch.float32)
        whole = call.run(device)
        for name in call.inputs:
            leaves = {n: t.requires_grad_(n == name) for n, t in call.leaves(device).items()}
            got = call.results(leaves)
            assert got.keys() == {*(n for n in whole if not n.startswith("d")), f"d{name}"}
            assert_same({f"d{name}": got[f"d{name}"]}, {f"d{name}": whole[f"d{name}"]})

    @over("small")
    def test_gradient_of_each_output_alone(self, operator, backend, case, device):
        call = operator.call(case, torch.float32)
        for name in operator.expected(case, torch.float32)[0]:
            if name not in (f"d{argument}" for argument in call.inputs):
                call.of_output(name).check(device)

    # --- torch's machinery --------------------------------------------------------------------------------------------

    @over("gradcheck", "dense")
    def test_gradcheck(self, operator, backend, case, layout, device):
        if torch.float64 not in self.dtypes:
            return
        places = self._present(operator, case, operator.dense[layout])
        call = operator.call(case, torch.float64).placed(**places)
        leaves = call.leaves(device)

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(call.function(**dict(zip(leaves, tensors, strict=True))).values())

        assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=operator.fast_gradcheck)

    @over("opcheck", "dense")
    def test_opcheck(self, operator, backend, case, layout, device):
        call = operator.call(case, torch.float32).placed(**self._present(operator, case, operator.dense[layout]))
        forward, backward = nodes(operator)
        tensors = self._tensors(operator, call.leaves(device))
        torch.library.opcheck(forward, (backend, *tensors, *operator.node_options))
        tensors = [None if t is None else t.detach() for t in tensors]
        torch.library.opcheck(backward, self._backward_arguments(operator, backend, tensors))

    @over("opcheck")
    def test_fake_results_lie_as_the_real_ones(self, operator, backend, case, device):
        """For every layout of each argument."""
        call, (node, gradients) = operator.call(case, torch.float32), nodes(operator)
        for name, t in call.inputs.items():
            for kind, place in rearrangements(t).items():
                print(name, kind)
                leaves = call.placed(**{name: place}).leaves(device)
                tensors = [None if t is None else t.detach() for t in self._tensors(operator, leaves)]
                arguments = (backend, *tensors, *operator.node_options)
                assert_fake_as_real(node, arguments)
                assert_fake_as_real(gradients, self._backward_arguments(operator, backend, tensors))

    @over("compiled")
    def test_compiles_once_for_every_size(self, operator, backend, case, device):
        """As a full graph, with output and gradients, between other operations."""
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend(operator.compiler)
        first = next(iter(operator.call(operator.small[0], torch.float32).inputs))
        function = operator.call(case[0], torch.float32).function

        def between(**tensors: Tensor) -> dict[str, Tensor]:
            return {n: 2 * t for n, t in function(**{**tensors, first: tensors[first] + 1}).items()}

        compiled = torch.compile(between, backend=counter, fullgraph=True, dynamic=True if operator.dynamic else None)
        for one in case:
            call = operator.call(one, torch.float32)
            leaves = call.leaves(device)
            if not operator.dynamic:
                for name in operator.batched:
                    torch._dynamo.mark_dynamic(leaves[name], 0)
            got, want = (call._replace(function=f).results(leaves) for f in (compiled, between))
            assert got.keys() == want.keys()
            for name, value in got.items():
                torch.testing.assert_close(value, want[name], rtol=1e-4, atol=1e-5, msg=name)
            if operator.exact_compiled:
                assert_same(got, want)
        assert counter.frame_count == 1

    @over()
    def test_second_derivative_raises(self, operator, backend, device):
        """Also if another term of the loss has second derivatives, so that none is silently omitted."""
        call = operator.call(operator.small[0], torch.float32)
        for power in (1, 2):
            leaves = call.leaves(device)
            first = next(iter(leaves.values()))
            for output in call.function(**leaves).values():
                (gradient,) = torch.autograd.grad(output.pow(power).sum(), first, create_graph=True)
                for loss in (gradient.sum(), gradient.square().sum() + first.square().sum()):
                    with pytest.raises(RuntimeError, match=f"{operator.name} has first-order gradients only"):
                        loss.backward(retain_graph=True)

    @over()
    def test_vmap_raises(self, operator, backend, device):
        call = operator.call(operator.small[0], torch.float32)
        tensors = {name: t.to(device) for name, t in call.inputs.items()}
        first = next(iter(tensors))
        with pytest.raises(RuntimeError, match="vmap"):
            torch.vmap(lambda t: next(iter(call.function(**tensors | {first: t}).values())))(tensors[first][None])

    @over()
    def test_autocast_changes_nothing(self, operator, backend, device):
        """The operator computes in the dtypes of its arguments, even under autocast."""
        call = operator.call(operator.small[0], torch.float32)
        tensors = {name: t.to(device) for name, t in call.inputs.items()}
        plain = call.function(**tensors)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            assert_same(call.function(**tensors), plain)
            narrow = tensors | {name: tensors[name].bfloat16() for name in operator.batched}
            got = next(iter(call.function(**narrow).values()))
        assert got.dtype == torch.bfloat16
        with mtlkit.use_backend("reference"):
            exact = next(iter(call.function(**{name: t.double() for name, t in narrow.items()}).values()))
        assert (got - exact).norm() < ROUGH * exact.norm()


class Fenced(_Matrix):
    """Guarantee of kernels on a CPU, interpreted or not: no access outside the tensors."""

    def levels(self) -> Iterator[None]:
        """Yields once per variant of the kernels, which is active meanwhile."""
        yield

    @over("shapes", "dense", "dtypes")
    def test_touches_nothing_outside_its_tensors(self, operator, backend, case, layout, dtype, monkeypatch):
        """All arguments and allocations are between inaccessible pages."""
        places = self._present(operator, case, operator.dense[layout])
        expected = operator.expected(case, dtype)
        call = operator.call(case, dtype)
        out = next(iter(call.placed(**places).function(**call.placed(**places).leaves()).values())).detach()
        for fenced in (before_a_fence, after_a_fence):
            beside = {name: chained(places.get(name, kept), fenced) for name in call.inputs}
            for _ in self.levels():
                with monkeypatch.context() as patch:
                    fence(patch, fenced)
                    got = call.placed(**beside).run(place=chained(as_in(out), fenced))
                assert_meets(got, expected)


class InMemory(Fenced):
    """Guarantee of compiled kernels: any alignment works."""

    @over("packed", "dense", "dtypes")
    def test_alignment(self, operator, backend, case, layout, dtype):
        """Makes each address and stride unsuitable for packed loads and stores, one at a time."""
        call = operator.call(case, dtype).placed(**self._present(operator, case, operator.dense[layout]))
        out = next(iter(call.function(**call.leaves()).values())).detach()
        for name, t in (call.leaves() | {GRADIENT: out}).items():
            for kind, place in misalignments(t.detach()).items():
                print(name, kind)
                if name == GRADIENT:
                    got = call.run(place=chained(as_in(out), place))
                else:
                    got = call.placed(**{name: chained(call.places.get(name, kept), place)}).run()
                assert_meets(got, operator.expected(case, dtype))


class OnCPU:
    """Additional tests of CPU kernels: instruction sets and threads."""

    def levels(self) -> Iterator[None]:
        for level in _native.C.cpu_isa_levels():
            with at_level(level):
                yield

    @over("by_level", "dense", "dtypes")
    def test_every_instruction_set(self, operator, backend, case, layout, dtype):
        call = operator.call(case, dtype).placed(**operator.dense[layout])
        for level in _native.C.cpu_isa_levels():
            with at_level(level):
                assert_meets(call.run(), operator.expected(case, dtype))

    @over("threaded")
    def test_threads_share_the_work(self, operator, backend, case):
        """More threads than items split directions and channels; each count gives right, bitwise repeatable results."""
        call, first = operator.call(case, torch.float32), None
        for count in operator.counts:
            with threads(count):
                got = call.run()
                assert_meets(got, operator.expected(case, torch.float32))
                for _ in range(3):
                    assert_same(call.run(), got)
            first = first or {name: got[name] for name in operator.same_by_count if name in got}
            assert_same(got, first)


@contextlib.contextmanager
def at_level(level: str) -> Iterator[None]:
    """The CPU kernels for an instruction set."""
    before = _native.C.cpu_isa()
    _native.C.set_cpu_isa(level)
    try:
        yield
    finally:
        _native.C.set_cpu_isa(before)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
