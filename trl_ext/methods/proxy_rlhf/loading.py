# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The proxy that is trained: a new one, or one that was saved."""

from typing import Any

from transformers.utils import logging

from .config import ProxyRLHFConfig
from .model import ProxyModel, llm_digest, llm_name


logger = logging.get_logger(__name__)


def load_proxy(proxy: str | ProxyModel | None, llm: Any, args: ProxyRLHFConfig) -> ProxyModel:
    """
    The proxy as it goes into training.

    Args:
        proxy (`str` or [`ProxyModel`], *optional*): Proxy to train further; by default the config's, or a new one.
        llm ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The frozen language model.
        args ([`ProxyRLHFConfig`]): Its size, and the process that it is to decide in.

    Raises:
        `ValueError`: It was trained on another model or feature, or lacks the critic that is asked for.
    """
    proxy = args.proxy_model_name_or_path if proxy is None else proxy
    if proxy is None:
        return ProxyModel.for_model(
            llm,
            args.process(),
            layer_sizes=args.proxy_layer_sizes,
            critic=args.advantage_estimator == "gae",
            initial_accept_rate=args.initial_accept_rate,
        )
    proxy = ProxyModel.from_pretrained(proxy) if isinstance(proxy, str) else proxy
    proxy.check_model(llm, allow_other=args.allow_other_model)
    trained = proxy.config.decision_process
    if trained.feature != args.feature:
        raise ValueError(
            f"The proxy sees the feature {trained.feature!r}, and the settings ask for {args.feature!r}: set "
            f"feature={trained.feature!r}."
        )
    if args.advantage_estimator == "gae" and proxy.critic is None:
        raise ValueError("The proxy has no critic, which advantage_estimator='gae' needs: set 'rloo'.")
    now = args.process().as_dict()
    changed = {n: f"{n} {old!r} -> {now[n]!r}" for n, old in trained.as_dict().items() if old != now[n]}
    if changed:
        logger.warning(f"The proxy has decided in another process so far: {', '.join(changed.values())}.")
    proxy.config.process = now
    # It is now this model's, which may be another than it came with.
    proxy.config.llm_name, proxy.config.llm_digest = llm_name(llm), llm_digest(llm)
    return proxy.train()
