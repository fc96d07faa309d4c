"""The executor that runs CUDA kernels on a CPU: right kernels give right results, wrong ones an error or NaN."""

import pytest
import torch

INVALID_CONFIGURATION, LAUNCH_FAILURE = 9, 719  # of cudaError_t


@pytest.fixture
def launch(executor_checks):
    """launch(kernel, grid, block, shared_bytes, values) returns the text of the error, empty for success."""

    def launch(kernel, grid, block, shared_bytes=0, values=None):
        values = torch.zeros(4096) if values is None else values
        status = getattr(executor_checks, kernel)(grid, block, shared_bytes, values.data_ptr())
        assert status in (0, INVALID_CONFIGURATION, LAUNCH_FAILURE)
        assert bool(status) == bool(executor_checks.last_error())
        return executor_checks.last_error()

    executor_checks.seed(0)
    return launch


@pytest.mark.parametrize("block", [1, 31, 32, 100, 1024])
def test_threads_meet_at_a_barrier(launch, block):
    values = torch.randn(7, block)
    want = values.flip(1)
    assert launch("reverse", 7, block, 4 * block, values) == ""
    assert torch.equal(values, want)


def test_a_missing_barrier_shows(launch):
    values = torch.randn(1, 64)
    launch("reverse_without_barrier", 1, 64, 4 * 64, values)
    assert values.isnan().any()


def test_asynchronous_copies_arrive_at_the_wait(launch):
    values = torch.randn(3, 50, 4)
    want = values.flip(2)
    assert launch("copy", 3, 50, 16 * 50, values) == ""
    assert torch.equal(values, want)


def test_a_missing_wait_shows(launch):
    values = torch.randn(3, 50, 4)
    launch("copy_without_wait", 3, 50, 16 * 50, values)
    assert values.isnan().all()


def test_an_early_overwrite_shows(launch):
    values = torch.randint(9, (5, 64)).float()
    want = values[:4].sum()
    assert launch("stages", 1, 64, 4 * 64, values) == ""
    assert (values[4] == want).all()
    launch("stages_without_barrier", 1, 64, 4 * 64, values)
    assert (values[4] != want).any()


def test_lanes_shuffle(launch):
    values = torch.randint(100, (3, 32)).float()
    want = values.sum(1, keepdim=True).expand(3, 32)
    assert launch("sum_of_warp", 1, 96, 0, values) == ""
    assert torch.equal(values, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_round_as_torch_does(launch, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
    between = (every[:-1] + every[1:]) / 2  # ties
    anything = torch.randint(-(2**31), 2**31, (2**16,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    values = torch.cat([every, between, between.nextafter(every[1:]), between.nextafter(every[:-1]), anything])
    values = torch.cat([values, torch.zeros(-len(values) % 1024)])
    want = values.to(dtype).float()
    assert launch(f"narrow_{str(dtype).removeprefix('torch.')}", len(values) // 1024, 1024, 0, values) == ""
    torch.testing.assert_close(values, want, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(values.signbit()[~values.isnan()], want.signbit()[~want.isnan()])


def test_shared_memory_is_poisoned_before_each_block(launch):
    values = torch.zeros(32)
    assert launch("reverse", 1, 32, 4 * 32, torch.zeros(32)) == ""
    assert launch("unset", 1, 32, 4 * 32, values) == ""
    assert values.isnan().all()


def test_blocks_and_threads_run_in_shuffled_orders_that_a_seed_fixes(launch, executor_checks):
    def order(seed):
        executor_checks.seed(seed)
        values = torch.zeros(6 * 96 + 1)
        assert launch("order", 6, 96, 0, values) == ""
        return values[:-1].reshape(6, 3, 32)

    turns = order(1)
    assert sorted(turns.flatten().tolist()) == list(range(6 * 96))
    assert torch.equal(turns, order(1))
    assert not torch.equal(turns, order(2))
    first_of_block, first_of_warp = turns.flatten(1).min(1).values, turns.min(2).values
    assert first_of_block.tolist() != sorted(first_of_block.tolist())
    assert any(row.tolist() != sorted(row.tolist()) for row in first_of_warp)
    assert any(lanes.tolist() != sorted(lanes.tolist()) for lanes in turns.flatten(0, 1))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("some_at_barrier", r"thread 0 of block 0 waits at the barrier .* and thread 40 of block 0 has ended"),
        ("two_barriers", r"thread 0 .* the barrier of line \d+, and thread 32 .* the barrier of line \d+"),
        ("barrier_beside_shuffle", "thread 0 .* waits at the shuffle .* and thread 1 .* waits at the barrier"),
        ("two_masks", "thread 0 .* with lane mask 1, and thread 8 .* with lane mask 2"),
        ("one_lane_ends", "thread 0 .* waits at the shuffle .* and thread 5 of block 0 has ended"),
        ("write_past", "block 0 wrote to byte 68 of its 64 bytes of shared memory"),
        ("write_before", "block 0 wrote in front of its shared memory"),
        ("load_askew", "an access of 16 bytes at an address that is no multiple of it"),
        ("copy_askew", "an access of 8 bytes at an address that is no multiple of it"),
        ("copy_elsewhere", "an asynchronous copy to elsewhere than the block's shared memory"),
    ],
)
def test_wrong_kernels_are_reported(launch, kernel, message):
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(launch(kernel, 1, 64, 64))
    values = torch.randn(1, 64)  # the next launch works
    want = values.flip(1)
    assert launch("reverse", 1, 64, 4 * 64, values) == ""
    assert torch.equal(values, want)


def test_a_warp_without_all_lanes_does_not_shuffle(launch):
    assert "reads lane 20 in a shuffle, which its warp does not have" in launch("sum_of_warp", 1, 20)


@pytest.mark.parametrize(("grid", "block", "shared"), [(0, 32, 0), (1, 0, 0), (1, 1025, 0), (1, 32, (227 << 10) + 1)])
def test_sizes_beyond_a_gpu_are_refused(launch, grid, block, shared):
    assert "no GPU runs" in launch("order", grid, block, shared)


def test_all_of_the_shared_memory_can_be_had(launch):
    assert launch("unset", 1, 32, 227 << 10) == ""
