"""What the test matrix knows of an operator, and the cases that it is called with, each named as tests are."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.calls import Call
from harness.layouts import Place
from mtlkit.testing import DirectionalScanShape, InteractionShape, SelectiveScanShape

Layout = Mapping[str, Place]  # by the name of the argument that it puts elsewhere


@dataclass(frozen=True, eq=False)
class Operator:
    """What the matrix knows of an operator; a case is what `call` makes a Call of, with a dtype.

    Args:
        name: of the function in mtlkit.ops.
        call: (case, dtype) -> Call.
        node_options: what its node in torch.ops.mtlkit takes behind the tensors; None where that takes other tensors.
        shapes: cases, odd and tiny, for every dtype and every layout in `dense`.
        small: cases with every argument, of which the first stands for all where one is enough.
        dense: layouts that every shape is tested in.
        layouts: further ones, for the small cases; of these, those in `other_numbers` change the numbers.
        exact_layouts: whether the results of every layout are those of dense tensors bit by bit.
        packed: cases whose sizes allow packed loads everywhere, and others.
        by_level: cases for every instruction set.
        threaded, counts: cases and thread counts; `same_by_count` names the results that no count changes.
        repeated: cases that give the same bits twice, in every layout in `dense`.
        options: cases for float32 alone.
        wide: outputs that are in float32 at least.
        empty: cases without an image.
        gradcheck: cases, tiny; `fast_gradcheck` compares random directions alone.
        opcheck: cases, tiny.
        compiled: groups of cases that one compilation with `compiler` serves, in `exact_compiled` to the same bits as
            without; `batched` names the arguments with a batch.
        dynamic: whether every size may change, or that of the batch alone.
        mixed: dtypes of arguments that differ from float32.
        spoilt: what is put into the middle of which argument of a small case.
        spoilt_gradients: whether gradients that are not finite are compared too: "all" of them with their NaN and inf,
            or "finite", where they are finite.
        result_layout: (inputs, results) -> None, raises where results lie in another layout than is promised.
    """

    name: str
    call: Callable[[Any, torch.dtype], Call]
    node_options: tuple | None
    shapes: tuple
    small: tuple
    dense: Mapping[str, Layout]
    batched: tuple[str, ...]
    packed: tuple
    by_level: tuple
    threaded: tuple
    counts: tuple[int, ...]
    empty: tuple
    gradcheck: tuple
    compiled: tuple
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    other_numbers: tuple[str, ...] = ()
    exact_layouts: bool = False
    same_by_count: tuple[str, ...] = ()
    repeated: tuple = ()
    options: tuple = ()
    wide: frozenset[str] = frozenset()
    opcheck: tuple = ()
    fast_gradcheck: bool = False
    compiler: str = "aot_eager"
    exact_compiled: bool = False
    dynamic: bool = True
    mixed: Mapping[str, torch.dtype] = field(default_factory=dict)
    spoilt: dict[str, tuple[float, ...]] = field(default_factory=dict)
    spoilt_gradients: str = ""
    result_layout: Callable[[dict[str, Tensor], dict[str, Tensor]], None] = lambda inputs, results: None

    def __str__(self) -> str:
        return self.name

    @functools.cache  # noqa: B019 - the operators below live as long as the process
    def expected(self, case: Any, dtype: torch.dtype) -> tuple[dict[str, Tensor], ...]:
        """The results of a case in any layout of the same numbers."""
        return self.call(case, dtype).expected()


class ScanCase(NamedTuple):
    """A call of selective_scan: `without` names arguments that are None, `constant` those of B and C without tokens."""

    shape: SelectiveScanShape
    without: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    softplus: bool = True

    def __str__(self) -> str:
        words = [f"without {name}" for name in self.without] + [f"constant {name}" for name in self.constant]
        return " ".join([str(self.shape), *words, *([] if self.softplus else ["plain"])])


class DirectionalCase(NamedTuple):
    """A call of directional_scan: the kind of its order, the length of its sequences, 0 for a single one."""

    shape: DirectionalScanShape
    order: str = "random"
    sequences: int = 0
    merge: bool = True

    def __str__(self) -> str:
        words = [self.order, *(["sequences"] if self.sequences else []), *([] if self.merge else ["apart"])]
        return " ".join([str(self.shape), *words])


class NormCase(NamedTuple):
    """A call of norm_gate: `without` names arguments that are None."""

    size: tuple[int, ...]
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([str(self.size), *(f"without {name}" for name in self.without)])


class ConvCase(NamedTuple):
    """A call of dwconv_silu."""

    size: tuple[int, int, int, int]
    bias: bool = True

    def __str__(self) -> str:
        return f"{self.size}" + ("" if self.bias else " without bias")


class DepthwiseCase(NamedTuple):
    """A call of depthwise_conv2d: `options` are its keywords."""

    size: tuple[int, int, int, int]
    kernel: int = 3
    options: tuple[tuple[str, Any], ...] = ()
    bias: bool = True

    def __str__(self) -> str:
        words = [str(self.size), f"k{self.kernel}", *(f"{name}={value}" for name, value in self.options)]
        return " ".join(words) + ("" if self.bias else " without bias")


class CausalConvCase(NamedTuple):
    """A call of causal_conv1d: `without` names arguments that are None."""

    size: tuple[int, int, int]
    width: int = 4
    without: tuple[str, ...] = ()
    activation: str | None = "silu"

    def __str__(self) -> str:
        words = [str(self.size), f"w{self.width}", *(f"without {name}" for name in self.without)]
        return " ".join([*words, *([] if self.activation else ["plain"])])


class LevelCase(NamedTuple):
    """A call of task_interaction, with the enhanced map or without."""

    shape: InteractionShape
    enhanced: bool = False

    def __str__(self) -> str:
        return f"{self.shape}" + (" enhanced" if self.enhanced else "")
