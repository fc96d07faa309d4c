"""What training code does to mtlkit's and accelerated models: copies, averages, precision, checkpoints, processes."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import mtlkit
from harness.third_party_models import MedMamba, VMUNet, accelerated, perturbed
from mtlkit.models import create_model, list_models
from mtlkit.testing import assert_accurate

SMALL = {"num_classes": 3, "depths": (1, 1), "dims": (8, 16)}
MODELS = {
    "medmamba": lambda: create_model("medmamba_t", **SMALL, d_state=4, drop_path_rate=0.0),
    "vmamba": lambda: create_model("vmamba_t_s1l8", **SMALL, drop_path_rate=0.0),
    "accelerated_medmamba": lambda: accelerated(MedMamba(3, (1, 1), (8, 16), 4)),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 32, 24)


LABELS = torch.tensor([0, 1, 2, 0])


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(images), LABELS).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


# --- copies -----------------------------------------------------------------------------------------------------------


def save_and_load(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), save_and_load])
def test_copies_are_independent(model, images, copied):
    model.eval()
    logits = model(images)
    twin = copied(model)
    assert torch.equal(twin(images), logits)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(images), logits)


def test_copies_of_an_accelerated_model_can_be_restored(images):
    model = accelerated(MedMamba(3, (1, 1), (8, 16), 4)).eval()
    logits = model(images)
    for twin in (copy.deepcopy(model), save_and_load(model)):
        assert len(mtlkit.restore(twin)) == 2
        assert not any(isinstance(module, mtlkit.nn.SS2D) for module in twin.modules())
        torch.testing.assert_close(twin(images), logits, rtol=1e-4, atol=1e-5)


def test_state_dict_hooks(model):
    seen = []
    layer = next(module for module in model.modules() if isinstance(module, mtlkit.nn.SS2D))
    layer.register_state_dict_post_hook(lambda module, state, prefix, _: state.__delitem__(f"{prefix}Ds"))
    layer.register_load_state_dict_pre_hook(lambda module, state, prefix, *_: seen.append(f"{prefix}Ds" in state))
    state = model.state_dict()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert seen == [False]
    assert len(missing) == 1
    assert missing[0].endswith(".Ds")
    assert not unexpected


# --- optimisation -----------------------------------------------------------------------------------------------------


def marked(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)}


@pytest.mark.parametrize("name", ["medmamba_t", "medmamba_b", "vmamba_t_s1l8", "vmamba_b_s2l15", "vmamba_t_v0"])
def test_every_scan_asks_for_no_weight_decay(name):
    model = create_model(name, device="meta")
    scans = {name for name, _ in model.named_parameters() if name.rpartition(".")[2] in ("A_logs", "Ds")}
    assert name in list_models()
    assert scans
    assert marked(model) == scans


def test_the_marks_survive(model):
    names = marked(model)
    assert len(names) == 4
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    assigned = copy.deepcopy(model)
    assigned.load_state_dict(model.state_dict(), assign=True)
    for twin in (copy.deepcopy(model), save_and_load(model), copy.deepcopy(model).double(), empty, assigned):
        assert marked(twin) == names


def test_groups_of_weight_decay(model):
    names = marked(model)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    decayed = [p for name, p in model.named_parameters() if name not in names]
    others = [p for name, p in model.named_parameters() if name in names]
    groups = [{"params": decayed, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, kept[name] * (1 if name in names else 0.95))


def test_exponential_average(model, images):
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(3):
        gradients(model, images)
        optimizer.step()
        average.update_parameters(model)
        for name, p in model.named_parameters():
            expected[name] = p.detach().clone() if step == 0 else 0.75 * expected[name] + 0.25 * p.detach()
    for name, p in average.module.named_parameters():
        torch.testing.assert_close(p, expected[name])
    model.load_state_dict(average.module.state_dict())
    assert torch.equal(average.eval()(images), model.eval()(images))


@pytest.mark.parametrize("make", [MODELS["vmamba"], lambda: accelerated(VMUNet())], ids=["ours", "accelerated"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_scaled_gradients(make, images, dtype):
    model = perturbed(make())  # networks without ReLU, whose gradients jump when rounding changes a sign
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def scaled_gradients(model: nn.Module, images: Tensor, backend: str, autocast: bool) -> dict[str, Tensor]:
        model.zero_grad()
        with mtlkit.use_backend(backend), torch.autocast("cpu", dtype, enabled=autocast):
            loss = model(images).square().mean()
        scaler.scale(loss).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    exact = scaled_gradients(copy.deepcopy(model).double(), images.double(), "auto", False)
    plain, got = (scaled_gradients(model, images, backend, True) for backend in ("torch", "auto"))
    for name in exact:
        assert_accurate(name, got[name].to(dtype), exact[name], plain[name].to(dtype), gradient=True)


def test_scaler_skips_a_step_that_overflows(model, images):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for bad in (True, False):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), LABELS) * (float("inf") if bad else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()) == bad
    assert scaler.get_scale() == 2.0**7


# --- activation checkpointing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    layers = nn.Sequential(mtlkit.nn.SS2D(8, 4), *accelerated(nn.Sequential(_plain_layer())), mtlkit.nn.VSSBlock(8))
    x = torch.rand(2, 5, 7, 8, requires_grad=True)
    results = []
    for run in (
        layers,
        lambda x: checkpoint_sequential(layers, 3, x, use_reentrant=reentrant),
        lambda x: checkpoint(layers, x, use_reentrant=reentrant),
    ):
        layers.zero_grad()
        x.grad = None
        run(x).square().mean().backward()
        results.append([x.grad.clone(), *(p.grad.clone() for p in layers.parameters())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def _plain_layer() -> nn.Module:
    return MedMamba(3, (1,), (16,), 4).layers[0].blocks[0].self_attention


# --- two processes ----------------------------------------------------------------------------------------------------

WORK = """
import copy
import torch
from harness.third_party_models import VMUNet, accelerated
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
import mtlkit
from mtlkit.models import create_model

small = {"num_classes": 3, "depths": (1, 1), "dims": (8, 16), "drop_path_rate": 0.0}
makers = {
    "vmamba": lambda: create_model("vmamba_t_s1l8", **small),
    "accelerated": lambda: accelerated(VMUNet()),
}

def train(model, images):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

def full(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value

def work(rank, _given):
    mesh = init_device_mesh("cpu", (2,))
    agree = []
    for name, make in makers.items():
        torch.manual_seed(0)
        alone = make().double()
        images = torch.rand(4, 3, 32, 24, dtype=torch.float64)
        mine = images.chunk(2)[rank]
        replicated, sharded = copy.deepcopy(alone), copy.deepcopy(alone)
        train(alone, images)
        train(DistributedDataParallel(replicated), mine)
        for module in list(sharded.modules()):
            if isinstance(module, mtlkit.nn.SS2D):
                fully_shard(module, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        train(sharded, mine)
        exact = dict(alone.named_parameters())
        for kind, model in (("ddp", replicated), ("fsdp", sharded)):
            found = {key: full(value.detach()) for key, value in model.named_parameters()}
            assert found.keys() == exact.keys(), (name, kind)
            for key, value in found.items():
                torch.testing.assert_close(value, exact[key], rtol=1e-7, atol=1e-9)
        local = sharded.state_dict()
        assert sum(v.to_local().numel() for v in local.values()) < 0.7 * sum(v.numel() for v in local.values())
        agree.append(name)

    late = VMUNet()
    fully_shard(late, mesh=mesh)
    report = mtlkit.accelerate(late)
    assert not report.replaced
    assert len(report.left) == 4
    assert {entry.reason for entry in report.left} == {"it is sharded; accelerate the model before sharding it"}
    return agree
"""


def test_two_processes_train_as_one(two_processes):
    assert two_processes(WORK, None) == [["vmamba", "accelerated"]] * 2
