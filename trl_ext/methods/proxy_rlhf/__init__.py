# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Proxy-RLHF (arXiv 2403.04283): a small proxy, trained by RL, accepts or rejects the tokens of a frozen model."""

from trl_ext.commands import REWARD
from trl_ext.method import Method


METHOD = Method(
    name="proxy_rlhf",
    paper="2403.04283",
    summary="Train a small proxy by RL that accepts or rejects the tokens of a frozen model.",
    config="trl_ext.methods.proxy_rlhf.config:ProxyRLHFConfig",
    trainer="trl_ext.methods.proxy_rlhf.trainer:ProxyRLHFTrainer",
    columns=("prompt",),
    required=(REWARD,),
    decoding="trl_ext.methods.proxy_rlhf.policies:ProxyDecoding",
    engine="trl_ext.methods.proxy_rlhf.engine_decoding:ProxyEngineDecoding",
    memory="trl_ext.methods.proxy_rlhf.memory:needs",
    exports=(
        "trl_ext.methods.proxy_rlhf.model:ProxyConfig",
        "trl_ext.methods.proxy_rlhf.model:ProxyModel",
    ),
)
