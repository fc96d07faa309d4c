import pytest
import torch
from torch import Tensor

from harness.calls import DTYPES, NARROW, assert_same, ss2d_call
from harness.layouts import far_apart, ones
from mtlkit.ops import ss2d
from mtlkit.testing import SS2DShape


@pytest.mark.parametrize("multiprocessors", [4, 40])
@pytest.mark.parametrize("N", [1, 2, 4, 8, 16, 33])
def test_split_into_chunks(on_host, N, multiprocessors):
    on_host(multiprocessors)
    ss2d_call(SS2DShape(1, 9, 21, 37, N, 2)).check()


# Multiprocessors, and the number of launches for pairs, chunks, windows and slices of images in backward. Lengths make
# the last tile, window, chunk and slice of a shape shorter than the others, or the last chunk longer.
CUTS = [
    (SS2DShape(2, 17, 9, 15, 16, 4), 1, (1, 1, 3, 2)),
    (SS2DShape(1, 7, 17, 23, 16, 3), 2, (2, 3, 3, 1)),
    (SS2DShape(5, 33, 5, 7, 16, 4), 1, (1, 1, 1, 3)),
    (SS2DShape(3, 17, 7, 10, 16, 4), 1, (1, 1, 2, 3)),
    (SS2DShape(2, 3, 13, 5, 1, 3), 1, (1, 1, 2, 1)),
    (SS2DShape(1, 5, 13, 12, 33, 2), 40, (2, 3, 2, 1)),
    (SS2DShape(1, 70, 9, 7, 16, 3), 40, (2, 1, 1, 1)),
    (SS2DShape(1, 48, 10, 20, 16, 4), 40, (2, 3, 1, 1)),
    (SS2DShape(1, 5, 10, 20, 16, 4), 40, (2, 3, 2, 1)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "multiprocessors", "cut"), CUTS, ids=str)
def test_cut_into_launches(on_host, kernels, shape, multiprocessors, cut, dtype):
    on_host(multiprocessors)
    sizes = (shape.B, shape.D, shape.H, shape.W, shape.N, shape.R)
    plan = kernels.cuda_ss2d_plan(sizes=sizes, gpu=(multiprocessors, 227 << 10), backward=True)
    longest = max(plan.chunk_tiles, plan.tiles - (plan.chunks - 1) * plan.chunk_tiles)
    assert (2 // plan.pairs, plan.chunks, -(-longest // plan.window_tiles), -(-shape.B // plan.images)) == cut
    ss2d_call(shape, dtype).check()


@pytest.mark.parametrize(("height", "launches"), [(3, 4), (10, 8)])
def test_few_launches_of_the_backward_pass_of_one_image(on_host, kernels, height, launches):
    """For each pair of directions, the scan and the sums of its parts; with chunks also the scan and sums of these."""
    on_host(40)
    inputs = SS2DShape(1, 48, height, 20, 16, 4).inputs()
    y = ss2d(**{name: t.requires_grad_() for name, t in inputs.items()})
    before = kernels.launches()
    y.sum().backward()
    assert kernels.launches() - before == launches


@pytest.mark.parametrize("channels", [40, 20])
def test_repeats_bit_by_bit_in_any_order(on_host, kernels, channels):
    call, results = ss2d_call(SS2DShape(2, channels, 17, 15, 16, 3)), []
    for seed in range(3):
        kernels.seed(seed)
        results.append(call.run())
    for other in results[1:]:
        assert_same(other, results[0])


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_wide_output_of_narrow_input(on_host, dtype):
    def wide(u: Tensor, **others: Tensor) -> dict[str, Tensor]:
        return {"y": ss2d(u, **others, out_dtype=torch.promote_types(u.dtype, torch.float32))}

    got = ss2d_call(SS2DShape(1, 20, 5, 9, 16, 3), dtype)._replace(function=wide).check()
    assert got["y"].dtype == torch.float32


def test_images_beyond_32_bit_offsets(on_host):
    def far(t: Tensor) -> Tensor:
        return far_apart(t.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    call = ss2d_call(SS2DShape(2, 20, 3, 12, 16, 2), torch.float16)
    assert_same(call.placed(u=far).run(place=far), call.run())


def test_writes_every_element(on_host, poisoned):
    for shape in (SS2DShape(1, 5, 7, 3, 16, 2), SS2DShape(1, 5, 20, 21, 4, 2)):
        for multiprocessors in (1, 40):
            on_host(multiprocessors)
            ss2d_call(shape).check(place=ones)
