"""SS2D on a GPU, beside its peers: `pytest benchmarks -m gpu`, the last step of `make gpu`.

Times are medians between CUDA events, each call on other tensors than those that the GPU's caches hold.
"""

import gpu
import pytest
import torch
from gpu_workloads import GpuCase, cases


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases(), ids=str)
def test_gpu_ss2d(case: GpuCase, record_gpu) -> None:
    with case.provider.context():
        try:
            record_gpu(case, *measured(case))
        except torch.cuda.OutOfMemoryError:
            pytest.skip(f"{case.provider.label} takes more memory than this GPU has")
        finally:
            torch.cuda.empty_cache()


def measured(case: GpuCase) -> tuple[tuple[float, float], list[float], int]:
    """Errors, seconds of each round, and bytes at the peak of a call."""
    tensors, dy = case.problem()
    case.run(tensors, dy)  # compiles
    peak = gpu.peak_bytes(lambda: case.run(tensors, dy))
    errors = case.check(case.run(tensors, dy))
    u, others = tensors.pop("u"), tensors

    def another() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {"u": u.detach().clone().requires_grad_(), **others}, torch.randn_like(dy)

    sets = [another() for _ in range(gpu.copies(u.nbytes + dy.nbytes))]
    return errors, gpu.durations([lambda given=given: case.run(*given) for given in sets]), peak
