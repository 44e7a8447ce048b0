# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The value model: a backbone with heads that predict the reward of a text from each of its tokens.

The exact form (`"state"`) predicts V(s + a) from the hidden state after the token a. The two cheaper forms predict
Q(s, a) for every next token a from the hidden state before it: `"action"` needs one forward pass for all candidates,
`"policy"` none, because the hidden state is the language model's own.

Dimensions: N sequences, T tokens, D hidden size, H heads, A atoms of a categorical head, k candidate tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from huggingface_hub import ModelCard, create_repo, file_exists
from torch import nn
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import cached_file

from trl_ext.models.architecture import hidden_width
from trl_ext.models.load import locate, use_exact_4bit_on_cpu
from trl_ext.models.properties import base_of, is_peft_model
from trl_ext.upstream import get_config_model_id

from .action_head import ActionHead
from .backbone_model import BackboneModel
from .backbones import add_adapter, headless, load_backbone, refuse_change_of_base
from .card import value_model_card, write_use
from .config import ValueConfig
from .distribution import MEAN, Statistic, atoms_of, statistic_of
from .policy_weights import VALUE_ADAPTER
from .shared_weights import LastHiddenStates, adapters_unchanged


if TYPE_CHECKING:
    from peft import PeftConfig


class ValueOutput(NamedTuple):
    """
    Output of a [`ValueModel`]. It is not a `ModelOutput`, which is a dictionary and so has a method `values`.

    Args:
        values (`torch.Tensor` of shape `(N, T)`, or `(N, T, H)` with several heads):
            Value of the text up to and including each token, float32, in the units of training.
        last_hidden_state (`torch.Tensor` of shape `(N, T, D)`):
            Hidden states that the heads were applied to.
        past_key_values (*optional*):
            The backbone's KV cache, if requested.
        logits (`torch.Tensor` of shape `(N, T, H, A)`, *optional*):
            Of a categorical head, the unnormalised log-probabilities of its atoms.
    """

    values: torch.Tensor
    last_hidden_state: torch.Tensor
    past_key_values: Any = None
    logits: torch.Tensor | None = None


class ValueModel(BackboneModel):
    """
    A backbone with one value head per reward.

    Create it with [`ValueModel.from_backbone`], [`ValueModel.on_policy`] or [`ValueModel.from_pretrained`]; save it
    with `save_pretrained` or `push_to_hub`. With an adapter, only adapter and heads are saved; with the form
    `"policy"`, only the heads.

    Args:
        config ([`ValueConfig`]): The configuration.
        backbone ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*): A model without a head. By
            default a new one with random weights.
    """

    config_class = ValueConfig
    what = "value model"
    # Guidance depends on differences of a few hundredths between values of a few units. bfloat16 has three significant
    # digits, 4-bit weights have one.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["head", "action"]
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["head", "action"]

    def __init__(self, config: ValueConfig, backbone: Any = None) -> None:
        super().__init__(config, backbone)
        text, heads = config.get_text_config(), len(config.heads or ())
        # float32 whatever the default dtype: see above
        width = hidden_width(text)
        self.head = nn.Linear(width, heads * max(1, config.num_atoms), dtype=torch.float32)
        self._statistic = Statistic()
        if config.form != "state":
            self.action = ActionHead(width, text.vocab_size, config.action_rank, heads)
        self.post_init()
        self._reset_heads()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.head:
            self._reset_heads()

    def _reset_heads(self) -> None:
        # Reference code: the head starts at zero, so that the first targets are discounted rewards. A categorical one
        # starts with equal probabilities.
        if not self.head.weight.is_meta:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
            if self.config.form != "state":
                self.action.reset()

    # ---------------------------------------------------------------------------------------------------- storage

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """
        Save config, weights, `custom_generate/generate.py` (with which `generate` of transformers uses the value
        model), and a `README.md` if there is none. With an adapter only those of adapter and heads.

        Args:
            save_directory (`str` or `os.PathLike`): The directory. It is created.
            args, kwargs: As for any [`~transformers.PreTrainedModel`].
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_use(save_directory, self.config, shared=self.shares_policy)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> str:
        """
        Upload what [`save_pretrained`] writes. A repository that has a card keeps it.

        Args:
            repo_id (`str`): The repository. It is created.
            private, token, revision, kwargs: As for any [`~transformers.PreTrainedModel`].
        """
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if not file_exists(repo_id, "README.md", token=token):
            # First, as transformers would write a card that says nothing.
            card = ModelCard(value_model_card(self.config, repo_id, shared=self.shares_policy))
            card.push_to_hub(repo_id, token=token if isinstance(token, str) else None)
        return super().push_to_hub(repo_id, private=private, token=token, revision=revision, **kwargs)  # type: ignore[no-any-return]

    # ---------------------------------------------------------------------------------------------------- making

    @classmethod
    def from_backbone(
        cls,
        backbone: "str | PreTrainedModel",
        heads: Sequence[str] = ("reward",),
        *,
        form: str = "state",
        action_rank: int = 256,
        num_atoms: int = 0,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: "PeftConfig | None" = None,
        **init_kwargs: Any,
    ) -> "ValueModel":
        """
        Create a value model, whose heads are zero, on a backbone.

        Args:
            backbone (`str` or [`~transformers.PreTrainedModel`]):
                Hub id, directory or model. The head of a language model or classifier is removed. The weights of a
                model object are used, not copied.
            heads (`Sequence[str]`, *optional*, defaults to `("reward",)`):
                Names of the heads.
            form (`str`, *optional*, defaults to `"state"`), action_rank (`int`, *optional*, defaults to `256`):
                See [`ValueConfig`].
            num_atoms (`int`, *optional*, defaults to `0`):
                Atoms of categorical heads; their `config.low` and `config.high` are to be set before use.
            quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
                Quantisation of a backbone given by name.
            peft_config ([`~peft.PeftConfig`], *optional*):
                Adapter to add to the backbone.
            init_kwargs: Passed to `from_pretrained`.

        Raises:
            `ValueError`: A model object was given with `quantization_config`, or has both a head and an adapter; or
                the form is `"policy"`.
        """
        if form == "policy":
            raise ValueError(
                'A value model of the form "policy" has no backbone of its own: use `ValueModel.on_policy`.'
            )
        model, name = load_backbone(
            backbone, quantization_config=quantization_config, peft_config=peft_config, **init_kwargs
        )
        embeddings = base_of(model).get_input_embeddings()
        made = cls._build(model, name, heads, embeddings, form=form, action_rank=action_rank, num_atoms=num_atoms)
        if isinstance(backbone, str):
            made.config.backbone_revision = init_kwargs.get("revision") or ""
            made.config.backbone_subfolder = init_kwargs.get("subfolder") or ""
        return made

    @classmethod
    def on_policy(
        cls,
        policy: PreTrainedModel,
        heads: Sequence[str] = ("reward",),
        *,
        form: str = "state",
        action_rank: int = 256,
        num_atoms: int = 0,
        peft_config: "PeftConfig | None" = None,
    ) -> "ValueModel":
        """
        Create a value model that shares the weights of `policy`, with an adapter on them or without changes.

        The adapter is active only while the value model runs: the outputs of `policy` do not change. Several value
        models may share one policy.

        Args:
            policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A causal language model. If it has an
                adapter of its own, a value model of the form `"policy"` reads the hidden states with it; the other
                forms put their adapter on the base model, without the policy's.
            heads (`Sequence[str]`, *optional*, defaults to `("reward",)`): Names of the heads.
            form (`str`, *optional*, defaults to `"state"`), action_rank (`int`, *optional*, defaults to `256`):
                See [`ValueConfig`].
            num_atoms (`int`, *optional*, defaults to `0`): As for [`ValueModel.from_backbone`].
            peft_config ([`~peft.PeftConfig`], *optional*): The adapter; required for the other two forms.

        Raises:
            `ValueError`: The form needs an adapter, or takes none.
        """
        if (peft_config is None) != (form == "policy"):
            advice = "takes no adapter: omit" if form == "policy" else "on the policy needs an adapter: pass"
            raise ValueError(f"A value model of the form {form!r} {advice} `peft_config` (`--use_peft`).")
        if peft_config is not None:
            refuse_change_of_base(peft_config)
        name, base = get_config_model_id(policy.config) or "", base_of(policy)
        if form == "policy" and is_peft_model(policy):
            name = ""  # so that whoever loads the head passes the policy: its base alone has other hidden states
        backbone: Any = headless(base)
        use_exact_4bit_on_cpu(backbone)
        with adapters_unchanged(policy):
            if peft_config is None:
                embeddings = base.get_output_embeddings()
            else:
                embeddings = base.get_input_embeddings()
                backbone = add_adapter(backbone, peft_config, name=VALUE_ADAPTER)
            sizes: dict[str, Any] = {"form": form, "action_rank": action_rank, "num_atoms": num_atoms}
            model = cls._build(backbone, name, heads, embeddings, **sizes)
            model._share(policy)
        return model

    @classmethod
    def _build(cls, backbone: Any, name: str, heads: Sequence[str], embeddings: Any, **sizes: Any) -> "ValueModel":
        config = ValueConfig(
            backbone_config=base_of(backbone).config,
            heads=list(heads),
            backbone_name=name,
            **sizes,
        )
        model = cls(config, backbone)
        weight = getattr(embeddings, "weight", None)
        shape = (config.get_text_config().vocab_size, model.head.in_features)
        if config.form != "state" and weight is not None and weight.shape == shape:
            model.action.start_from(weight)
        return model.to_device_of(backbone)

    @classmethod
    def heads_from_pretrained(cls, name: str, **hub: Any) -> "ValueModel":
        """
        Load the heads of a saved value model of the form `"policy"`, for an engine that has the language model.

        Whoever calls [`ValueModel.action_values`] passes the hidden states of the language model; the backbone has no
        weights here.

        Args:
            name (`str`): Directory or Hub id.
            hub: `revision`, `subfolder`, `token`, `cache_dir` and the like.

        Raises:
            `OSError`: There is no such model.
            `ValueError`: It is another kind of model, or has another form.
        """
        config = cls.load_config(name, **hub)
        if config.form != "policy":
            raise ValueError(f"The value model {name!r} has the form {config.form!r}, whose backbone is needed too.")
        with torch.device("meta"):
            backbone = AutoModel.from_config(config.backbone_config)
        model = cls(config, backbone)
        path, inside = locate(name, hub.pop("subfolder", None))
        model._load_heads(cached_file(path, "model.safetensors", **hub, **inside))
        model.captured = LastHiddenStates()
        return model.requires_grad_(False).eval()

    # --------------------------------------------------------------------------------------------------- forward

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the heads, in the order of the last dimension of [`ValueModel.value_of`]."""
        return tuple(self.config.heads)

    @property
    def reward_statistics(self) -> dict[str, tuple[float, float]]:
        """
        Mean and standard deviation of the rewards that each head was trained on, in their own units; empty if they
        were not recorded. They say what a value and its weight mean: with `normalize_rewards`, a weight of 1 adds one
        nat to a log-probability per standard deviation, otherwise per unit of the reward.
        """
        config = self.config
        means, stds = config.observed_mean, config.observed_std
        return dict(zip(self.head_names, zip(means, stds, strict=True), strict=True)) if means and stds else {}

    def extra_repr(self) -> str:
        """The heads with the rewards that they were trained on, in what `repr` shows."""
        known, config = self.reward_statistics, self.config
        lines = []
        for name, unit in zip(self.head_names, config.reward_std, strict=True):
            mean, std = known.get(name, (None, None))
            seen = f"rewards {mean:.3g} ± {std:.3g} in training" if mean is not None else "rewards not recorded"
            lines.append(f"{name}: {seen}, a value of 1 is a reward of {unit:.3g}")
        if config.num_atoms:
            lines.append(f"distributions over {config.num_atoms} returns, statistic {self.statistic}")
        return "\n".join([f"form={config.form!r}", *lines])

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
        Values of N sequences up to each of their tokens.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, use_cache, kwargs: See
                [`~trl_ext.methods.vas.value_model.backbone_model.BackboneModel.encode`].
            next_ids (`torch.Tensor` of shape `(N, T)`, *optional*): For the forms `"action"` and `"policy"`: the
                token after each position. The value at a position is then that of the text with this token; at
                negative ids it is undefined.

        Returns:
            [`ValueOutput`]. Values at padding are undefined. With the forms `"action"` and `"policy"`, the value of
            the first token is NaN, because there is no hidden state before it.
        """
        hidden_NTD, cache = self.encode(input_ids, attention_mask, position_ids, past_key_values, use_cache, **kwargs)
        logits = self.atom_logits(hidden_NTD) if self.config.num_atoms else None
        if logits is not None:
            values_NTH = self._statistic_of(logits)
        elif self.config.form == "state":
            values_NTH = self.value_of(hidden_NTD)
        elif next_ids is not None:
            values_NTH = self.action_values(hidden_NTD, next_ids.clamp(min=0)[..., None])[..., 0, :]
        else:
            values_NTH = self._after_each(hidden_NTD, input_ids, attention_mask)
        values = values_NTH[..., 0] if len(self.config.heads) == 1 else values_NTH
        return ValueOutput(values, hidden_NTD, cache, logits)

    def _after_each(self, hidden_NTD: torch.Tensor, ids_NT: Any, mask: torch.Tensor | None) -> torch.Tensor:
        """Q of each token, from the hidden state before it."""
        if ids_NT is None:
            raise ValueError("Values of this form depend on the token ids: pass `input_ids` or `next_ids`.")
        columns = ids_NT.shape[1]
        values = self.action_values(hidden_NTD[:, :-1], ids_NT[:, 1:, None])[..., 0, :]
        if mask is not None and mask.dim() == 2:
            before = mask[:, -columns:][:, :-1, None].to(values.device).bool()
            values = values.masked_fill(~before, torch.nan)
        return nn.functional.pad(values, (0, 0, 1, 0), value=torch.nan)

    def value_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """
        Values of texts, from the hidden states at their last tokens. For the form `"state"`.

        Args:
            hidden (`torch.Tensor` of shape `(..., D)`): Hidden states.

        Returns:
            `torch.Tensor` of shape `(..., H)`, float32.

        Raises:
            `ValueError`: The model has another form.
        """
        if self.config.form != "state":
            raise ValueError(
                f"A value model of the form {self.config.form!r} needs the next token as well: use `action_values`, "
                "or the `values` of its forward."
            )
        if self.config.num_atoms:
            return self._statistic_of(self.atom_logits(hidden))
        with torch.autocast(hidden.device.type, enabled=False):  # see `_keep_in_fp32_modules_strict`
            return self.head(hidden.to(self.head.weight.dtype)).float()

    def atom_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """
        Unnormalised log-probabilities of the returns that the atoms stand for, from hidden states as for `value_of`.

        Args:
            hidden (`torch.Tensor` of shape `(..., D)`): Hidden states.

        Returns:
            `torch.Tensor` of shape `(..., H, A)`, float32.

        Raises:
            `ValueError`: The heads are not categorical.
        """
        if not self.config.num_atoms:
            raise ValueError("This value model predicts means alone: train one with `value_head='categorical'`.")
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.head(hidden.to(self.head.weight.dtype)).float()
        return logits.unflatten(-1, (len(self.config.heads), self.config.num_atoms))

    def atoms(self, device: torch.device) -> torch.Tensor:
        """The returns over which categorical heads predict a distribution, (H, A), in the units of training."""
        config = self.config
        if config.low is None or config.high is None:
            raise ValueError(
                "The range of the returns is not known: set `config.low` and `config.high` for each head."
            )
        return atoms_of(config.low, config.high, config.num_atoms, device)

    def _statistic_of(self, logits: torch.Tensor) -> torch.Tensor:
        return statistic_of(logits, self.atoms(logits.device), self._statistic)

    @property
    def statistic(self) -> Statistic:
        """What [`ValueModel.value_of`] and `forward` return of the distribution that categorical heads predict."""
        return self._statistic

    @statistic.setter
    def statistic(self, value: Statistic) -> None:
        if value.kind != MEAN and not self.config.num_atoms:
            raise ValueError(
                f"`value_statistic` is '{value}', and the value model predicts the mean alone: use `mean`, or train a "
                "value model with `value_head='categorical'`."
            )
        self._statistic = value

    def action_values(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """
        Values of texts with each candidate token appended. For the forms `"action"` and `"policy"`.

        Reconstruction: Q(s, a) = v(h) + <u_a, W h>; see [`~trl_ext.methods.vas.value_model.action_head.ActionHead`].

        Args:
            hidden (`torch.Tensor` of shape `(..., D)`): Hidden states before the candidates.
            ids (`torch.Tensor` of shape `(..., k)`): Candidate tokens.

        Returns:
            `torch.Tensor` of shape `(..., k, H)`, float32.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            states = hidden.to(self.head.weight.dtype)
            return self.head(states)[..., None, :] + self.action(states, ids.to(states.device))


AutoConfig.register(ValueConfig.model_type, ValueConfig, exist_ok=True)
AutoModel.register(ValueConfig, ValueModel, exist_ok=True)
