"""One finished rollout as the learner sees it: what the target computed and what was drawn.

Legend: T tokens of prompt and answer, P of the prompt, G = T - P generated, F the first token whose
hidden states are known, A*H width of the auxiliary hidden states, K target tokens listed per row.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RolloutSample:
    """Everything about one finished request. Tensors are shared and never written to."""

    request_id: str
    prompt_tokens: int  # P, 1 or more
    tokens: Tensor  # [T] int32
    # Where the target's prefix cache held the start of a prompt, nobody computed its states.
    first_aux: int  # F, 0 <= F < P
    # Row r is of token F + r. The last token was drawn and never run, so it has none.
    aux: Tensor  # [T - 1 - F, A*H] bfloat16, float16 or float32
    # Row g is the distribution that token P + g was drawn from, before top-k, top-p and min-p.
    top_ids: Tensor  # [G, K] int32, distinct target ids, in any order
    top_logprobs: Tensor  # [G, K] float32, of softmax(logits / (temperature or 1))
    tail_mass: Tensor  # [G] float32, probability of all tokens that are not listed
    seed: int  # of coupled sampling, a signed 64-bit integer
    temperature: float  # 0 is greedy
    drafter_version: int  # that served when the rollout finished
    policy_version: int  # weight updates of the target before it finished

    @property
    def generated_tokens(self) -> int:  # G
        return len(self.tokens) - self.prompt_tokens

    @property
    def nbytes(self) -> int:
        parts = (self.tokens, self.aux, self.top_ids, self.top_logprobs, self.tail_mass)
        return sum(part.numel() * part.element_size() for part in parts)
