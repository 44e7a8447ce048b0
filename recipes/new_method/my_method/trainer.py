# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Trainer of MyMethod: learns from scored completions of a dataset, or from those that it generates and scores."""

from functools import partial
from typing import Any, ClassVar

import torch
from trl_ext.data.schema import column_names
from trl_ext.data.scored_rows import lacks_completions
from trl_ext.training.online_trainer import OnlineTrainer
from trl_ext.training.predictions import completion_table
from trl_ext.training.rollouts import Round
from trl_ext.training.rounds import resample_stream

from .config import MyMethodConfig
from .data import DataCollatorForRankings
from .losses import best_completion, ranking_loss


class MyMethodTrainer(OnlineTrainer):
    """
    Trainer for MyMethod.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Model to be trained.
        reward_funcs (`str`, `Callable`, [`~transformers.PreTrainedModel`] or a `list` of these, *optional*):
            As in TRL's GRPO, for prompt-only datasets, whose completions the model generates.
        args ([`MyMethodConfig`], *optional*): Configuration.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows `prompt`, `completions`, `scores`; or, with `reward_funcs`, only `prompt`.
        eval_dataset (*optional*): The same.
        ref_model (*optional*): Reference of the KL term (`beta > 0`); by default the model as it is at the beginning.
        kwargs: `processing_class`, `reward_processing_classes`, `callbacks`, `optimizers`, `quantization_config`,
            `peft_config` and `compute_metrics`, as for TRL's trainers.
    """

    args: MyMethodConfig
    _config_class: ClassVar[type[MyMethodConfig]] = MyMethodConfig
    _name = "MyMethod"
    _tag_names: ClassVar = ["trl", "trl-ext", "my-method"]
    _paper: ClassVar = {}  # for the model card: its `title`, arXiv `id` and `citation`

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: MyMethodConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        ref_model: Any = None,
        compute_metrics: Any = None,
    ) -> None:
        # The base class needs these four steps in this order; a mistake in the data costs no loading of weights.
        args = self._config_for(model, args)
        train_dataset = self._setup(
            model, args, train_dataset, processing_class, reward_funcs, reward_processing_classes
        )
        train_dataset, eval_dataset = self._prepare_datasets(train_dataset, eval_dataset, args)
        self._samples = "completion_ids" not in column_names(train_dataset)  # whether training generates completions
        if self._samples and not reward_funcs:
            raise lacks_completions(column_names(train_dataset), "train")
        if self._samples:
            resample_stream(args, train_dataset)
        super().__init__(
            model,
            args,
            data_collator=DataCollatorForRankings(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            ref_model=ref_model,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )

    def _sample_round(self, rows: list[dict[str, Any]], mode: str = "train") -> Round:
        """Generate and score completions with the model as it is."""
        with self._seeded(mode), self.engine.generating(self, mode) as generate:
            completions = generate([row["prompt_ids"] for row in rows])
        sampled = self._score(rows, completions, mode)
        self._log_round(sampled, mode)
        return sampled

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The ranking loss plus `sft_weight` times the SFT loss on the best completion, averaged over prompts."""
        kept = self._kept(inputs)  # prompts with completions
        if not kept:
            loss = self._zero_loss(partial(self.log_probs, model), inputs)
            return (loss, {"p": loss.new_empty(0), "scores": loss.new_empty(0)}) if return_outputs else loss
        prompts = [inputs["prompt_ids"][b] for b in kept]
        completions = [inputs["completion_ids"][b] for b in kept]
        tokens = self.log_probs(model, prompts, completions, aux_loss=self.aux_loss_enabled)
        device = tokens.logps.device
        scores_N = torch.tensor([score for b in kept for score in inputs["scores"][b]], device=device).float()
        group_N = torch.tensor([b for b, group in enumerate(completions) for _ in group], device=device)
        p_N = tokens.sums() / tokens.lengths().clamp(min=1)  # mean log-probability per token
        rank_B = ranking_loss(self.args.scale * p_N, scores_N, group_N, len(kept))
        sft_B = -p_N[best_completion(scores_N, group_N, len(kept))]
        loss_B = rank_B + self.args.sft_weight * sft_B

        meters = self._meters[self._mode]
        meters.add_values("loss/rank", rank_B.detach())
        meters.add_values("loss/sft", sft_B.detach())
        self._measure_tokens(tokens)  # entropy and accuracy
        self._add_tokens(prompts, completions)  # num_tokens
        loss = self._mean(loss_B.sum(), len(loss_B), num_items_in_batch)
        loss = self._with_aux_loss(loss, tokens, num_items_in_batch)
        loss = self._through_parts(loss, tokens)
        return (loss, {"p": p_N, "scores": scores_N}) if return_outputs else loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not any(inputs["completion_ids"]):  # a prompt-only dataset
            rollouts = self._sample_evaluation(inputs["rows"])
            inputs["completion_ids"] = [rollout.completion_ids for rollout in rollouts]
            inputs["scores"] = [rollout.scores for rollout in rollouts]
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        columns = [range(len(group)) for group in inputs["completion_ids"]]
        p, scores = (completion_table(outputs[name], columns, self._eval_width) for name in ("p", "scores"))
        return loss.detach(), p, scores
