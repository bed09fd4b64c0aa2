"""Seeds of requests: drawn or derived where a request enters, carried to every sampler, returned.

A request's seed is settled in SGLang's tokenizer manager, before its scheduler knows of it: every
tensor-parallel rank gets the same one, and the answer can name it (`meta_info["sampling_seed"]`).
"""

import copy
from collections import OrderedDict
from typing import Any

import torch

from sglang_respec.sampling.seeds import draw_seed, sample_seed, seed_of_name

SEED_KEY = "sampling_seed"
_UNFINISHED_FANOUTS = 1024  # requests with n > 1 whose samples were not all sent; oldest forgotten


def draw_missing_seed(tokenized: Any, *_: Any, **__: Any) -> None:
    """After `TokenizerManager._create_tokenized_object`: no request goes on without a seed."""
    params = getattr(tokenized, "sampling_params", None)  # embedding requests share the function
    if params is not None and params.sampling_seed is None:
        params.sampling_seed = draw_seed()


class _Fanouts:
    """Counts the samples that were sent of each request with n > 1.

    SGLang sends n copies of one tokenized request that share their sampling parameters, after
    a copy with parameters of its own that only fills the prefix cache.
    """

    def __init__(self) -> None:
        # Holding the parameters keeps their id from being used again.
        self._sent: OrderedDict[int, tuple[Any, int]] = OrderedDict()

    def next_sample(self, params: Any) -> int:
        """The number of the sample about to be sent, from 0."""
        _, sample = self._sent.pop(id(params), (params, 0))
        if sample + 1 < params.n:
            self._sent[id(params)] = (params, sample + 1)
        while len(self._sent) > _UNFINISHED_FANOUTS:
            self._sent.popitem(last=False)
        return sample


_fanouts = _Fanouts()


def settle_seed(manager: Any, tokenized: Any) -> None:
    """Before `TokenizerManager._send_one_request`: each of n samples gets a seed of its own."""
    params = getattr(tokenized, "sampling_params", None)
    if params is None:
        return
    if params.n > 1 and params.max_new_tokens != 0:
        sample = _fanouts.next_sample(params)
        tokenized.sampling_params = params = copy.copy(params)
        params.sampling_seed = sample_seed(params.sampling_seed, sample)
    _remember(manager, tokenized)


def settle_seeds(manager: Any, tokenized: list[Any]) -> None:
    """Before `TokenizerManager._send_batch_request`, which SGLang uses for n = 1 only."""
    for each in tokenized:
        if getattr(each, "sampling_params", None) is not None:
            _remember(manager, each)


def _remember(manager: Any, tokenized: Any) -> None:
    state = manager.rid_to_state.get(tokenized.rid)
    if state is not None:
        state.respec_seed = tokenized.sampling_params.sampling_seed


def ask_for_meta_info(_: Any, output: Any) -> None:
    """Before `TokenizerManager._handle_batch_output`: SGLang adds to `meta_info` only if asked."""
    if getattr(output, "output_ids", None) is not None and output.customized_info is None:
        output.customized_info = {}


def name_seed(_: None, __: Any, meta_info: dict[str, Any], state: Any, *___: Any) -> None:
    """After `TokenizerManager.update_request_meta_info`: the answer names its seed."""
    seed = getattr(state, "respec_seed", None)
    if seed is not None:
        meta_info[SEED_KEY] = seed


def seeds_of(batch: Any) -> torch.Tensor:
    """[B] i64 on the batch's device. A request that came past the tokenizer manager, such as a
    warm-up, gets the seed of its id, which all ranks know."""
    for request in batch.reqs:
        if request.sampling_params.sampling_seed is None:
            request.sampling_params.sampling_seed = seed_of_name(request.rid)
    seeds = [request.sampling_params.sampling_seed for request in batch.reqs]
    return torch.tensor(seeds, dtype=torch.int64).to(batch.device, non_blocking=True)
