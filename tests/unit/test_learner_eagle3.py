"""The drafter module against a per-position reference, the objective against plain float64."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sglang_respec.learner.acceptance import chain_hits, walk
from sglang_respec.learner.checkpoint import load_drafter, save_drafter
from sglang_respec.learner.eagle3 import DrafterConfig, Eagle3Drafter, RMSNorm, shift_left
from sglang_respec.learner.objective import (
    DistillBatch,
    distill,
    kl_divergence,
    restrict_to_draft_vocab,
)

CONFIG = DrafterConfig(
    vocab_size=13,
    draft_vocab_size=7,
    hidden_size=8,
    target_hidden_size=8,
    intermediate_size=12,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=64,
)
DRAFT_IDS = torch.tensor([0, 2, 3, 6, 8, 9, 12])
ROWS, LENGTH, STEPS = 2, 9, 4


@pytest.fixture
def drafter() -> Eagle3Drafter:
    torch.manual_seed(0)
    made = Eagle3Drafter(CONFIG, torch.randn(13, 8), DRAFT_IDS).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


@pytest.fixture
def batch() -> DistillBatch:
    torch.manual_seed(1)
    scored = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    scored[0, 3:8] = True
    scored[1, 2:5] = True
    return DistillBatch(
        tokens=torch.randint(0, 13, (ROWS, LENGTH)),
        aux=torch.randn(ROWS, LENGTH, 24, dtype=torch.float64),
        target_probs=torch.randn(ROWS, LENGTH, 7, dtype=torch.float64).softmax(-1),
        scored=scored,
        weights=torch.tensor([0.5, 1.5], dtype=torch.float64),
    )


class ServedChain:
    """What a server does for one chain, position by position: a growing list of keys and values,
    one query at a time. Written from SGLang's model file, sharing nothing but the weights."""

    def __init__(self, drafter: Eagle3Drafter) -> None:
        self.w = {name: tensor.detach() for name, tensor in drafter.state_dict().items()}
        self.embed = drafter.embed_tokens
        self.keys: list[Tensor] = []  # per cached position [K, E]
        self.values: list[Tensor] = []

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean() + CONFIG.rms_norm_eps).sqrt() * self.w[f"{name}.weight"]

    def rotate(self, x: Tensor, position: int) -> Tensor:
        half = CONFIG.head_dim // 2
        turned = torch.empty_like(x)
        for i in range(half):
            angle = position * CONFIG.rope_theta ** (-2 * i / CONFIG.head_dim)
            cos, sin = math.cos(angle), math.sin(angle)
            turned[:, i] = x[:, i] * cos - x[:, i + half] * sin
            turned[:, i + half] = x[:, i + half] * cos + x[:, i] * sin
        return turned

    def step(self, token: int, hidden: Tensor, position: int) -> tuple[Tensor, Tensor]:
        attention, mlp = "midlayer.self_attn", "midlayer.mlp"
        x = torch.cat(
            [
                self.norm(self.embed[token], "midlayer.input_layernorm"),
                self.norm(hidden, "midlayer.hidden_norm"),
            ]
        )
        query, key, value = (
            (self.w[f"{attention}.{name}_proj.weight"] @ x).view(-1, CONFIG.head_dim)
            for name in "qkv"
        )
        query, key = self.rotate(query, position), self.rotate(key, position)
        self.keys.append(key)
        self.values.append(value)
        heads = []
        for head in range(CONFIG.num_attention_heads):
            shared = head // (CONFIG.num_attention_heads // CONFIG.num_key_value_heads)
            scores = torch.stack([query[head] @ key[shared] for key in self.keys])
            weights = (scores / math.sqrt(CONFIG.head_dim)).softmax(0)
            heads.append(sum(w * v[shared] for w, v in zip(weights, self.values, strict=True)))
        hidden = hidden + self.w[f"{attention}.o_proj.weight"] @ torch.cat(heads)
        y = self.norm(hidden, "midlayer.post_attention_layernorm")
        gate = self.w[f"{mlp}.gate_proj.weight"] @ y
        up = self.w[f"{mlp}.up_proj.weight"] @ y
        hidden = hidden + self.w[f"{mlp}.down_proj.weight"] @ (gate * gate.sigmoid() * up)
        return hidden, self.w["lm_head.weight"] @ self.norm(hidden, "norm")


def test_the_unroll_is_what_a_server_would_compute(drafter: Eagle3Drafter, batch: DistillBatch):
    unrolled = drafter.unroll(batch.aux, batch.tokens, STEPS)
    fused = batch.aux @ drafter.fc.weight.T
    for row in range(ROWS):
        for start in range(LENGTH - 1):
            chain = ServedChain(drafter)
            for i in range(start + 1):  # draft extend: true features
                token = int(batch.tokens[row, i + 1])
                hidden, logits = chain.step(token, fused[row, i], i)
            for step in range(STEPS):
                if step > 0:  # draft decode: the drafter's own output is the next feature
                    if start + 1 + step >= LENGTH:
                        break
                    token = int(batch.tokens[row, start + 1 + step])
                    hidden, logits = chain.step(token, hidden, start + step)
                torch.testing.assert_close(unrolled[step][row, start], logits)


def test_positions_default_to_the_row_number(drafter: Eagle3Drafter, batch: DistillBatch) -> None:
    positions = torch.arange(LENGTH).expand(ROWS, -1)
    given = drafter.unroll(batch.aux, batch.tokens, 2, positions)
    for left, right in zip(given, drafter.unroll(batch.aux, batch.tokens, 2), strict=True):
        assert torch.equal(left, right)


def test_the_future_does_not_reach_back(drafter: Eagle3Drafter, batch: DistillBatch) -> None:
    before = drafter.unroll(batch.aux, batch.tokens, STEPS)
    changed = batch.aux.clone()
    changed[:, 5:] += 1.0
    after = drafter.unroll(changed, batch.tokens, STEPS)
    for left, right in zip(before, after, strict=True):
        assert torch.equal(left[:, :5], right[:, :5])
        assert not torch.equal(left[:, 5:], right[:, 5:])


def test_the_objective_matches_a_loop_over_rows(
    drafter: Eagle3Drafter, batch: DistillBatch
) -> None:
    decay = 0.7
    found = distill(drafter, batch, STEPS, decay)
    unrolled = drafter.unroll(batch.aux, batch.tokens, STEPS)
    expected = torch.zeros((), dtype=torch.float64)
    for step in range(STEPS):
        weighted, plain, overlap = [], [], []
        for row in range(ROWS):
            for i in range(LENGTH - 1 - step):
                if not batch.scored[row, i + 1 + step]:
                    continue
                p = batch.target_probs[row, i + 1 + step]
                q = unrolled[step][row, i].exp() / unrolled[step][row, i].exp().sum()
                kl = sum(a * (a / b).log() for a, b in zip(p, q, strict=True))
                weighted.append(batch.weights[row] * kl)
                plain.append(kl)
                overlap.append(torch.minimum(p, q).sum())
        expected += decay**step * sum(weighted) / len(weighted)
        torch.testing.assert_close(found.kl[step], (sum(plain) / len(plain)).detach())
        torch.testing.assert_close(found.acceptance[step], (sum(overlap) / len(overlap)).detach())
    torch.testing.assert_close(found.loss, expected / sum(decay**s for s in range(STEPS)))


def test_gradients_agree_with_finite_differences(
    drafter: Eagle3Drafter, batch: DistillBatch
) -> None:
    names = ["fc.weight", "midlayer.self_attn.k_proj.weight", "midlayer.hidden_norm.weight"]
    parameters = [drafter.get_parameter(name) for name in names]

    def loss(*values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(_Loss(drafter, batch), _prefixed(state), ())

    assert torch.autograd.gradcheck(loss, parameters, fast_mode=True)


class _Loss(torch.nn.Module):
    def __init__(self, drafter: Eagle3Drafter, batch: DistillBatch) -> None:
        super().__init__()
        self.drafter, self.batch = drafter, batch

    def forward(self) -> Tensor:
        return distill(self.drafter, self.batch, steps=3).loss


def _prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"drafter.{name}": tensor for name, tensor in state.items()}


def test_the_loss_is_linear_in_the_sample_weights(
    drafter: Eagle3Drafter, batch: DistillBatch
) -> None:
    def loss(*weights: float) -> Tensor:
        changed = DistillBatch(
            batch.tokens, batch.aux, batch.target_probs, batch.scored, torch.tensor(weights)
        )
        return distill(drafter, changed, 2).loss.detach()

    torch.testing.assert_close(loss(2.0, 3.0), 2 * loss(1.0, 0.0) + 3 * loss(0.0, 1.0))
    assert loss(0.0, 0.0) == 0


def test_a_batch_with_nothing_scored_has_loss_zero(
    drafter: Eagle3Drafter, batch: DistillBatch
) -> None:
    nothing = torch.zeros_like(batch.scored)
    empty = DistillBatch(batch.tokens, batch.aux, batch.target_probs, nothing, batch.weights)
    objective = distill(drafter, empty, 2)
    assert objective.loss == 0
    assert objective.acceptance.tolist() == [0, 0]


def test_kl_is_zero_on_itself_and_survives_zero_probabilities() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(
        kl_divergence(logits.softmax(-1), logits), torch.zeros(5, dtype=torch.float64)
    )
    certain = torch.eye(7, dtype=torch.float64)[:5]
    torch.testing.assert_close(
        kl_divergence(certain, logits), -logits.log_softmax(-1).diagonal()[:5]
    )


def test_restriction_renormalises_over_the_draft_vocabulary() -> None:
    logits = torch.randn(3, 13, dtype=torch.float64)
    full = (logits / 0.5).softmax(-1)[:, DRAFT_IDS]
    found = restrict_to_draft_vocab(logits, DRAFT_IDS, temperature=0.5)
    torch.testing.assert_close(found, full / full.sum(-1, keepdim=True))
    with pytest.raises(ValueError, match=r"at 1\.0"):
        restrict_to_draft_vocab(logits, DRAFT_IDS, temperature=0.0)


def test_a_wrong_batch_is_refused(drafter: Eagle3Drafter, batch: DistillBatch) -> None:
    short = DistillBatch(
        batch.tokens, batch.aux[..., :8], batch.target_probs, batch.scored, batch.weights
    )
    with pytest.raises(ValueError, match="aux"):
        distill(drafter, short, 2)
    with pytest.raises(ValueError, match="at least one step"):
        distill(drafter, batch, 0)


def test_chain_hits_stop_at_the_first_miss(drafter: Eagle3Drafter, batch: DistillBatch) -> None:
    hits = chain_hits(drafter, batch.aux, batch.tokens, STEPS)
    unrolled = drafter.unroll(batch.aux, batch.tokens, STEPS)
    for row in range(ROWS):
        for i in range(LENGTH):
            expected = 0
            while expected < STEPS and i + 2 + expected < LENGTH:
                drafted = DRAFT_IDS[unrolled[expected][row, i].argmax()]
                if drafted != batch.tokens[row, i + 2 + expected]:
                    break
                expected += 1
            if i + 2 + expected < LENGTH:
                assert hits[row, i] == expected


def test_the_walk_commits_every_token_once() -> None:
    hits = torch.tensor([0, 0, 2, 0, 0, 0, 1, 5, 0, 0])
    # Prefill commits x[3]; the rounds start from rows 2, 5, 6 and 8.
    assert walk(hits, prompt_tokens=3, total_tokens=10) == [3, 1, 2]
    assert walk(hits, prompt_tokens=9, total_tokens=10) == []
    assert sum(walk(hits, prompt_tokens=1, total_tokens=10)) == 8


def test_a_checkpoint_comes_back_as_it_was(drafter: Eagle3Drafter, tmp_path: Path) -> None:
    save_drafter(drafter, tmp_path, torch.float64)
    loaded = load_drafter(tmp_path, drafter.embed_tokens, torch.float64)
    assert loaded.config == CONFIG
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_the_checkpoint_has_the_names_sglang_reads(drafter: Eagle3Drafter, tmp_path: Path) -> None:
    save_drafter(drafter, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    layer = {f"midlayer.self_attn.{n}_proj.weight" for n in "qkvo"}
    layer |= {f"midlayer.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
    layer |= {
        f"midlayer.{n}.weight"
        for n in ("input_layernorm", "hidden_norm", "post_attention_layernorm")
    }
    assert set(tensors) == layer | {"fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d"}
    assert (tensors["d2t"] + torch.arange(7)).tolist() == DRAFT_IDS.tolist()
    assert tensors["t2d"].nonzero()[:, 0].tolist() == DRAFT_IDS.tolist()
    assert tensors["fc.weight"].dtype == torch.bfloat16


def test_a_checkpoint_from_elsewhere_loads(drafter: Eagle3Drafter, tmp_path: Path) -> None:
    save_drafter(drafter, tmp_path, torch.float64)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {"model." + n.replace("midlayer", "layers.0"): t for n, t in tensors.items()}
    renamed["model.embed_tokens.weight"] = torch.zeros(13, 8)
    save_file(renamed, tmp_path / "model.safetensors")
    loaded = load_drafter(tmp_path, drafter.embed_tokens, torch.float64)
    assert torch.equal(loaded.midlayer.mlp.up_proj.weight, drafter.midlayer.mlp.up_proj.weight)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "one-layer"),
        ({"num_hidden_layers": 2}, "one-layer"),
        ({"norm_output": True}, "train one without"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling"),
        ({"intermediate_size": 16}, "different drafters"),
    ],
)
def test_a_foreign_checkpoint_is_refused(
    drafter: Eagle3Drafter, tmp_path: Path, changes: dict[str, object], remedy: str
) -> None:
    save_drafter(drafter, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=remedy):
        load_drafter(tmp_path, drafter.embed_tokens)


@pytest.mark.parametrize(
    ("ids", "remedy"),
    [
        ([0, 1, 2], "ascending"),
        ([3, 2, 1, 0, 4, 5, 6], "ascending"),
        ([0, 1, 2, 3, 4, 5, 13], "another target"),
    ],
)
def test_bad_draft_vocabularies_are_refused(ids: list[int], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        Eagle3Drafter(CONFIG, torch.zeros(13, 8), torch.tensor(ids))


def test_the_norm_keeps_its_statistics_in_float32() -> None:
    x = torch.full((1, 4), 300.0, dtype=torch.bfloat16)
    norm = RMSNorm(4, eps=1e-6).to(torch.bfloat16)
    assert norm(x).tolist() == [[1.0] * 4]


def test_shift_left_fills_with_zeros() -> None:
    rows = torch.arange(1, 7).view(2, 3)
    assert shift_left(rows, 1).tolist() == [[2, 3, 0], [5, 6, 0]]
    assert shift_left(rows, 5).tolist() == [[0, 0, 0], [0, 0, 0]]
