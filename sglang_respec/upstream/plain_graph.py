"""The plain tier's CUDA graph: a decode graph beside the verify graphs. Not yet run; see gpu.md.

With speculation on, SGLang captures verifies only, and a decode batch would replay one of them.
A graph captured without hidden states returns none, so this one is captured with them.
"""

from typing import Any

from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.model_executor.runner import DecodeCudaGraphRunner
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm


class PlainDecodeGraphRunner(DecodeCudaGraphRunner):
    """SGLang's decode graph, captured with the hidden states of every token."""

    @property
    def return_hidden_states_mode(self) -> CaptureHiddenMode:
        return CaptureHiddenMode.FULL

    @return_hidden_states_mode.setter
    def return_hidden_states_mode(self, _: CaptureHiddenMode) -> None:
        """SGLang's constructor sets the mode of requests that ask for hidden states."""


def capture_plain_graph(runner: Any) -> tuple[tuple[Any, str, Any], ...]:
    """The target runner's attributes for plain decoding: (owner, name, value).

    Empty where the target runs without graphs: then its attention backend decodes as it is.
    """
    if runner.decode_cuda_graph_runner is None:
        return ()
    workspace = runner.init_new_workspace
    try:
        backend = runner._get_attention_backend(init_new_workspace=True)
    finally:
        runner.init_new_workspace = workspace
    algorithm = runner.spec_algorithm
    runner.spec_algorithm = SpeculativeAlgorithm.NONE  # what it captures depends on this alone
    try:
        graph = PlainDecodeGraphRunner(runner, attn_backend=backend)
    finally:
        runner.spec_algorithm = algorithm
    return ((runner, "attn_backend", backend), (runner, "decode_cuda_graph_runner", graph))
