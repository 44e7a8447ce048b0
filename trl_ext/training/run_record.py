# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What a checkpoint records of its run, and whether another run can continue it exactly.

transformers skips as many batches as the checkpoint has seen. With another number of rows in a step, or other rows,
these are not the batches that were trained on; and what a trainer stores for each process (completions, targets) fits
only the same processes and micro-batches.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from datasets import Dataset

import trl_ext
from trl_ext.atomic_files import write_text


FILE = "trl_ext_run.json"

# Increase it whenever an older checkpoint would be continued differently: files of the trainers, order of rows, seeds.
FORMAT = 2

_SAMPLED_ROWS = 64  # that stand for the dataset
_LAYOUT = {
    "per_device_train_batch_size": "`per_device_train_batch_size`",
    "gradient_accumulation_steps": "`gradient_accumulation_steps`",
    "num_processes": "the number of processes",
}
_ORDER = ("seed", "data_seed", "train_sampling_strategy", "dataloader_drop_last")


@dataclass(frozen=True)
class RunRecord:
    """
    Everything that the batches of a run depend on.

    Args:
        version (`str`): Version of trl-ext.
        format (`int`): Version of its checkpoints.
        method (`str`): Name of the method.
        per_device_train_batch_size (`int`): Rows of a micro-batch.
        gradient_accumulation_steps (`int`): Micro-batches of a step and process.
        num_processes (`int`): Number of processes.
        seed (`int`), data_seed (`int`, *optional*): Seeds of the run and of the order of rows.
        train_sampling_strategy (`str`), dataloader_drop_last (`bool`): What else the order depends on.
        repeats (`int`): Consecutive optimizer steps on the same rows.
        rows (`str`): Number of rows, and a hash of some of them; empty for a stream.
    """

    version: str
    format: int
    method: str
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_processes: int
    seed: int
    data_seed: int | None
    train_sampling_strategy: str
    dataloader_drop_last: bool
    repeats: int
    rows: str

    @classmethod
    def of(cls, trainer: Any) -> "RunRecord":
        """The record of a trainer's run."""
        args = trainer.args
        return cls(
            version=trl_ext.__version__,
            format=FORMAT,
            method=trainer._name,
            per_device_train_batch_size=args.train_batch_size,
            num_processes=args.world_size,
            repeats=trainer._repeats(),
            rows=rows_digest(trainer.train_dataset),
            **{name: getattr(args, name) for name in (*_ORDER, "gradient_accumulation_steps")},
        )

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_processes

    def save(self, folder: Path) -> None:
        """Write the record into a checkpoint."""
        write_text(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")


def check_continues(folder: Path, run: RunRecord, *, exact_layout: bool, finds_batch_size: bool = False) -> None:
    """
    Check that a run continues the one that wrote a checkpoint.

    Args:
        folder (`Path`): The checkpoint.
        run ([`RunRecord`]): The run that is to continue.
        exact_layout (`bool`): Whether the trainer stores something for each micro-batch or process. Otherwise the
            number of rows in a step matters, and how they are split only where their order depends on it.
        finds_batch_size (`bool`, *optional*, defaults to `False`): Whether `auto_find_batch_size` is set, with which
            transformers takes the batch size of the checkpoint.

    Raises:
        `ValueError`: It does not; the message says what differs and what to set.
    """
    where = f"The checkpoint {str(folder)!r}"
    try:
        recorded = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        recorded = {}
    if recorded.get("format") != FORMAT:
        writer = f"trl-ext {recorded['version']}" if "version" in recorded else "another trainer or an older trl-ext"
        raise ValueError(
            f"{where} was written by {writer}; trl-ext {trl_ext.__version__} cannot continue it exactly. Resume with "
            "the version that wrote it, or start a new run from its weights (pass the folder as the model)."
        )
    before = RunRecord(**{each.name: recorded[each.name] for each in fields(RunRecord)})
    # With these settings, rows of an epoch's last step or of any step depend on how steps are split.
    exact_layout = exact_layout or run.dataloader_drop_last or run.train_sampling_strategy == "batch_rebalance"
    compared = {name: f"`{name}`" for name in ("method", *_ORDER)}
    compared["repeats"] = "the number of steps on the same rows"
    if exact_layout or before.rows_per_step != run.rows_per_step:
        compared |= _LAYOUT
    elif not run.rows:  # each process reads its own part of a stream
        compared["num_processes"] = _LAYOUT["num_processes"]
    if finds_batch_size:
        compared.pop("per_device_train_batch_size", None)
    changes = [
        f"{shown} was {getattr(before, name)!r} and is {getattr(run, name)!r}"
        for name, shown in compared.items()
        if getattr(before, name) != getattr(run, name)
    ]
    if before.rows != run.rows:
        changes.append(f"the train dataset was {before.rows or 'a stream'} and is {run.rows or 'a stream'}")
    if changes:
        raise ValueError(
            f"{where} cannot be continued exactly: {'; '.join(changes)}. Set them as they were, or start a new run "
            "from its weights (pass the folder as the model)."
        )


def rows_digest(dataset: Any) -> str:
    """Number of rows of a tokenized dataset and a hash of some of them; empty for a stream."""
    if not isinstance(dataset, Dataset):
        return ""
    columns = [name for name in ("row_index", "prompt_ids", "completion_ids") if name in dataset.column_names]
    some = range(0, len(dataset), -(-len(dataset) // _SAMPLED_ROWS) or 1)
    rows = dataset.select_columns(columns)
    text = json.dumps([rows[i] for i in some])
    return f"{len(dataset)} rows ({hashlib.sha256(text.encode()).hexdigest()[:12]})"
