"""Records in one forward pass which layers read the output of which others, to find layers that can be fused."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OTHER = nn.Identity()  # represents every reader that is not a watched layer


class Flow(TorchDispatchMode):
    """Context that records a forward pass of a model.

    Args:
        model: the network.
        layers: returns whether to watch a module. Modules inside a watched one are not recorded.
    """

    def __init__(self, model: nn.Module, layers: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # input and output
        self._readers: dict[int, list[nn.Module]] = defaultdict(list)
        self._makers: dict[int, nn.Module] = {}
        self._kept: list[Tensor] = []  # kept alive, so that ids stay unique
        self._within: list[nn.Module] = []
        self._model, self._layers, self._hooks = model, layers, ExitStack()

    def __enter__(self) -> "Flow":
        for module in self._model.modules():
            if is_hooked(module):
                self._keep(module.register_forward_hook(self._show, with_kwargs=True))
            elif self._layers(module):
                self._keep(module.register_forward_pre_hook(self._enter))
                self._keep(module.register_forward_hook(self._leave, with_kwargs=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        return super().__exit__(*error)

    def _keep(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    def run(self, given: Sequence[Tensor]) -> Any:
        """Runs the model and returns its output, whose tensors count as read."""
        with self:
            output = self._model(*given)
        self._read(tree_leaves(output), OTHER)
        return output

    def next_of(self, layer: nn.Module) -> nn.Module | None:
        """Returns the only layer that reads the output of `layer`, in all calls; None if there is none or several."""
        found = {reader for _, output in self.calls[layer] for reader in self._readers_of(output)}
        other = found.pop() if len(found) == 1 else OTHER
        if other is OTHER or {self._makers.get(id(given)) for given, _ in self.calls[other]} != {layer}:
            return None
        return other

    def _readers_of(self, output: Tensor) -> list[nn.Module]:
        readers = self._readers[id(output)]
        first = readers[0] if readers else OTHER
        in_place = first is not OTHER and any(y is output for _, y in self.calls[first])
        return [first] if in_place else readers or [OTHER]

    def _enter(self, module: nn.Module, _given: Any) -> None:
        self._within.append(module)

    def _show(self, _module: nn.Module, *seen: Any) -> None:
        self._read(tree_leaves(seen), OTHER)

    def _leave(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        self._within.pop()
        if self._within:
            return
        self._read(tree_leaves((given, named)), module)
        if len(given) == 1 and not named and isinstance(given[0], Tensor) and isinstance(output, Tensor):
            self.calls[module].append((given[0], output))
            self._makers.setdefault(id(output), module)  # keeps the maker if an in-place layer returns the same tensor

    def _read(self, values: Sequence[Any], reader: nn.Module) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self._kept.append(value)
                self._readers[id(value)].append(reader)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self._kept += [value for value in tree_leaves(output) if isinstance(value, Tensor)]
        if not self._within:
            self._read(tree_leaves((args, kwargs)), OTHER)
        return output


def is_hooked(module: nn.Module) -> bool:
    """Returns whether a module has forward hooks or pre-hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
