"""SGLang's rule for draft trees, written with tensors as SGLang writes it, as an oracle in tests.

`draft` follows `select_top_k_tokens` and `organize_draft_results` of SGLang 0.5.23 (scores are
products of probabilities, the best `topk` of each step are its beams, the best
`num_draft_tokens - 1` of everything drafted are verified), for a drafter given as a function from
a path of ranks to the probabilities of its candidates.
"""

from __future__ import annotations

import torch

from sglang_respec.core import SpeculationConfig


def draft(rows_of, config: SpeculationConfig) -> tuple[set, set]:
    """(paths verified, paths expanded). A path is a tuple of ranks from the root; () is the root.

    rows_of: path -> [K] probabilities of the candidates, the best first.
    """
    topk = config.topk
    scores = torch.tensor(rows_of(())[:topk], dtype=torch.float64)
    paths = [(rank,) for rank in range(1, topk + 1)]
    all_scores, all_paths, expanded = [scores], list(paths), {()}
    for _ in range(1, config.num_steps):
        expanded |= set(paths)
        rows = torch.tensor([rows_of(path)[:topk] for path in paths], dtype=torch.float64)
        expand_scores = scores.unsqueeze(1) * rows  # [topk, topk]
        children = [(*path, rank) for path in paths for rank in range(1, topk + 1)]
        all_scores.append(expand_scores.flatten())
        all_paths += children
        scores, chosen = torch.topk(expand_scores.flatten(), topk)
        paths = [children[i] for i in chosen.tolist()]
    best = torch.topk(torch.cat(all_scores), config.num_draft_tokens - 1).indices.tolist()
    return {all_paths[i] for i in best}, expanded
