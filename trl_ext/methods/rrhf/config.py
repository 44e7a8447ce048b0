# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of RRHF, with the source of every default."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from trl_ext.training.engine import EngineConfig

from .ranking_registry import OWN, Ranking, find_ranking_loss


_OF_RANKING = ("ranking_loss", "ranking_reference", "ranking_beta", "margin")


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

        ranking_loss (`str`, *optional*, defaults to `"rrhf"`):
            The ranking loss: `"rrhf"` is Eq. (2); `"plackett_luce"`, `"listnet"`, `"lambda"`, `"slic"`, `"pro"`,
            `"listwise_dpo"` and `"qrpo"` are those of other papers, see
            [`~trl_ext.methods.rrhf.ranking_losses`]; a package can add others, see
            [`~trl_ext.methods.rrhf.ranking_registry.RankingLoss`].
        ranking_reference (`str`, *optional*, defaults to `"none"`):
            What the ranking loss takes as p: `"none"`, the log-probabilities of Eq. (1); `"policy"`, their difference
            to those of the reference model, which is the policy as it is when training begins, or `ref_model`. Needed
            by `"listwise_dpo"` and `"qrpo"`. The SFT loss has no reference.
        ranking_beta (`float`, *optional*):
            Factor of p in the ranking loss (temperature). If not set, the loss's own: 1 for `"plackett_luce"`,
            `"listnet"`, `"slic"` and `"pro"`, 0.05 for `"lambda"`, 0.1 for `"listwise_dpo"` and `"qrpo"`. `"rrhf"` has
            none.
        length_penalty (`float`, *optional*):
            Exponent a of the length |y| that log P(y | x) is divided by, Eq. (1): 1 is a mean over tokens, 0 a sum. If
            not set, as in the equation of `ranking_loss`: 1 (the paper's value) for `"rrhf"`, `"plackett_luce"`,
            `"listnet"` and `"pro"`, 0 for the others.
        rank_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the ranking loss, Eq. (5). The paper's value; 10 and 100 were worse there.
        sft_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the SFT loss on the best completion, Eq. (5). The paper's value.
        sft_reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` averages the SFT loss over the tokens of the best completion, the scale on which the published
            settings work; `"sum"` is Eq. (4) to the letter.
        margin (`float`, *optional*):
            Margin added to p_i - p_j in Eq. (2). If not set, 0 for `"rrhf"`, whose paper has none, and 1 for
            `"slic"`. The other losses have none.

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
        "loss_type": "a setting of DPO's or GRPO's loss; the losses that RRHF can have are in `ranking_loss`",
    }

    learning_rate: float = field(default=2e-5, metadata={"help": "The initial learning rate."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Total number of training epochs to perform."})
    warmup_steps: float = field(
        default=0.03, metadata={"help": "Steps of linear warm-up, or their share of all steps if below 1."}
    )
    max_completion_length: int = field(
        default=192, metadata={"help": "Maximum length of a generated completion, in tokens."}
    )

    ranking_loss: str = field(
        default="rrhf", metadata={"help": f"The ranking loss: {', '.join(OWN)}, or one that another package adds."}
    )
    ranking_reference: str = field(
        default="none",
        metadata={
            "help": "Whether the ranking loss takes log-probabilities ('none') or their difference to those of the "
            "policy at the start of training ('policy').",
            "choices": ["none", "policy"],
        },
    )
    ranking_beta: float | None = field(
        default=None, metadata={"help": "Factor of p in the ranking loss. Not set: that of its equation."}
    )
    length_penalty: float | None = field(
        default=None,
        metadata={
            "help": "Exponent of the length that log P(y|x) is divided by, Eq. (1): 1 is a mean over tokens, 0 a sum. "
            "Not set: as in the equation of `ranking_loss`."
        },
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
    margin: float | None = field(
        default=None,
        metadata={"help": "Margin added to p_i - p_j in Eq. (2). Not set: 0 for 'rrhf', 1 for 'slic'."},
    )

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
        for name in ("rank_weight", "sft_weight", "resample_epochs"):
            self._at_least(name, 0)
        self._check_ranking()
        if not self.sft_weight:
            self._refuse_idle(["sft_reduction"], "without an SFT loss (`sft_weight` is 0)")
        if self.resample_steps and self.resample_epochs:
            raise ValueError(
                "`resample_steps` (OP-k) and `resample_epochs` (IP-n) exclude each other; set one of them to 0."
            )
        if self.rank_weight == 0 and self.sft_weight == 0:
            raise ValueError("`rank_weight` and `sft_weight` are both 0, so there is nothing to learn.")

    @property
    def ranking(self) -> Ranking:
        """The ranking loss, with the numbers that are set, and its own for those that are not."""
        member = find_ranking_loss(self.ranking_loss)
        own = {"beta": member.beta, "margin": member.margin, "length_penalty": member.length_penalty}
        given = {"beta": self.ranking_beta, "margin": self.margin, "length_penalty": self.length_penalty}
        # What the equation does not have stays `None`: a `margin` of 0 is allowed beside any loss.
        chosen: dict = {name: own[name] if None in (value, own[name]) else value for name, value in given.items()}
        return Ranking(member, **chosen)

    def needs_reference(self, samples: bool) -> bool:
        """See [`~trl_ext.training.engine.EngineConfig.needs_reference`]; a ranking loss may need one too."""
        return super().needs_reference(samples) or self.ranking_reference == "policy"

    def _check_ranking(self) -> None:
        """Raise a `ValueError` if the settings of the ranking loss are out of range or contradict one another."""
        for name in ("length_penalty", "margin"):
            if getattr(self, name) is not None:
                self._at_least(name, 0)
        member = find_ranking_loss(self.ranking_loss)
        if self.margin and member.margin is None:
            having = " or ".join(f"`ranking_loss: {name}`" for name, each in OWN.items() if each.margin is not None)
            raise ValueError(
                f"`margin` is {self.margin:g}, but the ranking loss '{member.name}' has none: remove it, or set "
                f"{having}."
            )
        if self.ranking_beta is not None and member.beta is None:
            raise ValueError(
                f"`ranking_beta` is set, but the ranking loss '{member.name}' has none: remove it; `rank_weight` is "
                "the weight of the loss."
            )
        if self.ranking_beta is not None and not 0 < self.ranking_beta < math.inf:
            raise ValueError(f"`ranking_beta` must be positive and finite, got {self.ranking_beta}.")
        if member.needs_reference and self.ranking_reference == "none":
            raise ValueError(
                f"The ranking loss '{member.name}' compares the policy with a reference: set "
                "`ranking_reference: policy`."
            )
        if not self.rank_weight:
            given = [name for name in _OF_RANKING if getattr(self, name)]  # a `margin` of 0 is allowed
            self._refuse_idle(given, "without a ranking loss (`rank_weight` is 0)")
