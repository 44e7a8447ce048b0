# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Every symbol of TRL and transformers that we use and that is not documented API: the one file a release can break.

A line here says why we need the symbol. `tests/test_upstream.py` holds one contract a symbol (it exists and takes the
parameters we pass); a lint rule forbids such imports anywhere else.
"""

# What our attention does for rows that share nothing, and the mask that goes with it.
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl.models import (
    get_act_offloading_ctx_manager,  # activations in CPU memory between forward and backward
    prepare_deepspeed,  # a frozen model under DeepSpeed
)
from trl.models.utils import (
    disable_gradient_checkpointing,  # forwards without gradients while checkpointing is on
    unwrap_model_for_generation,  # generation inside a DDP, FSDP or DeepSpeed wrapper
)

# The base of every TRL trainer and config: model card, paper citation, TRL's defaults (logging, bf16, checkpointing).
from trl.trainer.base_config import _BaseConfig as BaseConfig
from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer
from trl.trainer.utils import (
    add_fused_lm_head,  # per-token log-probabilities without (tokens, vocabulary) logits
    create_model_from_path,  # architecture, dtype and device map from a path, as every TRL trainer does
    disable_dropout_in_model,
    get_config_model_id,
    global_then_local_main_first,  # one tokenisation per cache, not per process
    print_prompt_completions_sample,  # the table of completions that GRPO users know
)


def vllm_generation(*, sends_weights: bool = True) -> type:
    """
    TRL's client and engine of vLLM; imported when asked for, as it imports vLLM where that is installed.

    Args:
        sends_weights (`bool`, *optional*, defaults to `True`):
            Whether a server is to be sent weights, for which TRL wants a GPU here and a server started for it.
            Without, any server of vLLM will do.
    """
    from trl.generation.vllm_generation import VLLMClient, VLLMGeneration

    if sends_weights:
        return VLLMGeneration

    class Answers(VLLMGeneration):
        def _init_vllm(self) -> None:
            if self.mode != "server":
                super()._init_vllm()
            elif self.accelerator.is_main_process:
                address = self.server_base_url or f"http://{self.server_host}:{self.server_port}"
                self.vllm_client = VLLMClient(address, connection_timeout=self.server_timeout)

    return Answers


__all__ = [
    "BaseConfig",
    "BaseTrainer",
    "add_fused_lm_head",
    "create_model_from_path",
    "disable_dropout_in_model",
    "disable_gradient_checkpointing",
    "get_act_offloading_ctx_manager",
    "get_config_model_id",
    "global_then_local_main_first",
    "prepare_deepspeed",
    "print_prompt_completions_sample",
    "sdpa_attention_forward",
    "sdpa_mask",
    "unwrap_model_for_generation",
    "vllm_generation",
]
