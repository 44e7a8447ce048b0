# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Loads the proxy to train: a saved one, or a new one for a language model."""

from typing import Any

from transformers.utils import logging

from .config import ProxyRLHFConfig
from .model import ProxyModel, llm_digest, llm_name


logger = logging.get_logger(__name__)


def load_proxy(proxy: str | ProxyModel | None, llm: Any, args: ProxyRLHFConfig) -> ProxyModel:
    """
    Load or create the proxy to train, and check that it fits the language model and the settings.

    Args:
        proxy (`str` or [`ProxyModel`], *optional*): Proxy to train further. By default the config's, or a new one.
        llm ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The frozen language model.
        args ([`ProxyRLHFConfig`]): The config: sizes and decision process.

    Returns:
        [`ProxyModel`], in training mode.

    Raises:
        `ValueError`: It was trained on another model or feature, or has no critic although one is needed.
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
    sizes = {"proxy_layer_sizes": proxy.config.layer_sizes, "initial_accept_rate": proxy.config.initial_accept_rate}
    for name, own in sizes.items():
        if getattr(args, name) not in (getattr(ProxyRLHFConfig, name), own):
            raise ValueError(
                f"`{name}` is for a new proxy, and the one that is trained further has {own!r}, not "
                f"{getattr(args, name)!r}: remove it."
            )
    trained = proxy.config.decision_process
    if trained.feature != args.feature:
        raise ValueError(
            f"The proxy was trained with the feature {trained.feature!r}, but `feature` is {args.feature!r}: set "
            f"feature={trained.feature!r}."
        )
    if args.advantage_estimator == "gae" and proxy.critic is None:
        raise ValueError(
            "The proxy has no critic, which advantage_estimator='gae' needs: set advantage_estimator='rloo'."
        )
    now = args.process().as_dict()
    changed = {n: f"{n} {old!r} -> {now[n]!r}" for n, old in trained.as_dict().items() if old != now[n]}
    if changed:
        logger.warning(
            f"The proxy was trained with other settings of the decision process: {', '.join(changed.values())}."
        )
    proxy.config.process = now
    # From now on it belongs to this model, which may differ from the one it was trained on.
    proxy.config.llm_name, proxy.config.llm_digest = llm_name(llm), llm_digest(llm)
    return proxy.train()
