"""Rollouts of the demo target as a server would hand them to the learner, made in PyTorch.

Tokens are drawn by coupled sampling, so the learner can judge a drafter on them as a server would;
hidden states and listed log-probabilities come from one pass over the finished rollouts.
"""

from collections.abc import Sequence

import torch
from demo.data import Sample, prompt_ids
from demo.train_drafter import auxiliary_states
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase, Qwen2ForCausalLM

from respec_kernels import sample_rows
from sglang_respec.demo_task import Problem
from sglang_respec.learner.samples import RolloutSample

LISTED = 64


@torch.inference_mode()
def coupled_rollouts(
    target: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    temperature: float,  # 0 is greedy
    first_seed: int,
    max_new_tokens: int,
    policy_version: int = 0,
    name: str = "rollout",
) -> list[RolloutSample]:
    """One rollout per problem, one at a time; request ``NAME-i`` has seed ``first_seed + i``."""
    found = []
    for i, prompt in enumerate(prompt_ids(tokenizer, problems)):
        answer = _generate(target, prompt, temperature, first_seed + i, max_new_tokens)
        found.append(
            to_sample(
                target, Sample(prompt, answer), request_id=f"{name}-{i}", seed=first_seed + i,
                temperature=temperature, policy_version=policy_version,
            )
        )  # fmt: skip
    return found


@torch.inference_mode()
def to_sample(
    target: Qwen2ForCausalLM,
    rollout: Sample,
    *,
    request_id: str,
    seed: int,
    temperature: float,
    policy_version: int = 0,
    listed: int = LISTED,
) -> RolloutSample:
    """What the target says about a finished rollout."""
    tokens = torch.tensor(rollout.prompt_ids + rollout.answer_ids)
    output = target.model(input_ids=tokens[None, :-1], output_hidden_states=True, use_cache=False)
    drawn_from = output.last_hidden_state[0, len(rollout.prompt_ids) - 1 :]
    logits = target.lm_head(drawn_from).float() / (temperature or 1.0)
    logprobs, ids = logits.log_softmax(-1).topk(listed, dim=-1)
    return RolloutSample(
        request_id=request_id,
        prompt_tokens=len(rollout.prompt_ids),
        tokens=tokens.int(),
        first_aux=0,
        aux=auxiliary_states(output.hidden_states)[0].bfloat16(),
        top_ids=ids.int(),
        top_logprobs=logprobs,
        tail_mass=(1 - logprobs.double().exp().sum(-1)).clamp(0, 1).float(),
        seed=seed,
        temperature=temperature,
        drafter_version=0,
        policy_version=policy_version,
    )


def _generate(
    target: Qwen2ForCausalLM, prompt: list[int], temperature: float, seed: int, limit: int
) -> list[int]:
    cache = DynamicCache(config=target.config)
    inputs = torch.tensor([prompt])
    answer: list[int] = []
    while len(answer) < limit:
        logits = target(input_ids=inputs, past_key_values=cache, use_cache=True).logits[:, -1]
        position = len(prompt) + len(answer) - 1
        token = _draw(logits.float(), position, temperature, seed)
        answer.append(token)
        if token == target.config.eos_token_id:
            break
        inputs = torch.tensor([[token]])
    return answer


def _draw(logits: Tensor, position: int, temperature: float, seed: int) -> int:
    tokens, _ = sample_rows(
        logits,
        torch.tensor([position]),
        None,
        torch.tensor([temperature or 1.0]),
        torch.tensor([logits.shape[1] if temperature else 1], dtype=torch.int32),
        torch.ones(1),
        torch.zeros(1),
        torch.tensor([seed]),
        filtered=False,
        greedy=temperature == 0,
    )
    return int(tokens)
