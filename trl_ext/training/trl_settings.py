# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Settings of TRL and transformers that the configs here do not take, or not with every value, and why.

Every setting of TRL's `DPOConfig` and `GRPOConfig` is a field of our configs under the same name, or is in `REFUSED`;
a test compares the two, so that a release of TRL shows what is new. So is every setting of the `PPOConfig` that TRL
had. A method adds its own reasons in its config (`refused_settings`).

`REFUSED_ARGUMENTS` does the same for arguments of TRL's trainers; a method's own are in its trainer
(`_refused_arguments`).
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from trl_ext.generation_settings import GenerationSettings
from trl_ext.validation import SettingErrors, did_you_mean, require, unknown_settings


def _for(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


_NOT_OUR_LOSS = "a setting of {} loss, which is not computed here: remove it"

# Settings that do not exist here, with the reason or the alternative. Errors show them for a name that is not a field.
REFUSED: dict[str, str] = {
    **_for(
        "loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef label_smoothing use_weighting discopop_tau "
        "reference_free rpo_alpha",
        _NOT_OUR_LOSS.format("DPO's"),
    ),
    **_for(
        "epsilon delta epsilon_high sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos "
        "vespo_k_neg vespo_lambda_neg importance_sampling_level scale_rewards "
        "top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta "
        "entropy_target off_policy_mask_threshold use_bias_correction_kl vllm_importance_sampling_correction "
        "vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min "
        "vllm_importance_sampling_cap",
        _NOT_OUR_LOSS.format("GRPO's"),
    ),
    "loss_type": _NOT_OUR_LOSS.format("DPO's or GRPO's"),
    # Those of the old PPO; Proxy-RLHF has most of its loss, VAS some.
    **_for(
        "num_ppo_epochs num_mini_batches whiten_rewards cliprange cliprange_value vf_coef gamma lam",
        _NOT_OUR_LOSS.format("PPO's"),
    ),
    "kl_coef": "called `beta` here, and subtracted from the score of a completion",
    "kl_estimator": "a KL term here is always the log-ratio (`k1`): remove it",
    "missing_eos_penalty": "set `mask_truncated_completions`, which leaves truncated completions out",
    "reward_model_path": "set `reward_model_name_or_path` (in Python: the trainer's `reward_funcs`)",
    "reward_model": "set `reward_funcs` or `reward_model_name_or_path` (in Python: the trainer's `reward_funcs`)",
    "value_model": "no value model is trained: remove it",
    "sft_model_path": "set `model_name_or_path` (in Python: the trainer's `model`)",
    **_for("model_adapter_name ref_adapter_name", "the reference is the model without its adapter: remove it"),
    "total_episodes": "set `num_train_epochs`, or `max_steps`, which counts optimizer steps",
    "response_length": "called `max_completion_length`",
    **_for(
        "stop_token stop_token_id",
        "generation stops at the model's end-of-sequence token; for another one set `eos_token`",
    ),
    "local_rollout_forward_batch_size": "called `generation_batch_size` here",
    "num_sample_generations": "set `log_completions`, which shows and saves the completions that are generated",
    **_for(
        "batch_size local_batch_size micro_batch_size mini_batch_size local_mini_batch_size num_total_batches "
        "world_size",
        "set `per_device_train_batch_size`, which counts prompts, and `gradient_accumulation_steps`",
    ),
    "exp_name": "called `run_name`",
    **_for("desirable_weight undesirable_weight", _NOT_OUR_LOSS.format("KTO's")),
    **_for("normalize_advantages reward_clip_range", _NOT_OUR_LOSS.format("RLOO's")),
    **_for("cpo_alpha simpo_gamma alpha_r", _NOT_OUR_LOSS.format("CPO's or ORPO's")),
    **_for("center_rewards_coefficient", _NOT_OUR_LOSS.format("the reward trainer's")),
    **_for("assistant_only_loss completion_only_loss", "the loss is always that of completions only: remove it"),
    **_for(
        "packing packing_strategy eval_packing",
        "a row is a prompt with all of its completions, and is not packed with others: remove it",
    ),
    **_for("dataset_text_field", "rows have prompts and completions: name their columns in `columns`"),
    "dataset_kwargs": "a dataset is prepared in one way here: remove it",
    "max_seq_length": "called `max_length` now",
    **_for("padding_value label_pad_token_id", "TRL has removed it: set `pad_token`, or leave it out"),
    "generate_during_eval": "set `log_completions`, which shows and saves the completions that are generated",
    "precompute_ref_batch_size": "`precompute_ref_log_probs` has no use here: remove it",
    "num_iterations": "in GRPO, the updates on each batch of completions; this method has no such number",
    "max_tool_calling_iterations": "no tools are called in training: remove it",
    "log_multimodal": "rows have no images: remove it",
    "log_completions_hub_repo": "`log_completions` saves all completions under `output_dir/completions`: upload that "
    "folder (`hf upload`)",
    "use_transformers_paged": "called `use_transformers_continuous_batching` now",
    "max_prompt_length": "TRL has removed it: set `max_length`, which drops rows whose prompt alone is this long",
    # Names that transformers 5 has changed or removed, as older scripts and recipes write them.
    "torch_dtype": "called `dtype` now (on the command line and in YAML; in Python: `model_init_kwargs`)",
    "group_by_length": "write `train_sampling_strategy: group_by_length`",
    "evaluation_strategy": "called `eval_strategy` now",
    "warmup_ratio": "set `warmup_steps` to a number below 1, the share of all steps",
    "no_cuda": "called `use_cpu` now",
    "adafactor": "set `optim: adafactor`",
    "include_tokens_per_second": "`num_tokens` is always logged: remove it",
    "overwrite_output_dir": "a run continues only with `resume_from_checkpoint`: remove it",
    "logging_dir": "set the environment variable `TENSORBOARD_LOGGING_DIR`",
    "save_safetensors": "weights are always saved as safetensors: remove it",
    "push_to_hub_model_id": "called `hub_model_id` now",
    "push_to_hub_token": "called `hub_token` now",
    "include_inputs_for_metrics": "batches are lists of token ids without padding, which no metric can concatenate",
}

# Arguments of TRL's and transformers' trainers that the constructors here do not have, of the old PPO too.
REFUSED_ARGUMENTS: dict[str, str] = {
    "reward_model": "pass it as `reward_funcs`: a model, its directory or Hub id, or a function",
    "value_model": "no value model is trained: remove it",
    "policy": "called `model` now",
    "ref_policy": "called `ref_model` now",
    "config": "called `args` now",
    "tokenizer": "called `processing_class` now",
    "dataset": "called `train_dataset` now",
    "data_collator": "the trainer has a collator for its own rows: remove it",
    "compute_metrics": "evaluation has no labels here: remove it",
    **_for(
        "tools rollout_func environment_factory",
        "completions are generated by the trainer, from the model alone: remove it; to train on others, make rows of "
        "them (`prompt`, `completions`, `scores`)",
    ),
    **_for("model_init compute_loss_func preprocess_logits_for_metrics", "the trainer does this itself: remove it"),
    "optimizer_cls_and_kwargs": "set `optim` and `optim_args`, or pass `optimizers`",
    "formatting_func": "rows are read in many forms: name their columns in `columns`",
}

# The same where the language model is not trained.
FROZEN_MODEL_ARGUMENTS: dict[str, str] = REFUSED_ARGUMENTS | _for(
    "ref_model ref_policy", "the language model is not trained, so there is no reference model: remove it"
)
# Settings that do not exist where the language model is not trained.
FROZEN_MODEL: dict[str, str] = {
    **_for(
        "beta kl_coef sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
        "the language model is not trained, so there is no reference model: remove it",
    ),
    "multi_objective_aggregation": "the language model is not trained, and completions of a prompt are not compared "
    "with one another: set `reward_weights`",
    "cast_lm_head_to_fp32": "the language model is not trained: load it in another dtype (`model_init_kwargs`)",
    **_for(
        "use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url "
        "vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization "
        "vllm_max_model_length vllm_tensor_parallel_size",
        "vLLM cannot be guided in training; to train on completions that vLLM generates, make them with "
        "`trl-ext sample`",
    ),
    **_for(
        "use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged",
        "continuous batching cannot be guided in training: remove it",
    ),
}


def check_arguments(
    cls: type, given: Iterable[str], refused: Mapping[str, str], kind: str = "arguments"
) -> Mapping[str, inspect.Parameter]:
    """
    Check the names of the arguments of a constructor.

    Args:
        cls (`type`): The class. If it takes any argument (`**kwargs`), nothing is checked.
        given (`Iterable[str]`): The names.
        refused (`Mapping[str, str]`): Reasons, or alternatives, for names that it does not have.
        kind (`str`, *optional*, defaults to `"arguments"`): What they are called in the error.

    Returns:
        `Mapping[str, inspect.Parameter]`: The parameters of the constructor, `self` first.

    Raises:
        `TypeError`: Some are unknown; the message names them all.
    """
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return parameters
    if unknown := [name for name in given if name not in parameters]:
        show = "`{}`".format
        lines = unknown_settings(
            unknown, refused, show, lambda name: f"{show(name)}: unknown{did_you_mean(name, parameters, show)}"
        )
        raise TypeError("\n- ".join([f"{cls.__name__} has no such {kind}:", *lines]))
    return parameters


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


# Settings that every config has, of transformers and of TRL: the values that work, and why no others do.
RESTRICTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "precompute_ref_log_probs": (
        _is(False),
        "a reference scores completions that training generates, which do not exist before it; with `beta: 0` there "
        "is no reference in memory. Leave it out",
    ),
    "padding_free": (
        _is(False),
        "a prompt is read once for all of its completions instead (`shared_prefix`), and TRL 1.16 ignores it. Leave "
        "it out",
    ),
    "label_smoothing_factor": (
        _is(0, None),
        "the losses here have no labels that could be smoothed; set it to 0",
    ),
    "label_names": (
        _is(None),
        "batches have no label columns; scores are the labels of `compute_metrics`. Leave it out",
    ),
    "include_for_metrics": (
        lambda value: "inputs" not in (value or ()),
        "batches are lists of token ids without padding, which no metric can concatenate; leave out 'inputs'",
    ),
    "include_num_input_tokens_seen": (
        _is("no", False),
        "`num_tokens`, without padding, is always logged. Leave it out",
    ),
    "average_tokens_across_devices": (
        _is(True, None),
        "a step's loss is always the mean over all processes, whatever it is split into; set it to true",
    ),
}


# The same for methods that train a small model beside a frozen language model.
RESTRICTED_FROZEN_MODEL: dict[str, tuple[Callable[[Any], bool], str]] = RESTRICTED | {
    "use_liger_kernel": (
        _is(False, None),
        "it replaces layers of the model that is trained, and the language model is frozen; for Hub kernels set "
        "`model_init_kwargs: {use_kernels: true}`",
    ),
}


def wrong_values(config: Any, restricted: Mapping[str, tuple[Callable[[Any], bool], str]]) -> list[str]:
    """A line for each setting that has no effect here with the value that it has in a config or on a command line."""
    values = {name: getattr(config, name, None) for name in restricted}
    return [
        f"`{name}` cannot be {value!r}: {restricted[name][1]}."
        for name, value in values.items()
        if not restricted[name][0](value)
    ]


def check_restricted(config: Any, restricted: Mapping[str, tuple[Callable[[Any], bool], str]]) -> None:
    """
    Check the settings that have no effect here with other values.

    Raises:
        `ValueError`: Some of them have such values; the message names them all and says why.
    """
    if problems := wrong_values(config, restricted):
        raise SettingErrors(problems)


# Kernels of Liger that replace what computes the loss: log-probabilities come from a fused head of our own.
_LIGER_LOSSES = ("fused_linear_cross_entropy", "cross_entropy")


def liger_config(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    The config of Liger's kernels with which they replace layers, and not the loss.

    Raises:
        `ValueError`: The given config asks for a kernel of the loss.
    """
    for name in _LIGER_LOSSES:
        require(
            not (given or {}).get(name),
            f"`liger_kernel_config` cannot have {name!r}: log-probabilities are computed by a fused head already. "
            "Leave it out.",
        )
    return {**dict.fromkeys(_LIGER_LOSSES, False), **(given or {})}


# Names that TRL has too, with another meaning: shown once, when one of them is set.
OTHER_MEANINGS: dict[str, str] = {
    "generation_batch_size": "the number of sequences that a device generates at once; in GRPO, the completions of a "
    "round",
    "beta": "the coefficient of a KL term that is subtracted from the score of a generated completion; in GRPO and "
    "DPO it is part of the loss",
}


def notes_on(config: Any, meanings: Mapping[str, str]) -> Iterable[str]:
    """A sentence for each setting of a config that is not at its default and means something else in TRL."""
    for name, meaning in meanings.items():
        each = type(config).__dataclass_fields__.get(name)
        if each is not None and getattr(config, name) not in (each.default, None):
            yield f"`{name}` is {meaning}."


# Settings that only matter where completions are generated. Those that ask for it are an error without rewards.
_OF_GENERATION = [
    *(each.name for each in fields(GenerationSettings) if each.name not in ("custom_generate", "trust_remote_code")),
    *("num_generations_eval", "generation_batch_size", "mask_truncated_completions", "log_completions"),
]


def unused_without_generation(config: Any) -> list[str]:
    """Settings of a config that are not at their default and have no effect if no completions are generated."""
    known = type(config).__dataclass_fields__
    return [name for name in _OF_GENERATION if name in known and _is_set(config, name)]


def _is_set(config: Any, name: str) -> bool:
    default = type(config).__dataclass_fields__[name].default
    return bool(getattr(config, name) not in (default, None, "") and (getattr(config, name) or default))
