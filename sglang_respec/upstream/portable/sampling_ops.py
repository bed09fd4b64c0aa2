"""SGLang's verification sampling rule in PyTorch, for machines without its CUDA kernels.

SGLang ships these three functions for GPUs only (flashinfer renormalisation and a CUDA
tree sampler); without them a request with a temperature cannot be verified on a CPU.
They render the same rule, so that `SGLANG_RESPEC=0` measures SGLang's own semantics here.
Suffixes: B requests, n nodes of a tree, V vocabulary.
"""

import torch


def top_k_renorm_prob(probs: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """[R, V] probabilities restricted to each row's top_k [R] largest, renormalised.

    Ties with the k-th largest are kept, as flashinfer's threshold search keeps them.
    """
    ranked = probs.sort(dim=-1, descending=True).values
    index = (top_k.to(torch.int64).clamp(1, probs.shape[-1]) - 1)[:, None]
    threshold = torch.gather(ranked, 1, index)
    kept = torch.where(probs >= threshold, probs, 0.0)
    return kept / kept.sum(-1, keepdim=True)


def top_p_renorm_prob(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """[R, V] probabilities restricted to each row's nucleus of mass top_p [R], renormalised.

    The nucleus is the smallest set of most probable tokens whose mass reaches top_p.
    """
    ranked, order = probs.sort(dim=-1, descending=True)
    mass_before = ranked.cumsum(-1) - ranked
    ranked = torch.where(mass_before < top_p[:, None], ranked, 0.0)
    kept = torch.zeros_like(probs).scatter_(1, order, ranked)
    return kept / kept.sum(-1, keepdim=True)


def tree_speculative_sampling_target_only(
    predicts: torch.Tensor,  # [B * n] i32, written
    accept_index: torch.Tensor,  # [B, depth] i32, written
    accept_token_num: torch.Tensor,  # [B] i32, written: accepted drafts
    candidates: torch.Tensor,  # [B, n] i64
    retrive_index: torch.Tensor,  # [B, n] i64
    retrive_next_token: torch.Tensor,  # [B, n] i64
    retrive_next_sibling: torch.Tensor,  # [B, n] i64
    uniform_samples: torch.Tensor,  # [B, n] f32
    uniform_samples_for_final_sampling: torch.Tensor,  # [B] f32
    target_probs: torch.Tensor,  # [B, n, V] f32
    draft_probs: torch.Tensor,  # [B, n, V] f32, written at rejected tokens
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
    deterministic: bool = True,
) -> None:
    """One coin per parent: its children are tried in order against their summed mass.

    A child is accepted when coin < (mass of the children tried so far) / threshold_acc, or
    when its own probability reaches threshold_single; then the walk continues below it.
    The last token is drawn from what the rejected children left of the node's
    distribution. (Rule of SGLang 0.5.23, `speculative/sampling.cuh`; exact when both
    thresholds are 1.) The spelling `retrive` is SGLang's.
    """
    batch, max_depth = accept_index.shape
    requests = torch.arange(batch, device=candidates.device)
    parent = torch.zeros_like(requests)
    child = retrive_next_token[:, 0].clone()
    coin = uniform_samples[:, 0].clone()
    tried_mass = torch.zeros_like(coin)
    accepted = torch.zeros_like(requests)
    accept_index[:, 0] = retrive_index[:, 0].to(accept_index.dtype)

    for _ in range(1, candidates.shape[1]):
        trying = (child >= 0) & (accepted < max_depth - 1)
        node = child.clamp(min=0)
        token = candidates[requests, node]
        mass = target_probs[requests, parent, token]
        tried_mass = torch.where(trying, tried_mass + mass, tried_mass)
        wins = (coin < tried_mass / threshold_acc) | (mass >= threshold_single)
        take = trying & (mass > 0) & wins
        reject = trying & ~take

        draft_probs[requests[reject], parent[reject], token[reject]] = mass[reject]
        flat_parent = retrive_index[requests, parent]
        predicts[flat_parent[take]] = token[take].to(predicts.dtype)
        accepted = accepted + take
        slot = accepted.clamp(max=max_depth - 1)
        here = retrive_index[requests, node].to(accept_index.dtype)
        accept_index[requests[take], slot[take]] = here[take]

        coin = torch.where(take, uniform_samples[requests, node], coin)
        tried_mass = torch.where(take, 0.0, tried_mass)
        parent = torch.where(take, node, parent)
        following = torch.where(
            take, retrive_next_token[requests, node], retrive_next_sibling[requests, node]
        )
        child = torch.where(trying, following, child)

    accept_token_num.copy_(accepted)
    whole = target_probs[requests, parent]
    # A leaf reached at full depth had no children to reject: nothing is subtracted there.
    full = (accepted == max_depth - 1)[:, None]
    left = torch.where(full, whole, (whole - draft_probs[requests, parent]).clamp(min=0))
    # Children that hold all the mass are all rejected when their float32 sum rounds to just
    # under one and the coin lies above it; without this an impossible token would be drawn.
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, whole)
    predicts[retrive_index[requests, parent]] = _inverse_cdf(
        left, uniform_samples_for_final_sampling
    ).to(predicts.dtype)


def _inverse_cdf(weights: torch.Tensor, coins: torch.Tensor) -> torch.Tensor:
    """Index [B] at which each row's cumulative weight passes coin * total."""
    cumulative = weights.cumsum(-1)
    goal = coins[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, goal, right=True).flatten()
    # Rounding may carry the goal past the last positive weight.
    last_positive = (weights > 0).to(torch.int64) * torch.arange(
        1, weights.shape[1] + 1, device=weights.device
    )
    return torch.minimum(index, (last_positive.amax(-1) - 1).clamp(min=0))
