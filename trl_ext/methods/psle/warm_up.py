# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The supervised fine-tuning (SFT) that may precede the iterations of PSLE."""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback

from trl_ext.training.online_trainer import OnlineTrainer
from trl_ext.training.summary import Run
from trl_ext.training.trainer import ExtTrainer

from .config import PSLEConfig


WARM_UP = "warm_up"  # the folder of its checkpoints in `output_dir`, and the prefix of its metrics


class WarmUpTrainer(ExtTrainer):
    """
    SFT on a dataset of completions, with an optimizer, a learning rate schedule and checkpoints of its own.

    Args:
        trainer ([`~trl_ext.training.online_trainer.OnlineTrainer`]): The trainer whose model is fine-tuned, and whose
            callbacks follow it, except early stopping. Its config is a [`PSLEConfig`].
        dataset ([`~datasets.Dataset`]): Tokenized rows of one completion each.
    """

    args: PSLEConfig
    _config_class: ClassVar[type[PSLEConfig]] = PSLEConfig
    _train_prefix = f"{WARM_UP}/"
    _phase = "warm-up"
    # `compute_loss` divides by the rows of all micro-batches and processes of a step.
    loss_is_scaled_for_ga = True

    def __init__(self, trainer: OnlineTrainer, dataset: Dataset) -> None:
        self._name, self._paper, self._tag_names = trainer._name, trainer._paper, trainer._tag_names
        self._tokenizer, self.rewards, self._raw_columns = trainer._tokenizer, [], set()
        self._language_model = trainer._language_model
        self.log_probs = trainer.log_probs
        self.router_aux_loss_coef = trainer.router_aux_loss_coef
        super().__init__(
            trainer.model, _config(trainer.args), data_collator=trainer.data_collator, train_dataset=dataset
        )
        others = [each for each in trainer.callback_handler.callbacks if each not in trainer._own_callbacks]
        # There are no evaluations by which a run could be stopped early.
        others = [each for each in others if not isinstance(each, EarlyStoppingCallback)]
        self.callback_handler.callbacks = [*others, *self._own_callbacks]

    def _summary(self, run: Run) -> dict[str, str]:
        lines = super()._summary(run)
        return {title: lines[title] for title in ("data", "step", "training", "files")}  # the model's come after it

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int | None]:
        """The micro-batches of one optimizer step, and the rows of all processes in them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        return batches, max(1, self._over_processes(sum(len(batch["prompt_ids"]) for batch in batches)))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Run the warm-up, and release its optimizer: the iterations need the memory."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.accelerator.free_memory()
            self.optimizer = self.lr_scheduler = None
            self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
            self.model_wrapped = self.model

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the card of the iterations follows."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        start = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self._meters["train"].add("seconds/update", time.perf_counter() - start, len(args[1]["prompt_ids"]))
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Negative mean log-probability per token of a completion, averaged over completions."""
        ids = inputs["prompt_ids"], inputs["completion_ids"]
        tokens = self.log_probs(model, *ids, aux_loss=self.aux_loss_enabled)
        l_N = tokens.sums() / tokens.lengths().clamp(min=1)
        self._measure_tokens(tokens)
        self._add_tokens(*ids)
        loss = self._mean(-l_N.sum(), len(l_N), num_items_in_batch)
        loss = self._with_aux_loss(loss, tokens, num_items_in_batch)
        loss = self._through_parts(loss, tokens)
        return (loss, {"logps": l_N}) if return_outputs else loss


def _config(args: PSLEConfig) -> PSLEConfig:
    """The config of the warm-up, from that of the trainer."""
    args = copy.copy(args)
    args.output_dir = str(Path(args.output_dir) / WARM_UP)
    args.num_train_epochs, args.max_steps = args.sft_epochs, -1
    args.learning_rate = args.sft_learning_rate or args.learning_rate
    args.eval_strategy, args.eval_on_start = "no", False
    args.load_best_model_at_end, args.push_to_hub = False, False
    args.deepspeed_plugin = None  # accelerate keeps that of the trainer, and refuses a second one
    return args
