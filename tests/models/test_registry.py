"""Models by name: exact parameter counts, options and errors."""

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from torch import nn

import mtlkit.models
from mtlkit.models import create_model, list_models, register, unregister

# Every model with options for which a count is published, or follows from a published one. The publication of vgg16
# also counts its unused classifier (tests/models/test_csa_moe.py), Keras the BatchNorm statistics
# (tests/models/test_mbdi.py).
PARAMETERS = [
    ("medmamba_t", {"num_classes": 6}, 14_457_222),
    ("medmamba_t", {}, 15_221_608),
    ("medmamba_s", {"num_classes": 6}, 18_625_158),
    ("medmamba_s", {}, 19_389_544),
    ("medmamba_b", {"num_classes": 6}, 39_864_838),
    ("medmamba_b", {}, 40_883_688),
    ("vmamba_t_s1l8", {}, 30_249_064),
    ("vmamba_t_s2l5", {}, 30_705_832),
    ("vmamba_s_s2l15", {}, 50_147_752),
    ("vmamba_s_s1l20", {}, 49_012_840),
    ("vmamba_b_s2l15", {}, 88_557_800),
    ("vmamba_t_v0", {}, 22_893_448),
    ("vm_unet", {}, 27_427_561),
    ("vm_unet", {"depths": (2, 2, 9, 2), "decoder_depths": (2, 9, 2, 2)}, 44_273_833),
    ("mbdi", {}, 57_445_903 - 7 - 144_336),
    ("btinet", {}, 57_557_647 - 7 - 144_336),
    ("csa_moe", {}, 34_491_525),
    ("csa_moe", {"csa": False}, 33_629_253),
    ("csa_moe", {"head": "mlp"}, 34_820_101),
    ("csa_moe", {"head": "mlp", "csa": False}, 33_957_829),
    ("csa_moe", {"experts": ("image",), "csa": False}, 11_177_538),
    ("csa_moe_vgg16", {"head": "mlp", "csa": False}, 3 * 14_714_688 + 428_293),
    ("csa_moe_vgg16", {"head": "mlp"}, 3 * (14_714_688 + 303_808) + 428_293),
    ("csa_moe_vgg16", {"head": "mlp", "unused_classifiers": True}, 416_412_349),
    ("csa_moe_densenet121", {"experts": ("image",), "csa": False}, 6_955_906),
    ("image_classifier", {}, 11_177_538),
    ("image_classifier", {"encoder": "vgg16.tv_in1k"}, 134_268_738),
    # backbone, fusion and four heads; vectors of 256, 768, 512 and 2048
    ("hybrid_vssm", {}, 1_431_168 + 131_716 + 14_350),
    ("hybrid_vssm", {"depths": (2, 2)}, 2_047_168 + 131_716 + 14_350),
    ("hybrid_vssm", {"shared": False}, 2 * 1_431_168 + 131_716 + 14_350),
    ("mammo_vssm", {}, 6_963_600 + 393_860 + 43_022),
    ("mammo_resnet18", {}, 11_176_512 + 262_788 + 28_686),
    ("mammo_resnet50", {}, 23_508_032 + 1_049_220 + 114_702),
    # segmentation-models-pytorch: encoder, decoder, head and classifier; an additive gate on each skip connection
    ("unet", {}, 16_742_216 + 2_670_016 + 145 + 1_347),
    ("attention_unet", {}, 16_742_216 + 2_670_016 + 61_268 + 145 + 1_347),
    ("unet_plus_plus", {}, 16_742_216 + 3_075_712 + 145 + 1_347),
    ("manet", {}, 16_742_216 + 8_062_752 + 145 + 1_347),
    ("deeplabv3_plus", {}, 16_742_216 + 1_067_344 + 257 + 1_347),
    ("fpn", {}, 16_742_216 + 1_803_008 + 129 + 1_347),
    ("segformer", {}, 24_196_288 + 525_824 + 257 + 1_539),
    ("upernet", {}, 16_742_216 + 8_050_032 + 257 + 1_347),
    # the official code's count (for 9 classes of pixels), minus its head, plus ours; MISSFormer's has unused layers
    ("transunet", {}, 105_277_081 - 1_305 + 145 + 2_307),
    ("swin_unet", {}, 27_168_900 - 864 + 96 + 2_307),
    ("missformer", {}, 42_462_537 - 7_009_792 - 585 + 65 + 1_539),
    ("mtanet", {}, 29_727_347 - 21_388 + 1_539),  # minus the classifier with clinical features
    # ResNet, attention of two tasks, shared parts and the mask's head, as in the official code; a classifier
    ("mtan", {}, 23_508_032 + 2 * 4_175_936 + 7_931_392 + 16_125_697 + 6_147),
    ("mtan", {"classifier": False}, 23_508_032 + 4_175_936 + 7_931_392 + 16_125_697),
    # ResNet, two decoders, exchange in both directions and the last level, as in the official code
    ("densemtl", {}, 42_500_160 + 2 * (21_950_720 + 386_560) + 110_720 + 65 + 387),
    ("mti_net", {}, 8_558_014 - 1_096),  # minus the predictions at each scale
    ("mtl_oca", {}, 32_624_774),  # no count is published
    # MONAI's network, and a classifier on 16 x 48, 48 x 16 and 8 x 32 channels
    ("swin_unetr", {}, 25_139_275 + 2_307),
    ("unetr", {}, 87_681_265 + 2_307),
    ("segresnet", {}, 6_299_073 + 771),
]
SCANNERS = sorted({name for name, _, _ in PARAMETERS if name.startswith(("medmamba", "vmamba"))})


def test_no_model_is_missing_from_the_table():
    assert list_models() == sorted({name for name, _, _ in PARAMETERS})


@pytest.mark.parametrize(
    ("name", "options", "count"), PARAMETERS, ids=[f"{name}-{options}" for name, options, _ in PARAMETERS]
)
def test_parameter_counts(name, options, count):
    model = create_model(name, **options, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", ["medmamba_t", "vmamba_t_s1l8", "vmamba_t_v0"])
def test_training_learns(name, small):
    model = create_model(name, **small, drop_path_rate=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, labels = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["medmamba_t", "vmamba_t_s1l8"])
def test_compiles_whole_and_once(name, small):
    model = create_model(name, **small | {"depths": (1, 1), "dims": (16, 32)}, dtype=torch.float64).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        images = torch.rand(batch, 3, 16, 24, dtype=torch.float64)
        torch._dynamo.mark_dynamic(images, 0)
        with torch._dynamo.config.patch(error_on_recompile=batch > 2):
            torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize("name", ["medmamba_t", "vmamba_t_s1l8"])
def test_copies_are_independent(name, small):
    model = create_model(name, **small).eval()
    images = torch.rand(1, 3, 64, 64)
    logits = model(images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), logits)
        twin.load_state_dict({key: torch.zeros_like(value) for key, value in twin.state_dict().items()})
        assert not twin(images).any()
        assert torch.equal(model(images), logits)


@pytest.mark.parametrize("name", ["medmamba_t", "vmamba_t_s1l8"])
def test_exports(name, small):
    model = create_model(name, **small).eval()
    images = torch.rand(2, 3, 64, 64)
    exported = torch.export.export(model, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    other = torch.rand(5, 3, 64, 64)
    torch.testing.assert_close(exported.module()(other), model(other))


@pytest.mark.parametrize("name", ["medmamba_t", "vmamba_t_s1l8", "vmamba_t_v0"])
def test_autocast_and_empty_batch(name, small):
    model = create_model(name, **small).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    torch.testing.assert_close(logits.float(), model(images), atol=0.05, rtol=0.05)
    assert model(images[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", ["medmamba_t", "vmamba_t_s1l8"])
def test_backends_agree(name, small):
    model = create_model(name, **small, dtype=torch.float64).eval()
    images = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    logits = model(images)
    for backend in ("reference", "torch"):
        with mtlkit.use_backend(backend):
            torch.testing.assert_close(model(images), logits, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SCANNERS)
def test_options_in_chans(name, small):
    model = create_model(name, **small | {"num_classes": 7}, in_chans=1)
    assert model(torch.rand(1, 1, 64, 64)).shape == (1, 7)
    assert model.options.in_chans == 1
    with pytest.raises(FrozenInstanceError):
        model.options.in_chans = 3


def test_drop_path_grows_to_its_rate():
    model = create_model("medmamba_t", device="meta")
    rates = [block.drop_path.p for stage in model.layers for block in stage.blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.1, 10))


def test_unknown_names_are_answered_with_the_known():
    with pytest.raises(ValueError, match=r"no model 'medmamba' .*did you mean 'medmamba_.'.*vmamba_t_s1l8"):
        create_model("medmamba")
    with pytest.raises(ValueError, match=r"numclasses: medmamba_t has no such option .*'num_classes'.*it has: num_cla"):
        create_model("medmamba_t", numclasses=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 1)}, r"depths: expected 4 numbers of blocks, one for each of dims, got \(1, 1\)"),
        ({"depths": (1, 1, 0, 1)}, "depths"),
        ({"dims": (16, 32, 48, 64)}, "dims: expected each to be twice the previous one"),
        ({"num_classes": 0}, "num_classes: expected at least 1, got 0"),
        ({"in_chans": 0}, "in_chans"),
        ({"d_state": 0}, "d_state"),
        ({"drop_path_rate": 1.5}, "probability"),
    ],
)
@pytest.mark.parametrize("name", ["medmamba_t", "vmamba_t_s1l8"])
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, device="meta", **options)


@pytest.mark.parametrize("name", ["medmamba_t", "vmamba_t_s1l8", "vmamba_t_v0"])
def test_bad_images(name, small):
    model = create_model(name, **small)
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, H, W\).*got \(1, 1, 64, 64\)"):
        model(torch.rand(1, 1, 64, 64))
    with pytest.raises(ValueError, match="images: expected 4 dimensions"):
        model(torch.rand(3, 64, 64))
    with pytest.raises(ValueError, match="H and W at least"):
        model(torch.rand(1, 3, 64, 0))
    with pytest.raises(TypeError, match="images: expected float32"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_register():
    @dataclass(frozen=True)
    class Options:
        num_classes: int = 2

    @register("test_linear", Options())
    @register("test_linear_5", Options(num_classes=5))
    class Linear(nn.Linear):
        def __init__(self, options, device=None, dtype=None):
            super().__init__(4, options.num_classes, device=device, dtype=dtype)

    try:
        assert create_model("test_linear").out_features == 2
        assert create_model("test_linear_5", dtype=torch.float64).weight.dtype == torch.float64
        with pytest.raises(ValueError, match="name: 'test_linear' is registered already"):
            register("test_linear", Options())
    finally:
        unregister("test_linear")
        unregister("test_linear_5")
    with pytest.raises(ValueError, match="no model 'test_linear'"):
        create_model("test_linear")
