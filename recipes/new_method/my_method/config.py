# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of MyMethod."""

from dataclasses import dataclass, field

from trl_ext.training.engine import EngineConfig


@dataclass
class MyMethodConfig(EngineConfig):
    r"""
    Configuration class for the [`MyMethodTrainer`].

    This class includes only the parameters that are specific to MyMethod. For the others, see
    [`~trl_ext.training.engine.EngineConfig`] and [`~trl_ext.training.config.ExtConfig`].

    Parameters:
        scale (`float`, *optional*, defaults to `1.0`):
            Factor of the mean log-probability per token in the utility of a completion. The larger it is, the sooner
            a pair counts as ranked.
        sft_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the SFT loss on the best completion, which keeps the text fluent. `0` ranks only.
        learning_rate (`float`, *optional*, defaults to `2e-5`): A rate for training all weights.
    """

    learning_rate: float = field(default=2e-5, metadata={"help": "The initial learning rate."})
    scale: float = field(
        default=1.0, metadata={"help": "Factor of the mean log-probability per token in the ranking."}
    )
    sft_weight: float = field(default=1.0, metadata={"help": "Weight of the SFT loss on the best completion."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale", "sft_weight"):
            self._at_least(name, 0)
