"""Replacements through which every token SGLang samples is drawn by this project's rule."""

from sglang_respec.upstream.hook_table import Hook, Kind

HERE = "sglang_respec.upstream.sampling"
EAGLE_WORKER = "sglang.srt.speculative.eagle_worker_v2"
MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
BATCH_INFO = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo"

_TOO_FEW_PENALTIES = "with penalties, speculation gives other tokens than plain decoding"
_ONE_PER_STEP = "SGLang counts one output token per step, and none of those before a retraction"
_ALL_PENALTIES = "SGLang's penalties follow a draft tree's paths and survive retraction"
_ROWS_GO_ASTRAY = "a request is sampled with another's seed or penalties after the batch changed"
_CLOSED_FIELDS = "SGLang filters, merges and copies a fixed list of fields"
_OPEN_FIELDS = "SGLang lets a plugin add rows to a batch's sampling info"


def _seed_hook(name: str, method: str, kind: Kind, function: str) -> Hook:
    return Hook(
        name=name,
        target=f"{MANAGER}.{method}",
        kind=kind,
        replacement=f"{HERE}.seeds:{function}",
        symptom="a request's seed is ignored, or the same for each of its n samples, or unknown",
        cause="SGLang reads seeds only with --enable-deterministic-inference, gives 42 to every "
        "request without one, and the same to all n samples of one",
        remove_when="SGLang honours, derives and returns seeds",
    )


SEED_HOOKS = (
    _seed_hook("seed-drawn", "_create_tokenized_object", "after", "draw_missing_seed"),
    _seed_hook("seed-settled", "_send_one_request", "before", "settle_seed"),
    _seed_hook("seeds-settled", "_send_batch_request", "before", "settle_seeds"),
    _seed_hook("seed-asked", "_handle_batch_output", "before", "ask_for_meta_info"),
    _seed_hook("seed-returned", "update_request_meta_info", "after", "name_seed"),
)

SAMPLING_HOOKS = (
    Hook(
        name="sampler",
        target="sglang.srt.layers.sampler.Sampler",
        kind="replace",
        replacement=f"{HERE}.sampler:RespecSampler",
        symptom="plain and speculative decoding give other tokens for the same seed",
        cause="SGLang hashes noise by rank where a filter is on, and not at all on a GPU's kernels",
        remove_when="SGLang samples by noise of (seed, position, token id) under all filters",
    ),
    Hook(
        name="verification",
        target="sglang.srt.speculative.eagle_utils.eagle_sample",
        kind="around",
        replacement=f"{HERE}.verification:couple_verification",
        symptom="speculation at a temperature gives other tokens than plain decoding",
        cause="SGLang accepts by coins of their own, without min-p and with sequential filters",
        remove_when="SGLang verifies by sampling each node as plain decoding does",
    ),
    Hook(
        name="verified-logprobs",
        target="sglang.srt.layers.logprob_processor.compute_spec_logprobs",
        kind="around",
        replacement=f"{HERE}.verification:return_logprobs",
        symptom="log-probabilities cost a second pass over every accepted row",
        cause="SGLang computes them after verification, from the logits",
        remove_when="SGLang's verification returns them",
    ),
    Hook(
        name="draft-worker",
        target=f"{EAGLE_WORKER}.EagleDraftWorker",
        kind="replace",
        # Its drafter with a tap: one class takes the place, and this is the last of its line.
        replacement="sglang_respec.upstream.draft_worker:TappedDraftWorker",
        symptom="accepted length falls as the temperature rises, or after plain decoding",
        cause="SGLang drafts what is likeliest, which is not what will be sampled, and cannot "
        "make up for steps in which its drafter did not run",
        remove_when="SGLang's drafter ranks candidates with the target's noise and catches up",
    ),
    Hook(
        name="penalised-sampling",
        target="sglang.srt.model_executor.model_runner.ModelRunner.sample",
        kind="around",
        replacement=f"{HERE}.sampler:sample_with_penalties",
        symptom=_TOO_FEW_PENALTIES,
        cause=_ONE_PER_STEP,
        remove_when=_ALL_PENALTIES,
    ),
    *(
        Hook(
            name=name,
            target=target,
            kind="replace",
            replacement=f"{HERE}.sampler:no_penalties_of_sglang",
            symptom=_TOO_FEW_PENALTIES + ", or are applied twice",
            cause=_ONE_PER_STEP,
            remove_when=_ALL_PENALTIES,
        )
        for name, target in (
            ("no-penalty-update", f"{BATCH_INFO}.update_penalties"),
            ("no-penalty-logits", f"{BATCH_INFO}._apply_pre_grammar_logits_transforms"),
            (
                "no-penalty-count",
                "sglang.srt.managers.schedule_batch.ScheduleBatch.cumulate_penalty_output_tokens",
            ),
        )
    ),
    *(
        Hook(
            name=name,
            target=f"{BATCH_INFO}.{method}",
            kind="after",
            replacement=f"{HERE}.rows:{function}",
            symptom=_ROWS_GO_ASTRAY,
            cause=_CLOSED_FIELDS,
            remove_when=_OPEN_FIELDS,
        )
        for name, method, function in (
            ("rows", "from_schedule_batch", "describe_rows"),
            ("rows-filtered", "filter_batch", "filter_rows"),
            ("rows-merged", "merge_batch", "merge_rows"),
            ("rows-copied", "copy_for_forward", "copy_rows"),
        )
    ),
    *SEED_HOOKS,
    Hook(
        name="nan-fails",
        target="sglang.srt.managers.schedule_batch.Req._check_vocab_boundary_finish",
        kind="after",
        replacement=f"{HERE}.sampler:fail_request",
        symptom="a rollout of NaN logits ends as if the model had stopped: a reward is paid for it",
        cause="SGLang ends it with the stop reason 'NaN happened'",
        remove_when="SGLang ends it with an error",
    ),
    Hook(
        name="embed-only-tokens",
        target="sglang.srt.managers.overlap_utils.resolve_forward_inputs",
        kind="after",
        replacement=f"{HERE}.sampler:embed_only_tokens",
        symptom="one request's NaN takes the server down with overlapped scheduling",
        cause="its last token, -1, is embedded by a step that was launched before it was ended",
        remove_when="SGLang marks failed rows beside the tokens",
    ),
)
