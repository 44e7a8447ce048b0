# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""VAS (arXiv 2405.06639): a value model of a frozen language model's samples, which steers it when it answers."""

from ..method import Method


METHOD = Method(
    name="vas",
    paper="2405.06639",
    summary="Train a value model on a frozen model's scored samples; it steers that model's decoding.",
    config="trl_ext.vas.config:VASConfig",
    trainer="trl_ext.vas.trainer:VASTrainer",
    columns=("prompt", "completions", "scores"),
    decoding="trl_ext.vas.decoding:VASDecoding",
    exports=(
        "trl_ext.vas.config:ValueConfig",
        "trl_ext.vas.model:ValueModel",
        "trl_ext.vas.generation:ValueAugmentedLogitsProcessor",
        "trl_ext.vas.api:EndpointGuide",
    ),
)
