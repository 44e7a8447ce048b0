# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""TRL's settings: each one works under its name or is refused with a reason, and unknown ones are named at once."""

import dataclasses
import inspect
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainers import METHODS, SCORED, losses, make_trainer
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from trl_ext import PSLEConfig, RRHFConfig
from trl_ext.cli.train import make_parser
from trl_ext.method import discover
from trl_ext.training.trl_settings import REFUSED, RESTRICTED, unused_without_generation


CONFIGS = {name: discover().methods[name].method.config_class() for name in METHODS}
TRAINERS = {name: discover().methods[name].method.trainer_class() for name in METHODS}

# Of the `PPOConfig` and `PPOTrainer` that TRL had: what they add to `TrainingArguments` and `Trainer`.
OLD_PPO_SETTINGS = set(
    "batch_size cliprange cliprange_value dataset_num_proc ds3_gather_for_generation exp_name gamma kl_coef "
    "kl_estimator lam local_batch_size local_mini_batch_size local_rollout_forward_batch_size micro_batch_size "
    "mini_batch_size missing_eos_penalty model_adapter_name num_mini_batches num_ppo_epochs num_sample_generations "
    "num_total_batches ref_adapter_name response_length reward_model_path sft_model_path stop_token stop_token_id "
    "temperature total_episodes vf_coef whiten_rewards world_size".split()
)
OLD_PPO_ARGUMENTS = set(
    "args callbacks config data_collator eval_dataset model optimizers peft_config policy processing_class ref_model "
    "ref_policy reward_model tokenizer train_dataset value_model".split()
)

# Settings of `TrainingArguments` that were looked at: they work here as they do in `Trainer`, or are in `RESTRICTED`.
# A new name has to be tried with the four trainers before it is added.
EXAMINED = set(
    "accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 "
    "adam_epsilon auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16 bf16_full_eval "
    "data_seed dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers "
    "dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend "
    "ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug "
    "deepspeed disable_tqdm do_eval do_predict do_train enable_jit_checkpoint eval_accumulation_steps eval_delay "
    "eval_do_concat_batches eval_on_start eval_steps eval_strategy eval_use_gather_object fp16 fp16_full_eval "
    "fsdp fsdp_config full_determinism gradient_accumulation_steps gradient_checkpointing "
    "gradient_checkpointing_kwargs greater_is_better hub_always_push hub_model_id hub_private_repo hub_revision "
    "hub_strategy hub_token ignore_data_skip include_for_metrics include_num_input_tokens_seen label_names "
    "label_smoothing_factor learning_rate length_column_name liger_kernel_config load_best_model_at_end "
    "local_rank log_level log_level_replica log_on_each_node logging_first_step logging_nan_inf_filter "
    "logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps "
    "metric_for_best_model neftune_noise_alpha num_train_epochs optim optim_args optim_target_modules output_dir "
    "parallelism_config per_device_eval_batch_size per_device_train_batch_size prediction_loss_only project "
    "push_to_hub remove_unused_columns report_to restore_callback_states_from_checkpoint resume_from_checkpoint "
    "run_name save_on_each_node save_only_model save_steps save_strategy save_total_limit seed "
    "skip_memory_metrics tf32 torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps "
    "trackio_bucket_id trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_cpu "
    "use_liger_kernel warmup_steps weight_decay".split()
)


def names(config: type) -> set[str]:
    return {each.name for each in dataclasses.fields(config)}


@pytest.mark.parametrize("theirs", [DPOConfig, GRPOConfig])
@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_trl_works_or_is_refused_with_a_reason(method: str, theirs: type) -> None:
    ours = CONFIGS[method]
    missing = names(theirs) - names(ours) - set(ours.refused_settings)
    assert not missing, f"settings of {theirs.__name__} that nobody has decided on: {sorted(missing)}"


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_the_old_ppo_works_or_is_refused_with_a_reason(method: str) -> None:
    ours = CONFIGS[method]
    missing = OLD_PPO_SETTINGS - names(ours) - set(ours.refused_settings)
    assert not missing
    with pytest.raises(TypeError, match="`reward_model_path`: set `reward_model_name_or_path`"):
        ours("out", reward_model_path="x")
    with pytest.raises(TypeError, match="`reward_model`: set `reward_funcs`"):
        ours("out", reward_model="x")
    place = {"vas": "set `value_model_name_or_path`", "proxy_rlhf": "the proxy has a critic of its own"}
    with pytest.raises(TypeError, match=f"`value_model`: {place.get(method, 'no value model is trained')}"):
        ours("out", value_model="x")


@pytest.mark.parametrize("method", METHODS)
def test_every_argument_of_a_trainer_works_or_is_refused_with_a_reason(method: str) -> None:
    ours = TRAINERS[method]
    own = set(inspect.signature(ours).parameters)
    theirs = {name for each in (DPOTrainer, GRPOTrainer, Trainer) for name in inspect.signature(each).parameters}
    missing = (theirs | OLD_PPO_ARGUMENTS) - own - set(ours._refused_arguments)
    assert not missing


@pytest.mark.parametrize("method", METHODS)
def test_models_of_the_old_ppo_are_errors_that_name_what_takes_their_place(method: str) -> None:
    """VAS takes a `value_model`: the backbone of the one that it trains."""
    with pytest.raises(TypeError) as caught:
        TRAINERS[method](model="m", reward_model="r", value_model="v", tokenizr=None)
    text = str(caught.value)
    assert f"{TRAINERS[method].__name__} has no such arguments:" in text
    assert "`reward_model`: pass it as `reward_funcs`" in text
    assert "`tokenizr`: unknown" in text
    assert {
        "vas": "`value_model`" not in text,
        "proxy_rlhf": "`value_model`: the proxy has a critic of its own" in text,
    }.get(method, "`value_model`: no value model is trained: remove it" in text)


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_transformers_is_there_and_was_examined(method: str) -> None:
    assert names(TrainingArguments) <= names(CONFIGS[method])
    assert names(TrainingArguments) <= EXAMINED
    assert set(RESTRICTED) <= EXAMINED | names(DPOConfig)


@pytest.mark.parametrize("method", METHODS)
def test_trls_default_of_a_shared_setting_is_accepted(tmp_path: Path, method: str) -> None:
    ours = CONFIGS[method]
    for theirs in (DPOConfig, GRPOConfig):
        for each in dataclasses.fields(theirs):
            shared = each.name in names(ours) and each.default is not dataclasses.MISSING
            if shared and each.name not in ("output_dir", "num_train_epochs", "top_k"):
                ours(**{"output_dir": str(tmp_path), "report_to": "none", each.name: each.default})


@pytest.mark.parametrize("method", METHODS)
def test_all_unknown_settings_are_named_at_once(tmp_path: Path, method: str) -> None:
    with pytest.raises(TypeError) as caught:
        CONFIGS[method](str(tmp_path), loss_type="x", label_smoothing=0.1, scale_rewards=True, learnig_rate=1.0, zzz=1)
    text = str(caught.value)
    for part in (
        "`learnig_rate`: unknown; did you mean `learning_rate`?",
        "`zzz`: unknown",
        "`loss_type`: a setting of DPO's or GRPO's loss",
        "`label_smoothing`: a setting of DPO's loss",
        "`scale_rewards`: a setting of GRPO's loss",
    ):
        assert part in text


def test_the_command_line_names_them_all_too(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("torch_dtype: bfloat16\nlearnig_rate: 1.0\nld_alpha: 1\nlabel_smoothing: 0.1\n")
    parser = make_parser(discover().methods["rrhf"].method)
    with pytest.raises(ValueError) as caught:
        parser.parse_flags(["--config", str(recipe), "--epsilon", "0.2", "--zzz", "1", "--group-by-length"])
    text = str(caught.value)
    for part in (
        f"{recipe}: unknown key 'learnig_rate'; did you mean 'learning_rate'?",
        f"{recipe}: `torch_dtype`: called `dtype` now",
        f"{recipe}: `ld_alpha`, `label_smoothing`: a setting of DPO's loss",
        "--epsilon: a setting of GRPO's loss",
        "--group-by-length: write `train_sampling_strategy: group_by_length`",
        "unknown flag '--zzz'",
    ):
        assert part in text


def test_a_reason_is_not_given_for_a_setting_that_exists() -> None:
    common = set.intersection(*map(names, CONFIGS.values()))
    assert not common & set(REFUSED)
    for config in CONFIGS.values():
        own = set(config.refused_settings) - set(REFUSED)
        assert not own & names(config)


def test_a_subclass_may_drop_settings_itself(tmp_path: Path) -> None:
    class Lenient(RRHFConfig):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("loss_type")
            super().__init__(*args, **kwargs)

    assert Lenient(str(tmp_path), loss_type="x", seed=3, report_to="none").seed == 3


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("precompute_ref_log_probs", True, "no reference in memory"),
        ("padding_free", True, "read once"),
        ("label_smoothing_factor", 0.5, "no labels"),
        ("label_names", ["scores"], "no label columns"),
        ("include_for_metrics", ["inputs"], "without padding"),
        ("average_tokens_across_devices", False, "over all processes"),
        ("include_num_input_tokens_seen", True, "always logged"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path: Path, name: str, value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` cannot be .*{why}"):
        RRHFConfig(str(tmp_path), report_to="none", **{name: value})


def test_another_meaning_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.Logger.warning_once.cache_clear()  # another test may have been the first use
    for _ in range(2):
        PSLEConfig(str(tmp_path), report_to="none", num_iterations=3, generation_batch_size=5)
    for name in ("num_iterations", "generation_batch_size"):
        assert len([text for text in caplog.messages if text.startswith(f"`{name}` is the number of")]) == 1


def test_the_migration_page_has_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
    for config in CONFIGS.values():
        for name in set(config.other_meanings) & names(config):
            assert f"| `{name}`" in page


# --------------------------------------------------------------------------------------------------- what they do


def test_steps_per_generation_counts_micro_batches(tmp_path: Path) -> None:
    def config(**kwargs: Any) -> RRHFConfig:
        return RRHFConfig(str(tmp_path), report_to="none", gradient_accumulation_steps=4, **kwargs)

    assert config(steps_per_generation=8).resample_steps == 2
    assert config(steps_per_generation=None).resample_steps == 0
    with pytest.raises(ValueError, match="multiple of `gradient_accumulation_steps`"):
        config(steps_per_generation=6)
    with pytest.raises(ValueError, match="2 optimizer steps"):
        config(steps_per_generation=8, resample_steps=3)


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_generate_their_own_number_of_completions(tmp_path: Path, method: str) -> None:
    counts: list[int] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        counts.append(len(completions))
        return [float(len(text)) for text in completions]

    trainer = make_trainer(
        method, tmp_path, num_generations=2, num_generations_eval=3, eval_rows=[{"prompt": "the film"}],
        reward_funcs=reward, max_steps=1,
    )  # fmt: skip
    assert (trainer.num_generations, trainer.num_generations_eval) == (2, 3)
    trainer.evaluate()
    assert sum(counts) == (6 if method == "psle" else 3)
    counts.clear()
    trainer.train()
    assert sum(counts) == (8 if method == "psle" else 4)


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_one_length_share_a_batch(tmp_path: Path, method: str) -> None:
    rows = [{"prompt": "the film " * (1 + i % 4)} for i in range(16)]
    trainer = make_trainer(
        method, tmp_path, rows, train_sampling_strategy="group_by_length", per_device_train_batch_size=4
    )
    for batch in trainer.get_train_dataloader():
        lengths = {len(row["prompt_ids"]) for row in batch["rows"]}
        assert len(lengths) == 1


def test_batches_are_rebalanced(tmp_path: Path) -> None:
    trainer = make_trainer(
        "rrhf", tmp_path, SCORED, reward_funcs=None, resample_steps=0, train_sampling_strategy="batch_rebalance",
        max_steps=2,
    )  # fmt: skip
    trainer.train()
    assert len(losses(trainer)) == 2


def test_steps_that_repeat_are_not_rebalanced(tmp_path: Path) -> None:
    settings = {"reward_funcs": None, "resample_steps": 0, "num_epochs_per_batch": 2}
    trainer = make_trainer("vas", tmp_path, SCORED, train_sampling_strategy="batch_rebalance", **settings)
    with pytest.raises(ValueError, match="VAS could repeat the rows of each step 2 times"):
        trainer.train()


def test_rows_keep_their_order(tmp_path: Path) -> None:
    trainer = make_trainer("rrhf", tmp_path, shuffle_dataset=False)
    batches = [batch["row_index"].tolist() for batch in trainer.get_train_dataloader()]
    assert batches == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("method", ["rrhf", "psle", "vas"])
def test_beams_and_caches_of_generate(tmp_path: Path, method: str) -> None:
    """As in TRL, `num_beams` in `generation_kwargs` is a beam search for each completion."""
    trainer = make_trainer(
        method, tmp_path, generation_kwargs={"num_beams": 2, "length_penalty": -0.1}, num_generations=3, max_steps=1,
        cache_implementation="dynamic",
    )  # fmt: skip
    trainer.train()
    assert len(losses(trainer)) == 1
    settings = trainer.args.generation_settings()
    assert settings.generation_kwargs == {"cache_implementation": "dynamic", "num_beams": 2, "length_penalty": -0.1}


def test_only_one_completion_of_a_prompt_is_saved(tmp_path: Path) -> None:
    import pandas as pd

    counts = []
    for unique in (False, True):
        folder = tmp_path / str(unique)
        make_trainer("rrhf", folder, log_completions=True, log_unique_prompts=unique, max_steps=1).train()
        [file] = (folder / "completions").glob("*.parquet")
        counts.append(len(pd.read_parquet(file)))
    assert counts == [4, 2]


def test_truncated_completions_are_left_out(tmp_path: Path) -> None:
    """No completion of one token ends, so nothing is left to learn from."""
    for masked in (False, True):
        trainer = make_trainer(
            "rrhf", tmp_path, max_completion_length=1, mask_truncated_completions=masked, max_steps=1,
            generation_kwargs={"suppress_tokens": [1]},
        )  # fmt: skip
        trainer.train()
        assert (losses(trainer) == [0.0]) == masked


def test_the_token_to_pad_with(tmp_path: Path) -> None:
    trainer = make_trainer("rrhf", tmp_path, pad_token="film")
    assert trainer.processing_class.pad_token == "film"
    with pytest.raises(ValueError, match="`pad_token`: '<none>' is no token"):
        make_trainer("rrhf", tmp_path, pad_token="<none>")


def test_the_reference_follows_the_policy(tmp_path: Path) -> None:
    """TR-DPO: after the update, reference = alpha * policy + (1 - alpha) * reference; resumed, it is the same."""

    def run(folder: str, steps: int, **settings: Any) -> Any:
        return make_trainer(
            "rrhf", tmp_path / folder, beta=0.1, sync_ref_model=True, ref_model_sync_steps=2,
            ref_model_mixup_alpha=0.25, max_steps=steps, lr_scheduler_type="constant", warmup_steps=0, **settings,
        )  # fmt: skip

    def weight(model: Any) -> torch.Tensor:
        return next(model.parameters()).detach().clone()

    trainer = run("one", 2)
    before = weight(trainer.ref_model)
    trainer.train()
    torch.testing.assert_close(weight(trainer.ref_model), 0.25 * weight(trainer.model) + 0.75 * before)

    whole = run("two", 5, save_strategy="steps", save_steps=3)
    whole.train()
    resumed = run("two", 5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-3"))
    assert torch.equal(weight(resumed.ref_model), weight(whole.ref_model))
    assert losses(resumed) == losses(whole)
    without = make_trainer(
        "rrhf", tmp_path / "two", beta=0.1, max_steps=5, lr_scheduler_type="constant", warmup_steps=0
    )
    with pytest.raises(ValueError, match="was saved with `sync_ref_model`: resume with it"):
        without.train(resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-3"))
    with pytest.raises(ValueError, match="needs a reference"):
        make_trainer("rrhf", tmp_path, sync_ref_model=True)


def test_a_batch_size_is_found_anew_for_the_completions(tmp_path: Path) -> None:
    """Rounds of a batch size that ran out of memory are sampled again."""
    for method in METHODS:
        trainer = make_trainer(
            method, tmp_path, per_device_train_batch_size=4, auto_find_batch_size=True, max_steps=2, save_strategy="no"
        )
        sizes, compute = [], trainer.compute_loss

        def limited(
            model: Any, inputs: Any, *args: Any, compute: Any = compute, sizes: Any = sizes, **kwargs: Any
        ) -> Any:
            sizes.append(len(inputs["prompt_ids"] if "prompt_ids" in inputs else inputs["features"]))
            if len(sizes) == 1:
                raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
            return compute(model, inputs, *args, **kwargs)

        trainer.compute_loss = limited
        trainer.train()
        assert trainer.state.global_step == 2
        assert max(sizes[1:]) < sizes[0] or method == "proxy_rlhf"


def test_liger_leaves_the_head_to_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels replace layers; its fused loss would replace the forward pass that computes log-probabilities."""
    calls = []
    module = types.ModuleType("liger_kernel.transformers")
    module._apply_liger_kernel_to_instance = lambda model, **kwargs: calls.append((type(model), kwargs))
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    trainer = make_trainer("rrhf", tmp_path, use_liger_kernel=True, liger_kernel_config={"rope": False}, max_steps=1)
    trainer.train()
    assert [kwargs for _, kwargs in calls] == [
        {"fused_linear_cross_entropy": False, "cross_entropy": False, "rope": False}
    ]
    with pytest.raises(ValueError, match="fused_linear_cross_entropy"):
        RRHFConfig(str(tmp_path), use_liger_kernel=True, liger_kernel_config={"fused_linear_cross_entropy": True})
    for method in ("vas", "proxy_rlhf"):
        with pytest.raises(ValueError, match="`use_liger_kernel` cannot be True"):
            CONFIGS[method](str(tmp_path), use_liger_kernel=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1, got 0"),
        ({"per_device_train_batch_size": -1}, "`per_device_train_batch_size` must be at least 1"),
        ({"learning_rate": -1.0}, "`learning_rate` must be at least 0"),
        ({"generation_kwargs": "{a: 1}"}, "`generation_kwargs` must be a mapping in JSON"),
        ({"model_init_kwargs": "x"}, "`model_init_kwargs` must be a mapping in JSON"),
        ({"lr_scheduler_kwargs": "{a"}, "`lr_scheduler_kwargs` must be a mapping in JSON"),
    ],
)
def test_values_that_transformers_does_not_check(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RRHFConfig(str(tmp_path), **changes)


# ---------------------------------------------------------------------------------- settings without generation


def ignored(caplog):
    return [text for text in caplog.messages if "No completions are generated" in text]


@pytest.mark.parametrize("method", ["rrhf", "vas"])
def test_settings_of_generation_are_said_to_be_ignored_where_there_is_none(method, tmp_path, caplog):
    settings = {"resample_steps": 0, "num_generations": 7, "temperature": 0.3, "log_completions": True}
    make_trainer(method, tmp_path, SCORED, reward_funcs=None, **settings)
    [line] = ignored(caplog)
    for name in ("num_generations", "temperature", "log_completions"):
        assert f"`{name}`" in line
    assert line.startswith("Ignored: `") and "as the dataset has them and there are no `reward_funcs`" in line


@pytest.mark.parametrize("method", ["rrhf", "vas"])
def test_settings_of_generation_are_used_where_rewards_score_completions(method, tmp_path, caplog):
    """In evaluations too, where training has completions of its own."""
    make_trainer(method, tmp_path, SCORED, resample_steps=0, temperature=0.3)
    assert not ignored(caplog)


def test_defaults_are_not_said_to_be_ignored(tmp_path):
    assert unused_without_generation(RRHFConfig(str(tmp_path))) == []
    assert unused_without_generation(RRHFConfig(str(tmp_path), top_k=0, top_p=1.0, num_generations=4)) == []
    assert unused_without_generation(RRHFConfig(str(tmp_path), num_generations=5)) == ["num_generations"]
