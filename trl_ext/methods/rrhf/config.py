# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of RRHF, with the source of every default."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from trl_ext.training.engine import EngineConfig


@dataclass
class RRHFConfig(EngineConfig):
    r"""
    Configuration class for the [`RRHFTrainer`].

    This class includes only the parameters that are specific to RRHF training. For the others, see
    [`~trl_ext.training.engine.EngineConfig`],
    [`~trl_ext.generation.vllm_settings.VLLMSettings`], [`~trl_ext.training.config.ExtConfig`] and
    [`~transformers.TrainingArguments`]. Section and equation numbers are those of
    [RRHF](https://huggingface.co/papers/2304.05302).

    Parameters:
        > Parameters that control the loss

        length_penalty (`float`, *optional*, defaults to `1.0`):
            Exponent a of the length |y| that log P(y | x) is divided by, Eq. (1). The paper's value.
        rank_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the ranking loss, Eq. (5). The paper's value; 10 and 100 were worse there.
        sft_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the SFT loss on the best completion, Eq. (5). The paper's value.
        sft_reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` averages the SFT loss over the tokens of the best completion, the scale on which the published
            settings work; `"sum"` is Eq. (4) to the letter.
        margin (`float`, *optional*, defaults to `0.0`):
            Margin added to p_i - p_j in Eq. (2). The paper has none.

        > Parameters that control generation in training (with `reward_funcs`)

        resample_steps (`int`, *optional*, defaults to `0`):
            Generate new completions with the current model every this many optimizer steps, within an epoch: the
            paper's OP-k, section 4.1. `0`: not by steps.
        resample_epochs (`int`, *optional*, defaults to `0`):
            Generate new completions for the entire dataset every this many epochs: the paper's IP-n, with
            `num_train_epochs = n * resample_epochs`. `0`: not by epochs. With neither setting, completions for a
            prompt-only dataset are generated once, before the first epoch.
        keep_dataset_completions (`bool`, *optional*, defaults to `False`):
            Whether to train on the completions of the dataset, scored again, in addition to the generated ones, as in
            the policies BP and DP.
        beta (`float`, *optional*, defaults to `0.0`):
            Coefficient of the KL term that is subtracted from the score of a generated completion. `0.0`: no KL term.
            Section 4.1 uses 0.01 for OP-32+KL.
        num_generations (`int`, *optional*, defaults to `4`):
            Completions per prompt; the paper's beam search returns 4.
        max_completion_length (`int`, *optional*, defaults to `192`):
            Maximum length of a generated completion, in tokens. The paper's value.

        > Parameters whose defaults differ

        learning_rate (`float`, *optional*, defaults to `2e-5`): The paper's value.
        num_train_epochs (`float`, *optional*, defaults to `3.0`): The paper's value.
        warmup_steps (`float`, *optional*, defaults to `0.03`): The paper has warm-up and decay; the share is ours.

    > [!NOTE]
    > The paper trains on 64 prompts per step. `per_device_train_batch_size` counts prompts, each with all of its
    > completions; its default (8) with `gradient_accumulation_steps=8` gives 64 on one device.
    """

    refused_settings: ClassVar[Mapping[str, str]] = {
        **EngineConfig.refused_settings,
        "num_iterations": "in GRPO, the updates on each batch of completions; here `resample_epochs` sets for how "
        "many epochs completions are used",
    }

    learning_rate: float = field(default=2e-5, metadata={"help": "The initial learning rate."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Total number of training epochs to perform."})
    warmup_steps: float = field(
        default=0.03, metadata={"help": "Steps of linear warm-up, or their share of all steps if below 1."}
    )
    max_completion_length: int = field(
        default=192, metadata={"help": "Maximum length of a generated completion, in tokens."}
    )

    length_penalty: float = field(
        default=1.0, metadata={"help": "Exponent of the length that log P(y|x) is divided by, Eq. (1)."}
    )
    rank_weight: float = field(default=1.0, metadata={"help": "Weight of the ranking loss, Eq. (5)."})
    sft_weight: float = field(
        default=1.0, metadata={"help": "Weight of the SFT loss on the best completion, Eq. (5)."}
    )
    sft_reduction: str = field(
        default="mean",
        metadata={
            "help": "'mean' averages the SFT loss over the tokens of the best completion; 'sum' is Eq. (4).",
            "choices": ["mean", "sum"],
        },
    )
    margin: float = field(default=0.0, metadata={"help": "Margin added to p_i - p_j in Eq. (2)."})

    resample_steps: int = field(
        default=0,
        metadata={
            "help": "Generate new completions every this many optimizer steps (the paper's OP-k). 0 means never."
        },
    )
    resample_epochs: int = field(
        default=0,
        metadata={"help": "Generate new completions every this many epochs (the paper's IP-n). 0 means never."},
    )
    keep_dataset_completions: bool = field(
        default=False,
        metadata={"help": "Whether to train on the completions of the dataset in addition to the generated ones."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("length_penalty", "rank_weight", "sft_weight", "margin", "resample_epochs"):
            self._at_least(name, 0)
        if self.resample_steps and self.resample_epochs:
            raise ValueError(
                "`resample_steps` (OP-k) and `resample_epochs` (IP-n) exclude each other; set one of them to 0."
            )
        if self.rank_weight == 0 and self.sft_weight == 0:
            raise ValueError("`rank_weight` and `sft_weight` are both 0, so there is nothing to learn.")
