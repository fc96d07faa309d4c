"""A smoke test of all networks and their main options: gradients, modes, formats, precision, saving, compiling."""

import pytest
import torch
from torch import Tensor, nn

from mtlkit.models import create_model, from_pretrained, list_models
from mtlkit.testing import relative_error

SCANS = {"num_classes": 3, "depths": (1, 1, 1, 1)}  # with full width
PAIR = {"encoder": "resnet18", "decoder_dims": (32, 24, 16, 12), "clf_dim": 32}
RESNET = {"encoder": "resnet18"}
BASELINES = [
    ("unet", RESNET | {"dim": 2}),
    ("attention_unet", RESNET | {"dim": 2, "in_chans": 1}),
    ("unet_plus_plus", RESNET | {"dim": 1}),
    ("manet", RESNET | {"dim": 1}),
    ("deeplabv3_plus", RESNET | {"dim": 16}),
    ("fpn", RESNET | {"dim": 128}),
    ("segformer", {"encoder": "mit_b0", "dim": 16}),
    ("upernet", RESNET | {"dim": 16}),
    ("swin_unetr", {"dim": 12, "in_chans": 1}),
    ("unetr", {"dim": 2, "image_size": 64}),
    ("segresnet", {"dim": 8, "num_classes": 2}),
    ("transunet", {"depth": 1, "image_size": 64}),
    ("swin_unet", {"depths": (1, 1, 1, 1)}),
    ("missformer", {"dim": 4, "bridge_depth": 1}),
    ("mtan", RESNET),
    ("mtanet", {"encoder": "pvt_v2_b0", "dim": 8}),
    ("mtl_oca", RESNET | {"decoder_dims": (16, 16, 8, 8)}),
    ("mti_net", {"encoder": "hrnet_w18_small"}),
    ("densemtl", RESNET | {"decoder_dims": (16, 16, 8, 8, 8)}),
]
CASES = [
    *((name, SCANS) for name in list_models() if name.startswith(("medmamba", "vmamba"))),
    ("vm_unet", {"depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1, 1), "dims": (32, 64, 128, 256), "in_chans": 1}),
    ("mbdi", PAIR),
    ("mbdi", PAIR | {"encoder": "tf_efficientnet_b0", "freeze_until": "blocks.1.1.bn2"}),
    ("mbdi", PAIR | {"encoder": "densenet121", "in_chans": 1, "num_classes": 2}),
    ("mbdi", PAIR | {"encoder": "vgg16", "normaliser": "running"}),
    ("mbdi", PAIR | {"upa": False, "tim": False, "hmsf": False}),
    ("mbdi", PAIR | {"upa": False, "tim": False}),
    ("mbdi", PAIR | {"upa": False, "hmsf": False}),
    ("mbdi", PAIR | {"hmsf": False}),
    ("mbdi", PAIR | {"levels": (2, 4), "pooling": "attention"}),
    ("btinet", PAIR),
    ("btinet", PAIR | {"hmsf": False, "levels": (1,)}),
    ("btinet", PAIR | {"upa": False}),
    ("csa_moe", {}),
    ("csa_moe", {"csa": False, "head": "mlp", "in_chans": 1}),
    ("csa_moe", {"experts": ("image", "boundary"), "freeze_until": "layer1"}),
    ("csa_moe", {"experts": ("tumor",)}),
    ("csa_moe", {"encoder": "tf_efficientnet_b0", "experts": ("image",)}),
    ("csa_moe_vgg16", {"experts": ("image",)}),
    ("image_classifier", {"encoder": "resnet10t", "in_chans": 1}),
    ("csa_moe_densenet121", {"experts": ("image",)}),
    ("hybrid_vssm", {}),
    ("hybrid_vssm", {"shared": False, "mask_missing": True, "tasks": ("birads",), "birads_classes": 3, "in_chans": 1}),
    ("hybrid_vssm", {"tasks": ("label",), "depths": (2, 1), "freeze_until": "layer1"}),
    ("mammo_vssm", {"dims": (16, 32, 64, 128)}),
    ("mammo_resnet18", {}),
    ("mammo_resnet50", {}),
    ("unet", {"encoder": "tf_efficientnet_b0", "freeze_until": "blocks.1.1.bn2", "dim": 2, "classifier": False}),
    ("transunet", {"depth": 1, "classifier": False}),
    *BASELINES,
]
COMPILED = [
    ("vm_unet", {"depths": (1, 1), "decoder_depths": (1, 1), "dims": (16, 32), "num_classes": 4}),
    ("mbdi", PAIR | {"levels": (1, 4), "hmsf": False}),
    ("btinet", PAIR | {"levels": (4,), "hmsf": False}),
    ("csa_moe", {"experts": ("image", "tumor")}),
    ("hybrid_vssm", {"mask_missing": True}),
]


def name_of(case) -> str:
    name, options = case
    changed = {key: value for key, value in options.items() if options is not SCANS and PAIR.get(key) != value}
    return "-".join([name, *(f"{key}={value}" for key, value in changed.items())])


def network(case: tuple[str, dict]) -> nn.Module:
    """In eval mode, without branches that are switched off by timm's zero-initialised norms or a narrow gate's ReLU."""
    name, options = case
    model = create_model(name, **options).eval()
    for part, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if part.endswith("fc1"):
            nn.init.ones_(module.bias)
        if isinstance(getattr(module, "alpha", None), nn.Parameter):  # DenseMTL's attention is initially zero
            nn.init.ones_(module.alpha)
    return model


def inputs(model: nn.Module, batch: int = 2) -> tuple[Tensor, ...]:
    """Images of 64 x 64 in the form that the network expects, and its additional inputs."""
    options, generator = model.options, torch.Generator().manual_seed(1)
    images = torch.rand(batch, 4, options.in_chans, 64, 64, generator=generator)
    if hasattr(options, "backbone"):
        present = torch.ones(batch, 4, dtype=torch.bool)
        present[0, 1] = False
        return images, present
    if hasattr(options, "experts"):
        masks = torch.zeros(batch, 1, 64, 64)
        masks[:, :, 10:40, 20:55] = 1
        return images[:, 0], masks
    return (images[:, 0],)


def logits_of(output: Tensor | tuple) -> dict[str, Tensor]:
    """The outputs of a network by name."""
    found = {"logits": output} if isinstance(output, Tensor) else output._asdict()
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def test_no_model_is_missing():
    assert {name for name, _ in CASES} == set(list_models())


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_smoke(case, tmp_path):
    model = network(case)
    given = inputs(model)
    outputs = logits_of(model(*given))
    again = logits_of(model(*given))
    for key, output in outputs.items():
        assert output.isfinite().all(), key
        assert torch.equal(output, again[key]), key

    sum((output * torch.randn_like(output)).sum() for output in outputs.values()).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key
        else:
            assert parameter.grad is None, key
    model.zero_grad()

    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            rounded = logits_of(model(*given))
        plain = logits_of(model(*given))  # without gradients, an SS2D layer is a single call
        model.save_pretrained(tmp_path)
        loaded = logits_of(from_pretrained(tmp_path).eval()(*given))
        model.to(memory_format=torch.channels_last)
        images = given[0].contiguous(memory_format=torch.channels_last) if given[0].dim() == 4 else given[0]
        other_format = logits_of(model(images, *given[1:]))
    for key, output in outputs.items():
        assert torch.equal(plain[key], loaded[key]), key
        assert relative_error(plain[key], output) < 1e-4, key
        assert relative_error(other_format[key], output) < 1e-4, key
        assert relative_error(rounded[key], output) < 0.1, key


@pytest.mark.parametrize("case", COMPILED, ids=name_of)
def test_compiles_whole(case):
    model = network(case)
    given = inputs(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected, got = logits_of(model(*given)), logits_of(compiled(*given))
    for key, output in expected.items():
        torch.testing.assert_close(got[key], output)


@pytest.mark.parametrize("case", BASELINES, ids=name_of)
def test_baselines_compile_and_export(case):
    model = network(case)
    given = inputs(model)
    torch._dynamo.reset()
    exported = torch.export.export(model, given).module()  # traces one full graph, like fullgraph=True
    with torch.no_grad():
        expected, got = logits_of(model(*given)), logits_of(exported(*given))
    for key, output in expected.items():
        torch.testing.assert_close(got[key], output)
