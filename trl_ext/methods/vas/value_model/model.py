# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The value model: a backbone, and a head that says what a text is worth after each of its tokens.

The exact form reads a token and then says what the text is worth with it: V(s + a). The two cheaper ones say it of
every token that could come next from the state before it, Q(s, a): one reading for all candidates (`"action"`), or
none where that state is the language model's own (`"policy"`).

Letters: N sequences, T tokens, D hidden size, H heads, V vocabulary, k tokens that could come next, r rank.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig, PreTrainedModel

from trl_ext.models.load import base_of
from trl_ext.upstream import get_config_model_id

from .action_head import ActionHead
from .backbone_model import BackboneModel
from .backbones import load_backbone
from .config import ValueConfig


if TYPE_CHECKING:
    from peft import PeftConfig


class ValueOutput(NamedTuple):
    """
    Output of a [`ValueModel`]. No `ModelOutput` of transformers: that is a dictionary, and those have `values()`.

    Args:
        values (`torch.Tensor` of shape (N, T), or (N, T, H) with several heads):
            Value of the text up to and including each token, float32, in the units the head was trained in.
        last_hidden_state (`torch.Tensor` of shape (N, T, D)):
            What the head was applied to.
        past_key_values (*optional*):
            The backbone's cache, if asked for.
    """

    values: torch.Tensor
    last_hidden_state: torch.Tensor
    past_key_values: Any = None


class ValueModel(BackboneModel):
    """
    A backbone with a value head for each of one or several rewards.

    Made by [`ValueModel.from_backbone`], [`ValueModel.on_policy`] or [`ValueModel.from_pretrained`]; saved by
    `save_pretrained`, pushed by `push_to_hub`. One that is an adapter on its backbone is saved as adapter and head,
    one on the language model's own states as head.

    Args:
        config ([`ValueConfig`]): Its configuration.
        backbone ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*): A model without a head; by
            default a new one with random weights.
    """

    config_class = ValueConfig
    what = "value model"
    # What matters in a value is a difference of a few hundredths in a number of a few units: bfloat16 has three
    # digits, 4 bits have one.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["head", "action"]
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["head", "action"]

    def __init__(self, config: ValueConfig, backbone: Any = None) -> None:
        super().__init__(config, backbone)
        text, heads = config.get_text_config(), len(config.heads or ())
        # float32 also where the default dtype is another: see above.
        self.head = nn.Linear(text.hidden_size, heads, dtype=torch.float32)
        if config.form != "state":
            self.action = ActionHead(text.hidden_size, text.vocab_size, config.action_rank, heads)
        self.post_init()
        self._reset_heads()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.head:
            self._reset_heads()

    def _reset_heads(self) -> None:
        # Reference code: the head starts at zero, so that the first targets are plain discounted rewards.
        if not self.head.weight.is_meta:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
            if self.config.form != "state":
                self.action.reset()

    # ---------------------------------------------------------------------------------------------------- making

    @classmethod
    def from_backbone(
        cls,
        backbone: "str | PreTrainedModel",
        heads: Sequence[str] = ("reward",),
        *,
        form: str = "state",
        action_rank: int = 256,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: "PeftConfig | None" = None,
        **init_kwargs: Any,
    ) -> "ValueModel":
        """
        A value model with heads of zeros on a backbone.

        Args:
            backbone (`str` or [`~transformers.PreTrainedModel`]):
                Hub id, directory or model. A language model or a classifier loses its head; of a model object the
                weights are used, not copied.
            heads (`Sequence[str]`, *optional*, defaults to `("reward",)`):
                Names of the heads.
            form (`str`, *optional*, defaults to `"state"`), action_rank (`int`, *optional*, defaults to `256`):
                See [`ValueConfig`].
            quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
                4-bit or 8-bit loading of a backbone given by name.
            peft_config ([`~peft.PeftConfig`], *optional*):
                Adapter to add to the backbone.
            init_kwargs: Passed to `from_pretrained`.

        Raises:
            `ValueError`: A model object was given with `quantization_config`, or has an adapter on a head that it
                would lose; or the form is that of a head without a backbone.
        """
        if form == "policy":
            raise ValueError('A value of the form "policy" has no backbone of its own: use `ValueModel.on_policy`.')
        model, name = load_backbone(
            backbone, quantization_config=quantization_config, peft_config=peft_config, **init_kwargs
        )
        return cls._made(model, name, heads, form, action_rank, base_of(model).get_input_embeddings())

    @classmethod
    def on_policy(
        cls,
        policy: PreTrainedModel,
        heads: Sequence[str] = ("reward",),
        *,
        form: str = "state",
        action_rank: int = 256,
        peft_config: "PeftConfig | None" = None,
    ) -> "ValueModel":
        """
        A value model on the weights of `policy`, which stay where they are: with an adapter, or as they are.

        An adapter works only while the value model computes: `policy` computes what it always did.

        Args:
            policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A causal language model; one with an
                adapter of its own only with the form `"policy"`, which then reads the states that it has with it.
            heads (`Sequence[str]`, *optional*, defaults to `("reward",)`): Names of the heads.
            form (`str`, *optional*, defaults to `"state"`), action_rank (`int`, *optional*, defaults to `256`):
                See [`ValueConfig`].
            peft_config ([`~peft.PeftConfig`], *optional*): The adapter, for the other two forms.

        Raises:
            `ValueError`: An adapter is missing, or given where there is none.
        """
        if (peft_config is None) != (form == "policy"):
            wants = "takes no adapter: leave out" if form == "policy" else "on the policy needs an adapter: pass"
            raise ValueError(f"A value model of the form {form!r} {wants} `peft_config` (`--use_peft`).")
        if form == "policy":
            name = get_config_model_id(policy.config) or ""
            base = base_of(policy)
            made = cls._made(base.base_model, name, heads, form, action_rank, base.get_output_embeddings())
        else:
            made = cls.from_backbone(policy, heads, form=form, action_rank=action_rank, peft_config=peft_config)
        made._share()
        return made

    @classmethod
    def _made(
        cls, model: Any, name: str, heads: Sequence[str], form: str, action_rank: int, embeddings: Any
    ) -> "ValueModel":
        config = ValueConfig(
            backbone_config=base_of(model).config,
            heads=list(heads),
            form=form,
            action_rank=action_rank,
            backbone_name=name,
        )
        made = cls(config, model)
        weight = getattr(embeddings, "weight", None)
        if (
            form != "state"
            and weight is not None
            and weight.shape == (config.get_text_config().vocab_size, made.head.in_features)
        ):
            made.action.start_from(weight)
        return made.to_device_of(model)

    # --------------------------------------------------------------------------------------------------- forward

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the heads, in the order of the last dimension of [`ValueModel.value_of`]."""
        return tuple(self.config.heads)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        next_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ValueOutput:
        """
        Values of N sequences, after each of their tokens.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, use_cache, kwargs: See
                [`~trl_ext.methods.vas.value_model.backbone_model.BackboneModel.encode`].
            next_ids (`torch.Tensor` of shape (N, T), *optional*): For the forms that see actions: values are those of
                the text with this token behind the one at each position. Where it is negative they mean nothing.

        Returns:
            [`ValueOutput`]; the values of padding mean nothing. Forms that see actions have none for the first token
            that is read (NaN): there is no state before it.
        """
        hidden_NTD, cache = self.encode(input_ids, attention_mask, position_ids, past_key_values, use_cache, **kwargs)
        if self.config.form == "state":
            values_NTH = self.value_of(hidden_NTD)
        elif next_ids is not None:
            values_NTH = self.action_values(hidden_NTD, next_ids.clamp(min=0)[..., None])[..., 0, :]
        else:
            values_NTH = self._after_each(hidden_NTD, input_ids, attention_mask)
        values = values_NTH[..., 0] if len(self.config.heads) == 1 else values_NTH
        return ValueOutput(values, hidden_NTD, cache)

    def _after_each(self, hidden_NTD: torch.Tensor, ids_NT: Any, mask: torch.Tensor | None) -> torch.Tensor:
        """Q of each token from the state before it."""
        if ids_NT is None:
            raise ValueError("Which tokens the values are of is not known: pass `input_ids` or `next_ids`.")
        columns = ids_NT.shape[1]
        values = self.action_values(hidden_NTD[:, :-1], ids_NT[:, 1:, None])[..., 0, :]
        if mask is not None and mask.dim() == 2:
            before = mask[:, -columns:][:, :-1, None].to(values.device).bool()
            values = values.masked_fill(~before, torch.nan)
        return nn.functional.pad(values, (0, 0, 1, 0), value=torch.nan)

    def value_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """
        Values (..., H), float32, of texts whose last token has the hidden states (..., D).

        Raises:
            `ValueError`: The model's form sees actions.
        """
        if self.config.form != "state":
            raise ValueError(
                f"A value model of the form {self.config.form!r} needs the next token as well: use `action_values`, "
                "or the `values` of its forward."
            )
        with torch.autocast(hidden.device.type, enabled=False):  # see `_keep_in_fp32_modules_strict`
            return self.head(hidden.to(self.head.weight.dtype)).float()

    def action_values(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """
        Values (..., k, H), float32, of texts with each of the tokens (..., k) behind the hidden states (..., D).

        Reconstruction: Q(s, a) = v(h) + <u_a, W h>, see [`~trl_ext.methods.vas.value_model.action_head.ActionHead`].
        """
        with torch.autocast(hidden.device.type, enabled=False):
            states = hidden.to(self.head.weight.dtype)
            return self.head(states)[..., None, :] + self.action(states, ids.to(states.device))


AutoConfig.register(ValueConfig.model_type, ValueConfig, exist_ok=True)
AutoModel.register(ValueConfig, ValueModel, exist_ok=True)
