# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Peak memory of each method on one card: an 8B in 4 bits, and the settings that lower it.

    python -m benchmarks.run card_memory [--devices cuda] [--cases TEXT ...] [--output FOLDER]

Weights are random (nf4 with double quantisation; LoRA of rank 16 on all linear layers where the model is trained).
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars

from benchmarks.harness.batches import Batch, BatchCase, make_batch
from benchmarks.harness.models import SHAPES, build, lora_config
from benchmarks.harness.results import RESULTS, ResultFile, environment
from benchmarks.harness.suite import (
    Suite,
    add_case_flags,
    chosen,
    free_memory,
    not_measured,
    present_devices,
    report_failure,
)
from benchmarks.harness.tables import Column, Table, provenance, unique
from benchmarks.harness.trainers import make_tokenizer, trainer_args
from benchmarks.speed.rrhf_workload import PAD, rrhf_loss
from trl_ext.decoding.cuda_graph import cached_loops
from trl_ext.devices import limited_memory, peak_memory, reset_peak_memory, synchronize
from trl_ext.generation.generate import generate
from trl_ext.generation_settings import GenerationSettings
from trl_ext.logprobs.logprobs import LogProbs
from trl_ext.logprobs.shared_prefix import Layout
from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.decoding.batch import complete
from trl_ext.methods.proxy_rlhf.model import ProxyModel
from trl_ext.methods.psle.losses import weighted_sft_loss
from trl_ext.methods.vas.config import VASConfig
from trl_ext.methods.vas.decoding.logits_processor import ValueAugmentedLogitsProcessor
from trl_ext.methods.vas.trainer import VASTrainer
from trl_ext.methods.vas.value_model.model import ValueModel
from trl_ext.models.adapters import wrap_with_peft
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.properties import base_of


GIB = 2**30
# GiB that cards of so many GB leave beside the CUDA context and a screen.
CARDS = {8: 7.0, 12: 11.0, 16: 15.0, 24: 23.0}
TARGETS = {"RRHF step, 1 prompt × 6": 7.5}


@dataclass(frozen=True)
class Case:
    """
    Something that a method does, at one size.

    Args:
        method (`str`): Its method, in tables.
        what (`str`): What it does.
        kind (`str`): Function of [`Card`].
        batch (`int`): Prompts at once.
        switches (`dict`, *optional*): Settings that differ from the default.
        card (`int`, *optional*, defaults to `0`): GB of the card to which the memory is limited (`0`: all there is).
    """

    method: str
    what: str
    kind: str
    batch: int
    switches: dict[str, Any] = field(default_factory=dict)
    card: int = 0

    @property
    def name(self) -> str:
        changed = ", ".join(f"{name} {value}" for name, value in self.switches.items())
        on_card = f", {self.card} GB card" if self.card else ""
        return f"{self.method} {self.what}" + (f" ({changed})" if changed else "") + on_card

    @property
    def setting(self) -> str:
        """The switches, as tables show them."""
        return ", ".join(f"{name}: {str(value).lower()}" for name, value in self.switches.items()) or "default"


def cases() -> list[Case]:
    """In the order in which the model is built up: frozen, then with an adapter."""
    found = [
        *on_cards("VAS", "guided sampling, {n} row{s}, k = 20, 1B value", "guide", (1, 16, 64, 128)),
        *on_cards("VAS", "training the 1B value with LoRA, {n} prompt{s} × 6", "value", (1, 4, 16, 32)),
        *on_cards("Proxy-RLHF", "round of {n} rows, k = 20, and its update", "decide", (8, 32, 64, 128)),
        *(Case("VAS", f"guided sampling, {n} rows, k = 20, 1B value", "guide", n) for n in (1, 8, 16)),
        Case("VAS", "training the 1B value with LoRA, 4 prompts × 6", "value", 4),
        Case("VAS", "training the 1B value with LoRA, 4 prompts × 6", "value", 4, {"gradient_checkpointing": False}),
        Case("VAS", "training the 1B value with LoRA, 4 prompts × 6", "value", 4, {"shared_prefix": "never"}),
        *(Case("Proxy-RLHF", f"round of {n} rows, k = 20, and its update", "decide", n) for n in (1, 8, 32)),
        Case("Proxy-RLHF", "round of 32 rows, k = 20, and its update", "decide", 32, {"offload_decisions": True}),
        Case("Proxy-RLHF", "round of 32 rows, k = 20, and its update", "decide", 32, {"first_candidates": 20}),
        *on_cards("RRHF", "step, {n} prompt{s} × 6", "rank", (1, 8, 16, 32)),
        *on_cards("PSLE", "step, {n} prompts × 2", "imitate", (4, 16, 32, 64)),
        *(Case("PSLE", f"sampling for {n} prompts × 2", "sample", n) for n in (4, 16)),
        *(Case("PSLE", f"step, {n} prompts × 2", "imitate", n) for n in (1, 4, 8)),
        *(Case("RRHF", f"step, {n} prompt{'s' * (n > 1)} × 6", "rank", n) for n in (1, 4)),
    ]
    for switches in ({"shared_prefix": "never"}, {"gradient_checkpointing": False}, {"shared_prefix": "dense"}):
        found.append(Case("RRHF", "step, 4 prompts × 6", "rank", 4, switches))
    for completions, per_forward in ((16, 0), (8, 4), (16, 4), (32, 4)):
        parts = {"completions": completions, "completions_per_forward": per_forward}
        found.append(Case("RRHF", f"step, 1 prompt × {completions}", "rank", 1, parts))
    return found


def on_cards(method: str, what: str, kind: str, batches: Sequence[int]) -> list[Case]:
    """What a method does on each of [`CARDS`], with a batch that the counted tensors leave space for (card_count)."""
    sizes = zip(CARDS, batches, strict=True)
    return [Case(method, what.format(n=n, s="s" * (n > 1)), kind, n, card=gb) for gb, n in sizes]


class Card:
    """
    The models, and what is done with them.

    Args:
        policy, value (`str`): Two of [`~benchmarks.harness.models.SHAPES`].
        device (`torch.device`): The card.
        prompt, new (`int`): Tokens of a prompt, and of a completion.
        dtype (`torch.dtype`): Of what is not in 4 bits.
    """

    def __init__(
        self,
        policy: str,
        value: str,
        device: torch.device,
        *,
        prompt: int = 256,
        new: int = 128,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.names, self.device, self.prompt, self.new, self.dtype = (policy, value), device, prompt, new, dtype
        self.model = build(policy, device=device, dtype=dtype, four_bit=True).eval()
        self.vocabulary = SHAPES[policy].vocab_size
        self.model.generation_config.eos_token_id = None
        self.tokenizer = make_tokenizer(self.vocabulary - 1)
        self.trained: Any = None
        self._folder = tempfile.TemporaryDirectory()
        disable_progress_bars()

    def release(self) -> None:
        """Free what the model keeps for the next generation: static KV caches and graphs of the last one."""
        for model in (self.model, self.trained):
            if model is not None:
                cached_loops(base_of(model)).clear()
        free_memory(self.device)

    def prompts(self, count: int, length: int = 0) -> list[list[int]]:
        """Random ids."""
        generator = torch.Generator().manual_seed(0)
        shape = (count, length or self.prompt)
        return torch.randint(5, self.vocabulary - 1, shape, generator=generator).tolist()

    def sizes(self, completions: int, prompts: int) -> Batch:
        """A batch of scored completions between half and one and a half times as long as a completion is."""
        lengths = (self.new // 2, self.new + self.new // 2)
        model = self.names[0]
        return make_batch(BatchCase(model, self.device.type, completions, prompts, (self.prompt,) * 2, lengths), 0)

    # ----------------------------------------------------------------------------------------------- frozen model

    def guide(self, batch: int) -> Callable[[], Any]:
        """The last 16 of a completion's tokens, after all that come before them."""
        value = ValueModel.from_backbone(build(self.names[1], device=self.device, dtype=self.dtype)).eval()
        value.head.weight.data.normal_()
        ids = torch.tensor(self.prompts(batch, self.prompt + self.new - 16), device=self.device)

        def step() -> None:
            processor = ValueAugmentedLogitsProcessor(value, 3.0, min(20, self.vocabulary))
            mask = torch.ones_like(ids)
            self.model.generate(
                ids, attention_mask=mask, max_new_tokens=16, do_sample=True, logits_processor=[processor]
            )

        return step

    def value(self, batch: int, *, gradient_checkpointing: bool = True, **switches: Any) -> Callable[[], Any]:
        """A training step of a value model with an adapter, AdamW included."""
        settings = {"num_epochs_per_batch": 1, "bf16": self.dtype == torch.bfloat16, **switches}
        settings["gradient_checkpointing"] = gradient_checkpointing
        trainer = VASTrainer(
            "a policy that is never loaded",
            args=trainer_args(VASConfig, self._folder.name, self.device, **settings),
            train_dataset=Dataset.from_dict({"prompt": ["a"], "completions": [[" b"]], "scores": [[1.0]]}),
            processing_class=self.tokenizer,
            value_model=build(self.names[1], device=self.device, dtype=self.dtype),
            peft_config=lora_config(16),
        )
        trainer.current_gradient_accumulation_steps = 1  # train() would set it, and begin what follows
        if gradient_checkpointing:
            trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        trainer.create_optimizer()
        sized = self.sizes(6, batch)
        rows = [
            {"row_index": b, "prompt_ids": p, "completion_ids": group, "token_rewards": [[[1.0]]] * len(group)}
            for b, (p, group) in enumerate(zip(sized.prompts, sized.completions, strict=True))
        ]

        def step() -> None:
            trainer.training_step(trainer.model, trainer.data_collator(rows))
            trainer.optimizer.step()
            trainer.model.zero_grad()

        return step

    def decide(self, batch: int, *, offload_decisions: bool = False, first_candidates: int = 0) -> Callable[[], Any]:
        """The last 16 tokens of each row, their decisions, and an update on as many as a round has."""
        llm = BackboneAndHead(self.model)
        proxy = ProxyModel.for_model(self.model, DecisionProcess(), initial_accept_rate=0.5)
        optimizer = torch.optim.AdamW(proxy.parameters(), lr=0.0)
        prompts = self.prompts(batch, self.prompt + self.new - 16)

        def step() -> None:
            answers = complete(
                llm, proxy, DecisionProcess(), prompts, seeds=list(range(batch)), max_new_tokens=16, batch_size=batch,
                record=True, first_candidates=first_candidates, store="cpu" if offload_decisions else None,
            )  # fmt: skip
            assert answers.decisions is not None
            features = answers.decisions.features
            round_ = features.repeat(self.new // 16, 1)  # what a round keeps
            minibatch = round_[: len(round_) // 4].to(self.device)
            output = proxy.train()(minibatch)
            (output.logits.square().mean() + output.values.square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            proxy.eval()

        return step

    # ------------------------------------------------------------------------------------------ with an adapter

    def adapted(self, gradient_checkpointing: bool = True) -> Any:
        """The model with an adapter in bfloat16, made once."""
        if self.trained is None:
            self.trained = wrap_with_peft(self.model, lora_config(16))
            for parameter in self.trained.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(self.dtype)
            self.trained.enable_input_require_grads()
            trained = [p for p in self.trained.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=0.0)
            self.log_probs = LogProbs(self.trained, PAD, shared_prefix="auto")
            self.layout = self.log_probs.layout
        if gradient_checkpointing:
            self.trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.trained.gradient_checkpointing_disable()
        return self.trained.train()

    def sample(self, batch: int) -> Callable[[], Any]:
        """Plain and guided completions: twice as many prompts."""
        model = self.adapted().eval()
        prompts = self.prompts(2 * batch, self.prompt + self.new - 16)
        settings = GenerationSettings(num_generations=1, max_completion_length=16)
        return lambda: generate(model, self.tokenizer, prompts, settings, batch_size=len(prompts))

    def imitate(self, batch: int) -> Callable[[], Any]:
        """A step of weighted SFT on two completions of a prompt; ranking reads the same log-probabilities."""
        return self._step(self.sizes(2, batch), {}, lambda tokens, sized: _imitation(tokens))

    def rank(self, batch: int, *, completions: int = 6, **switches: Any) -> Callable[[], Any]:
        """A step of RRHF on the completions of a prompt."""
        sized = self.sizes(completions, batch)
        return self._step(sized, switches, lambda tokens, sized: rrhf_loss(tokens.sums(), sized))

    def _step(self, sized: Any, switches: dict[str, Any], loss: Callable[[Any, Any], torch.Tensor]) -> Any:
        model = self.adapted(switches.get("gradient_checkpointing", True))
        log_probs, shared = self.log_probs, switches.get("shared_prefix", "auto")
        plain = shared in ("never", "dense")
        log_probs.layout = Layout("dense", "compared") if shared == "dense" else self.layout
        log_probs.shared_prefix = "always" if shared == "dense" else shared
        log_probs.completions_per_forward = switches.get("completions_per_forward", 0)
        base_of(model).set_attn_implementation("sdpa" if plain else log_probs.attention)

        def step() -> None:
            tokens = log_probs(model, sized.prompts, sized.completions)
            total = loss(tokens, sized)
            for share in [total] if tokens.parts is None else tokens.parts.shares(total):
                share.backward()
            self.optimizer.step()
            model.zero_grad()

        return step


def _imitation(tokens: Any) -> torch.Tensor:
    means = tokens.sums() / tokens.lengths().to(tokens.sums().device)
    plain, guided = means[0::2], means[1::2]
    return weighted_sft_loss(plain, guided, torch.full_like(plain, 0.5)).mean()


def measure(card: Card, case: Case) -> dict[str, Any]:
    """
    Peaks in bytes and seconds of the second of two steps: the first makes optimizer states and chooses kernels.

    With the memory of a card, running out of it is the result: `fits` is false, and the peaks are those until then.
    """
    found: dict[str, Any] = {"static": 0, "allocated": 0, "reserved": 0, "seconds": 0.0}
    with limited_memory(card.device, int(CARDS.get(case.card, 0) * GIB)):
        if card.device.type == "cuda":
            reset_peak_memory(card.device)  # of what came before, such as the weights before they had 4 bits
        try:
            found |= _second_step(card, case)
        except torch.OutOfMemoryError:
            if not case.card:
                raise
            found |= {"fits": False, **peaks(card.device)}
        else:
            found |= {"fits": True} if case.card else {}
    return {"name": case.name, "seed": 0, "settings": asdict(case), "metrics": found, "cost": {}}


def _second_step(card: Card, case: Case) -> dict[str, Any]:
    step = getattr(card, case.kind)(case.batch, **case.switches)
    step()
    synchronize(card.device)
    gc.collect()
    static = reset_peak_memory(card.device) if card.device.type == "cuda" else 0
    started = time.perf_counter()
    step()
    synchronize(card.device)
    return {"static": static, "seconds": round(time.perf_counter() - started, 3), **peaks(card.device)}


def peaks(device: torch.device) -> dict[str, int]:
    """The largest memory of a GPU; on a CPU it is another thing, and 0 here."""
    return peak_memory(device) if device.type == "cuda" else {"allocated": 0, "reserved": 0}


def measured(card: Card, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """The cases that could be measured; the others are named with their error."""
    for case in cases:
        try:
            found = measure(card, case)
        except Exception as error:  # the others' figures are worth having
            report_failure(case.name, error)
        else:
            gib = {key: f"{found['metrics'][key] / GIB:.2f}" for key in ("static", "allocated", "reserved")}
            print(f"{case.name}: {gib}, {found['metrics']['seconds']} s", file=sys.stderr, flush=True)
            yield found
        card.release()


_WHAT = Column("what", lambda case, _: case.what, of_case=True)


def _table(columns: Sequence[Column]) -> Table:
    """A table of cases, each with its method and setting."""
    described = [_WHAT, Column("setting", lambda case, _: case.setting, of_case=True)]
    return Table("method", lambda case: case.method, [*described, *columns])


def _table_of_cards() -> Table:
    """A table of cases on cards of some sizes."""
    columns = [
        _WHAT,
        Column("card", lambda case, _: f"{case.card} GB", of_case=True),
        Column("", lambda case, found: "fits" if found["metrics"]["fits"] else "does not fit"),
        Column("peak reserved, GiB", lambda case, found: _gib(found, "reserved")),
        Column("peak allocated", lambda case, found: _gib(found, "allocated")),
        Column("s", lambda case, found: f"{found['metrics']['seconds']:.2g}" if found["metrics"]["fits"] else "-"),
    ]
    heading = "With the memory limited to what a card leaves"
    return Table("method", lambda case: case.method, columns, heading, measured_only=True)


class CardSuite(Suite):
    """
    A suite about the memory of a card, by the cases of this module.

    Attributes:
        devices (`tuple[str, ...]`): Where it can run; by default on the last one.
        columns (`tuple[Column, ...]`): Of its table.
    """

    name = "card_memory"
    what = "Peak memory of each method on one card: an 8B in 4 bits, and the settings that lower it."
    devices: tuple[str, ...] = ("cpu", "cuda")
    columns: tuple[Column, ...] = (
        Column("peak reserved, GiB", lambda case, found: f"**{_gib(found, 'reserved')}**", lambda case, _: goal(case)),
        Column("peak allocated", lambda case, found: _gib(found, "allocated")),
        Column("before the step", lambda case, found: _gib(found, "static")),
        Column("s", lambda case, found: f"{found['metrics']['seconds']:.2g}"),
        Column("smallest card", lambda case, found: smallest_card(found["metrics"]["reserved"])),
    )

    def cases(self) -> list[Case]:
        return cases()

    def counted(self, options: argparse.Namespace, device: torch.device, some: list[Case]) -> Iterator[dict[str, Any]]:
        """The cases that could be measured on a device, as soon as each is done."""
        small: Any = {} if device.type == "cuda" else {"prompt": 32, "new": 16, "dtype": torch.float32}
        return measured(Card(options.policy, options.value, device, **small), some)

    def measures(self) -> set[Any]:
        return {measure, Card, Case}

    def main(self, argv: Sequence[str] | None = None) -> int:
        parser = self.parser()
        add_case_flags(parser, self.devices, default=self.devices[-1:])
        parser.add_argument("--policy", default="llama-8b", choices=SHAPES)
        parser.add_argument("--value", default="llama-1b", choices=SHAPES)
        for name in ("rounds", "batches", "seed"):  # of the other suites of the group; there is nothing to repeat here
            parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
        options = parser.parse_args(argv)
        some = chosen(self.cases(), options)
        if not some:
            parser.error(f"--cases: no case has {' or '.join(options.cases)} in its name.")
        if options.rehearse:
            options.policy = options.value = "tiny"
            some = [replace(case, batch=min(2, case.batch)) for case in some]
        done = True
        for device in present_devices(options):
            done &= self.run(not_measured(self.name, some, options), device, options)
        return int(not done)

    def run(self, some: list[Case], device: torch.device, options: argparse.Namespace) -> bool:
        """Measure cases; the result file is written again after each."""
        if not some:
            return True
        settings = {"seeds": [0], "policy": options.policy, "value": options.value, "cards": CARDS}
        result = {"settings": settings, "environment": environment(device, self.measures()), "label": options.label}
        file, found = ResultFile(self.name, device, options.output), []
        for case in self.counted(options, device, some):
            found.append(case)
            file.write(result | {"cases": found})
        if found:
            print("wrote", file.path)
        return len(found) == len(some)

    def shown(self, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results that count: on a CPU, memory is another thing."""
        return [result for result in results if result["environment"]["hardware"]["gpu"]]

    def pages(self, results: Sequence[dict[str, Any]]) -> dict[Path, str]:
        return {RESULTS / "memory.md": self.report(results)}

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        """The newest measurement of each case."""
        found = {case["name"]: (result, case) for result in self.shown(results) for case in result["cases"]}
        cases = sorted(self.cases(), key=lambda case: case.method)
        rows, limited = (
            [(case, *found.get(case.name, (None, None))) for case in cases if bool(case.card) == on_card]
            for on_card in (False, True)
        )
        if not found:
            goals = [f"{name} ≤ {value:g} GiB" for name, value in TARGETS.items()]
            return f"Not measured yet: {len(cases)} settings. Goal: {', '.join(goals)} reserved at the peak."
        used = unique(result for _, result, _ in [*rows, *limited] if result)
        lines = [*_table(self.columns).lines(rows)]
        if more := _table_of_cards().lines(limited):
            lines += ["", *more]
        return "\n".join([*lines, *(f"\n{_provenance(result)}" for result in used)])


def smallest_card(reserved: int) -> str:
    """The smallest of [`CARDS`] that leaves so many bytes."""
    return next((f"{gb} GB" for gb, gib in CARDS.items() if reserved / GIB <= gib), "larger than 24 GB")


def goal(case: Case) -> str:
    """What a case is to reserve at most, in GiB."""
    return f"≤ {TARGETS[case.name]:g}" if case.name in TARGETS else ""


def _gib(found: dict[str, Any], key: str) -> str:
    return f"{found['metrics'][key] / GIB:.2f}"


def _provenance(result: dict[str, Any]) -> str:
    models = f"; {result['settings']['policy']} in nf4, value model {result['settings']['value']}"
    return provenance(result, models, on_cpu="counted on a CPU")


SUITE = CardSuite()
