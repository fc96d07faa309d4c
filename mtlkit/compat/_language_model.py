"""mamba-ssm's language model of Mamba blocks: its configuration, network, and generation token by token."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlkit._extras import check_installed
from mtlkit.compat._layers import Block, Mamba, RMSNorm

# --- files ------------------------------------------------------------------------------------------------------------


def _file(model_name: str, name: str) -> Path:
    """Returns the path of a file of a model, from a folder or the Hugging Face Hub."""
    if Path(model_name).is_dir():
        return Path(model_name) / name
    check_installed("a model of the Hugging Face Hub", "models", ["huggingface_hub"])
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model_name, name))


def load_config_hf(model_name: str) -> dict[str, Any]:
    """Reads the configuration of a model from a folder or the Hugging Face Hub."""
    return json.loads(_file(model_name, "config.json").read_text(encoding="utf-8"))


def load_state_dict_hf(model_name: str, device: Any = None, dtype: Any = None) -> dict[str, Tensor]:
    """Reads the weights of such a model; the file may contain only tensors."""
    states = torch.load(_file(model_name, "pytorch_model.bin"), map_location=device or "cpu", weights_only=True)
    return {name: state.to(dtype=dtype) for name, state in states.items()}


# --- generation -------------------------------------------------------------------------------------------------------


@dataclass
class InferenceParams:
    """The state of decoding: number of tokens so far, and the states of each block."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[Any, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Starts a new sequence that reuses the memory of the states."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


class Generated(NamedTuple):
    """Tokens (B, L), the given ones first, and the logits (B, V) from which each new token was chosen."""

    sequences: Tensor
    scores: tuple[Tensor, ...]


class GenerationMixin:
    """Adds `generate` to a network whose call returns logits."""

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int, dtype: Any = None, **options: Any) -> Any:
        """Returns the states of each block; the network overrides it."""
        raise NotImplementedError

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        *,
        eos_token_id: int | None = None,
        repetition_penalty: float = 1.0,
        teacher_outputs: Tensor | None = None,
        vocab_size: int | None = None,
        cg: bool = False,
        enable_timing: bool = False,
    ) -> Tensor | Generated:
        """Continues sequences token by token.

        Args:
            input_ids: given tokens, (B, L).
            max_length: total number of tokens, including the given ones.
            top_k: number of best tokens to sample from; 1 takes the best, 0 samples from all.
            top_p: fraction of the probability to sample from; 0 for all of it.
            min_p: tokens below this fraction of the largest probability are left out.
            temperature: divisor of the logits.
            return_dict_in_generate: whether to return the scores with the tokens.
            output_scores: whether to keep scores.
            eos_token_id: token that ends generation once every sequence has it.
            repetition_penalty: values above 1 make repeated tokens less likely.
            teacher_outputs: tokens to use instead of sampled ones, (B, max_length).
            vocab_size: tokens from this index on are left out.
            cg: accepted for compatibility.
            enable_timing: accepted for compatibility.

        Returns:
            The tokens, (B, up to max_length), or with `return_dict_in_generate` tokens and scores.
        """
        params = InferenceParams(max_length, input_ids.shape[0])
        sequences, scores, ids = input_ids, [], input_ids
        while sequences.shape[1] < max_length:
            out: Any = self(ids, position_ids=None, inference_params=params, num_last_tokens=1)  # pyright: ignore
            logits = out.logits[:, -1, :vocab_size]  # (B, V)
            scores.append(logits)
            params.seqlen_offset += ids.shape[1]
            if teacher_outputs is not None and sequences.shape[1] < teacher_outputs.shape[1]:
                chosen = teacher_outputs[:, sequences.shape[1]]
            else:
                chosen = _sample(_penalised(logits, sequences, repetition_penalty), top_k, top_p, min_p, temperature)
            ids = chosen[:, None]
            sequences = torch.cat((sequences, ids), 1)
            if eos_token_id is not None and bool((chosen == eos_token_id).all()):
                break
        return Generated(sequences, tuple(scores if output_scores else ())) if return_dict_in_generate else sequences


def _penalised(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    if penalty == 1.0:
        return logits
    found = logits.gather(1, tokens)
    return logits.scatter(1, tokens, torch.where(found < 0, found * penalty, found / penalty))


def _sample(logits: Tensor, top_k: int, top_p: float, min_p: float, temperature: float) -> Tensor:
    """Samples a token for each row of logits (B, V)."""
    if top_k == 1:
        return logits.argmax(-1)
    order = logits.argsort(-1, descending=True)
    probability = (logits.gather(1, order) / temperature).softmax(-1)  # (B, V), descending
    if top_k > 0:
        probability[:, top_k:] = 0
    if 0 < top_p < 1:
        before = probability.cumsum(-1) - probability
        probability = probability.masked_fill(before >= top_p * probability.sum(-1, keepdim=True), 0)
    probability = probability.masked_fill(probability < min_p * probability[:, :1], 0)
    return order.gather(1, torch.multinomial(probability, 1))[:, 0]


# --- network ----------------------------------------------------------------------------------------------------------


@dataclass
class MambaConfig:
    """Options of `MambaLMHeadModel`, as published; those for attention, MLPs and Mamba-2 must keep their defaults."""

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: dict[str, Any] = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True


def create_block(
    d_model: int,
    ssm_cfg: dict[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: Any = None,
    dtype: Any = None,
) -> Block:
    """A norm and a Mamba block."""
    options = dict(ssm_cfg or {})
    layer = options.pop("layer", "Mamba1")
    if layer != "Mamba1":
        raise ValueError(f"ssm_cfg: expected the layer Mamba1, the only one that mtlkit serves, got {layer!r}")
    made = {"device": device, "dtype": dtype}
    norm = partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **made)
    block = Block(
        d_model, partial(Mamba, layer_idx=layer_idx, **options, **made), norm, fused_add_norm, residual_in_fp32
    )
    block.layer_idx = layer_idx  # pyright: ignore - as published
    return block


class MixerModel(nn.Module):
    """Embedding, Mamba blocks and a norm."""

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        vocab_size: int,
        ssm_cfg: dict[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: dict[str, Any] | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        made = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(vocab_size, d_model, **made)
        common = (ssm_cfg, norm_epsilon, rms_norm, residual_in_fp32, fused_add_norm)
        self.layers = nn.ModuleList(create_block(d_model, *common, layer_idx=i, **made) for i in range(n_layer))
        self.norm_f = (RMSNorm if rms_norm else nn.LayerNorm)(d_model, eps=norm_epsilon, **made)
        _initialise(self, n_layer, **initializer_cfg or {})

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int, dtype: Any = None, **options: Any) -> Any:
        """The states of each block."""
        return {
            i: layer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **options)  # pyright: ignore
            for i, layer in enumerate(self.layers)
        }

    def forward(self, input_ids: Tensor, inference_params: Any = None) -> Tensor:
        """(B, L) tokens to (B, L, C)."""
        x, residual = self.embedding(input_ids), None
        for layer in self.layers:
            x, residual = layer(x, residual, inference_params=inference_params)
        x = x if residual is None else x + residual
        return self.norm_f(x.to(self.norm_f.weight.dtype))


class Logits(NamedTuple):
    """The output of `MambaLMHeadModel`: logits, (B, L, V)."""

    logits: Tensor


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """The language model: logits of the next token, from an embedding that the head may share.

    Args:
        config: options.
        initializer_cfg: `initializer_range`, `rescale_prenorm_residual`, `n_residuals_per_layer` of the start values.
        device: device of the parameters. dtype: dtype of the parameters.

    Raises:
        ValueError: an option of attention, of MLPs or of another layer than Mamba-1.
    """

    def __init__(
        self, config: MambaConfig, initializer_cfg: dict[str, Any] | None = None, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        if config.d_intermediate or config.attn_layer_idx:
            raise ValueError("config: expected neither attn_layer_idx nor d_intermediate, which mtlkit does not serve")
        self.config = config
        made = {"device": device, "dtype": dtype}
        vocabulary = math.ceil(config.vocab_size / config.pad_vocab_size_multiple) * config.pad_vocab_size_multiple
        self.backbone = MixerModel(
            config.d_model,
            config.n_layer,
            vocabulary,
            config.ssm_cfg,
            rms_norm=config.rms_norm,
            initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm,
            residual_in_fp32=config.residual_in_fp32,
            **made,
        )
        self.lm_head = nn.Linear(config.d_model, vocabulary, bias=False, **made)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Makes the head share the embedding's weight, if the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int, dtype: Any = None, **options: Any) -> Any:
        """The states of each block."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **options)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
    ) -> Logits:
        """The logits of the last tokens, or of all: (B, L) to (B, L, V); position_ids are not used."""
        x = self.backbone(input_ids, inference_params=inference_params)
        return Logits(self.lm_head(x[:, -num_last_tokens:]))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name: str, device: Any = None, dtype: Any = None, **options: Any
    ) -> "MambaLMHeadModel":
        """The model of a folder or of the Hugging Face Hub."""
        config = MambaConfig(**load_config_hf(pretrained_model_name))
        model = cls(config, device=device, dtype=dtype, **options)
        model.load_state_dict(load_state_dict_hf(pretrained_model_name, device=device, dtype=dtype))
        return model

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes weights and configuration to a folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=4), encoding="utf-8")


@torch.no_grad()
def _initialise(
    model: MixerModel,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """Sets initial values as published; weights that write to the residual are smaller in deeper networks."""
    model.embedding.weight.normal_(std=initializer_range)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None and not hasattr(module.bias, "_no_reinit"):
            module.bias.zero_()
    if rescale_prenorm_residual:
        outer: Sequence[Tensor] = [p for name, p in model.named_parameters() if name.endswith("out_proj.weight")]
        for weight in outer:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            weight.div_(math.sqrt(n_residuals_per_layer * n_layer))
