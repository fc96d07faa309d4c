"""Descriptions of operators for the test matrix, and the cases of their calls, which appear in test names."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.calls import Call
from harness.layouts import Place
from mtlkit.testing import DirectionalScanShape, InteractionShape, SelectiveScanShape

Layout = Mapping[str, Place]  # by the name of the argument that it lays out


@dataclass(frozen=True, eq=False)
class Operator:
    """Description of an operator for the matrix; `call` turns a case and a dtype into a Call.

    Args:
        name: of the function in mtlkit.ops.
        call: (case, dtype) -> Call.
        node_options: the arguments of its node in torch.ops.mtlkit after the tensors; None if the tensors differ.
        shapes: odd and tiny cases, for every dtype and every layout in `dense`.
        small: cases with every argument; the first one is used where one is enough.
        dense: layouts in which every shape is tested.
        layouts: additional ones, for the small cases; those in `other_numbers` change the values.
        exact_layouts: whether results in every layout are bitwise those of dense tensors.
        packed: cases whose sizes allow packed loads everywhere, and others that do not.
        by_level: cases for every instruction set.
        threaded, counts: cases and thread counts; `same_by_count` names the results that do not depend on the count.
        repeated: cases that give the same bits twice, in every layout in `dense`.
        options: cases tested only in float32.
        wide: outputs with at least float32.
        empty: cases with an empty batch.
        gradcheck: tiny cases; `fast_gradcheck` compares only random directions.
        opcheck: tiny cases.
        compiled: groups of cases for which one compilation with `compiler` is enough; those in `exact_compiled` give
        the same bits as without; `batched` names the arguments with a batch.
        dynamic: whether every size may change, or only the batch size.
        mixed: dtypes of arguments that differ from float32.
        spoilt: values to put into the middle of an argument of a small case.
        spoilt_gradients: whether to compare non-finite gradients, too: "all" of them including NaN and inf,
            or "finite", only where they are finite.
        result_layout: (inputs, results) -> None, raises if results do not have the promised layout.
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
        """The expected results of a case, for any layout of the same values."""
        return self.call(case, dtype).expected()


class ScanCase(NamedTuple):
    """A call of selective_scan: arguments in `without` are None; B and C in `constant` are equal for all tokens."""

    shape: SelectiveScanShape
    without: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    softplus: bool = True

    def __str__(self) -> str:
        words = [f"without {name}" for name in self.without] + [f"constant {name}" for name in self.constant]
        return " ".join([str(self.shape), *words, *([] if self.softplus else ["plain"])])


class DirectionalCase(NamedTuple):
    """A call of directional_scan: the kind of order, and the length of the sequences, 0 for a single one."""

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
