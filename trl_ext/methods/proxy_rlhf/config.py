# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of Proxy-RLHF. Every default states its source."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from trl_ext.training.config import ExtConfig
from trl_ext.training.trl_settings import FROZEN_MODEL, RESTRICTED_FROZEN_MODEL
from trl_ext.validation import check_at_least

from .decision_process import FEATURES, FORCED, ORDERS, DecisionProcess


logger = logging.getLogger(__name__)


@dataclass
class ProxyRLHFConfig(ExtConfig):
    r"""
    Configuration class for the [`ProxyRLHFTrainer`].

    This class includes only the parameters that are specific to Proxy-RLHF training, or whose defaults differ. For the
    others, see [`~trl_ext.training.config.ExtConfig`] and [`~transformers.TrainingArguments`]. The names are those of
    TRL's PPO. The paper states no hyperparameters: unless a source is given, a default is PPO's usual one. "MARA" is
    the later method of that name, which has a similar proxy.

    Parameters:
        > Parameters that control the decision process; they are saved with the proxy

        top_k (`int`, *optional*, defaults to `20`):
            Candidates are among the k likeliest tokens (MARA: 40).
        order (`str`, *optional*, defaults to `"sampled"`):
            Order in which candidates are examined. `"descending"`: by decreasing probability, as in MARA; the more
            the proxy accepts, the closer to greedy decoding. `"sampled"`: sampled without replacement; the more it
            accepts, the closer to sampling.
        feature (`str`, *optional*, defaults to `"candidate"`):
            Input of the proxy: the hidden state at the candidate (`"candidate"`, as in MARA), or the hidden state
            before it and the candidate's embedding (`"context"`).
        forced (`str`, *optional*, defaults to `"first"`):
            Candidate that is taken when all are rejected, in training and decoding: the `"first"` or the `"last"`.
        max_candidates (`int`, *optional*, defaults to `0`):
            Maximum number of candidates to examine (`0`: all).
        propose_rejected (`bool`, *optional*, defaults to `False`):
            Whether a rejected candidate may be proposed again. In the paper's design it may not; `True` measures what
            that is good for. Candidates are then sampled with replacement, at most as often as there are candidates,
            without CUDA graphs. For the sampled order only.
        first_candidates (`int`, *optional*, defaults to `0`):
            Candidates in the first forward pass of the language model; the others follow only where all of these are
            rejected. Affects speed, not results. `0` chooses by the size of the batch.

        > Parameters that control the proxy

        proxy_model_name_or_path (`str`, *optional*):
            Proxy to train further. If not set, a new one is created.
        allow_other_model (`bool`, *optional*, defaults to `False`):
            Whether that proxy may have been trained on another language model of the same hidden size.
        proxy_layer_sizes (`list[int]`, *optional*):
            Hidden layers of actor and critic. If not set, 1024 and 256 (MARA), smaller if the language model's hidden
            size is.
        initial_accept_rate (`float`, *optional*, defaults to `0.5`):
            Probability with which a new proxy accepts a candidate.

        > Parameters that control the updates

        advantage_estimator (`str`, *optional*, defaults to `"gae"`):
            `"gae"`: a critic and generalised advantage estimation over decisions. `"rloo"`: REINFORCE with the mean
            score of the prompt's other completions as baseline; no critic, and `num_generations` of at least 2.
        num_ppo_epochs (`int`, *optional*, defaults to `4`):
            Passes over the decisions of a round.
        num_mini_batches (`int`, *optional*, defaults to `4`):
            Minibatches of a round's decisions per pass, one optimizer step each.
        cliprange (`float`, *optional*, defaults to `0.2`):
            Clip range of the probability ratio (`0`: no clipping).
        cliprange_value (`float`, *optional*, defaults to `0.2`):
            Clip range of the values (`0`: no clipping).
        vf_coef (`float`, *optional*, defaults to `0.5`):
            Weight of the value loss.
        entropy_coef (`float`, *optional*, defaults to `0.01`):
            Weight of the entropy of the decisions.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount per decision.
        lam (`float`, *optional*, defaults to `0.95`):
            lambda of GAE.
        kl_coef (`float`, *optional*, defaults to `0.0`):
            Weight of log q - log pi_0 of each token in the reward (MARA: 0.1).
        missing_eos_penalty (`float`, *optional*, defaults to `0.0`):
            Subtracted from the score of a completion without an end of sequence.
        whiten_advantages (`bool`, *optional*, defaults to `True`):
            Whether the advantages of a round are scaled to mean 0 and standard deviation 1.
        target_kl (`float`, *optional*, defaults to `0.0`):
            Skip the rest of a round's updates when the approximate KL to the proxy at the start of the round exceeds
            this (`0`: never).
        offload_decisions (`bool`, *optional*, defaults to `False`):
            Whether the features of a round are kept in CPU memory instead of on the device.

        > Parameters whose defaults differ

        num_generations (`int`, *optional*, defaults to `1`): Completions per prompt; PPO needs no group.
        learning_rate (`float`, *optional*, defaults to `3e-4`): PPO's and MARA's.
        max_grad_norm (`float`, *optional*, defaults to `0.5`): PPO's.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): Switched off with a warning if set, as the
            proxy is too small to benefit.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = ExtConfig._VALID_DICT_FIELDS

    refused_settings: ClassVar[Mapping[str, str]] = {
        **ExtConfig.refused_settings,
        **FROZEN_MODEL,
        "beta": "called `kl_coef` here, and subtracted from the reward of each token",
        "num_iterations": "called `num_ppo_epochs` here",
        "router_aux_loss_coef": "the language model is not trained, nor are the choices of its experts: remove it",
        "epsilon": "called `cliprange` here",
        "value_model": "the proxy has a critic of its own (`advantage_estimator: gae`): remove it",
        "whiten_rewards": "set `whiten_advantages`",
        "steps_per_generation": "a round is used for `num_ppo_epochs` x `num_mini_batches` steps: set those",
        "mask_truncated_completions": "set `missing_eos_penalty`, which lowers the score of truncated completions",
    }
    restricted_settings: ClassVar[Mapping[str, Any]] = RESTRICTED_FROZEN_MODEL
    other_meanings: ClassVar[Mapping[str, str]] = {
        **ExtConfig.other_meanings,
        "entropy_coef": "the weight of the entropy of the proxy's decisions; in GRPO, of the tokens' entropy",
    }

    top_k: int = field(default=20, metadata={"help": "Candidates are among the k likeliest tokens; at least 2."})
    num_generations: int = field(default=1, metadata={"help": "Completions sampled per prompt."})
    learning_rate: float = field(default=3e-4, metadata={"help": "The initial learning rate."})
    max_grad_norm: float = field(default=0.5, metadata={"help": "Maximum gradient norm."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Switched off with a warning: the proxy is too small to benefit."}
    )

    order: str = field(
        default="sampled",
        metadata={"help": "Order in which candidates are examined.", "choices": list(ORDERS)},
    )
    feature: str = field(
        default="candidate",
        metadata={
            "help": "Input of the proxy: the hidden state at the candidate, or the hidden state before it and the "
            "candidate's embedding ('context').",
            "choices": list(FEATURES),
        },
    )
    forced: str = field(
        default="first",
        metadata={"help": "Candidate that is taken when all are rejected.", "choices": list(FORCED)},
    )
    max_candidates: int = field(default=0, metadata={"help": "Maximum number of candidates to examine. 0 means all."})
    propose_rejected: bool = field(
        default=False,
        metadata={
            "help": "Whether a rejected candidate may be proposed again: candidates are then sampled with replacement."
        },
    )
    first_candidates: int = field(
        default=0,
        metadata={
            "help": "Candidates in the first forward pass; the others follow where all of these are rejected. 0 "
            "chooses by the size of the batch."
        },
    )

    proxy_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Proxy to train further. If not set, a new one is created."}
    )
    allow_other_model: bool = field(
        default=False,
        metadata={
            "help": "Whether that proxy may have been trained on another language model of the same hidden size."
        },
    )
    proxy_layer_sizes: list[int] | None = field(
        default=None, metadata={"help": "Hidden layers of actor and critic. If not set, at most 1024 and 256."}
    )
    initial_accept_rate: float = field(
        default=0.5, metadata={"help": "Probability with which a new proxy accepts a candidate."}
    )

    advantage_estimator: str = field(
        default="gae",
        metadata={
            "help": "Source of the advantages: a critic ('gae'), or the prompt's other completions ('rloo').",
            "choices": ["gae", "rloo"],
        },
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over the decisions of a round."})
    num_mini_batches: int = field(
        default=4, metadata={"help": "Minibatches of a round's decisions per pass, one optimizer step each."}
    )
    cliprange: float = field(
        default=0.2, metadata={"help": "Clip range of the probability ratio. 0 means no clipping."}
    )
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the values. 0 means no clipping."})
    vf_coef: float = field(default=0.5, metadata={"help": "Weight of the value loss."})
    entropy_coef: float = field(default=0.01, metadata={"help": "Weight of the entropy of the decisions."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per decision."})
    lam: float = field(default=0.95, metadata={"help": "lambda of generalised advantage estimation."})
    kl_coef: float = field(
        default=0.0, metadata={"help": "Weight of log q - log pi_0 of each token in the reward. 0 means none."}
    )
    missing_eos_penalty: float = field(
        default=0.0, metadata={"help": "Subtracted from the score of a completion without an end of sequence."}
    )
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Whether to scale a round's advantages to mean 0 and standard deviation 1."}
    )
    target_kl: float = field(
        default=0.0,
        metadata={"help": "Approximate KL at which the rest of a round's updates is skipped. 0 means never."},
    )
    offload_decisions: bool = field(
        default=False, metadata={"help": "Whether the features of a round are kept in CPU memory."}
    )

    def __post_init__(self) -> None:
        if self.gradient_checkpointing or getattr(self, "activation_checkpointing", False):
            # As every TRL recipe has it, so that no recipe has to be changed.
            logger.warning("`gradient_checkpointing` is not used: the proxy is too small to benefit.")
            self.gradient_checkpointing = self.activation_checkpointing = False
        super().__post_init__()
        if self.neftune_noise_alpha:
            raise ValueError(
                "`neftune_noise_alpha` adds noise to the embeddings of the model that is trained, and a proxy has "
                "none: leave it out."
            )
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {getattr(self, name)!r}.")
        for name in ("num_ppo_epochs", "num_mini_batches"):
            self._at_least(name, 1)
        for name in ("cliprange", "cliprange_value", "vf_coef", "entropy_coef", "kl_coef", "missing_eos_penalty"):
            self._at_least(name, 0)
        self._at_least("target_kl", 0)
        self._at_least("first_candidates", 0)
        for i, size in enumerate(self.proxy_layer_sizes or []):
            check_at_least(f"proxy_layer_sizes[{i}]", size, 1)
        if self.advantage_estimator == "rloo" and self.num_generations < 2:
            raise ValueError(
                "advantage_estimator='rloo' compares completions of a prompt: set num_generations to 2 or more."
            )
        if self.advantage_estimator == "rloo":
            of_critic = ["gamma", "lam", "vf_coef", "cliprange_value"]
            self._refuse_idle(of_critic, "with advantage_estimator='rloo', which has no critic and no discount")
        if self.cache_implementation:
            raise ValueError(
                "`cache_implementation` is not supported: candidates need a cache of their own. Remove it."
            )
        if self.generation_kwargs:
            raise ValueError(
                f"`generation_kwargs` ({', '.join(self.generation_kwargs)}) are not supported: candidates depend only "
                "on `temperature`, `top_k`, `top_p`, `min_p` and `repetition_penalty`. Remove them."
            )
        process = self.process()
        process.check_examination(self.first_candidates)
        if self.kl_coef and not process.exact:
            raise ValueError(
                "`kl_coef` needs the token probabilities that the decisions induce, which cannot be computed for a "
                "sampled order with `max_candidates`: set max_candidates=0 and a smaller `top_k`, or "
                "order='descending'."
            )

    def process(self) -> DecisionProcess:
        """The decision process with these settings."""
        return DecisionProcess(**{f.name: getattr(self, f.name) for f in fields(DecisionProcess)})

    @property
    def updates_per_round(self) -> int:
        """Number of optimizer steps per round."""
        return self.num_ppo_epochs * self.num_mini_batches
