# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A guided language model as something that answers prompts, and how the command line makes one."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.inference.guided import policy_with_processors
from trl_ext.inference.policy import Policy
from trl_ext.models.load import default_device, is_peft_model, quantization_config_from, saved_config
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.upstream import get_config_model_id

from .decoding.logits_processor import Beta, ValueAugmentedLogitsProcessor
from .head_weights import parse_weights
from .value_model.load import check_betas
from .value_model.model import ValueModel


def guided_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    value_models: ValueModel | Mapping[str, ValueModel],
    beta: Beta,
    top_k: int = 20,
    *,
    name: str = "vas",
    batch_size: int = 64,
    progress: Callable[[int], Any] | None = None,
    extras: dict[str, Any] | None = None,
    series: str = "",
    **settings: Any,
) -> Policy:
    """
    The [`~trl_ext.inference.policy.Policy`] of a language model under guidance.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        value_models, beta, top_k: As for [`ValueAugmentedLogitsProcessor`]; one `beta` for all rows.
        name, batch_size, progress, extras, series: As for [`~trl_ext.inference.guided.policy_with_processors`].
        settings: Passed to [`ValueAugmentedLogitsProcessor`].
    """

    def processors(ids_PT: torch.Tensor, mask_PT: torch.Tensor) -> list[LogitsProcessor]:
        return [
            ValueAugmentedLogitsProcessor(
                value_models, beta, top_k, attention_mask=mask_PT, tokenizer=tokenizer, **settings
            )
        ]

    processors(*torch.ones(2, 1, 1, dtype=torch.long))  # what is wrong is said before anything is generated
    return policy_with_processors(
        model,
        tokenizer,
        processors,
        name=name,
        batch_size=batch_size,
        progress=progress,
        extras=extras,
        series=series,
    )


@dataclass
class VASDecoding:
    """
    A frozen model guided by value models, as flags of `trl-ext evaluate` and `trl-ext generate`.

    Parameters:
        value_model_name_or_path (`list[str]`, *optional*):
            Directories or Hub ids of value models; `name=path` gives one a name for `beta`, by default it has that of
            its directory.
        beta (`list[str]`, *optional*, defaults to `["3"]`):
            Weights of the values, one policy each: a number where there is one head, or `head=weight,head=weight`.
        guide_top_k (`int`, *optional*, defaults to `20`):
            Candidates for each token.
        value_load_in_4bit (`bool`, *optional*, defaults to `False`):
            Load the value models in 4 bits.
        value_retokenize (`bool`, *optional*, defaults to `False`):
            Let value models with another vocabulary read the text in their own tokens, which is slow.
        endpoint, endpoint_model (`str`, *optional*):
            Address of an OpenAI-compatible server, and the model there that answers in place of one that is loaded.
            As for [`~trl_ext.Endpoint`].
        endpoint_key_variable, endpoint_body (`str`, *optional*, defaults to `""`):
            Environment variable that holds the key; JSON object of fields to add to every request.
        endpoint_tokenizer (`str`, *optional*):
            Tokenizer of the server's model. By default that of the first value model.
        endpoint_mode (`str`, *optional*, defaults to `"token"`):
            `"token"` or `"block"`; see [`~trl_ext.EndpointGuide`].
        endpoint_blocks, endpoint_block_length (`int`, *optional*, default to `8` and `16`):
            Continuations a round in block mode, and their length in tokens.
        endpoint_concurrency (`int`, *optional*, defaults to `8`):
            Requests under way at once.
    """

    value_model_name_or_path: list[str] | None = field(
        default=None,
        metadata={"help": "Value models that guide the model: directories or Hub ids; name=path names one for beta."},
    )
    # 3 and 20 are the reference code's.
    beta: list[str] = field(
        default_factory=lambda: ["3"],
        metadata={"help": "Weights of the values, one policy each: 2, or head=weight,head=weight."},
    )
    guide_top_k: int = field(default=20, metadata={"help": "Tokens that the value models look at in each step."})
    value_load_in_4bit: bool = field(default=False, metadata={"help": "Load the value models in 4 bits."})
    value_retokenize: bool = field(
        default=False,
        metadata={"help": "Let value models with another vocabulary read the text in their own tokens; slow."},
    )

    endpoint: str | None = field(
        default=None,
        metadata={"help": "OpenAI-compatible server whose model answers, none is loaded: http://localhost:8000/v1."},
    )
    endpoint_model: str | None = field(default=None, metadata={"help": "Name of the model on the server."})
    endpoint_key_variable: str = field(default="", metadata={"help": "Environment variable with the server's key."})
    endpoint_body: str = field(
        default="", metadata={"help": 'Fields to add to every request to the server: {"top_k": 0, "min_p": 0}.'}
    )
    endpoint_tokenizer: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of the server's model. By default that of the first value model."},
    )
    endpoint_mode: str = field(
        default="token",
        metadata={"help": "Ask it for likely next tokens, or for short continuations.", "choices": ["token", "block"]},
    )
    endpoint_blocks: int = field(default=8, metadata={"help": "Continuations a round in block mode."})
    endpoint_block_length: int = field(default=16, metadata={"help": "Their length, in tokens."})
    endpoint_concurrency: int = field(default=8, metadata={"help": "Requests to the server under way at once."})

    @property
    def active(self) -> bool:
        """Whether there is a value model, or a server that wants one."""
        return bool(self.value_model_name_or_path or self.endpoint)

    @property
    def served_at_once(self) -> int:
        """Answers at once where a server's model answers, else 0."""
        return self.endpoint_concurrency if self.endpoint else 0

    def check(self) -> None:
        """Raise `ValueError` for settings that cannot be."""
        if self.guide_top_k < 1:
            raise ValueError(f"`guide_top_k` must be at least 1, got {self.guide_top_k}.")
        if not self.beta:
            raise ValueError("`beta` is empty: give at least one weight.")
        check_betas(self.beta, {"" if self._alone() else name: path for name, path in self._named_paths().items()})
        if self.endpoint:
            self._check_endpoint()
        elif self.endpoint_model or self.endpoint_tokenizer:
            raise ValueError(
                "`endpoint_model` and `endpoint_tokenizer` are of a server: give its address, `endpoint`."
            )

    def _check_endpoint(self) -> None:
        if not self.value_model_name_or_path:
            raise ValueError("`endpoint` needs what steers it: pass --value_model_name_or_path (and --beta).")
        if not self.endpoint_model:
            raise ValueError("`endpoint` needs the name of the server's model: pass --endpoint_model.")
        if self.endpoint_mode not in ("token", "block"):
            raise ValueError(f"`endpoint_mode` must be token or block, got {self.endpoint_mode!r}.")
        if self.endpoint_concurrency < 1:
            raise ValueError(f"`endpoint_concurrency` must be at least 1, got {self.endpoint_concurrency}.")
        self._body()

    def _body(self) -> dict[str, Any]:
        try:
            body = json.loads(self.endpoint_body or "{}")
        except ValueError as error:
            raise ValueError(f"`endpoint_body` is no JSON ({error}): {self.endpoint_body!r}.") from error
        if not isinstance(body, dict):
            raise ValueError(f"`endpoint_body` must be a JSON object, got {self.endpoint_body!r}.")
        return body

    def _named_paths(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for text in self.value_model_name_or_path or []:
            name, equals, path = text.partition("=")
            if not equals or "/" in name:
                name, path = Path(text).name, text
            if name in found:
                raise ValueError(
                    f"`value_model_name_or_path` has two value models called {name!r}: name them, as in "
                    f"first={found[name]} second={path}."
                )
            found[name] = path
        return found

    def _alone(self) -> bool:
        """Whether heads go by their own names: there is one value model, and it was given none."""
        return self.value_model_name_or_path == [*self._named_paths().values()][:1]

    def policies(
        self,
        model: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        name: str,
        batch_size: int,
        progress: Callable[[int], Any] | None = None,
    ) -> list[Policy]:
        """One policy a `beta`; see [`~trl_ext.inference.policy.Decoding`]. Without a model, the server's answers."""
        loaded = {key: self._load(path, model) for key, path in self._named_paths().items()}
        value_models: Any = {key: value for key, (value, _) in loaded.items()}
        tokenizers: Any = {key: other for key, (_, other) in loaded.items()}
        if self._alone():
            [value_models], [tokenizers] = value_models.values(), tokenizers.values()
        if model is None or tokenizer is None:
            return self._served(value_models, tokenizers, f"{self.endpoint_model} + {', '.join(loaded)}", progress)
        series = f"{name} + {', '.join(loaded)}"
        found = []
        for text in self.beta:
            beta = parse_weights(text, "beta")
            found.append(
                guided_policy(
                    model,
                    tokenizer,
                    value_models,
                    beta,
                    self.guide_top_k,
                    name=f"{series}, beta {text}",
                    batch_size=batch_size,
                    progress=progress,
                    extras={"beta": beta, "top_k": self.guide_top_k},
                    series=series,
                    value_tokenizer=tokenizers,
                    retokenize=self.value_retokenize,
                )
            )
        return found

    def _served(
        self, value_models: Any, tokenizers: Any, series: str, progress: Callable[[int], Any] | None
    ) -> list[Policy]:
        """One policy a `beta` of the server's model."""
        from trl_ext.endpoint.client import Endpoint

        from .decoding.endpoint_guide import EndpointGuide

        every = list(tokenizers.values()) if isinstance(tokenizers, dict) else [tokenizers]
        tokenizer = load_tokenizer(self.endpoint_tokenizer) if self.endpoint_tokenizer else every[0]
        if tokenizer is None:
            raise ValueError("The value model was saved without a tokenizer: pass --endpoint_tokenizer, the server's.")
        endpoint = Endpoint(
            str(self.endpoint),
            str(self.endpoint_model),
            api_key_variable=self.endpoint_key_variable,
            max_concurrency=self.endpoint_concurrency,
            extra_body=self._body(),
        )
        found = []
        for text in self.beta:
            guide = EndpointGuide(
                endpoint,
                value_models,
                parse_weights(text, "beta"),
                tokenizer,
                mode=self.endpoint_mode,
                top_k=self.guide_top_k,
                num_blocks=self.endpoint_blocks,
                block_length=self.endpoint_block_length,
                value_tokenizer=None if None in every else tokenizers,
                retokenize=self.value_retokenize,
            )
            found.append(guide.policy(f"{series}, beta {text}", series=series, progress=progress))
        return found

    def _load(self, path: str, model: PreTrainedModel | None) -> tuple[ValueModel, PreTrainedTokenizerBase | None]:
        # The language model's, --dtype; heads stay in float32
        kwargs: dict[str, Any] = {"dtype": torch.float32 if model is None else model.dtype}
        if self.value_load_in_4bit:
            from trl import ModelConfig

            kwargs = {"quantization_config": quantization_config_from(ModelConfig(load_in_4bit=True))}
        config = saved_config("value model", path)
        head_only = getattr(config, "head_only", False)
        if model is None and head_only:
            raise ValueError(
                f"The value model {path!r} reads the states of the model that it guides, and a server's are not here: "
                "train one of its own (`trl-ext vas --value_model_name_or_path ...`)."
            )
        if model is not None:
            mine = getattr(config, "adapter", False) and config.backbone_name == get_config_model_id(model.config)
            alone = len(self.value_model_name_or_path or []) == 1 and not is_peft_model(model)
            if head_only or (mine and alone):
                kwargs = {"backbone": model}  # it stands on the model that it guides: the weights are here already
        value_model = ValueModel.from_pretrained(path, **kwargs).eval()
        if "dtype" in kwargs:
            value_model = value_model.to(default_device() if model is None else model.device)
        try:
            return value_model, load_tokenizer(path)
        except (OSError, ValueError):  # it was saved without; its digest of the vocabulary is compared
            return value_model, None
