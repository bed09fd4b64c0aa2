"""Group-relative policy optimisation, the smallest form that is right.

    a_i      = (r_i - mean_g(r)) / (std_g(r) + EPS)          within the samples g of one prompt
    rho_it   = exp(log pi(x_it) - log pi_old(x_it))
    loss     = -1/N * sum_it min(rho_it a_i, clip(rho_it, 1 - c, 1 + c) a_i)

(DeepSeekMath, arXiv 2402.03300, section 4.1, without its KL term; N counts the tokens of the whole
step, so that a long answer does not count less per token, as in DAPO, arXiv 2503.14476.) The old
log-probabilities are the trainer's own, from the weights that sampled. All in float32 and on one
thread, with rollouts in a fixed order: the same rollouts give the same weights, bit by bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

EPS = 1e-4
BETAS = (0.9, 0.95)
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Answer:
    """One rollout as the trainer needs it."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    advantage: float

    def __len__(self) -> int:
        return len(self.prompt) + len(self.tokens)


@dataclass(frozen=True)
class GrpoSettings:
    learning_rate: float = 3e-4
    epochs: int = 2  # passes over a step's rollouts, one update each; the second one clips
    clip: float = 0.2
    batch_tokens: int = 4096  # with padding; bounds memory, not the update


@dataclass(frozen=True)
class Padded:
    tokens: Tensor  # [B, T] int64, padded on the right
    predicts: Tensor  # [B, T - 1] bool: the next token belongs to the answer
    advantages: Tensor  # [B] float32


def advantages(
    rewards: Sequence[float],  # of rollouts, the samples of one prompt beside each other
    samples: int,
) -> list[float]:
    """Rewards standardised within each prompt; all 0 where they are equal."""
    groups = torch.tensor(rewards, dtype=torch.float64).view(-1, samples)
    spread = groups.std(1, correction=0, keepdim=True) + EPS
    found: list[float] = ((groups - groups.mean(1, keepdim=True)) / spread).flatten().tolist()
    return found


def clipped_loss(
    logprobs: Tensor,  # [N] of the drawn tokens under the policy
    old_logprobs: Tensor,  # [N] under the policy that drew them
    advantages: Tensor,  # [N]
    clip: float,
) -> Tensor:  # [N], to be summed and divided by the tokens of the step
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


class Policy:
    """The demo target under training, in float32."""

    def __init__(self, folder: Path | str, settings: GrpoSettings) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        # Drafters borrow the target's embedding, and a learner reads it once: it stays as it is.
        self.model.get_input_embeddings().requires_grad_(False)
        self._settings = settings
        self._moving = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._moving, lr=settings.learning_rate, betas=BETAS, weight_decay=0.0
        )

    def update(self, answers: Sequence[Answer]) -> float:
        """Learn from one step's rollouts; returns the first epoch's gradient norm."""
        batches = list(padded_batches(answers, self._settings.batch_tokens))
        total = sum(len(each.tokens) for each in answers)
        with torch.no_grad():
            old = [self.drawn_logprobs(batch) for batch in batches]
        norms = []
        for _ in range(self._settings.epochs):
            for batch, before in zip(batches, old, strict=True):
                rows = batch.predicts.nonzero()[:, 0]
                loss = clipped_loss(
                    self.drawn_logprobs(batch), before, batch.advantages[rows],
                    self._settings.clip,
                )  # fmt: skip
                (loss.sum() / total).backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(self._moving, CLIP_NORM)))
            self._optimizer.step()
            self._optimizer.zero_grad()
        return norms[0]

    def drawn_logprobs(self, batch: Padded) -> Tensor:  # [N] of the answers' tokens, row by row
        hidden = self.model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden[:, :-1][batch.predicts])
        drawn = batch.tokens[:, 1:][batch.predicts]
        found: Tensor = logits.log_softmax(-1).gather(1, drawn[:, None])[:, 0]
        return found

    def save(self, path: Path) -> None:
        """A checkpoint's weights in float32, as they are trained."""
        tied = "lm_head.weight"
        state = {n: t.detach() for n, t in self.model.state_dict().items() if n != tied}
        save_file(state, path, metadata={"format": "pt"})


def padded_batches(answers: Sequence[Answer], batch_tokens: int) -> Iterator[Padded]:
    """Neighbours in length together, at most ``batch_tokens`` with padding (one at the least)."""
    group: list[Answer] = []
    for answer in sorted(answers, key=len):  # stable, so the order depends on nothing else
        if group and (len(group) + 1) * len(answer) > batch_tokens:
            yield _pad(group)
            group = []
        group.append(answer)
    if group:
        yield _pad(group)


def _pad(answers: Sequence[Answer]) -> Padded:
    longest = max(map(len, answers))
    tokens = torch.zeros(len(answers), longest, dtype=torch.int64)
    predicts = torch.zeros(len(answers), longest - 1, dtype=torch.bool)
    for row, answer in enumerate(answers):
        tokens[row, : len(answer)] = torch.tensor([*answer.prompt, *answer.tokens])
        predicts[row, len(answer.prompt) - 1 : len(answer) - 1] = True
    return Padded(tokens, predicts, torch.tensor([each.advantage for each in answers]))
