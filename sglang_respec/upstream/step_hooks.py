"""Replacements around decode steps: what they cost the host, and counts per request.

Part of `hooks.py`.
"""

from sglang_respec.upstream.hook_table import Hook

STEP_HOOKS = (
    Hook(
        name="step-counts-retraction",
        target="sglang.srt.managers.schedule_batch.Req.reset_for_retract",
        kind="before",
        replacement="sglang_respec.upstream.step_counts:note_retraction",
        symptom="a request that was retracted counts the plain steps it had no part in",
        cause="SGLang tells its worker of prefills and steps, and not of retractions",
        remove_when="SGLang counts plain steps of a speculative server itself",
    ),
    Hook(
        name="kv-reserve",
        target="sglang.srt.speculative.eagle_utils.eagle_prepare_for_decode",
        kind="around",
        replacement="sglang_respec.upstream.kv_reserve:reserve_when_short",
        symptom="a plain step of a speculative server takes longer on the host than one of stock",
        cause="SGLang allocates slots for two further rounds before every step",
        remove_when="SGLang reserves slots for several steps at once",
    ),
    Hook(
        name="forward-isolation",
        target="sglang.srt.managers.scheduler.Scheduler._forward_isolation",
        kind="around",
        replacement="sglang_respec.upstream.isolation:isolate",
        symptom="a plain step of a speculative server takes longer on the host than one of stock",
        cause="SGLang saves and restores a batch attribute by attribute in every step",
        remove_when="SGLang saves a batch's fields at once",
    ),
    Hook(
        name="prefix-keys",
        target="sglang.srt.mem_cache.kv_cache_builder.build_kv_cache",
        kind="around",
        replacement="sglang_respec.upstream.prefix_keys:key_prefixes",
        symptom="under policy plain a prompt that is cached prefills two tokens, and one in stock",
        cause="SGLang keys a speculative server's prefix cache by pairs of tokens, drafter or not",
        remove_when="SGLang keys the drafter's entries apart from the target's",
    ),
)
