# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Trainer of Proxy-RLHF: trains a proxy by PPO, on prompts and reward functions, to guide a frozen model."""

import json
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.utils import logging

from trl_ext.atomic_files import write_text
from trl_ext.cards import link, quoted
from trl_ext.data.completion import Completion, decode_after
from trl_ext.data.schema import AnyDataset, DataError, check_dataset, column_names
from trl_ext.data.scored_rows import REWARD_FLAGS
from trl_ext.generation_settings import eos_token_ids, pad_token_id
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.modes import evaluation_mode
from trl_ext.models.properties import context_length, parameter_count
from trl_ext.models.sharding import gathered
from trl_ext.rewards.functions import RewardFunc
from trl_ext.training.copies import sampling_copy
from trl_ext.training.frozen_model import load_frozen, place_frozen, sampling_batch_size
from trl_ext.training.meters import Meters
from trl_ext.training.model_card import TrainedModel
from trl_ext.training.returns import gae
from trl_ext.training.rollouts import score_round
from trl_ext.training.statistics import whitened
from trl_ext.training.summary import Run, describe_generate, describe_model, number
from trl_ext.training.trainer import EvalDataset, ExtTrainer
from trl_ext.training.trl_settings import FROZEN_MODEL_ARGUMENTS

from .config import ProxyRLHFConfig
from .data import Decisions, minibatch
from .decoding.batch import ProxyCompletions, complete
from .loading import load_proxy
from .losses import decision_entropy, decision_logps, leave_one_out, policy_loss, value_loss
from .model import ProxyModel


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.get_logger(__name__)

# The KL to the language model is measured at one in so many positions: it needs a forward pass over all candidates.
MEASURE_EVERY = 8
CRITIC_CHUNK = 65_536  # decisions in one forward pass of the critic


class ProxyRLHFTrainer(ExtTrainer):
    """
    Trainer for Proxy-RLHF.

    The method is described in [Proxy-RLHF: Decoupling Generation and Alignment in Large Language Model with
    Proxy](https://huggingface.co/papers/2403.04283). The proxy, with its critic, is trained, saved and pushed; the
    language model does not change.

    A round has the prompts of one batch: `per_device_train_batch_size` x `gradient_accumulation_steps` x number of
    processes. Completions of them are generated, and the decisions are trained on in `num_ppo_epochs` x
    `num_mini_batches` optimizer steps.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The frozen language model: a Hub id, a directory, or a model; also a LoRA model or one in 4 bits.
        reward_funcs (`str`, `Callable`, [`~transformers.PreTrainedModel`] or a `list` of these):
            Reward functions as in TRL's GRPO.
        args ([`ProxyRLHFConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`]):
            Rows with a `prompt`, plain text or messages. Other columns are passed to the reward functions.
        eval_dataset ([`~datasets.Dataset`] or a `dict` of them, *optional*):
            The same.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. By default the language model's.
        reward_processing_classes (`list`, *optional*):
            Tokenizers of the reward models.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to add.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler to use.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantisation of a language model given by name.
        peft_config (*optional*):
            Not supported: the language model is not trained, and the proxy is small.
        proxy_model (`str` or [`ProxyModel`], *optional*):
            Proxy to train further. By default the config's `proxy_model_name_or_path`, or a new one.

    Raises:
        `ValueError`, `TypeError`: Arguments contradict each other; the message names them.
        [`~trl_ext.data.schema.DataError`]: A row or column cannot be used; the message names it.

    Examples:
    ```python
    >>> from datasets import load_dataset
    >>> from trl_ext import ProxyRLHFConfig, ProxyRLHFTrainer

    >>> trainer = ProxyRLHFTrainer(
    ...     model="Qwen/Qwen2.5-7B-Instruct",
    ...     reward_funcs="trl-lib/Qwen2-0.5B-Reward",
    ...     args=ProxyRLHFConfig(output_dir="proxy"),
    ...     train_dataset=load_dataset("trl-lib/ultrafeedback-prompt", split="train"),
    ... )
    >>> trainer.train()
    ```
    """

    args: ProxyRLHFConfig
    _config_class: ClassVar[type[ProxyRLHFConfig]] = ProxyRLHFConfig
    _refused_arguments: ClassVar = {
        **FROZEN_MODEL_ARGUMENTS,
        "value_model": "the proxy has a critic of its own (`advantage_estimator`): remove it; to train a proxy "
        "further, pass `proxy_model`",
    }
    _tag_names: ClassVar = ["trl", "trl-ext", "proxy-rlhf"]
    _name = "Proxy-RLHF"
    _paper: ClassVar = {
        "title": "Proxy-RLHF: Decoupling Generation and Alignment in Large Language Model with Proxy",
        "id": "2403.04283",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{zhu2024proxy,
                title        = {{Proxy-RLHF: Decoupling Generation and Alignment in Large Language Model with Proxy}},
                author       = {Yu Zhu and Chuxiong Sun and Wenfei Yang and Wenqiang Wei and Bo Tang and Tianzhu Zhang
                                and Zhiyu Li and Shifeng Zhang and Feiyu Xiong and Jie Hu and Mingchuan Yang},
                year         = 2024,
                eprint       = {arXiv:2403.04283},
            }"""),
    }
    _samples = True
    # `compute_loss` divides by the number of decisions in all micro-batches and processes of a step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: ProxyRLHFConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: EvalDataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: "PeftConfig | None" = None,
        proxy_model: str | ProxyModel | None = None,
    ):
        args = self._config_for(model, args)
        _check_arguments(train_dataset, reward_funcs, peft_config)
        train_dataset = self._setup(
            model, args, train_dataset, processing_class, reward_funcs, reward_processing_classes
        )
        self.language_model = load_frozen(model, args, quantization_config)
        self._max_length = min((n for n in (args.max_length, context_length(self.language_model)) if n), default=0)
        train_dataset, eval_dataset = self._prepare_datasets(train_dataset, eval_dataset, args)
        self._check_end_of_answers(self.language_model, args, train_dataset)
        super().__init__(
            load_proxy(proxy_model, self.language_model, args),
            args,
            data_collator=_collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._place(args)
        self.trainable_share = parameter_count(self.model) / self._llm_size
        logger.info(f"The proxy has {self.trainable_share:.2%} of the language model's parameters.")
        self._decisions: Decisions | None = None
        self._stopped = False
        self._last_kl = torch.zeros(2)
        self._episodes = 0

    # ------------------------------------------------------------------------------------------------ preparation

    def _longest_row(self, args: ProxyRLHFConfig) -> int:
        return self._max_length

    def _tokenize(self, dataset: AnyDataset, args: ProxyRLHFConfig, name: str) -> tuple[AnyDataset, int]:
        columns = set(column_names(dataset))
        if "prompt" in columns:
            # `chosen` and `rejected` stay, for reward functions that compare with them.
            dataset = dataset.remove_columns(sorted(columns & {"completions", "scores"}))
        return super()._tokenize(dataset, args, name)

    def _place(self, args: ProxyRLHFConfig) -> None:
        if not args.ds3_gather_for_generation:
            raise ValueError(
                "`ds3_gather_for_generation` cannot be switched off: generation uses the backbone and the head of the "
                "language model separately, which requires gathered parameters. For a model that does not fit on a "
                "device, use `load_in_4bit`, or one process with `model_init_kwargs={'device_map': 'auto'}`."
            )
        self._llm_size = parameter_count(self.language_model)
        self.language_model = place_frozen(self.language_model, self)
        with gathered(self.language_model, self.accelerator) as model:
            self.llm = BackboneAndHead(sampling_copy(model, args))
        self.llm.check_tokens([[max(self._tokenizer.get_vocab().values())]], "The tokenizer")

    # ---------------------------------------------------------------------------------------------------- batches

    def _repeats(self) -> int:
        return self.args.updates_per_round

    def _batches_of_step(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int | None]:
        """
        The micro-batches of one optimizer step: parts of one minibatch of decisions.

        The rows of a round come once for each of its updates. The first time, completions are generated for them.
        """
        batches, _ = super()._batches_of_step(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        update = self.state.global_step % self.args.updates_per_round
        if not update:
            self._decisions = None  # frees its memory before more is needed
            self._decisions = self._start_round([row for batch in batches for row in batch["rows"]])
            self._stopped = False
        elif not self._stopped:
            self._stopped = self._exceeds_target_kl()
        self._last_kl = torch.zeros(2)  # of the next step: sum and count
        decisions, args = self._decisions, self.args
        if decisions is None:
            raise RuntimeError(
                "This checkpoint was saved within a round, and its folder has no decisions of this round: resume from "
                "another checkpoint."
            )
        pass_number, part = divmod(update, args.num_mini_batches)
        seed = (args.seed * 1_000_003 + self.state.global_step - part) * 31 + pass_number
        index = minibatch(len(decisions), part, args.num_mini_batches, seed)
        # The order within a step does not matter: sorted, so that memory is read in one direction.
        micro = [decisions[rows] for rows in index.sort().values.tensor_split(len(batches))]
        total = max(1, self._over_processes(len(index)))
        return [{f.name: getattr(part, f.name) for f in fields(part)} for part in micro], total

    def _exceeds_target_kl(self) -> bool:
        if not self.args.target_kl:
            return False
        total, count = self.accelerator.reduce(self._last_kl.to(self.accelerator.device), reduction="sum").tolist()
        return bool(count) and total / count > self.args.target_kl

    def _models_in_memory(self) -> list[Any]:
        return [self.language_model]

    def _summary(self, run: Run) -> dict[str, str]:
        args, lines = self.args, super()._summary(run)
        size = parameter_count(self._proxy())
        lines["model"] = describe_model(self.language_model, self._language_model, self) + ", frozen"
        lines["trained"] = f"a proxy of {number(size)} parameters ({self.trainable_share:.2%} of the model's)"
        lines["step"] = (
            f"{args.updates_per_round} steps on the completions of {run.prompts_per_step} prompts "
            f"({args.num_ppo_epochs} PPO epochs x {args.num_mini_batches} minibatches)"
        )
        lines["engine"] = describe_generate(args, sampling_batch_size(self), "the proxy's decoding")
        return lines

    # ---------------------------------------------------------------------------------------------------- rollout

    def _start_round(self, rows: list[dict[str, Any]]) -> Decisions:
        """Generate and score completions for the prompts of a round, and compute the advantages of the decisions."""
        args = self.args
        completions, scores = self._roll_out(rows, "train")
        decisions = completions.decisions
        assert decisions is not None
        self._episodes += len(completions.ids)
        self._num_tokens += sum(map(len, completions.ids))
        self._num_tokens += sum(len(row["prompt_ids"]) for row in rows) * args.num_generations
        known = ~scores.isnan().to(decisions.response.device)[decisions.response]
        decisions = decisions[known.nonzero().squeeze(1)]
        none = not len(decisions)
        if all(gather_object([none])) if self.accelerator.num_processes > 1 else none:
            raise DataError(
                f"The round of step {self.state.global_step} has no decisions: no reward function scored any "
                "completion, or the candidates were truncated to one everywhere. Check the reward functions, `top_p` "
                "and `min_p`."
            )
        if args.kl_coef and args.process().exact:
            decisions = decisions.with_total_kl(completions.kl)
        self._estimate(decisions, scores.to(decisions.logps.device))
        if args.whiten_advantages:
            decisions.advantages = whitened(decisions.advantages, self.accelerator)
        return decisions

    def _estimate(self, decisions: Decisions, scores_N: torch.Tensor) -> None:
        """Set the advantages, and with a critic the values and returns."""
        args = self.args
        if args.advantage_estimator == "rloo":
            paid = torch.zeros_like(scores_N).index_add(0, decisions.response, decisions.kl.to(scores_N.dtype))
            advantages_BK = leave_one_out((scores_N - args.kl_coef * paid).view(-1, args.num_generations))
            # NaN is the advantage of a prompt's only scored completion, which has no other to be compared with.
            advantages_M = advantages_BK.flatten()[decisions.response].nan_to_num(0.0)
            decisions.advantages = advantages_M.to(decisions.logps.dtype)
            return
        decisions.values = self._values(decisions.features)
        rewards_M = -args.kl_coef * decisions.kl
        rewards_M = torch.where(decisions.last(), rewards_M + scores_N[decisions.response], rewards_M)
        values_NM, mask_NM = decisions.by_response(decisions.values)
        rewards_NM, _ = decisions.by_response(rewards_M.to(values_NM.dtype))
        advantages_NM = gae(rewards_NM, values_NM, mask_NM, args.gamma, args.lam)
        decisions.advantages = advantages_NM[mask_NM]
        decisions.returns = decisions.advantages + decisions.values

    @torch.no_grad()
    def _values(self, features: torch.Tensor) -> torch.Tensor:
        device = self.accelerator.device
        with gathered(self.model_wrapped, self.accelerator) as proxy:
            parts = [proxy(part.to(device)).values for part in features.split(CRITIC_CHUNK)]
        return torch.cat(parts).to(features.device) if parts else features.new_zeros(0, dtype=torch.float32)

    def _trained_model(self, place: str, language_model: str) -> TrainedModel:
        model = quoted(language_model, published=bool(self.hub_model_id))
        summary = (
            f"A proxy that guides {link(language_model)} while it generates: it accepts or rejects the tokens that "
            "the language model proposes. It writes no text itself, and is for this language model only."
        )
        code = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_ext import ProxyModel

tokenizer = AutoTokenizer.from_pretrained({model})
model = AutoModelForCausalLM.from_pretrained({model})
proxy = ProxyModel.from_pretrained({place})
output = proxy.generate(model, ["The film was"], tokenizer=tokenizer, max_new_tokens=64, return_dict=True)
print(output.texts[0])
"""
        return TrainedModel(summary, code, "trl-ext", [language_model])

    def _proxy(self) -> ProxyModel:
        return self.accelerator.unwrap_model(self.model)  # type: ignore[no-any-return]

    def _roll_out(self, rows: list[dict[str, Any]], mode: str) -> tuple[ProxyCompletions, torch.Tensor]:
        """Generate, score and log completions for `rows`. Scores (N,) are NaN where no reward function applies."""
        args, process = self.args, self.args.process()
        train, k = mode == "train", args.completions_per_prompt(mode)
        # Every evaluation uses the same random numbers, which differ between its batches.
        step = self.state.global_step if train else -1 - self._eval_batches
        prompts = [row["prompt_ids"] for row in rows]
        every = (1 if args.kl_coef else min(MEASURE_EVERY, args.max_completion_length)) if process.exact else 0
        with (
            gathered(self.language_model, self.accelerator),
            gathered(self.model_wrapped, self.accelerator),
            evaluation_mode(self.model),
            self.compute_loss_context_manager(),
        ):
            completions = complete(
                self.llm, self._proxy(), process, prompts,
                seeds=_seeds(rows, args.seed, step, k),
                max_new_tokens=args.max_completion_length, max_length=self._max_length,
                eos=eos_token_ids(self.language_model, self._tokenizer), pad=pad_token_id(self._tokenizer),
                batch_size=sampling_batch_size(self),
                record=train, measure_every=every, first_candidates=args.first_candidates,
                cuda_graphs=args.cuda_graphs,
                store="cpu" if args.offload_decisions else None,
            )  # fmt: skip
        texts = decode_after(self._tokenizer, [prompt for prompt in prompts for _ in range(k)], completions.ids)
        flat = list(map(Completion, texts, completions.ids, completions.ended))
        groups = [flat[i : i + k] for i in range(0, len(flat), k)]
        sampled = score_round(rows, groups, self.rewards, args.reward_weights, **self._scoring)
        scores = torch.tensor(sampled.table["score"])
        meters = self._meters[mode]
        self._log_round(sampled, mode)
        self._measure_completions(completions, scores, meters)
        return completions, scores - args.missing_eos_penalty * ~torch.tensor(completions.ended)

    def _measure_completions(self, completions: ProxyCompletions, scores: torch.Tensor, meters: Meters) -> None:
        tokens = sum(map(len, completions.ids))
        examined, rejected = completions.examined.sum(), completions.rejected.sum()
        forced, asked = completions.forced.sum(), completions.asked.sum()
        meters.add("accept_rate", examined - rejected, examined)
        meters.add("candidates_per_token", examined, tokens)
        meters.add("forced_share", forced, asked)
        meters.add("decided_share", asked, tokens)
        penalty = self.args.missing_eos_penalty * (~torch.tensor(completions.ended)).float()
        meters.add_values("objective/scores", scores - penalty)
        meters.add("val/num_eos_tokens", sum(completions.ended), 1 / self.accelerator.num_processes)  # per round
        if self.args.process().exact:
            meters.add_values("objective/kl", completions.kl)
            meters.add_values("objective/non_score_reward", -self.args.kl_coef * completions.kl)
            meters.add_values("objective/rlhf_reward", scores - penalty - self.args.kl_coef * completions.kl)

    # ------------------------------------------------------------------------------------------------------- loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        Clipped policy loss + `vf_coef` x value loss - `entropy_coef` x entropy, averaged over decisions.

        With `num_items_in_batch` (the number of decisions in all micro-batches and processes of a step) the sum over
        this batch is divided by that number, so that the gradient does not depend on how a step is split.
        """
        args = self.args
        output = model(inputs["features"])
        logps = decision_logps(output.logits, inputs["accepted"])
        policy = policy_loss(logps, inputs["logps"], inputs["advantages"], args.cliprange)
        entropy = decision_entropy(output.logits)
        loss_M = policy - args.entropy_coef * entropy
        value = None
        if output.values is not None and args.advantage_estimator == "gae":
            value = value_loss(output.values, inputs["values"], inputs["returns"], args.cliprange_value)
            loss_M = loss_M + args.vf_coef * value
        elif output.values is not None:
            loss_M = loss_M + 0.0 * output.values  # DDP waits for every parameter's gradient
        self._measure_update(inputs, output, logps, policy, entropy, value)
        loss = self._mean(loss_M.sum(), len(loss_M), num_items_in_batch)
        return (loss, {"logits": output.logits}) if return_outputs else loss

    @torch.no_grad()
    def _measure_update(
        self,
        inputs: dict[str, Any],
        output: Any,
        logps: torch.Tensor,
        policy: torch.Tensor,
        entropy: torch.Tensor,
        value: torch.Tensor | None,
    ) -> None:
        """Metrics of an update, under the names of TRL's PPO."""
        meters, cliprange = self._meters["train"], self.args.cliprange
        log_ratio = logps - inputs["logps"]
        ratio = log_ratio.exp()
        # (r - 1) - log r estimates the KL without bias and is never negative. TRL's PPO uses half of log r squared.
        kl = (ratio - 1 - log_ratio).sum()
        self._last_kl = self._last_kl.to(kl.device) + torch.stack([kl, kl.new_full((), len(ratio))])
        meters.add("policy/approxkl_avg", kl, len(ratio))
        if cliprange:
            meters.add_values("policy/clipfrac_avg", ((ratio - 1).abs() > cliprange).float())
        meters.add_values("policy/entropy_avg", entropy)
        meters.add_values("loss/policy_avg", policy)
        meters.add_values("val/ratio", ratio)
        if value is not None:
            meters.add_values("loss/value_avg", value)
            if self.args.cliprange_value:
                clipped = (output.values - inputs["values"]).abs() > self.args.cliprange_value
                meters.add_values("val/clipfrac_avg", clipped.float())

    def training_step(self, model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch. After a round has exceeded `target_kl`, it has no loss and no gradients."""
        if self._stopped:
            return torch.zeros((), device=self.accelerator.device)
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    # ------------------------------------------------------------------------------------------------- evaluation

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        self._roll_out(inputs["rows"], "eval")
        self._eval_batches += 1
        return None, None, None

    def _totals(self) -> dict[str, float]:
        return {
            **super()._totals(),
            "episode": float(self._over_processes(self._episodes)),
            "trainable_share": self.trainable_share,
        }

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _save_state(self, folder: Path) -> None:
        if self._decisions is not None and self.state.global_step % self.args.updates_per_round:
            self._decisions.save(self._file(folder, "safetensors"))
        state = {
            "stopped": self._stopped,
            "last_kl": self._last_kl.tolist(),
            "episodes": self._episodes,
        }
        write_text(self._file(folder, "json"), json.dumps(state))

    def _file(self, folder: Path, kind: str) -> Path:
        return folder / f"decisions_{self.accelerator.process_index}.{kind}"

    def _restore_state(self, folder: Path | None) -> None:
        self._decisions, self._stopped = None, False
        self._last_kl, self._episodes = torch.zeros(2), 0
        if folder is None:
            return
        if self._file(folder, "json").is_file():
            state = json.loads(self._file(folder, "json").read_text())
            self._stopped, self._last_kl = state["stopped"], torch.tensor(state["last_kl"])
            self._episodes = state["episodes"]
        if self._file(folder, "safetensors").is_file():
            device = "cpu" if self.args.offload_decisions else self.accelerator.device
            self._decisions = Decisions.load(self._file(folder, "safetensors")).to(device)


def _check_arguments(train_dataset: Any, reward_funcs: Any, peft_config: Any) -> None:
    if peft_config is not None:
        raise ValueError(
            "`peft_config` (`--use_peft`) is not supported: the language model is not trained, and all parameters of "
            "the proxy are. Remove it; for a language model with an adapter, pass that model."
        )
    if isinstance(train_dataset, IterableDataset):
        raise ValueError(
            "`train_dataset` is streamed, but the rows of a round are read once for each of its updates. Load it "
            "(`Dataset.from_list(list(stream.take(n)))`)."
        )
    if train_dataset is None:
        raise ValueError("`train_dataset` is required.")  # as TRL
    check_dataset(train_dataset, "train_dataset", streamed=False)
    if not reward_funcs:
        raise ValueError(
            f"`reward_funcs` is required {REWARD_FLAGS}: the proxy learns from their scores of completions."
        )


def _collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"row_index": torch.tensor([row["row_index"] for row in rows]), "rows": rows}


def _seeds(rows: list[dict[str, Any]], seed: int, step: int, k: int) -> list[int]:
    """One seed per completion, from the run's seed, the step and the row, whichever process has the row."""
    seen: Counter[int] = Counter()
    seeds = []
    for row in rows:
        number = int(row["row_index"])
        first = ((seed * 1_000_003 + step) * 1_000_003 + number) * 4_099 + seen[number] * k
        seeds += [(first + j) % 2**62 for j in range(k)]
        seen[number] += 1
    return seeds
