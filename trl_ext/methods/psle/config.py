# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of PSLE (PLE), with the source of every default."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from trl_ext.training.engine import EngineConfig


@dataclass
class PSLEConfig(EngineConfig):
    r"""
    Configuration class for the [`PSLETrainer`]; `PLEConfig` is the same class by the method's later name.

    This class includes only the parameters that are specific to PSLE training. For the others, see
    [`~trl_ext.training.engine.EngineConfig`],
    [`~trl_ext.generation.vllm_settings.VLLMSettings`], [`~trl_ext.training.config.ExtConfig`] and
    [`~transformers.TrainingArguments`]. The paper is [PSLE](https://huggingface.co/papers/2408.02599).

    A *guided* completion is generated with a principle in the prompt, a *plain* one without.

    Parameters:
        > Parameters that control the principle

        principles (`str`, `list[str]` or `dict[str, str]`, *optional*):
            Principles as texts; the keys of a mapping are names for people. A row has the principles that its prompt
            and the iteration determine, and the next ones in each iteration. A column `principle` or `principles` of
            the dataset (a text, or a list of texts) has priority.
        principles_file (`str`, *optional*, defaults to `""`):
            File of principles instead: a list or mapping in JSON or YAML, JSON lines, or one per line. Empty: none.
        principles_per_query (`int`, *optional*, defaults to `1`):
            How many principles guide a prompt together, as a numbered list in the order in which they are given. `0`:
            all. The paper's Algorithm 1 has one principle, its abstract "a set of carefully designed principles". A
            row with fewer of its own has all of them.
        principle_role (`str`, *optional*, defaults to `"system"`):
            Where a principle goes in chat prompts: into the `"system"` message, or into the last `"user"` turn by
            `principle_template`. Plain text prompts always use the template.
        principle_template (`str`, *optional*, defaults to `"{principle}\n{prompt}"`):
            How a principle is joined to a text. White space at the end of a principle is removed first.

        > Parameters that control the iterations

        num_iterations (`int`, *optional*, defaults to `8`):
            Number of iterations: generate for the entire dataset, train on it, lower the threshold. As many as the
            paper's curves show. With `resample_steps` and `max_steps`, an iteration is `max_steps / num_iterations`
            steps instead. Otherwise `max_steps` may end the run earlier, with a warning, but not later.
        epochs_per_iteration (`int`, *optional*, defaults to `1`):
            Passes over the dataset within an iteration. Ours.
        resample_steps (`int`, *optional*, defaults to `0`):
            `0`: one snapshot of the model generates the completions of an iteration, the paper's way. k > 0: the
            current model generates new completions every k optimizer steps instead.
        num_generations (`int`, *optional*, defaults to `1`):
            Number of plain completions per prompt, and of guided ones. Each plain one is paired with each guided one.
            The paper's value.

        > Parameters that control the threshold

        threshold (`float`, *optional*, defaults to `0.2`):
            Reward gap (guided minus plain) above which a pair is ranked in the first iteration, in the unit that
            `reward_scaling` sets. The paper's value, whose unit depends on its reward model.
        threshold_decay (`float`, *optional*, defaults to `0.9`):
            Factor of the threshold after each iteration; `1.0` keeps it. The paper's value.
        reward_scaling (`str`, *optional*, defaults to `"running"`):
            Unit of rewards in threshold and weights: `"running"`, the standard deviation of all rewards so far;
            `"batch"`, that of the completions that were generated together; `"none"`, the reward itself. Ours: a
            threshold of 0.2 has no meaning for reward models of unknown scale.
        two_sided (`bool`, *optional*, defaults to `False`):
            Whether to rank also pairs whose plain completion is better by more than the threshold. Ours.

        > Parameters that control the loss

        rank_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the ranking loss. `0.0` ranks no pair: all pairs are imitated.
        sft_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the weighted SFT loss. `0.0` ignores pairs below the threshold.
        margin (`float`, *optional*, defaults to `0.0`):
            Margin of the ranking loss. The paper has none.
        reward_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the softmax over the two rewards that gives the weights of the SFT loss. Ours.
        sft_target (`str`, *optional*, defaults to `"weighted"`):
            What to imitate: `"weighted"`, both completions of a pair by their rewards; `"guided"`, the guided one
            (context distillation, with `rank_weight=0`); `"best"`, the best of `num_generations` plain completions
            (best-of-n SFT; needs `rank_weight=0`, and uses no principle).

        > Parameters that control supervised fine-tuning on a dataset of completions

        sft_dataset_name (`str`, *optional*, defaults to `""`):
            Dataset of completions to imitate, in the warm-up and with `sft_mix`: rows with `prompt` and `completion`,
            with `messages` (the last one is imitated), with `text`, or with several completions, of which the best
            one is imitated (`completions` and `scores`, or `chosen` and `rejected`). Hub id, directory or file.
        sft_epochs (`float`, *optional*, defaults to `0.0`):
            Epochs of warm-up on this dataset before the first iteration. `0.0`: no warm-up.
        sft_learning_rate (`float`, *optional*, defaults to `0.0`):
            Learning rate of the warm-up. `0.0`: `learning_rate`.
        sft_mix (`float`, *optional*, defaults to `0.0`):
            Weight of the SFT loss on as many rows of this dataset as there are prompts, in every step: a guard against
            collapse. `0.0`, as in the paper: none.

        > Parameters whose defaults differ

        learning_rate (`float`, *optional*, defaults to `1e-5`): Ours; the paper's is not known.
        num_train_epochs (`float`, *optional*, defaults to `0.0`):
            Follows from `num_iterations * epochs_per_iteration`.

    > [!NOTE]
    > `per_device_train_batch_size` counts prompts, each with all of its completions.
    """

    other_meanings: ClassVar[Mapping[str, str]] = {
        **EngineConfig.other_meanings,
        "num_iterations": "the number of times that completions are generated for the entire dataset and trained on; "
        "in GRPO, the updates on each batch",
    }

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate."})
    num_train_epochs: float = field(
        default=0.0, metadata={"help": "Follows from num_iterations * epochs_per_iteration; leave it at 0."}
    )
    num_generations: int = field(
        default=1, metadata={"help": "Number of completions per prompt without the principle, and as many with it."}
    )

    # `None` is second, as TRL's parser takes a union of three or more: the flag is then a list of texts.
    principles: list[str] | None | str | dict[str, str] = field(  # noqa: RUF036
        default=None,
        metadata={"help": "Principles as texts. A column `principle` or `principles` of the dataset has priority."},
    )
    principles_file: str = field(
        default="",
        metadata={"help": "File of principles instead: a list in JSON or YAML, JSON lines, or one per line."},
    )
    principles_per_query: int = field(
        default=1,
        metadata={"help": "How many principles guide a prompt together, as a numbered list. 0 means all of them."},
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
        default=8, metadata={"help": "Iterations: generate for the entire dataset, train, lower the threshold."}
    )
    epochs_per_iteration: int = field(default=1, metadata={"help": "Passes over the dataset within an iteration."})
    resample_steps: int = field(
        default=0,
        metadata={
            "help": "Generate new completions every this many optimizer steps. 0: one snapshot of the model generates "
            "those of an iteration."
        },
    )

    threshold: float = field(
        default=0.2,
        metadata={"help": "Reward gap (guided minus plain) above which a pair is ranked in the first iteration."},
    )
    threshold_decay: float = field(default=0.9, metadata={"help": "Factor of the threshold after each iteration."})
    reward_scaling: str = field(
        default="running",
        metadata={
            "help": "Unit of rewards in threshold and weights: 'running', the standard deviation of all rewards so "
            "far; 'batch', that of the completions generated together; 'none', the reward itself.",
            "choices": ["running", "batch", "none"],
        },
    )
    two_sided: bool = field(
        default=False, metadata={"help": "Whether to rank also pairs whose plain completion is better."}
    )

    rank_weight: float = field(default=1.0, metadata={"help": "Weight of the ranking loss. 0 ranks no pair."})
    sft_weight: float = field(
        default=1.0, metadata={"help": "Weight of the SFT loss. 0 ignores pairs below the threshold."}
    )
    margin: float = field(default=0.0, metadata={"help": "Margin of the ranking loss."})
    reward_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the softmax over the two rewards in the SFT loss."}
    )
    sft_target: str = field(
        default="weighted",
        metadata={
            "help": "What to imitate: 'weighted', both completions by their rewards; 'guided', the guided one "
            "(context distillation); 'best', the best of the plain ones (best-of-n SFT, without principles).",
            "choices": ["weighted", "guided", "best"],
        },
    )

    sft_dataset_name: str = field(
        default="", metadata={"help": "Dataset of completions to imitate, for the warm-up and for `sft_mix`."}
    )
    sft_epochs: float = field(default=0.0, metadata={"help": "Epochs of SFT warm-up before the first iteration."})
    sft_learning_rate: float = field(
        default=0.0, metadata={"help": "Learning rate of the warm-up. 0 means `learning_rate`."}
    )
    sft_mix: float = field(
        default=0.0, metadata={"help": "Weight of the SFT loss on rows of the SFT dataset in every step. 0: none."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_iterations", "epochs_per_iteration"):
            self._at_least(name, 1)
        self._at_least("principles_per_query", 0)
        for name in ("rank_weight", "sft_weight", "margin", "sft_epochs", "sft_mix", "sft_learning_rate"):
            self._at_least(name, 0)
        self._check_threshold()
        self._check_template()
        self._check_idle()
        epochs = self.num_iterations * self.epochs_per_iteration
        if self.num_train_epochs not in (0, epochs):
            raise ValueError(
                f"`num_train_epochs` ({self.num_train_epochs:g}) follows from `num_iterations` x "
                f"`epochs_per_iteration` ({epochs}): set those instead."
            )
        self.num_train_epochs = float(epochs)

    def _check_idle(self) -> None:
        if not self.rank_weight:
            self._refuse_idle(["margin"], "without a ranking loss (`rank_weight` is 0)")
        if not self.sft_weight or self.sft_target != "weighted":
            why = "where no pair is imitated by its rewards (`sft_target` is not weighted, or `sft_weight` is 0)"
            self._refuse_idle(["reward_temperature"], why)
        if not self.sft_epochs:
            self._refuse_idle(["sft_learning_rate"], "without a warm-up (`sft_epochs` is 0)")

    def _check_threshold(self) -> None:
        # Not `_at_least`: instead of infinity, there are settings to use.
        if not 0 <= self.threshold < math.inf:
            unit = "in units of the reward" if self.reward_scaling == "none" else "in its standard deviations"
            raise ValueError(
                f"`threshold` must be a reward gap of at least 0, {unit}, got {self.threshold}. To rank no pair, set "
                "`rank_weight: 0`; to rank also pairs whose plain completion is better, `two_sided: true`."
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
            raise ValueError("`principles` and `principles_file` are both set; leave out one of them.")
        if self.rank_weight == 0 and self.sft_weight == 0:
            raise ValueError("`rank_weight` and `sft_weight` are both 0, so there is nothing to learn.")
        if self.sft_target == "best" and self.rank_weight:
            raise ValueError(
                "`sft_target: best` imitates one completion per prompt and ranks none: set `rank_weight: 0`."
            )
        if self.sft_target == "best" and self.num_generations < 2:
            raise ValueError("`sft_target: best` needs several completions: set `num_generations` to 4, for example.")


PLEConfig = PSLEConfig
