"""What sampling must know of each running request, in tensors by request slot.

Fixed addresses: a captured drafting graph reads seeds and temperatures from here with the
slots of its batch, and nothing has to be gathered, filtered or merged as batches change.
"""

from typing import Any

import torch

from sglang_respec.sampling.penalties import PenaltyTable


class RequestTable:
    """Rows are slots of SGLang's request pool; a row is entered again with every prefill."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device | str) -> None:
        self.seeds = torch.zeros(slots, dtype=torch.int64, device=device)
        self.temperatures = torch.ones(slots, dtype=torch.float32, device=device)
        self.top_ks = torch.ones(slots, dtype=torch.int32, device=device)
        self.penalties = PenaltyTable(slots, vocab_size, device)

    def enter(self, slots: torch.Tensor, sampling_info: Any) -> None:
        """Write the rows of a prefill batch; runs on the stream of its forward pass."""
        slots = slots.to(torch.int64)
        self.seeds[slots] = sampling_info.sampling_seed
        self.temperatures[slots] = sampling_info.temperatures.view(-1)
        self.top_ks[slots] = sampling_info.top_ks


def request_table(runner: Any) -> RequestTable:
    """The table of this target's model runner, made when it is first asked for."""
    table: RequestTable | None = getattr(runner, "respec_requests", None)
    if table is None:
        pool = runner.req_to_token_pool.req_to_token
        table = RequestTable(pool.shape[0], runner.model_config.vocab_size, pool.device)
        runner.respec_requests = table
    return table
