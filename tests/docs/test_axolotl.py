# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
The classes of docs/how_to/axolotl.md take what axolotl's `HFRLTrainerBuilder` passes to `trainer_cls`.

axolotl needs another TRL, so its builder is written down here as far as it concerns a trainer: the arguments are those
of axolotl 0.19.0, and the configs are subclasses of TRL's with a field of axolotl's own, as there.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY, letter_reward, make_model, make_tokenizer
from datasets import Dataset
from peft import LoraConfig
from tiny_trainers import PROMPTS, losses
from transformers import TrainerCallback
from transformers.trainer_pt_utils import AcceleratorConfig
from trl import DPOConfig, GRPOConfig


PAIRS = [{**row, "chosen": " was good", "rejected": " was bad", "score_chosen": 8.0} for row in PROMPTS]


@dataclass
class AxolotlDPOConfig(DPOConfig):
    include_tkps: bool = True


@dataclass
class AxolotlGRPOConfig(GRPOConfig):
    include_tkps: bool = True


@pytest.fixture(scope="module")
def page() -> SimpleNamespace:
    """The names that the page's module defines."""
    text = (REPOSITORY / "docs" / "how_to" / "axolotl.md").read_text(encoding="utf-8")
    [code] = re.findall(r'^```python title="my_axolotl.py"\n(.*?)^```', text, flags=re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "my_axolotl"}
    exec(compile(code, "my_axolotl.py", "exec"), names)
    return SimpleNamespace(**names)


def base_arguments(folder: Path) -> dict[str, Any]:
    """What `TrainerBuilderBase._set_base_training_args` and the builder make of a short YAML file."""
    return {
        "logging_first_step": True,
        "warmup_steps": 0,
        "logging_steps": 1,
        "fp16": False,
        "tf32": False,
        "bf16": False,
        "save_strategy": "no",
        "save_total_limit": 4,
        "eval_strategy": "no",
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "output_dir": str(folder),
        "weight_decay": 0.0,
        "seed": 3,
        "per_device_train_batch_size": 2,
        "average_tokens_across_devices": False,
        "include_tkps": True,
        "max_steps": 2,
        "num_train_epochs": 1,
        "report_to": [],
        "run_name": None,
        "lr_scheduler_type": "cosine",
        "lr_scheduler_kwargs": {},
        "optim": "adamw_torch",
        "accelerator_config": AcceleratorConfig(),
        "remove_unused_columns": False,
    }


def test_rrhf_in_the_place_of_dpo(page: SimpleNamespace, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    trainer = page.AxolotlRRHFTrainer(
        make_model(len(tokenizer)),
        None,  # with an adapter
        args=AxolotlDPOConfig(**base_arguments(tmp_path), max_length=64, beta=0.1, loss_type=["sigmoid"]),
        train_dataset=Dataset.from_list(PAIRS),
        callbacks=[TrainerCallback()],
        data_collator=object(),
        eval_dataset=Dataset.from_list(PAIRS),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        processing_class=tokenizer,
    )
    assert (trainer.args.learning_rate, trainer.args.seed, trainer.args.max_length) == (1e-3, 3, 64)
    assert (trainer.args.beta, trainer.args.lr_scheduler_type) == (0.0, "cosine")  # DPO's beta is another thing
    trainer.train(resume_from_checkpoint=None)
    assert len(losses(trainer)) == 2
    trainer.create_model_card(model_name="out")
    assert (tmp_path / "README.md").is_file()


def test_psle_in_the_place_of_grpo(page: SimpleNamespace, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    arguments = base_arguments(tmp_path) | {"max_steps": 3}
    args = AxolotlGRPOConfig(
        **arguments, num_generations=2, max_completion_length=6, beta=0.0, num_iterations=1, loss_type="dapo"
    )
    trainer = page.AxolotlPSLETrainer(
        make_model(len(tokenizer)),
        [letter_reward],
        args=args,
        train_dataset=Dataset.from_list(PROMPTS),
        callbacks=[TrainerCallback()],
        processing_class=tokenizer,
    )
    assert (trainer.args.num_generations, trainer.args.num_iterations) == (2, 3)
    trainer.train(resume_from_checkpoint=None)
    assert len(losses(trainer)) == 3


def test_the_config_of_another_trainer_is_refused(page: SimpleNamespace, tmp_path: Path) -> None:
    """Without the page's classes: the error says which config is needed."""
    args = AxolotlDPOConfig(**base_arguments(tmp_path))
    with pytest.raises(TypeError, match="must be a `RRHFConfig`, got `AxolotlDPOConfig`"):
        page.RRHFTrainer("model", None, args=args, train_dataset=Dataset.from_list(PAIRS))
