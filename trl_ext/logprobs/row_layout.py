# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The choice between separate and shared rows for a model, and its proof on a few tokens before it is relied upon."""

import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from trl_ext.models.modes import evaluation_mode
from trl_ext.upstream import attention_implementation

from .prefix_attention import CASCADE
from .shared_prefix import Layout, attention_inputs, build_rows, choose_form, supported_layout


logger = logging.getLogger(__name__)

SHARED_PREFIX_SETTINGS = ("auto", "always", "never")

Probe = tuple[list[list[int]], list[list[list[int]]]]


class SharedPrefixRows:
    """
    What the completions of a batch are laid out as. Subclasses say what is computed from them.

    The form of shared rows is judged from the model's config and confirmed once, before the first use, by comparing it
    with separate rows on a few tokens; a model that computes something else gets separate rows.

    Args:
        base ([`~transformers.PreTrainedModel`]): The transformers model, inside adapters and wrappers.
        pad_token_id (`int`): Token in padding.
        shared_prefix (`str`, *optional*, defaults to `"auto"`): `"auto"` shares a prompt where that is cheaper,
            `"always"` shares wherever the model can, `"never"` keeps separate rows.
        pad_to_multiple_of (`int`, *optional*, defaults to `0`): Round row lengths up to this (`0`: no rounding).

    Raises:
        `ValueError`: `shared_prefix` is none of the three.
    """

    unit = "the result"  # what differs where two forms do not agree, for messages

    def __init__(
        self,
        base: PreTrainedModel,
        pad_token_id: int,
        *,
        shared_prefix: str = "auto",
        pad_to_multiple_of: int = 0,
    ) -> None:
        if shared_prefix not in SHARED_PREFIX_SETTINGS:
            raise ValueError(f"`shared_prefix` must be one of {SHARED_PREFIX_SETTINGS}, got {shared_prefix!r}.")
        self.pad_token_id = pad_token_id
        self.shared_prefix = shared_prefix
        self.pad_to_multiple_of = pad_to_multiple_of
        self.hidden_size = base.config.get_text_config().hidden_size
        self._confirmed = False
        self._judge(base)

    def probe_of(self, model: torch.nn.Module, form: str, prompts: list, completions: list) -> torch.Tensor:
        """What a form of rows gives for completions, in an order that does not depend on the form."""
        raise NotImplementedError

    def _judge(self, base: PreTrainedModel) -> None:
        """Choose the form of shared rows from the config and the device."""
        self._device = next(base.parameters()).device.type
        self.layout = supported_layout(base) if self.shared_prefix != "never" else Layout("separate", "asked for")
        if self.layout.form == "cascade":
            base.set_attn_implementation(CASCADE)
        self.attention = attention_implementation(base.config.get_text_config())

    def _form(self, prompts: list, completions: list) -> str:
        return choose_form(self.layout, prompts, completions, self.hidden_size, self.shared_prefix)

    def _lay_out(
        self, model: torch.nn.Module, form: str, prompts: list, completions: list, *, predict: bool
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """
        The rows of a batch, as [`~trl_ext.logprobs.shared_prefix.build_rows`] gives them, and what `model` is called
        with.
        """
        parameter = next(model.parameters())
        multiple = 0 if form == "cascade" else self.pad_to_multiple_of
        rows = build_rows(
            prompts,
            completions,
            form=form,
            pad_token_id=self.pad_token_id,
            pad_to_multiple_of=multiple,
            predict=predict,
        )
        inputs: dict[str, Any] = {"input_ids": rows["input_ids"].to(parameter.device)}
        if form != "separate":  # otherwise the model counts as it likes: not all count from 0, or take positions
            inputs["position_ids"] = rows["position_ids"].to(parameter.device)
        return rows, inputs | attention_inputs(rows, self.attention, parameter.dtype, parameter.device)

    @torch.no_grad()
    def _settle(self, model: torch.nn.Module, base: PreTrainedModel) -> None:
        """Compare shared with separate rows on a few tokens, and step down until they agree."""
        self._confirmed = True
        if next(base.parameters()).device.type != self._device:
            self._judge(base)  # trainers move the model after they have taken it
        vocabulary = base.config.get_text_config().vocab_size
        ids = [(7 * i + 3) % vocabulary for i in range(13)]
        probe: Probe = ([ids[:4], ids[2:4]], [[ids[4:8], ids[8:10]], [ids[10:13], ids[5:9]]])
        altered: Probe = ([[(i + 5) % vocabulary for i in prompt] for prompt in probe[0]], probe[1])
        with evaluation_mode(model):
            expected = self._reference(model, probe)
            effect = (self.probe_of(model, "separate", *altered) - expected).abs().max().item()
            while self.layout.form != "separate":
                fault = self._difference(model, self.layout.form, probe, expected, effect)
                if fault is None:
                    logger.info("Prompts are shared between completions by %s.", self.layout.reason)
                    break
                self._step_down(base, fault)

    def _reference(self, model: torch.nn.Module, probe: Probe) -> torch.Tensor:
        return self.probe_of(model, "separate", *probe)

    def _step_down(self, base: PreTrainedModel, fault: str) -> None:
        """From flash attention to a mask, from a mask to separate rows."""
        if self.layout.form == "cascade":
            base.set_attn_implementation("sdpa")
            self.attention = "sdpa"
            logger.warning("Shared prompts go through a mask: with flash attention %s.", fault)
            self.layout = Layout("dense", "a 4-dimensional mask under sdpa attention")
        else:
            logger.warning("Prompts are not shared between completions: then %s.", fault)
            self.layout = Layout("separate", fault)

    def _difference(
        self, model: torch.nn.Module, form: str, probe: Probe, expected: torch.Tensor, effect: float = 0.0
    ) -> str | None:
        """
        What is wrong with what `form` gives, or `None`.

        In half precision a difference is judged by `effect`, what another prompt does: a form that hides the prompt
        must not pass for a rounding error.
        """
        try:
            found = self.probe_of(model, form, *probe)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            return f"the model fails ({error})"
        parameter = next(model.parameters())
        precise = parameter.dtype == torch.float32 and not torch.is_autocast_enabled(parameter.device.type)
        difference = (found - expected.to(found.device)).abs().max().item()
        size = max(1.0, expected.abs().max().item())
        tolerance = 1e-3 * size if precise else max(4e-3 * size, 0.2 * effect)
        # Written so that NaN is a difference.
        fault = f"it computes something else ({self.unit} differs by {difference:.3g})"
        return None if difference <= tolerance else fault
