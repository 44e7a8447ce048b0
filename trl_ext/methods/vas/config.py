# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of VAS. Every default states its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl_ext.logprobs.shared_prefix import SHARED_PREFIX_SETTINGS
from trl_ext.training.config import ExtConfig
from trl_ext.training.trl_settings import FROZEN_MODEL, RESTRICTED_FROZEN_MODEL

from .value_model.config import FORMS


VALUE_HEADS = ("mean", "categorical")  # what a head predicts of the return


@dataclass
class VASConfig(ExtConfig):
    r"""
    Configuration class for the [`VASTrainer`].

    This class includes only the parameters that are specific to VAS training. For the others, see
    [`~trl_ext.training.config.ExtConfig`] and [`~transformers.TrainingArguments`]. "Reference" is the authors' code
    for [Value Augmented Sampling](https://huggingface.co/papers/2405.06639).

    Parameters:
        > Parameters that control the value model

        value_model_name_or_path (`str`, *optional*):
            Backbone of the value model, or a saved value model to train further: a Hub id or a directory. Without it
            (and without `value_model`) the value model is an adapter and a head on the policy itself.
        value_model_init_kwargs (`dict[str, Any]` or `str`, *optional*):
            Keyword arguments for its `from_pretrained`.
        value_form (`str`, *optional*, defaults to `"state"`):
            What the value of a token is computed from. `"state"`: the text that ends with the token (exact, the
            paper's). `"action"`: the text before it, which decoding reads once for all candidate tokens. `"policy"`:
            the language model's own hidden state of that text, so that there is no backbone and nothing more to read.
            The last two are ours.
        action_rank (`int`, *optional*, defaults to `256`):
            Rank of the term of the value that depends on the token, for `"action"` and `"policy"`. Ours: on film
            reviews (one run each) guidance with rank 256 was closer to that of a well-trained exact value than with
            rank 64. Over the complete vocabulary, 256 makes decoding a few per cent slower.
        value_head (`str`, *optional*, defaults to `"mean"`):
            What a head predicts of the return. `"mean"`: its mean, the paper's. `"categorical"`: its distribution over
            `num_atoms` numbers, by the cross-entropy with the two numbers around the target; decoding can then use
            other statistics than the mean (`value_statistic`). Ours, for the form `"state"`.
        num_atoms (`int`, *optional*, defaults to `51`):
            Numbers of a categorical head. That of C51 (arXiv 1707.06887).
        value_range (`list[float]`, *optional*):
            The lowest and the highest of these numbers, in units of the reward. By default those of the completions
            in the dataset; required where completions are sampled in training, or the dataset is streamed.
        heads (`list[str]`, *optional*):
            Rewards that get a head each. By default those of the column `rewards`, or the reward functions if there
            are several; otherwise one head named `reward`, which learns the column `scores` or the weighted sum of
            the reward functions.

        > Parameters that control the targets

        gamma (`float`, *optional*, defaults to `1.0`):
            Discount. Reference.
        lam (`float`, *optional*, defaults to `0.95`):
            lambda of the TD(lambda) targets; `1.0` is Monte Carlo: the target of each token is the return of its
            completion. Reference.
        num_epochs_per_batch (`int`, *optional*, defaults to `2`):
            Consecutive updates on each batch. Their targets use the values from before the first update. Reference.
        normalize_rewards (`bool`, *optional*, defaults to `False`):
            Whether to learn (reward - mean) / deviation. Mean and deviation are saved with the value model, and beta
            in decoding is then in units of 1 / deviation. They are those of the scored dataset, of the first round of
            sampling, or, for a streamed dataset, of the rows read so far.

        > Parameters that control sampling in training (prompt-only datasets, with `reward_funcs`)

        num_iterations (`int`, *optional*, defaults to `1`):
            Rounds of sampling and training. The first round uses samples of the frozen model without guidance, or
            those of the dataset; each further round generates new ones, guided as `sampling_beta` says.
            `num_train_epochs` must be a multiple, since each round trains for an equal number of epochs. The paper
            has one round.
        sampling_beta (`float`, *optional*, defaults to `0.0`):
            beta with which the current value model guides sampling after the first round, times `reward_weights` if
            there are several heads. `0.0`: no guidance, as in the paper.
        sampling_candidates (`int`, *optional*, defaults to `20`):
            Number of likeliest tokens that this guidance changes. Reference (k of its decoding).
        keep_samples (`bool`, *optional*, defaults to `True`):
            Whether a round also trains on the samples of earlier rounds. Ours; its effect was not measured by itself.
        resample_steps (`int`, *optional*, defaults to `0`):
            Generate the samples for this many optimizer steps at a time, instead of for the complete dataset.
            `0`: for the complete dataset; a streamed one for each step.
        steps_per_generation (`int`, *optional*, defaults to `0`):
            TRL's unit of `resample_steps`: micro-batches instead of optimizer steps. `0`: not set.
        mask_truncated_completions (`bool`, *optional*, defaults to `False`):
            Whether generated completions that `max_completion_length` cut off are left out of the loss.
        num_generations (`int`, *optional*, defaults to `4`):
            Completions sampled per prompt.

        > Parameters that control the computation

        router_aux_loss_coef (`float`, *optional*):
            Coefficient of the load balancing loss of a value model that is a mixture of experts. If not set, it is
            that of the model's config, as in TRL. `0.0`: without this loss.
        shared_prefix (`str`, *optional*, defaults to `"auto"`):
            Whether a prompt is computed once for all of its completions: `"auto"` where that is cheaper, `"always"`
            wherever the model can, `"never"`. The result is the same.

        > Parameters that control evaluation

        calibration_rollouts (`int`, *optional*, defaults to `0`):
            In `evaluate`, truncate completions to their first half, sample this many continuations of each from the
            frozen model, and compare the value with their mean reward (needs `reward_funcs`). The paper uses 10. `0`:
            no calibration.
        calibration_states (`int`, *optional*, defaults to `256`):
            Maximum number of completions to truncate for calibration.

        > Parameters whose defaults differ

        learning_rate (`float`, *optional*, defaults to `1.41e-5`): Reference; for a value model of a few million
            parameters 3e-4 to 1e-3 is better.
        num_train_epochs (`float`, *optional*, defaults to `1.0`): Ours: more samples help more than more epochs.

    > [!NOTE]
    > The reference trains on batches of 32 samples. `per_device_train_batch_size` counts prompts, each with all of its
    > completions: its default (8) with 4 completions each is 32 samples on one device.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*ExtConfig._VALID_DICT_FIELDS, "value_model_init_kwargs"]

    none_is_zero: ClassVar[tuple[str, ...]] = (*ExtConfig.none_is_zero, "steps_per_generation")

    refused_settings: ClassVar[Mapping[str, str]] = {
        **ExtConfig.refused_settings,
        **FROZEN_MODEL,
        "value_model": "set `value_model_name_or_path` (in Python: the trainer's `value_model`)",
        "num_ppo_epochs": "called `num_epochs_per_batch` here",
        "whiten_rewards": "set `normalize_rewards`",
    }
    restricted_settings: ClassVar[Mapping[str, Any]] = RESTRICTED_FROZEN_MODEL
    other_meanings: ClassVar[Mapping[str, str]] = {
        **ExtConfig.other_meanings,
        "num_iterations": "the number of rounds of sampling and training; in GRPO, the updates on each batch, which "
        "are `num_epochs_per_batch` here",
    }

    learning_rate: float = field(default=1.41e-5, metadata={"help": "The initial learning rate."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Total number of training epochs to perform."})

    value_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Backbone of the value model, or a saved value model to train further. If not set, the value "
            "model is an adapter and a head on the policy itself."
        },
    )
    value_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for the `from_pretrained` of the value model."}
    )
    value_form: str = field(
        default="state",
        metadata={
            "help": "What the value of a token is computed from: the text that ends with it ('state', exact), the "
            "text before it ('action'), or the language model's own hidden state of that text ('policy').",
            "choices": list(FORMS),
        },
    )
    action_rank: int = field(
        default=256,
        metadata={"help": "Rank of the term of the value that depends on the token, for 'action' and 'policy'."},
    )
    value_head: str = field(
        default="mean",
        metadata={
            "help": "What a head predicts of the return: its mean, or its distribution ('categorical').",
            "choices": list(VALUE_HEADS),
        },
    )
    num_atoms: int = field(
        default=51, metadata={"help": "Numbers over which a categorical head predicts the distribution."}
    )
    value_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "Lowest and highest of these numbers, in units of the reward. If not set, those of the dataset."
        },
    )
    heads: list[str] | None = field(
        default=None,
        metadata={"help": "Rewards that get a head each. If not set, those of the data or of the reward functions."},
    )

    gamma: float = field(default=1.0, metadata={"help": "Discount of the targets."})
    lam: float = field(default=0.95, metadata={"help": "lambda of the TD(lambda) targets; 1 is Monte-Carlo."})
    num_epochs_per_batch: int = field(
        default=2,
        metadata={
            "help": "Consecutive updates on each batch. Their targets use the values from before the first update."
        },
    )
    normalize_rewards: bool = field(
        default=False,
        metadata={"help": "Whether to learn (reward - mean) / deviation, which are saved with the value model."},
    )

    num_iterations: int = field(
        default=1,
        metadata={"help": "Rounds of sampling and training. Each one after the first generates new completions."},
    )
    sampling_beta: float = field(
        default=0.0,
        metadata={
            "help": "beta with which the current value model guides sampling after the first round. 0 means no "
            "guidance."
        },
    )
    sampling_candidates: int = field(
        default=20, metadata={"help": "Number of likeliest tokens that guidance with `sampling_beta` changes."}
    )
    keep_samples: bool = field(
        default=True, metadata={"help": "Whether a round also trains on the completions of earlier rounds."}
    )
    resample_steps: int = field(
        default=0,
        metadata={"help": "Generate completions for this many optimizer steps at a time. 0 means for all prompts."},
    )

    steps_per_generation: int = field(
        default=0,
        metadata={"help": "`resample_steps` in TRL's unit, micro-batches: set one of the two. 0: not set."},
    )

    mask_truncated_completions: bool = field(
        default=False, metadata={"help": "Whether generated completions that were cut off are left out of the loss."}
    )
    router_aux_loss_coef: float | None = field(
        default=None,
        metadata={
            "help": "Coefficient of the load balancing loss of a value model that is a mixture of experts. If not "
            "set, it is that of the model's config. 0 means without this loss."
        },
    )
    shared_prefix: str = field(
        default="auto",
        metadata={
            "help": "Whether a prompt is computed once for all of its completions: 'auto' where that is cheaper, "
            "'always' wherever the model can, 'never'.",
            "choices": list(SHARED_PREFIX_SETTINGS),
        },
    )

    calibration_rollouts: int = field(
        default=0,
        metadata={
            "help": "In evaluation, continuations sampled per truncated completion; the value is compared with their "
            "mean reward. 0 means no calibration."
        },
    )
    calibration_states: int = field(
        default=256, metadata={"help": "Maximum number of completions to truncate for calibration."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "lam"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {value!r}.")
        for name in (
            "num_epochs_per_batch",
            "num_iterations",
            "sampling_candidates",
            "calibration_states",
            "action_rank",
        ):
            self._at_least(name, 1)
        self.set_resample_steps()
        self._at_least("calibration_rollouts", 0)
        if self.router_aux_loss_coef is not None:
            self._at_least("router_aux_loss_coef", 0)
        if self.heads is not None and len(set(self.heads)) < len(self.heads):
            raise ValueError(f"`heads` must have different names, got {self.heads}.")
        self._check_rounds()
        self._check_head()

    @property
    def atoms(self) -> int:
        """Atoms of each head; 0 for heads that predict the mean."""
        return self.num_atoms if self.value_head == "categorical" else 0

    def _check_head(self) -> None:
        self._at_least("num_atoms", 2)
        if self.value_form == "state" and self.action_rank != VASConfig.action_rank:
            raise ValueError("`action_rank` is that of the forms 'action' and 'policy': set one as `value_form`.")
        if self.value_head == "categorical" and self.value_form != "state":
            raise ValueError(
                f"`value_head='categorical'` is for value_form='state', got {self.value_form!r}: the other forms "
                "add a number for each next token."
            )
        if self.value_head != "categorical":
            for name in ("value_range", "num_atoms"):
                if getattr(self, name) != getattr(VASConfig, name):
                    raise ValueError(f"`{name}` is that of a categorical head: set value_head='categorical'.")
        if self.value_range is None:
            return
        if len(self.value_range) != 2 or not self.value_range[0] < self.value_range[1]:
            raise ValueError(
                f"`value_range` must be two numbers, the lowest return and a higher one, got {self.value_range}."
            )

    def _check_rounds(self) -> None:
        if self.num_iterations == 1:
            self._refuse_idle(["keep_samples"], "in a single round (`num_iterations` is 1)")
        if not self.sampling_beta:
            self._refuse_idle(["sampling_candidates"], "without `sampling_beta`")
        if not self.calibration_rollouts:
            self._refuse_idle(["calibration_states"], "without `calibration_rollouts`")
        if self.resample_steps and self.num_iterations > 1:
            raise ValueError(
                "`resample_steps` and `num_iterations` cannot be combined: set one of them (0 and 1 switch them off)."
            )
        if self.resample_steps and self.num_epochs_per_batch > 1:
            raise ValueError("`resample_steps` samples for batches that are used once: set num_epochs_per_batch=1.")
        epochs = self.num_train_epochs / self.num_iterations
        if self.num_iterations > 1 and (epochs < 1 or epochs % 1):
            raise ValueError(
                f"`num_train_epochs` ({self.num_train_epochs}) must be a multiple of `num_iterations` "
                f"({self.num_iterations}): each round trains for the same number of complete epochs."
            )
