import pytest
import torch

import mtlkit
from mtlkit import _native
from mtlkit.operators import _launch

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")


@pytest.mark.parametrize("bytes_", [1, 4096, 2 << 20, (5 << 20) + 12])
def test_asking_for_large_pages_changes_no_number(bytes_):
    given = torch.arange(bytes_, dtype=torch.int64).to(torch.uint8)
    want = given.clone()
    _native.C.prefer_large_pages(given.data_ptr(), given.nbytes)
    assert torch.equal(given, want)


def test_only_large_blocks_ask_for_large_pages(monkeypatch):
    asked = []

    class Spy:
        def __getattr__(self, name):
            found = getattr(compiled, name)
            if name != "prefer_large_pages":
                return found
            return lambda address, size: (asked.append(size), found(address, size))

    compiled = _native.C
    monkeypatch.setattr(_native, "C", Spy())
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 3, 3)
    small = mtlkit.ops.dwconv_silu(x, weight)
    assert not asked
    monkeypatch.setattr(_launch, "LARGE_BLOCK", x.nbytes)
    assert torch.equal(mtlkit.ops.dwconv_silu(x, weight), small)
    assert asked == [x.nbytes]


def test_an_empty_tensor_has_no_address():
    assert _launch.address(torch.empty(0, 3)) == 0
    assert _launch.address(None) == 0
