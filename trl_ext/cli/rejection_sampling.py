# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext rejection_sampling`: sample completions, keep the best of each prompt, fine-tune on them; in rounds.

    trl-ext rejection_sampling --model_name_or_path M --dataset_name prompts.jsonl --reward_funcs R \\
        --num_generations 8 --num_rounds 3 --output_dir rejection-sampling

This is RAFT (arXiv 2304.06767) with `keep best`, and ReST (arXiv 2308.08998) with `keep threshold`. Each round samples
with the model of the round before, as `trl-ext sample` does, and fine-tunes that model with TRL's `SFTTrainer`.

A round has a folder `round_<n>` with `sampled.jsonl` (all completions with their scores), `kept.jsonl` (what was
trained on) and `model` (the model, or its adapter). `rounds.json` lists the rounds that are done. The same command
resumes an interrupted run: sampling after its last batch, training from its last checkpoint; a round that is done is
not repeated.
"""

import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import ModelConfig, SFTConfig

from trl_ext.atomic_files import write_text
from trl_ext.data.exports import KEPT, ExportSettings, describe_export, export_rows
from trl_ext.devices import accelerator_count, empty_cache
from trl_ext.generation_settings import setting
from trl_ext.rewards.aggregation import AGGREGATION, SUM, check_aggregation
from trl_ext.rewards.kept_scores import sources_of
from trl_ext.rewards.scoring import check_reward_weights
from trl_ext.rewards.settings import RewardSettings
from trl_ext.settings_file import plain
from trl_ext.training.checkpoints import last_checkpoint
from trl_ext.validation import check_at_least

from . import sample
from .arguments import PromptArguments, RewardArguments
from .parser import Parser


# Settings that change no result, and the number of rounds, which may grow.
_CHANGEABLE = (
    *("num_rounds", "output_dir", "reward_batch_size", "reward_server_kwargs"),
    *("disable_tqdm", "report_to", "run_name"),
)
_CHANGEABLE_BEGINNINGS = ("logging_", "save_", "dataloader_", "log_", "hub_", "env")
_COLUMNS = ("prompt", "completion", "chat_template_kwargs")  # that TRL's SFTTrainer reads


@dataclass
class RejectionSamplingArguments(PromptArguments, RewardArguments, RewardSettings):
    """
    What is sampled in each round, and which of it is trained on.

    Parameters:
        multi_objective_aggregation (`str`, *optional*, defaults to `"sum_then_normalize"`):
            How several rewards become the score by which completions are kept: `"sum_then_normalize"`, their weighted
            sum; `"normalize_then_sum"`, each normalised over the completions of its prompt first (GDPO).
        num_rounds (`int`, *optional*, defaults to `3`):
            Rounds of sampling and fine-tuning. Ours.
        keep (`str`, *optional*, defaults to `"best"`):
            What is trained on of a prompt: its `"best"` completions, those above `score_threshold` (`"threshold"`), or
            `"random"` ones, the control: it shows what training on own samples does without the selection.
        keep_per_prompt (`int`, *optional*, defaults to `0`):
            Most completions of a prompt that are trained on. `0`: one, or all with `"threshold"`.
        score_threshold (`float` or `str`, *optional*):
            A number, or `"mean"` or `"median"` of the prompt's scores.
        ended_only (`bool`, *optional*, defaults to `False`):
            Whether completions that were cut off are left out. TRL's trainer ends them with an end-of-sequence token.
    """

    dataset_train_split: str = field(default="train", metadata={"help": "Split that the prompts are taken from."})
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Weights of the rewards in the score, --reward_model_name_or_path first. All 1 by default."},
    )
    multi_objective_aggregation: str = field(default=SUM, metadata=AGGREGATION)
    num_rounds: int = field(default=3, metadata={"help": "Rounds of sampling and fine-tuning."})
    keep: str = field(
        default="best",
        metadata={
            "help": "What is trained on of a prompt: its best completions, those above score_threshold, or random "
            "ones, as a control.",
            "choices": list(KEPT),
        },
    )
    keep_per_prompt: int = field(
        default=0,
        metadata={"help": "Most completions of a prompt to train on. 0: one, and with `keep threshold` all."},
    )
    score_threshold: float | str | None = field(
        default=None,
        metadata={"help": "For `keep threshold`: a number, or `mean` or `median` of the prompt's scores."},
    )
    ended_only: bool = field(
        default=False, metadata={"help": "Whether to leave out completions that were cut off at their maximum length."}
    )
    num_generations: int = field(default=8, metadata={"help": "Completions per prompt that are sampled in a round."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest completion, in tokens."})
    temperature: float = setting("temperature")
    top_k: int = setting("top_k")
    top_p: float = setting("top_p")
    min_p: float = setting("min_p")
    repetition_penalty: float = setting("repetition_penalty")
    cuda_graphs: str = setting("cuda_graphs")
    generation_batch_size: int = field(default=128, metadata={"help": "Sequences that are generated at once."})

    def __post_init__(self) -> None:
        for name, least in (("num_rounds", 1), ("num_generations", 1), ("max_num_prompts", 0)):
            check_at_least(name, getattr(self, name), least)
        check_reward_weights(self.reward_weights, self.rewards)
        check_aggregation(self.multi_objective_aggregation, self.rewards)
        self.check_prompts()
        self.check_reward_settings()
        self.export(0)

    def export(self, seed: int) -> ExportSettings:
        """
        Which completions are kept, with the seed of random ones.

        Raises:
            `ValueError`: The settings contradict each other.
        """
        names = ("keep", "keep_per_prompt", "score_threshold", "ended_only")
        found = ExportSettings("sft", seed=seed, **{name: getattr(self, name) for name in names})
        found.check_export()
        if found.keep_per_prompt > self.num_generations:
            raise ValueError(
                f"`keep_per_prompt` is {self.keep_per_prompt}, and a prompt has only `num_generations: "
                f"{self.num_generations}` completions."
            )
        return found


@dataclass
class FineTuningConfig(SFTConfig):
    """TRL's settings of SFT for each round. Without an accelerator, `use_cpu` is set and `bf16` is off by default."""

    def __post_init__(self) -> None:
        if not accelerator_count():
            self.use_cpu = True
            self.bf16 = bool(self.bf16)  # type: ignore[has-type]
        super().__post_init__()
        if accelerator_count() > 1 and not self.use_cpu:
            raise ValueError(
                "Several GPUs are visible, and the command runs on one: make one visible with CUDA_VISIBLE_DEVICES."
            )
        if str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no":
            raise ValueError("`eval_strategy`: a round has no evaluation. Measure its model with `trl-ext evaluate`.")
        if self.resume_from_checkpoint:
            raise ValueError("`resume_from_checkpoint`: the same command resumes an interrupted run; remove it.")
        if self.push_to_hub:
            raise ValueError(
                "`push_to_hub`: a run has a model for each round. Remove it, and upload one with `hf upload`."
            )


class Rounds:
    """
    The rounds of a run that are done, in a file.

    Args:
        folder (`pathlib.Path`): Folder of the run.
        settings (`dict[str, Any]`): What the results depend on, serializable as JSON.

    Raises:
        `ValueError`: The run in this folder was started with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.file, self.settings = folder / "rounds.json", json.loads(json.dumps(settings))
        self.done: list[dict[str, Any]] = []
        # Before, there are only samples, of whose settings their own file keeps a note.
        if (folder / "round_1" / "kept.jsonl").is_file():
            self._resume(folder)
        self._save()

    def _resume(self, folder: Path) -> None:
        found = json.loads(self.file.read_text(encoding="utf-8"))
        then, now = found["settings"], self.settings
        changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if changed:
            texts = [f"{name} was {then.get(name)!r} and is {now.get(name)!r}" for name in changed]
            raise ValueError(
                f"{folder} has a run with other settings: {'; '.join(texts)}. To resume it, set them as they were; or "
                "choose another output_dir."
            )
        self.done = found["rounds"]

    def add(self, found: dict[str, Any]) -> None:
        """Write that a round is done."""
        self.done.append(found)
        self._save()

    def _save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps({"settings": self.settings, "rounds": self.done}, indent=2))


def run(
    args: RejectionSamplingArguments,
    tuning: FineTuningConfig,
    model_args: ModelConfig,
    given: dict[str, Any],
    words: Sequence[str] = (),
) -> int:
    """
    Run the rounds that are not done.

    Args:
        args ([`RejectionSamplingArguments`]), tuning ([`FineTuningConfig`]), model_args ([`~trl.ModelConfig`]): The
            settings.
        given (`dict[str, Any]`): Those that the user gave, by which a run is recognised.
        words (`Sequence[str]`): The flags of the command, for messages.

    Returns:
        `int`: 0; 130 after Ctrl-C while sampling.
    """
    folder = Path(tuning.output_dir)
    kept = {n: plain(v) for n, v in given.items() if n not in _CHANGEABLE and not n.startswith(_CHANGEABLE_BEGINNINGS)}
    rounds = Rounds(folder, kept | sources_of(args.rewards))
    if len(rounds.done) >= args.num_rounds:
        print(f"{folder}: all {len(rounds.done)} rounds are done; a higher num_rounds adds more.")
    for number in range(len(rounds.done) + 1, args.num_rounds + 1):
        own = folder / f"round_{number}"
        before = str(folder / f"round_{number - 1}" / "model") if number > 1 else str(model_args.model_name_or_path)
        status = _sample(args, tuning, model_args, before, own, number, words)
        if status:
            return status
        gc.collect()  # the sampling model
        empty_cache()
        found = _select(args, own, tuning.seed + number)
        _fine_tune(tuning, model_args, before, own, number)
        rounds.add({"round": number} | found)
        print(
            f"round {number}: score of {found['sampled']} completions {found['score_sampled']:.3f}, of the "
            f"{found['kept']} that were kept {found['score_kept']:.3f}; {own / 'model'}"
        )
    return 0


def _sample(
    args: RejectionSamplingArguments,
    tuning: FineTuningConfig,
    model_args: ModelConfig,
    model: str,
    folder: Path,
    number: int,
    words: Sequence[str],
) -> int:
    """Sample and score the completions of a round with the model of the one before, by `trl-ext sample`."""
    shared = {each.name for each in fields(sample.SampleArguments)} & {each.name for each in fields(args)}
    shared -= {"keep", "keep_per_prompt", "score_threshold", "ended_only"}  # all completions are written
    sampling = sample.SampleArguments(
        model_name_or_path=[model],
        output_file=str(folder / "sampled.jsonl"),
        seed=tuning.seed + number,
        **{name: getattr(args, name) for name in shared},
    )
    # In the precision that training computes in.
    dtype = "bfloat16" if tuning.bf16 else "float16" if tuning.fp16 else model_args.dtype
    quantized = model_args.load_in_4bit or model_args.load_in_8bit
    loading = sample.SampleLoadingArguments(
        model_revision=model_args.model_revision if number == 1 else "main",
        dtype="auto" if quantized else dtype,
        attn_implementation=model_args.attn_implementation,
        trust_remote_code=tuning.trust_remote_code,
        load_in_4bit=model_args.load_in_4bit,
        load_in_8bit=model_args.load_in_8bit,
        bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
        chat_template_path=tuning.chat_template_path,
        eos_token=tuning.eos_token,
    )
    return sample.run(sampling, loading, prog="trl-ext rejection_sampling", words=words)


def _select(args: RejectionSamplingArguments, folder: Path, seed: int) -> dict[str, Any]:
    """Write the completions of a round that are trained on, and return the counts and mean scores."""
    rows = [json.loads(line) for line in (folder / "sampled.jsonl").read_text(encoding="utf-8").split("\n") if line]
    kept, counts = export_rows(rows, args.export(seed))
    if told := describe_export(counts):
        print(f"{folder / 'kept.jsonl'}: {told}")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    write_text(folder / "kept.jsonl", text)
    scores = [score for row in rows for score in row["scores"]]
    return {
        "sampled": len(scores),
        "score_sampled": sum(scores) / len(scores),
        "kept": len(kept),
        "score_kept": sum(row["score"] for row in kept) / len(kept),
    }


def _fine_tune(tuning: FineTuningConfig, model_args: ModelConfig, model: str, folder: Path, number: int) -> None:
    """Fine-tune the model of the round before on what was kept, from the last checkpoint if there is one."""
    from copy import copy

    from trl import SFTTrainer

    from trl_ext.models.adapters import peft_config_from, wrap_with_peft
    from trl_ext.models.load import load_model, quantization_config_from

    from .train import add_model_init_kwargs

    own = copy(tuning)
    own.output_dir, own.seed = str(folder / "model"), tuning.seed + number
    add_model_init_kwargs(own, model_args)
    kwargs: dict[str, Any] = dict(own.model_init_kwargs or {})  # type: ignore[arg-type]
    if number > 1:
        kwargs.pop("revision", None)
    own.model_init_kwargs = None  # the trainer gets a model
    loaded = load_model(
        model,
        is_trainable=True,
        quantization_config=quantization_config_from(model_args),
        trust_remote_code=own.trust_remote_code,
        **kwargs,
    )
    loaded = wrap_with_peft(loaded, peft_config_from(model_args) if number == 1 else None)
    trainer = SFTTrainer(loaded, args=own, train_dataset=_kept_rows(folder), processing_class=_tokenizer(model, own))
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(own.output_dir))
    except BaseException:
        print(f"\nround {number}: training stopped. The same command resumes it.", file=sys.stderr)
        raise
    trainer.save_model(own.output_dir)
    del trainer, loaded
    gc.collect()
    empty_cache()


def _kept_rows(folder: Path) -> Dataset:
    """The rows of a round for TRL's trainer."""
    lines = (folder / "kept.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    return Dataset.from_list([{name: row[name] for name in _COLUMNS if row.get(name) is not None} for row in rows])


def _tokenizer(model: str, tuning: FineTuningConfig) -> Any:
    """The tokenizer of a model, with a padding token of its own if it has none."""
    from trl_ext.models.tokenizers import ensure_pad_token, load_tokenizer

    tokenizer = load_tokenizer(model, trust_remote_code=tuning.trust_remote_code)
    ensure_pad_token(tokenizer)
    return tokenizer


def make_parser(prog: str = "trl-ext rejection_sampling") -> Parser:
    """The parser of the command's flags and YAML file."""
    parser = Parser(
        [RejectionSamplingArguments, FineTuningConfig, ModelConfig],
        prog=prog,
        description="Rejection sampling: in rounds, sample completions, keep the best of each prompt, and fine-tune "
        "the model on them with TRL's SFTTrainer.",
        epilog="The fine-tuning has the settings of `trl sft`, for each round: num_train_epochs are those of a round.",
    )
    parser.explain("lora_target_modules", "Names of the modules that LoRA adapts. By default all linear layers.")
    return parser


def main(argv: list[str]) -> int:
    """
    `trl-ext rejection_sampling`.

    Returns:
        `int`: See [`run`].

    Raises:
        `ValueError`, `OSError` or `ImportError`: Settings, data or models that cannot work.
    """
    parser = make_parser()
    flags = parser.parse_flags(argv)
    parser.check_files(flags)
    args, tuning, model_args = parser.build(flags)
    return run(args, tuning, model_args, parser.named_settings(flags), argv)
