# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
One run of the suite `row_count`, in a process of its own.

    python -m benchmarks.memory.row_count_job WHAT COUNT FOLDER [--kill_after ROWS] [--most PROMPTS]

WHAT is `stream`, `round`, `sample` or `score`. The job writes what it found to `found.json` in the folder. With
`--kill_after` it kills itself (SIGKILL) as soon as so many rows are in its output; with `--most` a stream is not read
to its end.
"""

import argparse
import json
import os
import signal
import string
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from benchmarks.harness.round_clock import resident
from trl_ext.cli.main import main as trl_ext
from trl_ext.data.load import load_dataset
from trl_ext.methods.rrhf.config import RRHFConfig
from trl_ext.methods.rrhf.trainer import RRHFTrainer


WORDS = [a + b for a in "bdfghklmnprst" for b in "aeiou"]  # of prompts and of the model's vocabulary
STEP = 500  # prompts of a training step
PER_PROMPT = 4  # completions of `sample` and `score`
AT_ONCE = 512  # completions that the model generates at once; fewer in a rehearsal, so that there are eight batches
MIB = 1 << 20


def prompt(number: int) -> str:
    """Four words, in another order for each number below 17 million."""
    return " ".join(WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(4))


def reward(completions: list[str], **_: Any) -> list[float]:
    """How often the letter "a" occurs."""
    return [float(text.count("a")) for text in completions]


def write_rows(file: Path, count: int, **columns: Any) -> None:
    """
    Write a file of prompts, unless it is there.

    Args:
        file (`Path`): A .jsonl file.
        count (`int`): Number of rows.
        columns: Further columns, the same in all rows.
    """
    if not file.exists():
        with file.open("w", encoding="utf-8") as lines:
            for number in range(count):
                lines.write(json.dumps({"prompt": prompt(number)} | columns) + "\n")


def make_tokenizer() -> Any:
    """A tokenizer whose tokens are the words of the prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<pad>", "<eos>", "<unk>", *WORDS, *string.punctuation]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=64
    )


def make_model(vocab_size: int) -> Any:
    """A Llama of some thousand parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


class _Marks(TrainerCallback):
    """
    When the first step ended, and what the process occupied as the steps went on.

    Args:
        begin (`tuple[float, float]`): Wall and CPU time at which the rows were opened.
        every (`int`): Steps between two readings of the resident size.
    """

    def __init__(self, begin: tuple[float, float], every: int) -> None:
        self.begin, self.every = begin, every
        self.first: dict[str, float] = {}
        self.resident_mib: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.first:
            wall, cpu = self.begin
            self.first = {"first_step": time.perf_counter() - wall, "first_step_cpu": time.process_time() - cpu}
        if state.global_step % self.every == 0:
            self.resident_mib.append(resident("VmRSS") // MIB)
            print(f"{state.global_step * STEP} rows: {self.resident_mib[-1]} MiB", flush=True)


def stream(count: int, folder: Path, *, most: int = 0) -> dict[str, Any]:
    """
    Train RRHF on the prompts of a streamed file, once: two completions of one token are generated for each.

    Args:
        count (`int`): Number of prompts in the file.
        folder (`Path`): Where the file and the run are.
        most (`int`, *optional*, defaults to `0`): Number of prompts after which training ends. `0`: it reads all.
    """
    rows = folder / "rows.jsonl"
    write_rows(rows, count)
    begin = time.perf_counter(), time.process_time()
    size = min(STEP, count, most or count)
    steps = (min(count, most) if most else count) // size
    marks = _Marks(begin, max(1, steps // 20))
    settings = {"num_generations": 2, "max_completion_length": 1, "save_strategy": "no"}
    dataset = load_dataset(str(rows), split="train", streaming=True)
    trainer = make_trainer(folder, dataset, marks, max_steps=steps, per_device_train_batch_size=size, **settings)
    trainer.train()
    read = trainer.state.global_step * size
    return {**marks.first, "rows": count, "rows_read": read, "resident_mib": marks.resident_mib}


def round_of_all(count: int, folder: Path) -> dict[str, Any]:
    """
    Train RRHF on one round of completions of the whole dataset, for ten steps, with a checkpoint after five and ten.

    Args:
        count (`int`): Number of completions, of up to four tokens.
        folder (`Path`): Where the file and the run are.
    """
    rows = folder / "rows.jsonl"
    prompts = count // PER_PROMPT
    write_rows(rows, prompts)
    begin = time.perf_counter(), time.process_time()
    marks = _Marks(begin, 1)
    settings = {"num_generations": PER_PROMPT, "max_completion_length": 4, "save_steps": 5}
    size = max(1, min(STEP, prompts // 10)) // PER_PROMPT or 1
    dataset = load_dataset(str(rows), split="train")
    trainer = make_trainer(folder, dataset, marks, max_steps=10, per_device_train_batch_size=size, **settings)
    trainer.train()
    checkpoints = sorted((folder / "run").glob("checkpoint-*"))
    rollouts = [file.stat() for folder in checkpoints for file in folder.glob("rollouts_*.json")]
    stored = {status.st_ino: status.st_size for status in rollouts}  # a file with two names is there once
    return {
        **marks.first,
        "completions": count,
        "resident_mib": marks.resident_mib,
        "checkpoints": len(checkpoints),
        "rollouts_mib": sum(stored.values()) / MIB,
    }


def make_trainer(folder: Path, dataset: Any, marks: TrainerCallback, **settings: Any) -> RRHFTrainer:
    """A trainer of the small model on prompts of up to four words."""
    tokenizer = make_tokenizer()
    args = RRHFConfig(
        str(folder / "run"),
        max_length=16,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        logging_steps=max(1, settings["max_steps"] // 10),
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    return RRHFTrainer(
        model=make_model(len(tokenizer)),
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        reward_funcs=reward,
        callbacks=[marks],
    )


def sample(count: int, folder: Path, *, generate: bool, kill_after: int = 0) -> dict[str, Any]:
    """
    `trl-ext sample`: completions of up to four tokens for each prompt, with the scores of a Python function.

    Args:
        count (`int`): Number of completions.
        folder (`Path`): Where the files are.
        generate (`bool`): Whether a model generates them. Otherwise the dataset has them, and they are scored only.
        kill_after (`int`, *optional*, defaults to `0`): Number of rows in the output at which the process is killed.
            `0`: it is not.
    """
    rows, output = folder / "rows.jsonl", folder / "sampled.jsonl"
    words = ["sample", "--dataset_name", str(rows), "--output_file", str(output)]
    words += ["--reward_funcs", "benchmarks.memory.row_count_job:reward"]
    words += ["--generation_batch_size", str(max(PER_PROMPT, min(AT_ONCE, count // 8)))]
    if generate:
        write_rows(rows, count // PER_PROMPT)
        if not (folder / "model").exists():
            tokenizer = make_tokenizer()
            make_model(len(tokenizer)).save_pretrained(folder / "model")
            tokenizer.save_pretrained(folder / "model")
        words += ["--model_name_or_path", str(folder / "model"), "--max_completion_length", "4"]
        words += ["--num_generations", str(PER_PROMPT)]
    else:
        write_rows(rows, count // PER_PROMPT, completions=[" ba", " be bi", " bo bu da", " ba ba de di"])
        words += ["--dataset_completions", "true", "--num_generations", str(PER_PROMPT)]
    if kill_after:
        threading.Thread(target=_kill, args=(output, kill_after), daemon=True).start()
    status = trl_ext(words)
    if status:
        raise RuntimeError(f"trl-ext sample ended with status {status}.")
    state = json.loads(Path(f"{output}.state.json").read_text(encoding="utf-8"))
    with output.open(encoding="utf-8") as lines:
        prompts = {json.loads(line)["prompt"] for line in lines}
    return {"rows": state["rows"], "completions": state["totals"]["completions"], "prompts": len(prompts)}


def _kill(output: Path, rows: int) -> None:
    """Kill this process when the output has so many rows."""
    state = Path(f"{output}.state.json")
    while not state.exists() or json.loads(state.read_text(encoding="utf-8"))["rows"] < rows:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("stream", "round", "sample", "score"))
    parser.add_argument("count", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill_after", type=int, default=0)
    parser.add_argument("--most", type=int, default=0)
    options = parser.parse_args(words)
    if options.what == "stream":
        found = stream(options.count, options.folder, most=options.most)
    elif options.what == "round":
        found = round_of_all(options.count, options.folder)
    else:
        generate = options.what == "sample"
        found = sample(options.count, options.folder, generate=generate, kill_after=options.kill_after)
    found["peak_mib"] = resident("VmHWM") // MIB  # what a parent sees has its own size in it, from before `exec`
    (options.folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
