# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Config and trainer of AWR. The base class has data, sampling, checkpoints, LoRA and several processes."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch

from trl_ext.data.scored_rows import lacks_completions
from trl_ext.methods.rrhf.data import DataCollatorForScoredCompletions
from trl_ext.training.engine import EngineConfig
from trl_ext.training.online_trainer import OnlineTrainer

from .losses import weighted_nll, weights


@dataclass
class AWRConfig(EngineConfig):
    """What AWR adds to the settings of [`~trl_ext.training.engine.EngineConfig`]."""

    # Our choice: about the spread of the quickstart's reward. The paper's 0.05 is for its own control tasks.
    weight_temperature: float = field(default=1.0, metadata={"help": "Score difference worth a factor of e."})
    max_weight: float = field(default=20.0, metadata={"help": "Largest weight of a completion."})  # the paper's

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight_temperature", "max_weight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}")


class AWRTrainer(OnlineTrainer):
    """Trains a model on the completions of a prompt, each weighted by how much better than their mean it scored."""

    _config_class = AWRConfig
    _tag_names: ClassVar = ["trl", "trl-ext", "awr"]
    _name = "AWR"

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        args = self._config_for(model, args)
        train_dataset = self._setup(model, args, train_dataset, processing_class, reward_funcs, None)
        rows, eval_rows = self._prepare_datasets(train_dataset, eval_dataset, args)
        self._samples = "completion_ids" not in rows.column_names
        if self._samples and not reward_funcs:  # a prompt-only dataset
            raise lacks_completions(rows.column_names, "train")
        collator = DataCollatorForScoredCompletions()
        super().__init__(model, args, data_collator=collator, train_dataset=rows, eval_dataset=eval_rows, **kwargs)

    def _sample_round(self, rows: list[dict[str, Any]], mode: str = "train") -> Any:
        with self._seeded(mode), self.engine.generating(self, mode) as generate:
            completions = generate([row["prompt_ids"] for row in rows])
        sampled = self._score(rows, completions, mode)
        self._log_round(sampled, mode)
        return sampled

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        kept = self._kept(inputs)  # prompts with scored completions
        if not kept:
            return self._zero_loss(partial(self.log_probs, model), inputs)
        keys = ("prompt_ids", "completion_ids", "scores")
        prompts, completions, scores = ([inputs[key][b] for b in kept] for key in keys)
        tokens = self.log_probs(model, prompts, completions)
        sums_B = tokens.sums().split([len(group) for group in scores])
        own = (self.args.weight_temperature, self.args.max_weight)
        weights_B = [weights(torch.tensor(group, device=tokens.logps.device), *own) for group in scores]
        loss_B = torch.stack([weighted_nll(*pair) for pair in zip(sums_B, weights_B, strict=True)])
        self._meters[self._mode].add_values("weight/max", torch.stack([weights_K.max() for weights_K in weights_B]))
        self._add_tokens(prompts, completions)  # num_tokens
        return self._through_parts(self._mean(loss_B.sum(), len(loss_B), num_items_in_batch), tokens)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not any(inputs["completion_ids"]):
            rollouts = self._sample_evaluation(inputs["rows"])
            inputs |= {key: [getattr(one, key) for one in rollouts] for key in ("completion_ids", "scores")}
        with torch.no_grad():
            return self.compute_loss(model, inputs).detach(), None, None
