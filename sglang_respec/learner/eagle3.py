"""The EAGLE-3 drafter as a trainable module, name for name what SGLang serves.

Source of the formulas: EAGLE-3 (arXiv 2503.01840, sections 3.1-3.2) and SGLang's
``LlamaForCausalLMEagle3``, whose arithmetic the forward pass repeats in plain PyTorch. Parameter
names are those of SpecForge checkpoints, so ``state_dict()`` is the checkpoint.

Why not the ``speculators`` package: its CPU path scores every unrolled step against a dense mask
of width (steps + 1) x length over one packed sequence and has no weight per sample, and its
checkpoints carry a configuration that SGLang reads through a converter only. It also brings
a hub client, an OpenAI client, ``datasets`` and torchvision into a learner that needs torch.

One training-time test (:meth:`Eagle3Drafter.unroll`) rehearses what a server does with a chain.
Legend: B batch, T tokens, S steps, H hidden, V target vocabulary, D draft vocabulary, N query
heads, K key/value heads, E head size. With tokens ``x`` and target features ``f``:

* step 0, row i: reads (f[i], x[i+1]) at position i and predicts the token after x[i+1];
* step s, row i: reads (own output of step s-1, x[i+1+s]) at position i+s. Its keys are those of
  step 0 at rows <= i, which a server builds from true features, plus its own steps 1..s. Hence
  the attention of step s is causal over step 0 and *diagonal* over every later step.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DrafterConfig:
    """Sizes of a drafter; the field names are those of its ``config.json``."""

    vocab_size: int  # of the target: what embed_tokens and d2t refer to
    draft_vocab_size: int
    hidden_size: int
    target_hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    num_aux_hidden_states: int = 3
    aux_layer_ids: tuple[int, ...] | None = None  # in SGLang's numbering; None: its default

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}; choose sizes that divide"
            )
        if self.draft_vocab_size > self.vocab_size:
            raise ValueError(
                f"draft_vocab_size={self.draft_vocab_size} exceeds vocab_size={self.vocab_size}; "
                "the draft vocabulary is a subset of the target's"
            )


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


@dataclass
class StepKeys:
    """Keys and values of the steps unrolled so far."""

    keys: list[Tensor]  # per step [B, N, T, E], rotated; step 0 first
    values: list[Tensor]  # per step [B, N, T, E]


class Eagle3Attention(nn.Module):
    """Grouped-query attention over [embedding; hidden], causal over step 0, then diagonal."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width = 2 * config.hidden_size
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,  # [B, T, 2H]
        rotation: tuple[Tensor, Tensor],  # cos and sin, [B or 1, 1, T, E] of this step's positions
        past: StepKeys,  # of the earlier steps; this step's own are appended
    ) -> Tensor:  # [B, T, H]
        query = _rotate(self._split(self.q_proj(x), self.heads), rotation)
        key = _rotate(self._split(self.k_proj(x), self.kv_heads), rotation)
        value = self._split(self.v_proj(x), self.kv_heads)
        group = self.heads // self.kv_heads
        past.keys.append(key.repeat_interleave(group, dim=1))
        past.values.append(value.repeat_interleave(group, dim=1))
        out = unrolled_attention(query, past.keys, past.values)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)


class Eagle3Mlp(nn.Module):
    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Eagle3Layer(nn.Module):
    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.self_attn = Eagle3Attention(config)
        self.mlp = Eagle3Mlp(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        embeds: Tensor,  # [B, T, H]
        hidden: Tensor,  # [B, T, H]; the residual stream, not normalised
        rotation: tuple[Tensor, Tensor],
        past: StepKeys,
    ) -> Tensor:  # [B, T, H]; the residual stream, not normalised
        x = torch.cat([self.input_layernorm(embeds), self.hidden_norm(hidden)], dim=-1)
        hidden = hidden + self.self_attn(x, rotation, past)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Eagle3Drafter(nn.Module):
    """A one-layer EAGLE-3 drafter. ``embed_tokens`` is the target's: shared, frozen, not saved."""

    d2t: Tensor  # [D] int64: target id minus draft id
    t2d: Tensor  # [V] bool: whether the draft vocabulary holds the target's token
    embed_tokens: Tensor  # [V, H]

    def __init__(
        self,
        config: DrafterConfig,
        embed_tokens: Tensor,  # [V, H] of the target
        draft_ids: Tensor,  # [D] int64, ascending target ids
    ) -> None:
        super().__init__()
        _check_vocabularies(config, embed_tokens, draft_ids)
        self.config = config
        self.fc = nn.Linear(
            config.num_aux_hidden_states * config.target_hidden_size, config.hidden_size, bias=False
        )
        self.midlayer = Eagle3Layer(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.register_buffer("d2t", draft_ids - torch.arange(len(draft_ids)))
        self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.t2d[draft_ids] = True
        self.register_buffer("embed_tokens", embed_tokens.detach(), persistent=False)

    @property
    def draft_ids(self) -> Tensor:  # [D] int64
        """The target's id of every draft token."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def unroll(
        self,
        aux: Tensor,  # [B, T, A*H]: the target's auxiliary hidden states, row i of token x[i]
        tokens: Tensor,  # [B, T] int64
        steps: int,
        positions: Tensor | None = None,  # [B, T] int64; 0..T-1 if absent
    ) -> list[Tensor]:  # per step [B, T, D] logits; row i of step s predicts token x[i+2+s]
        """The teacher-forced training-time test: what each step of a chain would predict.

        Rows whose input token ``x[i+1+s]`` lies past the end read token 0: mask them out.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        hidden = self.fc(aux)
        past = StepKeys([], [])
        logits = []
        for step in range(steps):
            embeds = F.embedding(shift_left(tokens, 1 + step), self.embed_tokens).to(hidden.dtype)
            rotation = self._rotation(positions + step, hidden.dtype)
            hidden = self.midlayer(embeds, hidden, rotation, past)
            logits.append(self.lm_head(self.norm(hidden)))
        return logits

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        size = self.config.head_dim
        exponents = torch.arange(0, size, 2, device=positions.device, dtype=torch.float64) / size
        angles = positions[..., None] * self.config.rope_theta**-exponents  # [B, T, E/2]
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


def unrolled_attention(
    query: Tensor,  # [B, N, T, E] of the last step
    keys: list[Tensor],  # per step [B, N, T, E]
    values: list[Tensor],  # per step [B, N, T, E]
) -> Tensor:  # [B, N, T, E]
    """softmax over {step 0 at rows <= i} and {step s at row i, s >= 1}, one normaliser for both.

    The later steps cost one dot product per row each instead of a T x T block.
    """
    length, scale = query.shape[2], query.shape[3] ** -0.5
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = (query @ keys[0].transpose(-1, -2) * scale).masked_fill(future, -torch.inf)
    if len(keys) > 1:
        diagonal = [(query * key).sum(-1, keepdim=True) * scale for key in keys[1:]]
        scores = torch.cat([scores, *diagonal], dim=-1)
    wide = scores.dtype if scores.dtype == torch.float64 else torch.float32
    weights = scores.softmax(-1, dtype=wide).to(values[0].dtype)
    out = weights[..., :length] @ values[0]
    for step, value in enumerate(values[1:]):
        out = out + weights[..., length + step, None] * value
    return out


def shift_left(rows: Tensor, count: int) -> Tensor:
    """``rows[:, t] -> rows[:, t + count]`` along dimension 1; the end is filled with zeros."""
    shifted = torch.zeros_like(rows)
    if count < rows.shape[1]:
        shifted[:, : rows.shape[1] - count] = rows[:, count:]
    return shifted


def _rotate(
    x: Tensor,  # [B, N, T, E]
    rotation: tuple[Tensor, Tensor],
) -> Tensor:
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _check_vocabularies(config: DrafterConfig, embed_tokens: Tensor, draft_ids: Tensor) -> None:
    if embed_tokens.shape != (config.vocab_size, config.hidden_size):
        raise ValueError(
            f"embed_tokens is {tuple(embed_tokens.shape)}, the drafter needs "
            f"{(config.vocab_size, config.hidden_size)}; pass the target's input embedding, whose "
            "width must be the drafter's hidden_size"
        )
    ascending = bool((draft_ids.diff() > 0).all()) and int(draft_ids[0]) >= 0
    if len(draft_ids) != config.draft_vocab_size or not ascending:
        raise ValueError(
            f"draft_ids must be {config.draft_vocab_size} ascending target ids (got "
            f"{len(draft_ids)}); sort them and drop duplicates"
        )
    if int(draft_ids[-1]) >= config.vocab_size:
        raise ValueError(
            f"draft id {int(draft_ids[-1])} is outside the target's {config.vocab_size} tokens; "
            "was d2t made for another target?"
        )
