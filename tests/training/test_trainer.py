# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Checks that every trainer makes: rows that fit the model's context length, and the class of the config."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import letter_reward, make_model, make_tokenizer
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_trainers import METHODS as ALL
from tiny_trainers import PROMPTS, SCORED, make_trainer

from trl_ext import RRHFConfig, RRHFTrainer, ValueModel, VASConfig, VASTrainer
from trl_ext.data.schema import DataError
from trl_ext.method import discover
from trl_ext.models.properties import context_length
from trl_ext.training.config import ExtConfig
from trl_ext.training.trainer import ExtTrainer


LONG = "the film was good " * 8  # 33 tokens
SETTINGS = {"use_cpu": True, "report_to": "none", "gradient_checkpointing": False, "max_completion_length": 6}


def fits(length: int, **changes: Any) -> dict[str, Any]:
    """A row with completions."""
    return {"prompt": LONG[:length], "completions": [" good", " bad"], "scores": [1.0, 0.0], **changes}


def scored_trainer(folder: Path, method: str, context: int, rows: Any = SCORED, eval_rows: Any = None, **kwargs: Any):
    """A trainer whose model (VAS: either of the two) has this context length."""
    tokenizer = make_tokenizer()
    settings = {"output_dir": str(folder), **SETTINGS, **kwargs.pop("args", {})}
    model = make_model(len(tokenizer), max_position_embeddings=context)
    train = Dataset.from_list(rows) if isinstance(rows, list) else rows
    given = {"train_dataset": train, "eval_dataset": eval_rows, "processing_class": tokenizer}
    if method == "rrhf":
        return RRHFTrainer(model, args=RRHFConfig(**settings), **given, **kwargs)
    backbone = kwargs.pop("value_backbone", None) or make_model(len(tokenizer), max_position_embeddings=context)
    value_model = ValueModel.from_backbone(backbone)
    settings["num_epochs_per_batch"] = 1
    return VASTrainer(model, args=VASConfig(**settings), **given, value_model=value_model, **kwargs)


METHODS = pytest.mark.parametrize("method", ["rrhf", "vas"])


# ------------------------------------------------------------------------------------------------------------ context


@METHODS
def test_the_train_set_is_checked_whatever_parts_of_the_evaluation_are_called(tmp_path: Path, method: str) -> None:
    short = Dataset.from_list(SCORED)
    with pytest.raises(DataError, match=r"Row 8 of the train dataset has \d+ tokens, but .* context length is 24"):
        scored_trainer(tmp_path, method, 24, [*SCORED, fits(200)], {"train": short, "other": short})


@METHODS
def test_a_long_row_of_the_evaluation_is_named_with_its_part(tmp_path: Path, method: str) -> None:
    short, long = Dataset.from_list(SCORED), Dataset.from_list([*SCORED[:1], fits(200)])
    with pytest.raises(DataError, match=r"Row 1 of the eval dataset has \d+ tokens, but .* context length is 24"):
        scored_trainer(tmp_path, method, 24, eval_rows=long)
    with pytest.raises(DataError, match=r"Row 1 of the eval 'train' dataset has"):
        scored_trainer(tmp_path, method, 24, eval_rows={"other": short, "train": long})


@METHODS
def test_prompts_of_an_evaluation_leave_space_for_completions(tmp_path: Path, method: str) -> None:
    """The training rows have short completions; those of the evaluation rows are generated."""
    prompts = Dataset.from_list(PROMPTS)
    settings = {"max_completion_length": 23}
    with pytest.raises(DataError, match=r"of the eval dataset .* with `max_completion_length` \(23\), but .* 24"):
        scored_trainer(tmp_path, method, 24, eval_rows=prompts, reward_funcs=letter_reward, args=settings)
    scored_trainer(tmp_path, method, 24, eval_rows=prompts, reward_funcs=letter_reward)


@METHODS
def test_rows_that_are_passed_to_evaluate_are_checked(tmp_path: Path, method: str) -> None:
    trainer = scored_trainer(tmp_path, method, 24)
    assert "eval_loss" in trainer.evaluate(Dataset.from_list(SCORED))
    with pytest.raises(DataError, match=r"Row 1 of the eval dataset has \d+ tokens, but .* context length is 24"):
        trainer.evaluate(Dataset.from_list([*SCORED[:1], fits(200)]))


@METHODS
def test_a_row_of_a_stream_is_checked_when_it_comes(tmp_path: Path, method: str) -> None:
    stream = Dataset.from_list([*SCORED, fits(200)]).to_iterable_dataset()
    run = scored_trainer(tmp_path, method, 24, stream, args={"max_steps": 20, "per_device_train_batch_size": 1})
    with pytest.raises(DataError, match=r"Row 8 of the train dataset has \d+ tokens, but .* context length is 24"):
        run.train()
    assert run.state.global_step > 0


@pytest.mark.parametrize("small", ["model", "value"])
def test_the_shorter_of_two_models_counts(tmp_path: Path, small: str) -> None:
    """The language model's context length counts only where it generates."""
    sizes = (24, 256) if small == "model" else (256, 24)
    backbone = make_model(len(make_tokenizer()), max_position_embeddings=sizes[1])
    given = {"value_backbone": backbone, "reward_funcs": letter_reward, "args": {"max_completion_length": 23}}
    with pytest.raises(DataError, match=r"with `max_completion_length` \(23\), but the model's context length is 24"):
        scored_trainer(tmp_path, "vas", sizes[0], PROMPTS, **given)


def test_a_row_keeps_its_number_where_others_were_dropped(tmp_path: Path) -> None:
    """Row 0 fills `max_length` alone and is dropped; row 2 of the file is the one that is too long."""
    rows = [fits(72), *SCORED[:1], fits(60)]
    with pytest.raises(DataError, match="Row 2 of the train dataset has"):
        scored_trainer(tmp_path, "rrhf", 14, rows, args={"max_length": 16})


@METHODS
def test_rows_are_not_read_where_none_can_be_too_long(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr("trl_ext.training.trainer.check_positions", lambda rows, context, name, **_: read.append(name))
    evals = Dataset.from_list(PROMPTS)
    scored_trainer(tmp_path, method, 24, eval_rows=evals, reward_funcs=letter_reward, args={"max_length": 18})
    assert read == []
    scored_trainer(tmp_path, method, 24, eval_rows=evals, reward_funcs=letter_reward, args={"max_length": 19})
    assert read == ["eval"]  # 6 tokens are generated
    scored_trainer(tmp_path, method, 24, eval_rows=evals, reward_funcs=letter_reward, args={"max_length": 0})
    assert read == ["eval", "train", "eval"]


def test_plain_prompts_are_checked_where_there_are_no_principles(tmp_path: Path) -> None:
    settings = {"sft_target": "best", "rank_weight": 0.0, "num_generations": 2, "max_completion_length": 250}
    with pytest.raises(DataError, match=r"with `max_completion_length` \(250\), but the context length is 256"):
        make_trainer("psle", tmp_path, [{"prompt": LONG}], **settings)


def test_rows_passed_to_evaluate_are_checked_before_generation(tmp_path: Path) -> None:
    scored: list[int] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        scored.append(len(completions))
        return [0.0] * len(completions)

    settings = {"max_completion_length": 230, "per_device_eval_batch_size": 2}
    trainer = make_trainer("psle", tmp_path, reward_funcs=reward, **settings)
    with pytest.raises(DataError, match=r"Row 8 of the eval dataset.*with its principle .* context length of 256"):
        trainer.evaluate(Dataset.from_list([*PROMPTS, {"prompt": LONG}]))
    assert not scored


# ------------------------------------------------------------------------------------------------------------- config


@dataclass
class OwnConfig(RRHFConfig):
    """A plug-in's config, with one more setting."""

    knots: int = 3


class OwnTrainer(RRHFTrainer):
    """A plug-in's trainer on top of one of ours."""

    _config_class: ClassVar[type[OwnConfig]] = OwnConfig


@pytest.mark.parametrize("method", ALL)
def test_the_config_of_another_trainer_is_refused(tmp_path: Path, method: str) -> None:
    """Any other one, before a setting is read that it might lack."""
    found = {name: discover().methods[name].method for name in ALL}
    trainer_class, own = found[method].trainer_class(), found[method].config_class()
    others = [found[name].config_class() for name in ALL if name != method] + [ExtConfig]
    for other in others:
        with pytest.raises(
            TypeError, match=f"`args` of `{trainer_class.__name__}` must be a `{own.__name__}`, got `{other.__name__}`"
        ):
            trainer_class("no/such-model", args=other(str(tmp_path), use_cpu=True), train_dataset=None)
    with pytest.raises(TypeError, match=f"must be a `{own.__name__}`, got `dict`"):
        trainer_class("no/such-model", args={"output_dir": "out"}, train_dataset=None)


def test_a_plug_ins_trainer_asks_for_its_own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the default `output_dir` is made there
    tokenizer = make_tokenizer()
    given = {"train_dataset": Dataset.from_list(SCORED), "processing_class": tokenizer}
    model = make_model(len(tokenizer))
    own = OwnConfig(str(tmp_path / "out"), knots=5, **SETTINGS)
    assert OwnTrainer(model, args=own, **given).args.knots == 5
    assert RRHFTrainer(model, args=own, **given).args.knots == 5  # a trainer takes its config with more in it
    with pytest.raises(TypeError, match="`args` of `OwnTrainer` must be a `OwnConfig`, got `RRHFConfig`"):
        OwnTrainer(model, args=RRHFConfig(str(tmp_path / "out"), **SETTINGS), **given)
    assert OwnTrainer(model, **given).args.knots == 3  # without one, its own


def test_a_trainer_that_names_no_config_takes_any_of_ours(tmp_path: Path) -> None:
    class Bare(ExtTrainer):
        pass

    args = RRHFConfig(str(tmp_path), **SETTINGS)
    assert Bare._config_for("some/model", args) is args
    with pytest.raises(TypeError, match="`args` of `Bare` must be a `ExtConfig`, got `object`"):
        Bare._config_for("some/model", object())


# ----------------------------------------------------------------------------------------------------- other settings


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_weights_of_rewards_that_are_no_numbers_are_refused(tmp_path: Path, method: str, weight: float) -> None:
    with pytest.raises(ValueError, match=f"`reward_weights` must be (finite|a number), got .*{weight}"):
        make_trainer(method, tmp_path, reward_weights=[weight])


def test_one_principle_may_be_a_text(tmp_path: Path) -> None:
    """The text is one principle; its letters are not one principle each."""
    one, several = ({"principles": principles} for principles in ("good film", ["good film"]))
    ours, theirs = (make_trainer("psle", tmp_path, **given) for given in (one, several))
    assert ours.train_dataset["guided_ids"][:] == theirs.train_dataset["guided_ids"][:]
    assert all(len(each) == 1 for each in ours.train_dataset["guided_ids"])


def test_one_head_may_be_a_text(tmp_path: Path) -> None:
    assert VASConfig(str(tmp_path), use_cpu=True, heads="reward").heads == ["reward"]
    trainer = make_trainer("vas", tmp_path, heads="letter_reward")
    assert trainer.heads == ["letter_reward"] == list(trainer.model.config.heads)


def test_scaled_rotary_positions_count() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    config = SimpleNamespace(max_position_embeddings=64, rope_parameters=rope)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
    assert context_length(model) == 256
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    assert context_length(model) == 64
    config.rope_parameters = {"full_attention": rope, "sliding_attention": {"rope_type": "default"}}
    assert context_length(model) == 256


# ----------------------------------------------------------------------------------------------- nothing to train


@pytest.mark.parametrize("method", ALL)
def test_a_frozen_model_is_an_error_before_the_first_step(tmp_path: Path, method: str) -> None:
    run = make_trainer(method, tmp_path, max_steps=1)
    run.model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"nothing to train: all parameters of the `\w+` are frozen.*requires_grad_"):
        run.train()
    assert run.state.global_step == 0


def test_an_adapter_that_was_loaded_for_inference_is_named(tmp_path: Path) -> None:
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(make_model(len(make_tokenizer())), lora).save_pretrained(tmp_path / "adapter")
    for is_trainable in (False, True):
        base = make_model(len(make_tokenizer()))
        model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=is_trainable)
        settings = {**SETTINGS, "output_dir": str(tmp_path), "max_steps": 1}
        run = RRHFTrainer(
            model,
            args=RRHFConfig(**settings),
            train_dataset=Dataset.from_list(SCORED),
            processing_class=make_tokenizer(),
        )
        if is_trainable:
            run.train()
        else:
            assert "eval_loss" in run.evaluate(Dataset.from_list(SCORED))  # it can be measured
            with pytest.raises(ValueError, match=r"`PeftModelForCausalLM.from_pretrained\(..., is_trainable=True\)`"):
                run.train()


def test_a_value_model_that_was_loaded_for_inference_is_named(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat=True)
    make_model(len(tokenizer)).save_pretrained(tmp_path / "base")
    lora = LoraConfig(target_modules="all-linear", task_type="FEATURE_EXTRACTION")
    ValueModel.from_backbone(str(tmp_path / "base"), peft_config=lora).save_pretrained(tmp_path / "value")
    run = VASTrainer(
        make_model(len(tokenizer)),
        args=VASConfig(output_dir=str(tmp_path), **SETTINGS),
        train_dataset=Dataset.from_list(SCORED),
        processing_class=tokenizer,
        value_model=ValueModel.from_pretrained(tmp_path / "value"),
    )
    with pytest.raises(ValueError, match=r"`ValueModel.from_pretrained\(..., is_trainable=True\)`"):
        run.train()


# -------------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("method", ["rrhf", "vas", "psle"])
def test_predict_takes_the_rows_that_evaluate_takes(tmp_path: Path, method: str) -> None:
    """Both measure the same, under their prefixes, and what one measures is not mixed into the other's metrics."""
    rows = Dataset.from_list(PROMPTS[:3] if method == "psle" else SCORED[:3])
    run = make_trainer(method, tmp_path, eval_rows=[*rows], per_device_eval_batch_size=2)
    before = run.evaluate()
    found = run.predict(Dataset.from_list([*rows])).metrics
    times = ("runtime", "per_second", "preparation_time", "seconds")
    for name, value in before.items():
        if not name.endswith(times) and name.startswith("eval_") and "seconds" not in name:
            assert found[f"test{name.removeprefix('eval')}"] == pytest.approx(value, nan_ok=True), name
    run.predict(Dataset.from_list([*rows][:1]))
    after = run.evaluate()
    compared = [name for name in before if name.startswith("eval_") and not name.endswith(times) and "sec" not in name]
    assert compared and [before[name] for name in compared] == pytest.approx([after[name] for name in compared])


def test_whole_numbers_are_scores(tmp_path: Path) -> None:
    """Groups of different sizes are filled up with NaN, which whole numbers do not have."""
    rows = [
        {**row, "completions": row["completions"][:k], "scores": list(range(k))} for k, row in enumerate(SCORED[:3], 1)
    ]
    seen = []
    run = scored_trainer(
        tmp_path,
        "rrhf",
        256,
        rows,
        Dataset.from_list(rows),
        compute_metrics=lambda prediction: seen.append(prediction.label_ids) or {"x": 1.0},
    )
    assert run.evaluate()["eval_x"] == 1.0
    run.predict(Dataset.from_list(rows))
    for labels in seen:
        assert labels.shape[0] == 3 and np.isnan(labels).sum() == 3 * labels.shape[1] - 6


# ------------------------------------------------------------------------------------------------ streams, attributes


def streamed_evaluation(folder: Path, method: str, **settings: Any) -> Any:
    rows = SCORED if method == "rrhf" else PROMPTS
    trainer = make_trainer(method, folder, rows, eval_rows=rows, **settings)
    trainer.eval_dataset = trainer.eval_dataset.to_iterable_dataset()
    return trainer


@pytest.mark.parametrize("method", ALL)
def test_a_streamed_evaluation_beside_rows_is_not_dispatched(tmp_path: Path, method: str) -> None:
    """One process would send its batches, lists of different lengths, to the others: that fails with two of them."""
    settings = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3}
    trainer = streamed_evaluation(tmp_path, method, **settings)
    assert trainer.get_train_dataloader().num_workers == 2
    loader = trainer.get_eval_dataloader()
    assert type(loader).__name__ != "DataLoaderDispatcher"
    assert loader.num_workers == 0  # a stream of one part
    assert {name: getattr(trainer.args, name) for name in settings} == settings
    with pytest.raises(ValueError, match="Iterable datasets require `dispatch_batches=False`"):
        make_trainer(method, tmp_path, accelerator_config={"dispatch_batches": True})


@pytest.mark.parametrize("method", ["rrhf", "psle", "vas"])
def test_a_stream_of_prompts_needs_no_more_settings_than_in_trl(tmp_path: Path, method: str) -> None:
    made = make_trainer(method, tmp_path, max_steps=2)
    arguments = {
        "args": replace(made.args, resample_steps=0, dataloader_num_workers=2),
        "train_dataset": Dataset.from_list(PROMPTS).to_iterable_dataset(),
        "processing_class": made.processing_class,
        "reward_funcs": letter_reward,
    }
    more = {"value_model": made.model} if method == "vas" else {}
    trainer = type(made)(model=made.model if method != "vas" else made.policy, **arguments, **more)
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.args.resample_steps == 1
    assert trainer.args.dataloader_num_workers == 0


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("rrhf", {}),
        ("rrhf", {"resample_steps": 0, "reward_funcs": None, "rows": SCORED[:3]}),
        ("psle", {}),
        ("vas", {}),
    ],
)
def test_a_stream_that_ends_within_a_step(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    """The step is taken with what there is, as with a dataset; its gradient does not go into the next one."""
    common: dict[str, Any] = {"rows": PROMPTS[:3], "max_steps": 4, "shuffle_dataset": False}
    common |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0}

    def steps(**changes: Any) -> list[tuple[float, float]]:
        trainer = make_trainer(method, tmp_path, **common | settings | changes)
        trainer.train()
        return [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log]

    assert steps(streams=True) == steps()


def test_attributes_that_scripts_read(tmp_path: Path) -> None:
    trainer = make_trainer("rrhf", tmp_path, beta=0.1, num_generations=3)
    assert (trainer.beta, trainer.num_generations, trainer.num_generations_eval) == (0.1, 3, 3)
    assert trainer.ref_model is trainer.reference.model
    assert make_trainer("psle", tmp_path).ref_model is None
    given = make_model(len(trainer.processing_class))
    common = {"args": replace(trainer.args, beta=0.0, resample_steps=0), "processing_class": trainer.processing_class}
    unused = RRHFTrainer(given, make_model(193), train_dataset=Dataset.from_list(SCORED), **common)
    assert unused.ref_model is not None
    assert unused.reference is None


SPLITS = DatasetDict(first=Dataset.from_list(PROMPTS), second=Dataset.from_list(PROMPTS))
NO_DATASETS = [
    (SPLITS, r"`DatasetDict`. It has the splits 'first', 'second': pass one, as in `dataset\['first'\]`"),
    (PROMPTS, r"`list`. Make one of the rows: `Dataset.from_list\(rows\)`"),
    (Path("rows.jsonl"), r"Load it: `trl_ext.load_dataset\('rows.jsonl', split='train'\)`"),
    (3, "got `int`"),
]


@pytest.mark.parametrize(("value", "message"), NO_DATASETS)
@pytest.mark.parametrize("method", ALL)
def test_what_is_no_dataset_is_an_error_with_a_remedy(tmp_path: Path, method: str, value: Any, message: str) -> None:
    trainer = discover().methods[method].method.trainer_class()
    args = trainer._config_class(str(tmp_path), report_to="none")
    with pytest.raises(TypeError, match=f"`train_dataset` must be a `Dataset`.*{message}"):
        trainer(model="x", args=args, reward_funcs=letter_reward, train_dataset=value)


def test_an_evaluation_on_what_is_no_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`eval_dataset` must be a `Dataset` or .*Make one of the rows"):
        scored_trainer(tmp_path, "rrhf", 64, eval_rows=SCORED)
    with pytest.raises(TypeError, match=r"`eval_dataset\['long'\]` must be .*Make one of the rows"):
        scored_trainer(tmp_path, "rrhf", 64, eval_rows={"long": SCORED})


def test_a_model_that_was_not_loaded_by_name_needs_a_tokenizer(tmp_path: Path, monkeypatch: Any) -> None:
    """Also in a folder that has one: a nameless model is not the one of the working directory."""
    make_tokenizer().save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"was not loaded from a folder or the Hub.*pass it as `processing_class`"):
        RRHFTrainer(make_model(64), args=RRHFConfig("x", report_to="none"), train_dataset=Dataset.from_list(SCORED))


@pytest.mark.parametrize("method", ALL)
def test_a_missing_dataset_is_the_error_of_trl(tmp_path: Path, method: str) -> None:
    trainer = type(make_trainer(method, tmp_path))
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        trainer(model="x", args=trainer._config_class(str(tmp_path), report_to="none"), reward_funcs=letter_reward)
