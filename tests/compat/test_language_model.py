"""mamba-ssm's language model: decoding matches the complete sequence; sampling and its options."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from mtlkit import compat

VOCABULARY = 13


@pytest.fixture(autouse=True)
def _installed():
    compat.install("mamba_ssm")
    yield
    compat.uninstall()


def network(**options):
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    config = MambaConfig(**{"d_model": 8, "n_layer": 2, "vocab_size": VOCABULARY} | options)
    return MambaLMHeadModel(config)


@pytest.mark.parametrize("options", [{}, {"fused_add_norm": False, "rms_norm": False, "residual_in_fp32": False}])
def test_decoding_is_the_whole_sequence(options):
    model, tokens = network(**options), torch.randint(VOCABULARY, (2, 9))
    logits = model(tokens).logits
    assert logits.shape == (2, 9, 16)  # the vocabulary is padded
    assert torch.equal(model(tokens, num_last_tokens=2).logits, logits[:, -2:])
    out = model.generate(tokens[:, :4], 9, teacher_outputs=tokens, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(out.sequences, tokens)
    torch.testing.assert_close(torch.stack(out.scores, 1), logits[:, 3:-1], rtol=1e-4, atol=1e-5)
    greedy = model.generate(tokens, 12, vocab_size=VOCABULARY)
    for length in range(9, 12):
        assert torch.equal(model(greedy[:, :length]).logits[:, -1, :VOCABULARY].argmax(-1), greedy[:, length])


def test_states_are_reused():
    from mamba_ssm.utils.generation import InferenceParams

    model, tokens = network(), torch.randint(VOCABULARY, (2, 6))
    wanted, states = model(tokens).logits, model.allocate_inference_cache(2, 6)
    assert list(states) == [0, 1]
    params = InferenceParams(6, 2, key_value_memory_dict=states, lengths_per_sample=torch.full((2,), 3))
    for _ in range(2):
        found = [model(tokens[:, :4], inference_params=params).logits]
        for params.seqlen_offset in (4, 5):
            found.append(model(tokens[:, params.seqlen_offset, None], inference_params=params).logits)
        torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=1e-4, atol=1e-5)
        params.reset(6, 2)
        assert params.seqlen_offset == 0
        assert not params.lengths_per_sample.any()


def test_the_end_token_ends():
    model, tokens = network(), torch.randint(VOCABULARY, (1, 3))
    found = model.generate(tokens, 20, vocab_size=VOCABULARY)
    end = int(found[0, 4])
    stopped = model.generate(tokens, 20, vocab_size=VOCABULARY, eos_token_id=end)
    place = found[0, 3:].tolist().index(end)
    assert torch.equal(stopped, found[:, : 4 + place])


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 0}, {0, 1, 2, 3}),
        ({"top_k": 2}, {3, 0}),
        ({"top_k": 0, "top_p": 0.9}, {3, 0, 2}),
        ({"top_k": 0, "min_p": 0.5}, {3, 0}),
        ({"top_k": 0, "temperature": 0.01}, {3}),
        ({"top_k": 1, "repetition_penalty": 10.0}, {0}),
    ],
)
def test_sampling(options, allowed):
    from mamba_ssm.utils.generation import GenerationMixin

    class Fixed(GenerationMixin):
        """Returns token 3, then 0, 2 and 1, with these probabilities."""

        def __call__(self, ids, position_ids=None, inference_params=None, num_last_tokens=0):
            logits = torch.tensor([0.3, 0.05, 0.2, 0.45]).log() + 2.0
            return SimpleNamespace(logits=logits.expand(len(ids), 1, 4))

    found = Fixed().generate(torch.full((300, 1), 3), 2, **options)[:, 1].tolist()
    assert set(found) == allowed
    if options == {"top_k": 0}:
        counts = Counter(found)
        assert counts[3] > counts[0] > counts[2] > counts[1]


def test_saved_and_loaded(tmp_path):
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    from mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf

    model, tokens = network(tie_embeddings=False), torch.randint(VOCABULARY, (2, 5))
    model.save_pretrained(tmp_path / "model")
    assert load_config_hf(str(tmp_path / "model"))["d_model"] == 8
    halves = load_state_dict_hf(str(tmp_path / "model"), dtype=torch.float16)
    assert {state.dtype for state in halves.values()} == {torch.float16}
    loaded = MambaLMHeadModel.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_start_values():
    model = network(n_layer=4, d_model=64)
    assert model.lm_head.weight is model.backbone.embedding.weight
    assert abs(model.lm_head.weight.std().item() - 0.02) < 0.005
    bound = 1 / (128**0.5 * 2)  # for a linear layer with 128 inputs, divided by the root of the number of layers
    largest = model.backbone.layers[0].mixer.out_proj.weight.abs().max().item()
    assert 0.9 * bound < largest <= bound
    assert model.backbone.layers[0].mixer.dt_proj.bias.abs().min() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_layer_idx": [1]}, "config: expected neither attn_layer_idx nor d_intermediate"),
        ({"d_intermediate": 32}, "config: expected neither attn_layer_idx nor d_intermediate"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg: expected the layer Mamba1, .* got 'Mamba2'"),
        ({"ssm_cfg": {"headdim": 4}}, "Mamba: expected keywords among .*, got 'headdim'"),
    ],
)
def test_what_is_not_served_is_said(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        network(**options)
