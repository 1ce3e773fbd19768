"""Runs inside vLLM's workers, where nothing of gspo is installed: `gspo serve` puts this folder on their path.

vLLM 0.32 on a CPU keeps a packed copy of the output layer. Where that layer shares the weights of the embedding, which
is all that a checkpoint then holds, `reload_weights` renews the embedding and leaves the copy as it was: tokens go on
being drawn through the old output layer, and a warning in the log is all that tells. Here it is packed again.
"""

from typing import Any

from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform


class GspoWorker:
    """Mixed into vLLM's worker by --worker-extension-cls."""

    model_runner: Any
    reload_weights: Any

    def gspo_reload(self, weights_path: str) -> None:
        self.reload_weights(weights_path=weights_path)
        if not current_platform.is_cpu():
            return
        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, ParallelLMHead):
                dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
