# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""VAS (arXiv 2405.06639): a value model learns from a frozen language model's samples and guides its decoding."""

from trl_ext.commands import Required
from trl_ext.method import Method


METHOD = Method(
    name="vas",
    paper="2405.06639",
    summary="Train a value model on a frozen model's scored samples; it guides that model's decoding.",
    config="trl_ext.methods.vas.config:VASConfig",
    trainer="trl_ext.methods.vas.trainer:VASTrainer",
    columns=("prompt", "completions", "scores"),
    decoding="trl_ext.methods.vas.endpoint_policies:VASEndpointDecoding",
    guide="trl_ext.methods.vas.value_kind:ValueModelKind",
    memory="trl_ext.methods.vas.memory:needs",
    required=(
        Required(
            ("value_model_name_or_path", "use_peft", "value_form"),
            "the value model, or an adapter or a head on the language model that becomes one",
            "Qwen/Qwen3-0.6B",
        ),
    ),
    server_settings=("endpoint",),
    exports=(
        "trl_ext.methods.vas.value_model.config:ValueConfig",
        "trl_ext.methods.vas.value_model.model:ValueModel",
        "trl_ext.methods.vas.decoding.logits_processor:ValueAugmentedLogitsProcessor",
        "trl_ext.methods.vas.decoding.endpoint_guide:EndpointGuide",
        "trl_ext.methods.vas.guided_generate:guided_generate",
    ),
)
