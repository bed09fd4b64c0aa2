"""PyTorch version of the logit function that SGLang launches as a Triton kernel."""

import torch


def softcap_inplace_logits(
    full_logits: torch.Tensor,  # any shape, written
    final_logit_softcapping: float,
) -> torch.Tensor:
    """cap * tanh(logits / cap), in place (Gemma 2)."""
    return full_logits.div_(final_logit_softcapping).tanh_().mul_(final_logit_softcapping)
