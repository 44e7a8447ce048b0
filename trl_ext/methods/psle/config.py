# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of PSLE (PLE); every default says where it comes from."""

import math
from dataclasses import dataclass, field

from trl_ext.logprobs.shared_prefix import SHARED_PREFIX_SETTINGS
from trl_ext.training.engine import EngineConfig


@dataclass
class PSLEConfig(EngineConfig):
    r"""
    Configuration class for the [`PSLETrainer`]; `PLEConfig` is the same class by the method's later name.

    This class includes only the parameters that are specific to PSLE training. For the others, see
    [`~trl_ext.training.engine.EngineConfig`] (continuous batching),
    [`~trl_ext.generation.vllm_settings.VLLMSettings`], [`~trl_ext.training.config.ExtConfig`] and
    [`~transformers.TrainingArguments`]. The paper is [PSLE](https://huggingface.co/papers/2408.02599).

    Parameters:
        > Parameters that control the principle

        principles (`list[str]`, *optional*):
            Principles as texts. Of several, the rows take turns, and move on with each iteration. A row's own column
            `principle` comes first.
        principles_file (`str`, *optional*, defaults to `""`):
            File of principles instead: a JSON list, or one a line. Empty: none.
        principle_role (`str`, *optional*, defaults to `"system"`):
            Where a principle goes in chat prompts: into the `"system"` message, or into the last `"user"` turn by
            `principle_template`. Prompts that are plain text always use the template.
        principle_template (`str`, *optional*, defaults to `"{principle}\n{prompt}"`):
            How a principle is joined to a text. White space at the end of a principle is dropped before.

        > Parameters that control the iterations

        num_iterations (`int`, *optional*, defaults to `8`):
            Iterations: sample for the whole data set, train on it, lower the threshold. As many as the paper's curves
            show. With `resample_steps` and `max_steps` an iteration is `max_steps / num_iterations` steps instead.
        epochs_per_iteration (`int`, *optional*, defaults to `1`):
            Passes over the data set within an iteration. Ours.
        resample_steps (`int`, *optional*, defaults to `0`):
            `0`: an iteration is sampled by one snapshot of the model, the paper's way. k > 0: answers are drawn with
            the current model every k optimizer steps instead.
        num_generations (`int`, *optional*, defaults to `1`):
            Answers with, and as many without the principle to a prompt; every plain one is paired with every guided
            one. The paper's value.

        > Parameters that control the threshold

        threshold (`float`, *optional*, defaults to `0.2`):
            Reward gap (guided minus plain) above which a pair is ranked, in the first iteration, in the unit that
            `reward_scaling` says. The paper's value, whose unit depends on its reward model.
        threshold_decay (`float`, *optional*, defaults to `0.9`):
            What the threshold is multiplied by after each iteration; `1.0` keeps it. The paper's value.
        reward_scaling (`str`, *optional*, defaults to `"running"`):
            Unit of rewards in threshold and weights: `"running"` standard deviations of all rewards so far, `"batch"`
            standard deviations of the answers that were drawn together, `"none"` the reward as it is. Ours: a
            threshold of 0.2 has no meaning for reward models of unknown scale.
        two_sided (`bool`, *optional*, defaults to `False`):
            Whether pairs are also ranked where the plain answer is better by more than the threshold. Ours.

        > Parameters that control the loss

        rank_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the ranking loss. `0.0` ranks no pair: all of them are imitated.
        sft_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the weighted SFT loss. `0.0` leaves pairs below the threshold out.
        margin (`float`, *optional*, defaults to `0.0`):
            Margin of the ranking loss. The paper has none.
        reward_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the softmax over the two rewards that weighs the SFT loss. Ours.
        sft_target (`str`, *optional*, defaults to `"weighted"`):
            What is imitated: `"weighted"` both answers of a pair by their rewards, `"guided"` the guided one (context
            distillation, with `rank_weight=0`), `"best"` the best of `num_generations` plain answers (best-of-n SFT;
            needs `rank_weight=0`, and uses no principle).
        beta (`float`, *optional*, defaults to `0.0`):
            Coefficient of a KL term that is subtracted from the reward, beta * (log pi(y | x) - log pi_0(y | x)) in
            nats a completion. `0.0`, as in the paper: no reference model in memory.
        shared_prefix (`str`, *optional*, defaults to `"auto"`):
            Whether a prompt is computed once for all of its answers: `"auto"` where that is cheaper, `"always"`
            wherever the model can, `"never"`. The result is the same.

        > Parameters that control supervised fine-tuning on a set of answers

        sft_dataset_name (`str`, *optional*, defaults to `""`):
            Data set of answers to imitate, rows `prompt` and `completion`, `messages`, or `text`: Hub id, directory
            or file. For the warm-up and for `sft_mix`.
        sft_epochs (`float`, *optional*, defaults to `0.0`):
            Epochs of warm-up on that set before the first iteration. `0.0`: start from `model` as it is.
        sft_learning_rate (`float`, *optional*, defaults to `0.0`):
            Learning rate of the warm-up. `0.0`: `learning_rate`.
        sft_mix (`float`, *optional*, defaults to `0.0`):
            Weight of the SFT loss on as many rows of that set as there are prompts, in every step: a guard against
            collapse. `0.0`, as in the paper: none.

        > Parameters whose defaults differ

        learning_rate (`float`, *optional*, defaults to `1e-5`): Ours; the paper's is not known.
        num_train_epochs (`float`, *optional*, defaults to `0.0`):
            Follows from `num_iterations * epochs_per_iteration`.

    > [!NOTE]
    > `per_device_train_batch_size` counts prompts, each with all of its answers.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate."})
    num_train_epochs: float = field(
        default=0.0, metadata={"help": "Follows from num_iterations * epochs_per_iteration; leave it at 0."}
    )
    num_generations: int = field(
        default=1, metadata={"help": "Answers without, and as many with the principle to a prompt."}
    )

    principles: list[str] | None = field(
        default=None, metadata={"help": "Principles as texts; rows take turns. A column `principle` comes first."}
    )
    principles_file: str = field(
        default="", metadata={"help": "File of principles instead: a JSON list, or one a line."}
    )
    principle_role: str = field(
        default="system",
        metadata={
            "help": "Where a principle goes in chat prompts: the 'system' message, or the last 'user' turn.",
            "choices": ["system", "user"],
        },
    )
    principle_template: str = field(
        default="{principle}\n{prompt}", metadata={"help": "How a principle is joined to a text."}
    )

    num_iterations: int = field(
        default=8, metadata={"help": "Iterations: sample for the whole data set, train, lower the threshold."}
    )
    epochs_per_iteration: int = field(default=1, metadata={"help": "Passes over the data set within an iteration."})
    resample_steps: int = field(
        default=0,
        metadata={
            "help": "Draw answers with the current model every this many optimizer steps. 0: an iteration is sampled "
            "by one snapshot of the model."
        },
    )

    threshold: float = field(
        default=0.2, metadata={"help": "Reward gap (guided minus plain) above which a pair is ranked, at first."}
    )
    threshold_decay: float = field(
        default=0.9, metadata={"help": "What the threshold is multiplied by after each iteration."}
    )
    reward_scaling: str = field(
        default="running",
        metadata={
            "help": "Unit of rewards in threshold and weights: 'running' standard deviations of all rewards so far, "
            "'batch' of the answers drawn together, 'none' the reward as it is.",
            "choices": ["running", "batch", "none"],
        },
    )
    two_sided: bool = field(
        default=False, metadata={"help": "Whether pairs are also ranked where the plain answer is better."}
    )

    rank_weight: float = field(default=1.0, metadata={"help": "Weight of the ranking loss. 0 ranks no pair."})
    sft_weight: float = field(
        default=1.0, metadata={"help": "Weight of the SFT loss. 0 leaves pairs below the threshold out."}
    )
    margin: float = field(default=0.0, metadata={"help": "Margin of the ranking loss."})
    reward_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the softmax over the two rewards that weighs the SFT loss."}
    )
    sft_target: str = field(
        default="weighted",
        metadata={
            "help": "What is imitated: 'weighted' both answers by their rewards, 'guided' the guided one (context "
            "distillation), 'best' the best of the plain answers (best-of-n SFT, without principles).",
            "choices": ["weighted", "guided", "best"],
        },
    )
    beta: float = field(
        default=0.0,
        metadata={"help": "Coefficient of a KL term that is subtracted from the reward. 0 means no reference model."},
    )
    shared_prefix: str = field(
        default="auto",
        metadata={
            "help": "Whether a prompt is computed once for all of its answers: 'auto' where that is cheaper, "
            "'always' wherever the model can, 'never'.",
            "choices": list(SHARED_PREFIX_SETTINGS),
        },
    )

    sft_dataset_name: str = field(
        default="", metadata={"help": "Data set of answers to imitate, for the warm-up and for `sft_mix`."}
    )
    sft_epochs: float = field(default=0.0, metadata={"help": "Epochs of SFT warm-up before the first iteration."})
    sft_learning_rate: float = field(
        default=0.0, metadata={"help": "Learning rate of the warm-up. 0 means `learning_rate`."}
    )
    sft_mix: float = field(
        default=0.0, metadata={"help": "Weight of the SFT loss on rows of the SFT set in every step. 0 means none."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_iterations", "epochs_per_iteration"):
            self._at_least(name, 1)
        for name in "resample_steps rank_weight sft_weight margin beta sft_epochs sft_mix sft_learning_rate".split():
            self._at_least(name, 0)
        self._check_threshold()
        self._check_template()
        epochs = self.num_iterations * self.epochs_per_iteration
        if self.num_train_epochs not in (0, epochs):
            raise ValueError(
                f"`num_train_epochs` ({self.num_train_epochs:g}) follows from `num_iterations` x "
                f"`epochs_per_iteration` ({epochs}): leave it out and set those."
            )
        self.num_train_epochs = float(epochs)

    def _check_threshold(self) -> None:
        # Not `_at_least`: NaN is not below anything, and infinity has a name of its own here.
        if not 0 <= self.threshold < math.inf:
            unit = "as the reward" if self.reward_scaling == "none" else "in standard deviations of the reward"
            raise ValueError(
                f"`threshold` must be a reward gap of at least 0, {unit}, got {self.threshold}. To rank no pair, set "
                "`rank_weight: 0`; to rank where the plain answer is better too, `two_sided: true`."
            )
        if not 0 < self.threshold_decay <= 1:
            raise ValueError(f"`threshold_decay` must be above 0 and at most 1, got {self.threshold_decay}.")
        if not 0 < self.reward_temperature < math.inf:
            raise ValueError(f"`reward_temperature` must be positive, got {self.reward_temperature}.")

    def _check_template(self) -> None:
        if "{principle}" not in self.principle_template or "{prompt}" not in self.principle_template:
            raise ValueError(
                f"`principle_template` must contain {{principle}} and {{prompt}}, got {self.principle_template!r}."
            )
        if self.principles and self.principles_file:
            raise ValueError("`principles` and `principles_file` are both given; leave one of them out.")
        if self.rank_weight == 0 and self.sft_weight == 0:
            raise ValueError("`rank_weight` and `sft_weight` are both 0, so there is nothing to learn.")
        if self.sft_target == "best" and self.rank_weight:
            raise ValueError(
                "`sft_target: best` imitates one answer to a prompt and ranks none: set `rank_weight: 0`."
            )
        if self.sft_target == "best" and self.num_generations < 2:
            raise ValueError("`sft_target: best` of a single answer chooses nothing: set `num_generations` to 4, say.")


PLEConfig = PSLEConfig
