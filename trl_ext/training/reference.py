# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The reference model of a KL term or of a loss: a given model, or the policy as it was when training began.

Of a policy with an adapter the weights that are trained are kept, and put back for the reference's forward pass. The
policy with its adapter disabled would be another model if the adapter was trained before, or if its initialization
changes the base (PiSSA, OLoRA, CorDA, LoftQ, ...). Of any other policy a frozen copy is kept.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import BitsAndBytesConfig, PreTrainedModel, Trainer, TrainerCallback

from trl_ext.atomic_files import write_tensors
from trl_ext.logprobs.logprobs import LogProbs, TokenLogps, completion_logps
from trl_ext.models.copies import independent_copy
from trl_ext.models.load import freeze, load_model
from trl_ext.models.modes import checkpointing_disabled, evaluation_mode
from trl_ext.models.properties import base_of, is_peft_model, is_quantized, trains_weights_of
from trl_ext.models.sharding import assign, copy_of, reshard, shard
from trl_ext.progress import progress

from .config import ExtConfig
from .model_loading import init_kwargs


if TYPE_CHECKING:
    from peft import PeftModel


# Completions that both models read at once unless `generation_batch_size` is set. Generation uses more on a GPU, where
# each forward pass reads one token per sequence; here it reads complete texts.
BATCH_SIZE = 64

# What activation checkpointing and torch.compile insert into the names of parameters.
_WRAPPERS = re.compile(r"(_checkpoint_wrapped_module|_orig_mod)\.")


class TrainedWeights:
    """
    The weights of a model that are trained, as they are now.

    Args:
        model (`torch.nn.Module`): The model, without a distributed wrapper.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.values = {name: copy_of(parameter) for name, parameter in trained_parameters(model).items()}

    def put_into(self, model: torch.nn.Module) -> None:
        """Sets the weights of `model`, or of a copy of it, to these."""
        for name, parameter in _parameters(model).items():
            if name in self.values:
                assign(parameter, self.values[name])
        reshard(model)

    @contextmanager
    def restored(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside this context `model` has these weights."""
        current = TrainedWeights(model)
        self.put_into(model)
        try:
            yield
        finally:
            current.put_into(model)

    def save(self, file: Path, is_main_process: bool) -> None:
        """Write the weights to a safetensors file. Every process has to call it."""
        whole = {
            n: values.full_tensor() if isinstance(values, DTensor) else values for n, values in self.values.items()
        }
        if is_main_process:
            write_tensors(file, whole)

    def load(self, file: Path) -> None:
        """
        Read the weights that [`save`] wrote.

        Raises:
            `OSError`: There is no such file.
            `ValueError`: They are those of another model.
        """
        saved = _saved_weights(file, self.values)
        self.values = {name: values.to(self.values[name].device) for name, values in saved.items()}


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that require gradients, by their names without the parts that wrappers insert."""
    return {name: parameter for name, parameter in _parameters(model).items() if parameter.requires_grad}


def _saved_weights(file: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in a file, which are those of the model that `weights` are from."""
    if not file.is_file():
        raise OSError(
            f"{file} does not exist: it holds the reference of the KL term, which is not the model that the run began "
            "with. Resume in the folder that the run wrote to, or start again."
        )
    saved = load_file(file)
    if {n: values.shape for n, values in weights.items()} != {n: values.shape for n, values in saved.items()}:
        raise ValueError(f"{file} holds the weights of another model or adapter.")
    return saved


def _parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {_WRAPPERS.sub("", name): parameter for name, parameter in model.named_parameters()}


class Reference:
    """
    Computes log pi(y | x) - log pi_0(y | x) for a policy pi and its reference pi_0.

    The reference is `ref_model`; without one, the policy as it is now.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy, before training and before any
            distributed wrapper.
        ref_model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*): The reference: a
            model, or its directory or Hub id.
        args ([`~trl_ext.training.config.ExtConfig`], *optional*): The trainer's config. A reference given by name is
            loaded as the policy is, in the policy's dtype unless `model_init_kwargs` has another. Their `revision`
            applies only if the reference has the policy's name.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): For a reference given by name.

    Attributes:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The reference, or `None` if it is the policy
            with the weights that it had.

    Raises:
        `TypeError`: `ref_model` is neither a model nor a name.
        `ValueError`: `ref_model` is the policy itself, or has weights that are trained with it.
    """

    def __init__(
        self,
        model: Any,
        ref_model: "str | PreTrainedModel | PeftModel | None" = None,
        args: ExtConfig | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
    ) -> None:
        if ref_model is model:
            raise ValueError("`ref_model` and `model` are the same object; leave out `ref_model` to use a copy.")
        if isinstance(ref_model, str):
            ref_model = _load(ref_model, model, args, quantization_config)
        elif ref_model is not None and not isinstance(ref_model, torch.nn.Module):
            raise TypeError(
                f"`ref_model` must be a model, or its directory or Hub id, got `{type(ref_model).__name__}`."
            )
        elif ref_model is not None and trains_weights_of(model, ref_model):
            raise ValueError(
                "`ref_model` has weights that are trained with `model`, as PEFT puts an adapter into the model that "
                "it is given: leave out `ref_model` to compare with the model as it is now, or load it again."
            )
        self.is_given = ref_model is not None
        self.model: Any = None
        self._weights: TrainedWeights | None = None
        if ref_model is None and is_peft_model(model):
            self._weights = TrainedWeights(model)
        else:
            self.model = freeze(independent_copy(model) if ref_model is None else ref_model)
            self.log_probs: LogProbs | None = None  # not the policy's: its attention may differ

    def set_to_policy(self, trainer: Trainer, file: Path, *, resumed: bool = False) -> None:
        """
        Make the policy as it is now the reference, unless that was given.

        Args:
            trainer ([`~transformers.Trainer`]): The trainer of the policy.
            file (`pathlib.Path`): Where the weights are kept for runs that are resumed later.
            resumed (`bool`, *optional*, defaults to `False`): Take the weights in `file` instead.

        Raises:
            `OSError`: There is no such file.
            `ValueError`: It holds the weights of another model.
        """
        if self.is_given:
            return
        policy = trainer.accelerator.unwrap_model(trainer.model)
        weights = TrainedWeights(policy)
        if resumed:
            weights.load(file)
        else:
            weights.save(file, trainer.accelerator.is_main_process)
        if self.model is None:
            self._weights = weights
        else:
            weights.put_into(extract_model_from_parallel(self.model))

    def describe(self) -> str:
        """What the reference is, for people."""
        if self.is_given:
            return f"{base_of(self.model).name_or_path or 'a model'} (`ref_model`)"
        return "the model as it is now" if self.model is None else "a copy of the model as it is now"

    def place(self, trainer: Trainer) -> None:
        """Move a separate reference model to the device of the policy, and shard it if the policy is sharded."""
        if self.model is None:
            return
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            self.model = shard(self.model, trainer)
        else:
            self.model = trainer.accelerator.prepare_model(self.model, evaluation_mode=True)

    def sync_callback(self, trainer: Trainer) -> TrainerCallback:
        """
        The callback that mixes the policy into the reference, as `sync_ref_model` asks for.

        Raises:
            `ValueError`: The weights of the two cannot be mixed.
        """
        from trl import SyncRefModelCallback

        reason = ""
        if self.model is None or is_peft_model(trainer.model):
            reason = "the policy's weights are an adapter, and the reference's are not: train all weights"
        elif is_quantized(base_of(self.model)) or is_quantized(base_of(trainer.model)):
            reason = "quantised weights cannot be mixed: load both models without quantisation"
        elif trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            reason = "the reference of a sharded policy is fixed: train without DeepSpeed and FSDP"
        if reason:
            raise ValueError(f"`sync_ref_model` cannot be used here: {reason}, or leave it out.")
        return SyncRefModelCallback(ref_model=self._unwrapped(), accelerator=trainer.accelerator)

    def save(self, path: Path) -> None:
        """Write the weights of a separate reference, which have changed if it is synchronised with the policy."""
        write_tensors(path, {name: tensor.detach() for name, tensor in _parameters(self._unwrapped()).items()})

    def load(self, path: Path) -> None:
        """
        Load the weights that [`save`] wrote.

        Raises:
            `OSError`: There is no such file.
            `ValueError`: They are those of another model.
        """
        parameters = _parameters(self._unwrapped())
        for name, values in _saved_weights(path, parameters).items():
            assign(parameters[name], values)

    def _unwrapped(self) -> Any:
        return extract_model_from_parallel(self.model)

    def _builder(self, policy: LogProbs) -> LogProbs:
        if self.log_probs is None:
            self.log_probs = LogProbs(
                self._unwrapped(),
                policy.pad_token_id,
                completions_per_forward=policy.completions_per_forward,
                shared_prefix=policy.shared_prefix,
            )
        return self.log_probs

    @contextmanager
    def _active(self, trainer: Trainer, log_probs: LogProbs) -> Iterator[tuple[torch.nn.Module, LogProbs]]:
        """
        Context with the reference and what computes its log-probabilities. Where it is the policy with earlier
        weights, the policy has these inside.
        """
        if self._weights is None:
            yield self.model, self._builder(log_probs)
            return
        with self._weights.restored(trainer.accelerator.unwrap_model(trainer.model)):
            yield trainer.model_wrapped, log_probs

    @torch.no_grad()
    def token_logps(
        self,
        trainer: Trainer,
        log_probs: LogProbs,
        prompts: list[list[int]],
        completions: list[list[list[int]]],
    ) -> TokenLogps:
        """
        Log-probabilities of the completions of one batch under the reference, without gradients.

        Call it before the policy's own forward pass: the weights of an adapter are exchanged for it.

        Args:
            trainer, log_probs, prompts, completions: As for [`log_ratios`].
        """
        policy = trainer.accelerator.unwrap_model(trainer.model)
        with (
            checkpointing_disabled(policy),
            self._active(trainer, log_probs) as (model, builder),
            evaluation_mode(model),
        ):
            return builder(model, prompts, completions)

    def log_ratios(
        self,
        trainer: Trainer,
        log_probs: LogProbs,
        prompts: list[list[int]],
        completions: list[list[list[int]]],
    ) -> list[list[float]]:
        """
        log pi(y | x) - log pi_0(y | x) of each completion, in nats. Its mean over samples of pi estimates the KL.

        Args:
            trainer ([`~transformers.Trainer`]): The trainer of the policy.
            log_probs ([`~trl_ext.logprobs.logprobs.LogProbs`]): The log-probabilities of the policy.
            prompts (`list[list[int]]`): B prompts.
            completions (`list[list[list[int]]]`): The completions of each prompt, which are read together.
        """
        batch_size = max(trainer.args.generation_batch_size or BATCH_SIZE, *map(len, completions), 1)
        policy = trainer.accelerator.unwrap_model(trainer.model)

        def logps(model: torch.nn.Module, builder: LogProbs) -> list[list[torch.Tensor]]:
            return completion_logps(
                model,
                prompts,
                completions,
                pad_token_id=log_probs.pad_token_id,
                batch_size=batch_size,
                log_probs=builder,
            )

        with progress("log-probabilities", 2 * len(prompts)), checkpointing_disabled(policy):
            own = logps(trainer.model_wrapped, log_probs)
            with self._active(trainer, log_probs) as (model, builder):
                reference = logps(model, builder)
        return [
            [float((p - q).sum()) for p, q in zip(group, others, strict=True)]
            for group, others in zip(own, reference, strict=True)
        ]


def _load(name: str, policy: Any, args: ExtConfig | None, quantization_config: BitsAndBytesConfig | None) -> Any:
    kwargs = init_kwargs(args, quantization_config) if args is not None else {}
    if name != base_of(policy).name_or_path:
        kwargs.pop("revision", None)  # that of another repository
    if kwargs.get("quantization_config") is None and is_quantized(base_of(policy)):
        kwargs["quantization_config"] = base_of(policy).config.quantization_config
    if kwargs.get("quantization_config") is None:
        kwargs.setdefault("dtype", policy.dtype)
    return load_model(name, **kwargs)
