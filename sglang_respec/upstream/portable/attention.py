"""SGLang attention backend for machines with no GPU, and its multi-step drafting twin.

SGLang's own `torch_native` backend ignores tree masks, cannot draft, and loops over the
requests of a batch; this one serves every forward mode through `attention_plan`.
"""

from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.verify_mask import VerifyMask
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.speculative.eagle_utils import TreeMaskMode

from sglang_respec.upstream.portable.attention_math import attend
from sglang_respec.upstream.portable.attention_plan import (
    AttentionPlan,
    plan_ragged,
    plan_uniform,
)
from sglang_respec.upstream.portable.platform import PORTABLE_BACKEND_NAME

PORTABLE_BACKEND = PORTABLE_BACKEND_NAME


class PortableAttnBackend(AttentionBackend):
    """Prefill, decode, tree verify and draft-extend over one plan per forward."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__()
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self.max_context_len = model_runner.model_config.context_len
        self.plan: AttentionPlan | None = None
        self.swa_out_cache_loc: torch.Tensor | None = None
        pool = self.token_to_kv_pool
        self.has_swa_pool = isinstance(pool, SWAKVPool) and pool.swa_layer_nums > 0
        # Capacity 0: the tree kernel allocates [B, n, n] per round; nothing is preallocated
        # because the mask is small and only its layout matters here.
        self._verify_mask = VerifyMask(
            buffer=torch.empty(0, dtype=torch.bool), mode=TreeMaskMode.QLEN_ONLY, max_bs=0
        )

    @property
    def verify_mask(self) -> VerifyMask:
        return self._verify_mask

    def support_triton(self) -> bool:
        return False

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        self.use_plan(self._plan_for(forward_batch), forward_batch.out_cache_loc)

    def use_plan(self, plan: AttentionPlan, out_cache_loc: torch.Tensor | None) -> None:
        self.plan = plan
        self.swa_out_cache_loc = (
            self.token_to_kv_pool.translate_loc_from_full_to_swa(out_cache_loc)
            if self.has_swa_pool and out_cache_loc is not None
            else None
        )

    def _plan_for(self, batch: ForwardBatch) -> AttentionPlan:
        mode = batch.forward_mode
        if mode.is_idle() or batch.batch_size == 0:
            return AttentionPlan(())
        req_to_token = self.req_to_token_pool.req_to_token
        if mode.is_decode():
            return plan_uniform(
                req_to_token,
                batch.req_pool_indices,
                batch.seq_lens,
                num_queries=1,
                query_positions=(batch.seq_lens - 1)[:, None],
            )
        if mode.is_target_verify():
            return self._plan_verify(batch)
        if mode.is_draft_extend_v2():
            width = batch.input_ids.shape[0] // batch.batch_size
            steps = torch.arange(width, device=batch.seq_lens.device)
            return plan_uniform(
                req_to_token,
                batch.req_pool_indices,
                batch.seq_lens,
                num_queries=width,
                query_positions=(batch.seq_lens - width)[:, None] + steps,
            )
        return plan_ragged(
            req_to_token,
            batch.req_pool_indices,
            [int(n) for n in batch.extend_prefix_lens_cpu],
            [int(n) for n in batch.extend_seq_lens_cpu],
        )

    def _plan_verify(self, batch: ForwardBatch) -> AttentionPlan:
        nodes = batch.spec_info.draft_token_num
        positions = batch.spec_info.positions.view(batch.batch_size, nodes)
        tree = self.req_to_token_pool.req_to_token, batch.req_pool_indices, batch.seq_lens + nodes
        if nodes == 1:  # SGLang's zero-step verify: its mask is in another layout, and all True
            return plan_uniform(*tree, num_queries=1, query_positions=positions)
        return plan_uniform(
            *tree,
            num_queries=nodes,
            query_positions=positions,
            tail_len=nodes,
            tail_mask=batch.spec_info.custom_mask.view(batch.batch_size, nodes, nodes),
            tail_positions=positions,
        )

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        _refuse_variants(kwargs)
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        _refuse_variants(kwargs)
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool,
    ) -> torch.Tensor:
        if layer.is_cross_attention:
            raise NotImplementedError(
                "The portable CPU backend serves decoder-only models; "
                "run encoder-decoder models on a GPU or with --attention-backend torch_native."
            )
        if save_kv_cache and k is not None and v is not None:
            self.token_to_kv_pool.set_kv_buffer(
                layer, KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc), k, v
            )
        assert self.plan is not None, "init_forward_metadata runs before every forward"
        plan = self.plan
        if layer.attn_type == AttentionType.ENCODER_ONLY:
            plan = self._bidirectional(forward_batch)
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = attend(
            query,
            self.token_to_kv_pool.get_key_buffer(layer.layer_id),
            self.token_to_kv_pool.get_value_buffer(layer.layer_id),
            plan,
            scaling=layer.scaling,
            window=-1 if layer.sliding_window_size is None else layer.sliding_window_size,
            logit_cap=layer.logit_cap,
            to_swa_slots=self._swa_translation(layer.layer_id),
        )
        return output.reshape(-1, layer.tp_q_head_num * layer.v_head_dim)

    def _bidirectional(self, forward_batch: ForwardBatch) -> AttentionPlan:
        return plan_ragged(
            self.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            [int(n) for n in forward_batch.extend_prefix_lens_cpu],
            [int(n) for n in forward_batch.extend_seq_lens_cpu],
            bidirectional=True,
        )

    def _swa_translation(self, layer_id: int) -> Any:
        if not self.has_swa_pool:
            return None
        _, in_swa_pool = self.token_to_kv_pool.layers_mapping[layer_id]
        return self.token_to_kv_pool.translate_loc_from_full_to_swa if in_swa_pool else None


def _refuse_variants(kwargs: dict[str, Any]) -> None:
    """What a model passes beyond q, k and v changes the result: sinks, split RoPE, sparse keys."""
    given = sorted(name for name, value in kwargs.items() if value is not None)
    if given:
        raise NotImplementedError(
            f"The portable CPU backend does not know this model's attention ({', '.join(given)}); "
            "run it on a GPU."
        )


class PortableMultiStepDraftBackend:
    """One attention backend per draft step, as SGLang's EAGLE worker expects.

    At step i a branch sees the committed prefix and its own slots of steps 0..i. The
    branches of a request are the query rows of one plan, so that the prefix is gathered
    once per request and not once per branch.
    """

    needs_cpu_seq_lens = False

    def __init__(self, model_runner: Any, topk: int, num_steps: int) -> None:
        self.topk = topk
        self.num_steps = num_steps
        self.attn_backends = [PortableAttnBackend(model_runner) for _ in range(num_steps - 1)]
        self.max_context_len = model_runner.model_config.context_len
        self.req_to_token_pool = model_runner.req_to_token_pool
        # Slots after the prefix are laid out [topk, num_steps]; see eagle_worker_common.
        branch = torch.arange(topk * num_steps) // num_steps
        step = torch.arange(topk * num_steps) % num_steps
        own = branch == torch.arange(topk)[:, None]
        self._own_slots = [own & (step <= i) for i in range(num_steps - 1)]
        self._slot_step = step

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        prefix_lens = forward_batch.seq_lens
        batch = prefix_lens.shape[0]
        tail_len = self.topk * self.num_steps
        tail_positions = prefix_lens[:, None] + self._slot_step
        for i, backend in enumerate(self.attn_backends):
            plan = plan_uniform(
                self.req_to_token_pool.req_to_token,
                forward_batch.req_pool_indices,
                prefix_lens + tail_len,
                num_queries=self.topk,
                query_positions=(prefix_lens + i)[:, None].expand(batch, self.topk),
                tail_len=tail_len,
                tail_mask=self._own_slots[i].expand(batch, self.topk, tail_len),
                tail_positions=tail_positions,
            )
            # Each step's write slots are bound to the batch later, step by step; the
            # drafter's layers live in the full pool, so nothing is translated here.
            backend.use_plan(plan, None)
