# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The work that `rrhf_step` measures: its cases, and a training step of one model in each of the forms compared.

Letters: B prompts, N = K * B completions.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.harness.batches import RAGGED, Batch, BatchCase, make_batch
from benchmarks.harness.models import build
from benchmarks.harness.suite import selected
from benchmarks.harness.timing import Variant
from benchmarks.harness.trainers import make_tokenizer, trainer_args
from trl_ext.logprobs.logprobs import LogProbs
from trl_ext.logprobs.shared_prefix import Layout, choose_form
from trl_ext.methods.rrhf.losses import best_completion, normalized_logps, ranking_loss, sft_loss
from trl_ext.models.properties import base_of
from trl_ext.upstream import add_fused_lm_head


PAD = 0
IGNORE = -100
# The variants. A ratio in a result is of an earlier one to a later one.
ORDER = (DPO, NAIVE, TRL_ROWS, OUR_ROWS, DENSE, CASCADE) = (
    "TRL's DPO",
    "naive",
    "rows, TRL's head",
    "rows, our head",
    "shared, dense mask",
    "shared, cascade",
)
FORMS = {OUR_ROWS: "separate", DENSE: "dense", CASCADE: "cascade"}


@dataclass(frozen=True)
class Case(BatchCase):
    """
    A model and a batch.

    Args:
        qlora (`bool`): nf4 with a LoRA adapter of rank 16 and gradient checkpointing, instead of full fine-tuning.
        optimizer (`bool`): Include the step of AdamW (the memory anchor).
        variants (`tuple[str, ...]`): Parts of the names of the variants that are measured; all by default.
        targets (`dict[str, float]`): Goals of the fastest form of shared rows: times faster than `"naive"` and
            `"rows"` (with TRL's head), times less `"memory"` above the weights than these, GiB `"reserved"` at most.
    """

    qlora: bool = False
    optimizer: bool = False
    variants: tuple[str, ...] = ()
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def tags(self) -> str:
        return ("-qlora" if self.qlora else "") + ("-optimizer" if self.optimizer else "")

    @property
    def exact(self) -> bool:
        """Whether everything is computed in float32."""
        return self.dtype == torch.float32 and not self.qlora


def _cpu_cases(model: str, prompts: int) -> list[Case]:
    return [
        Case(model, "cpu", 6, prompts, (128, 128), RAGGED),
        Case(model, "cpu", 6, 2, (512, 512), RAGGED),
        # The IMDB task: openings of 16 words, and 48 tokens, few of which end sooner.
        Case(model, "cpu", 4, 8, (16, 28), (48, 48)),
        # Sharing takes a third off the positions: from here on it has to pay.
        Case(model, "cpu", 4, 8, (40, 40), (48, 48)),
    ]


CASES = [
    *_cpu_cases("imdb-2m", 4),
    *_cpu_cases("imdb-7m", 2),
    Case("llama-1b", "cuda", 6, 8, (128, 128), RAGGED, targets={"naive": 2.0, "rows": 1.75, "memory": 3.0}),
    Case("llama-1b", "cuda", 6, 4, (512, 512), RAGGED, targets={"naive": 3.2, "rows": 2.6, "memory": 3.0}),
    Case("llama-8b", "cuda", 6, 8, (128, 128), RAGGED, qlora=True, targets={"rows": 1.85, "memory": 3.0}),
    Case("llama-8b", "cuda", 6, 4, (512, 512), RAGGED, qlora=True, targets={"rows": 2.8, "memory": 3.0}),
    # Eight long answers to a long prompt, where sharing saves most.
    Case("llama-1b", "cuda", 8, 2, (1024, 1024), RAGGED, targets={"rows": 3.4}),
    # The memory anchor: whether a step on one prompt fits a card of 12 GB.
    Case("llama-8b", "cuda", 6, 1, (256, 256), RAGGED, qlora=True, optimizer=True, targets={"reserved": 7.5}),
]


def separate_rows(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """Rows as TRL's trainers build them: prompt and completion, padded on the right, labels on the completion."""
    pairs = [(p, c) for p, group in zip(batch.prompts, batch.completions, strict=True) for c in group]
    rows = [torch.tensor(p + c) for p, c in pairs]
    labels = [torch.tensor([IGNORE] * len(p) + c) for p, c in pairs]
    masks = [torch.ones(len(row), dtype=torch.long) for row in rows]
    return {
        name: pad_sequence(values, batch_first=True, padding_value=value).to(device)
        for name, values, value in (("input_ids", rows, PAD), ("labels", labels, IGNORE), ("attention_mask", masks, 0))
    }


def rrhf_loss(sums_N: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The loss of the trainer with its default settings, from the completions' log-probabilities."""
    lengths_N = torch.tensor([len(c) for group in batch.completions for c in group], device=sums_N.device)
    group_N = torch.tensor([b for b, group in enumerate(batch.completions) for _ in group], device=sums_N.device)
    scores_N = torch.tensor(batch.scores, device=sums_N.device)
    count = len(batch.prompts)
    rank_B = ranking_loss(normalized_logps(sums_N, lengths_N), scores_N, group_N, count)
    return (rank_B + sft_loss(sums_N, lengths_N, best_completion(scores_N, group_N, count))).mean()


# ---------------------------------------------------------------------------------------------------------- variants


class Workload:
    """
    One model with one forward for each head that is compared, so that all variants use the same weights.

    Args:
        case ([`Case`]): The model and the sizes of batches.
        batches (`int`): How many batches to make.
        seed (`int`): Of weights and batches.
    """

    def __init__(self, case: Case, batches: int, seed: int) -> None:
        self.case, self.device = case, torch.device(case.device)
        self.model = build(
            case.model,
            device=self.device,
            dtype=case.dtype,
            four_bit=case.qlora,
            lora_rank=16 if case.qlora else 0,
            gradient_checkpointing=case.qlora,
            seed=seed,
        )
        self.base = base_of(self.model)
        self.batches = [make_batch(case, seed + i) for i in range(batches)]
        reference = None if case.qlora else copy.deepcopy(self.model)  # before any forward is replaced
        self.forwards: dict[str, Any] = {}
        self._keep_forward("trl", lambda: add_fused_lm_head(self.base, outputs=("log_probs",)))
        self._folder = tempfile.TemporaryDirectory()
        if case.completions % 2 == 0 and (not case.variants or any(part in DPO for part in case.variants)):
            self._keep_forward("dpo", lambda: self._make_dpo(reference))
        self._keep_forward("ours", self._make_log_probs)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        # A learning rate of 0: the work and the memory of a step, and the same weights for every variant.
        self.optimizer = torch.optim.AdamW(trained, lr=0.0) if case.optimizer else None
        self.positions: dict[str, int] = {}

    def _keep_forward(self, name: str, patch: Callable[[], None]) -> None:
        patch()
        self.forwards[name] = self.base.__dict__.pop("forward")

    def _make_log_probs(self) -> None:
        self.sdpa = self.base.config._attn_implementation
        rows, dense = (LogProbs(self.model, PAD, shared_prefix="never") for _ in range(2))
        dense.layout, dense.shared_prefix = Layout("dense", "compared"), "always"
        self.log_probs = {OUR_ROWS: rows, DENSE: dense}
        best = LogProbs(self.model, PAD, shared_prefix="always")  # may change the model's attention
        if best.layout.form == "cascade":
            self.log_probs[CASCADE] = best
        self.attention = {name: builder.attention for name, builder in self.log_probs.items()}

    def _make_dpo(self, reference: Any) -> None:
        """TRL's trainer around the same model; its dataset is a formality, batches come from here."""
        from datasets import Dataset, disable_progress_bars
        from trl import DPOConfig, DPOTrainer

        disable_progress_bars()
        settings = {"gradient_checkpointing": self.case.qlora, "max_length": None}
        args = trainer_args(DPOConfig, self._folder.name, self.device, **settings)
        self.dpo: Any = DPOTrainer(
            self.model,
            reference,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["a"], "chosen": [" b"], "rejected": [" c"]}),
            processing_class=make_tokenizer(),
        )
        self.dpo.current_gradient_accumulation_steps = 1  # train() would set it

    def variants(self) -> list[Variant]:
        """The forms that this device has. On CUDA our head is TRL's: separate rows with it are no variant."""
        sums: dict[str, tuple[str, Callable[[Batch], torch.Tensor]]] = {
            NAIVE: ("", self._naive_sums),
            TRL_ROWS: ("trl", self._trl_sums),
        }
        for name in (OUR_ROWS, DENSE, CASCADE):
            if name in self.log_probs and (name != OUR_ROWS or self.device.type == "cpu"):
                sums[name] = ("ours", partial(self._our_sums, name))
        variants = [
            Variant(name, partial(self._step, function), partial(self._prepare, name, head))
            for name, (head, function) in sums.items()
        ]
        if "dpo" in self.forwards:
            variants.insert(0, Variant(DPO, self._dpo_step, partial(self._prepare, DPO, "dpo")))
        return selected(variants, self.case.variants)

    def _prepare(self, name: str, head: str) -> None:
        self.base.__dict__.pop("forward", None)
        if head:
            self.base.forward = self.forwards[head]
        self.base.set_attn_implementation(self.attention.get(name, self.sdpa))
        self.model.zero_grad(set_to_none=True)

    def _step(self, sums: Callable[[Batch], torch.Tensor], i: int) -> float:
        loss = rrhf_loss(sums(self.batches[i]), self.batches[i])
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        return loss.item()

    def _dpo_step(self, i: int) -> float:
        """Collation, the policy's and the reference's forward, loss with its metrics, backward."""
        batch = self.batches[i]
        examples = [
            {"prompt_ids": p, "chosen_ids": group[j], "rejected_ids": group[j + 1]}
            for p, group in zip(batch.prompts, batch.completions, strict=True)
            for j in range(0, len(group), 2)
        ]
        inputs = self.dpo.data_collator(examples)
        self.positions[DPO] = inputs["input_ids"].numel()
        loss = self.dpo.training_step(self.model, inputs)
        if self.optimizer is not None:
            self.optimizer.step()
        return loss.item()

    def _naive_sums(self, batch: Batch) -> torch.Tensor:
        rows = separate_rows(batch, self.device)
        self.positions[NAIVE] = rows["input_ids"].numel()
        labels = rows.pop("labels")[:, 1:]
        logps = self.model(**rows, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        picked = logps.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return (picked * (labels != IGNORE)).sum(dim=1)

    def _trl_sums(self, batch: Batch) -> torch.Tensor:
        rows = separate_rows(batch, self.device)
        self.positions[TRL_ROWS] = rows["input_ids"].numel()
        return self.model(**rows, fused_lm_head=True).log_probs.sum(dim=1)

    def _our_sums(self, name: str, batch: Batch) -> torch.Tensor:
        builder = self.log_probs[name]
        tokens = builder(self.model, batch.prompts, batch.completions)
        if tokens.form != FORMS[name] or not builder.fused:
            raise RuntimeError(f"{name!r} fell back to {tokens.form!r} rows; nothing would be measured.")
        self.positions[name] = tokens.num_positions
        return tokens.sums()

    def chosen_form(self) -> str:
        """What `shared_prefix="auto"` would do with the first batch."""
        best, batch = self.log_probs.get(CASCADE, self.log_probs[DENSE]), self.batches[0]
        return choose_form(best.layout, batch.prompts, batch.completions, best.hidden_size)
