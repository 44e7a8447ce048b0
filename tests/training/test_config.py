# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The shared settings: TRL's names and defaults, the CPU where there is nothing else, errors that name the field."""

import dataclasses
import re
from collections import OrderedDict
from enum import Enum

import numpy as np
import pytest
import torch
from trl import DPOConfig, GRPOConfig

from trl_ext import PSLEConfig, devices
from trl_ext.generation_settings import GenerationSettings
from trl_ext.method import discover
from trl_ext.rewards.settings import RewardSettings
from trl_ext.training.config import ExtConfig
from trl_ext.upstream import BaseConfig


OWN_FIELDS = {field.name for field in dataclasses.fields(ExtConfig)} - {
    field.name for field in dataclasses.fields(BaseConfig)
}


def config(tmp_path, **changes):
    return ExtConfig(output_dir=str(tmp_path), report_to="none", **changes)


def test_the_cpu_is_chosen_where_there_is_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "accelerator", lambda: None)
    args = config(tmp_path)
    assert args.use_cpu
    assert args.bf16 is False
    assert args.device.type == "cpu"


def test_bf16_on_a_cpu_is_honoured(tmp_path):
    assert config(tmp_path, use_cpu=True, bf16=True).bf16 is True
    assert config(tmp_path, use_cpu=True).bf16 is False


def test_activations_stay_where_they_are_on_a_cpu(tmp_path):
    assert config(tmp_path, use_cpu=True, activation_offloading=True).activation_offloading is False


def test_trls_base_defaults_are_kept(tmp_path, recwarn):
    args = config(tmp_path)
    assert args.logging_steps == 10
    assert args.gradient_checkpointing
    assert not recwarn.list  # transformers renamed it, and warns about the old name
    assert not config(tmp_path, gradient_checkpointing=False).gradient_checkpointing


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_length", -1),
        ("pad_to_multiple_of", -8),
        ("num_generations", 0),
        ("generation_batch_size", -1),
        ("max_completion_length", 0),
        ("top_k", -1),
    ],
)
def test_numbers_out_of_range(tmp_path, field, value):
    least = 1 if value == 0 else 0
    with pytest.raises(ValueError, match=f"`{field}` must be at least {least}, got {value!r}"):
        config(tmp_path, **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("max_length", "auto", "a whole number"),
        ("top_k", 2.5, "a whole number"),
        ("num_generations", "4", "a whole number"),
        ("top_p", "0.5", "a number"),
        ("temperature", None, "a number"),
        ("temperature", float("nan"), "a number"),
        ("top_k", True, "a whole number"),
        ("disable_dropout", "yes", "true or false"),
        ("nan_loss", 1, "text"),
        ("reward_weights", [1.0, "2"], "a number"),
        ("learning_rate", "1e-4", "a number"),  # from here on transformers' own
        ("num_train_epochs", "8", "a number"),
        ("gradient_accumulation_steps", 1.5, "a whole number"),
        ("gradient_checkpointing", "false", "true or false"),
    ],
)
def test_values_of_another_type_are_named(tmp_path, field, value, wanted):
    named = value[1] if isinstance(value, list) else value
    with pytest.raises(ValueError, match=f"`{field}` must be {wanted}, got {re.escape(repr(named))}"):
        config(tmp_path, **{field: value})


def test_values_of_a_like_type_become_the_fields(tmp_path):
    args = config(
        tmp_path, top_k=np.int64(5), top_p=np.float32(0.5), temperature=2, reward_weights=(1, 2.5), disable_dropout=0
    )
    assert [type(x) for x in (args.top_k, args.top_p, args.temperature)] == [int, float, float]
    assert args.reward_weights == [1.0, 2.5] and args.disable_dropout is False


@pytest.mark.parametrize(
    ("method", "field", "value", "message"),
    [
        ("rrhf", "rank_weight", "1", "must be a number, got '1'"),
        ("psle", "threshold", "a", "must be a number, got 'a'"),
        ("psle", "threshold", float("nan"), "must be a number, got nan"),
        ("vas", "lam", "a", "must be a number, got 'a'"),
        ("vas", "heads", [1, 2], "must be text, got 1"),
        ("proxy_rlhf", "lam", "a", "must be a number, got 'a'"),
        ("proxy_rlhf", "top_k", 2.5, "must be a whole number, got 2.5"),
        ("proxy_rlhf", "proxy_layer_sizes", [64, 2.5], "must be a whole number, got 2.5"),
    ],
)
def test_fields_of_methods_are_checked_alike(tmp_path, method, field, value, message):
    with pytest.raises(ValueError, match=f"`{field}` {message}"):
        discover().methods[method].method.config_class()(output_dir=str(tmp_path), report_to="none", **{field: value})


@pytest.mark.parametrize("sizes", [[0], [-1], [64, 0]])
def test_layers_have_a_width(tmp_path, sizes):
    made = discover().methods["proxy_rlhf"].method.config_class()
    with pytest.raises(
        ValueError, match=rf"`proxy_layer_sizes\[{len(sizes) - 1}\]` must be at least 1, got {sizes[-1]}"
    ):
        made(output_dir=str(tmp_path), report_to="none", proxy_layer_sizes=sizes)


OFF = ["max_length", "pad_to_multiple_of", "generation_batch_size", "top_k", "min_p"]


@pytest.mark.parametrize("field", OFF)
def test_zero_means_off(tmp_path, field):
    assert getattr(config(tmp_path, **{field: 0}), field) == 0


@pytest.mark.parametrize("field", OFF)
def test_scripts_for_trl_may_say_none(tmp_path, field):
    assert getattr(config(tmp_path, **{field: None}), field) == 0


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_is_positive(tmp_path, temperature):
    with pytest.raises(ValueError, match=f"`temperature` must be positive, got {temperature}"):
        config(tmp_path, temperature=temperature)


@pytest.mark.parametrize(
    ("field", "value"), [("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("repetition_penalty", 0.0)]
)
def test_sampling_settings_are_checked_at_once(tmp_path, field, value):
    """Not after an hour of training, at the first generation."""
    with pytest.raises(ValueError, match=f"{field} must be"):
        config(tmp_path, **{field: value})


def test_generation_settings_carry_every_field_that_both_have(tmp_path):
    values = {
        "num_generations": 3,
        "max_completion_length": 17,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "cuda_graphs": "never",
        "generation_kwargs": {"do_sample": True},
        "cache_implementation": "",
        "trust_remote_code": True,
    }
    settings = config(tmp_path, **values).generation_settings()
    assert isinstance(settings, GenerationSettings)
    assert {name: getattr(settings, name) for name in values} == values
    shared = {field.name for field in dataclasses.fields(GenerationSettings)} & OWN_FIELDS
    assert set(values) == shared


def test_dictionaries_may_come_from_the_command_line(tmp_path):
    args = config(tmp_path, model_init_kwargs='{"dtype": "bfloat16"}', generation_kwargs='{"no_repeat_ngram_size": 2}')
    assert args.model_init_kwargs == {"dtype": "bfloat16"}
    assert args.generation_kwargs == {"no_repeat_ngram_size": 2}


def test_every_field_is_documented_and_has_a_help_text():
    pages = f"{ExtConfig.__doc__}{RewardSettings.__doc__}"
    documented = dict(re.findall(r"^ {8}(\w+) \((.*)\):", pages, flags=re.MULTILINE))
    assert set(documented) == OWN_FIELDS | {"bf16"}  # TRL's, with one more value
    for field in dataclasses.fields(ExtConfig):
        if field.name in OWN_FIELDS:
            assert field.metadata["help"]
            stated = re.search(r"defaults to `(.*)`", documented[field.name])
            assert (stated.group(1) if stated else "None") == _as_written(field.default), field.name


def _as_written(value):
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize("other", [DPOConfig, GRPOConfig])
def test_defaults_of_trl_fields_are_valid_here(tmp_path, other):
    """A script that spells out TRL's own defaults runs with another class name."""
    defaults = {field.name: field.default for field in dataclasses.fields(other)}
    shared = {name: value for name, value in defaults.items() if name in OWN_FIELDS - {"pad_to_multiple_of"}}
    assert len(shared) >= 4
    args = config(tmp_path, **shared)
    for name, value in shared.items():
        if value is not None:
            assert getattr(args, name) == value


class Kind(Enum):
    A = "a"
    B = "b"


@dataclasses.dataclass
class PluginConfig(ExtConfig):
    kind: Kind = Kind.A
    limit: int = None  # type: ignore[assignment]
    layers: list[str] = dataclasses.field(default_factory=list, metadata={"choices": ["q", "k", "v"]})
    extra: dict[str, int] | str = ""


def test_what_plugins_and_trl_write_is_taken(tmp_path):
    assert config(tmp_path, max_grad_norm=None, logging_steps=0.1).max_grad_norm is None
    assert PluginConfig(str(tmp_path)).kind is Kind.A and PluginConfig(str(tmp_path), kind=Kind.B).kind is Kind.B
    assert PluginConfig(str(tmp_path), layers=["q", "v"]).layers == ["q", "v"]
    with pytest.raises(ValueError, match=r"`layers` must be one of q, k, v, got \['q', 'o'\]"):
        PluginConfig(str(tmp_path), layers=["q", "o"])
    assert PluginConfig(str(tmp_path), extra=OrderedDict(a=1)).extra == {"a": 1}
    args = PSLEConfig(str(tmp_path), principles_file=tmp_path / "p.txt", vllm_max_model_length=None)
    assert args.principles_file == str(tmp_path / "p.txt") and args.vllm_max_model_length == 0
    args = PSLEConfig(str(tmp_path), principles_file=None, vllm_server_base_url=None, sft_dataset_name=None)
    assert args.principles_file == args.vllm_server_base_url == args.sft_dataset_name == ""


@pytest.mark.parametrize(("value", "expected"), [("auto", 0), (8, 8), ("8", 8), (None, 0), ("none", 0)])
def test_the_padding_multiple_has_trls_forms(tmp_path, value, expected):
    assert config(tmp_path, pad_to_multiple_of=value).pad_to_multiple_of == expected


def test_the_padding_multiple_on_neuron_is_trls(tmp_path, monkeypatch):
    """TRL 1.16: "auto" pads to 128 where each shape is compiled."""
    monkeypatch.setattr(ExtConfig, "device", torch.device("meta"))
    assert config(tmp_path).pad_to_multiple_of == 0
    monkeypatch.setattr(ExtConfig, "device", type("Device", (), {"type": "neuron"}))
    assert config(tmp_path).pad_to_multiple_of == 128


def test_a_padding_multiple_that_is_no_number(tmp_path):
    with pytest.raises(ValueError, match="`pad_to_multiple_of` must be a whole number or 'auto', got 'wide'"):
        config(tmp_path, pad_to_multiple_of="wide")


def test_truncation_keeps_the_start(tmp_path):
    assert config(tmp_path, truncation_mode="keep_start").truncation_mode == "keep_start"
    with pytest.raises(ValueError, match="'keep_end' is not supported: completions of one prompt"):
        config(tmp_path, truncation_mode="keep_end")


def test_arguments_of_chat_templates(tmp_path):
    kwargs = {"enable_thinking": False}
    assert config(tmp_path, chat_template_kwargs=kwargs).chat_template_kwargs == kwargs
    assert config(tmp_path, chat_template_kwargs='{"enable_thinking": false}').chat_template_kwargs == kwargs


def test_rows_cannot_be_in_order_and_grouped(tmp_path):
    assert config(tmp_path, shuffle_dataset=False).train_sampling_strategy == "sequential"
    assert config(tmp_path, train_sampling_strategy="group_by_length").train_sampling_strategy == "group_by_length"
    for strategy in ("group_by_length", "batch_rebalance"):
        with pytest.raises(ValueError, match=f"`train_sampling_strategy: {strategy}` has another one"):
            config(tmp_path, shuffle_dataset=False, train_sampling_strategy=strategy)
