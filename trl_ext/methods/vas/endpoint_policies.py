# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Value models that guide the model of an OpenAI-compatible server, and the flags of the command line for it."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.guides.weights import parse_weights
from trl_ext.inference.policy import Policy
from trl_ext.inference.served import unguided_policy
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.validation import as_mapping

from .policies import VASDecoding


# By mode, settings that have no effect.
_IDLE = {
    "token": ("endpoint_blocks", "endpoint_block_length"),
    "block": (),
    "answer": ("endpoint_block_length",),
}


@dataclass
class VASEndpointDecoding(VASDecoding):
    """
    Value models that guide a frozen model, which is loaded or on a server; or a server's model without guidance.

    Parameters:
        endpoint, endpoint_model (`str`, *optional*):
            Address of an OpenAI-compatible server, and the name of its model. No language model is loaded then. As for
            [`~trl_ext.Endpoint`].
        endpoint_key_variable, endpoint_body (`str`, *optional*, defaults to `""`):
            Environment variable that holds the key; JSON object of fields to add to every request.
        endpoint_tokenizer (`str`, *optional*):
            Tokenizer of the server's model. By default that of the first value model; required without one.
        endpoint_chat (`bool`, *optional*, defaults to `False`):
            Whether to use the chat endpoint. Prompts then must be messages.
        endpoint_mode (`str`, *optional*, defaults to `"token"`):
            `"token"`, `"block"` or `"answer"`; see [`~trl_ext.EndpointGuide`].
        endpoint_blocks, endpoint_block_length (`int`, *optional*, default to `8` and `16`):
            Continuations per round in block mode, or answers in answer mode; and the length of blocks in tokens.
        endpoint_concurrency (`int`, *optional*, defaults to `8`):
            Maximum number of concurrent requests.
        kwargs: Those of [`VASDecoding`].
    """

    needs: ClassVar[dict[str, tuple[str, ...]]] = {
        "endpoint": (),
        **dict.fromkeys(
            (
                "endpoint_model",
                "endpoint_key_variable",
                "endpoint_body",
                "endpoint_tokenizer",
                "endpoint_chat",
                "endpoint_concurrency",
            ),
            ("endpoint",),
        ),
        **dict.fromkeys(
            ("endpoint_mode", "endpoint_blocks", "endpoint_block_length"), ("endpoint", "value_model_name_or_path")
        ),
    }

    endpoint: str | None = field(
        default=None,
        metadata={
            "help": "OpenAI-compatible server whose model generates; no model is loaded. E.g. http://localhost:8000/v1."
        },
    )
    endpoint_model: str | None = field(default=None, metadata={"help": "Name of the model on the server."})
    endpoint_key_variable: str = field(default="", metadata={"help": "Environment variable with the server's key."})
    endpoint_body: str = field(
        default="", metadata={"help": 'JSON object of fields to add to every request, e.g. {"top_k": 0, "min_p": 0}.'}
    )
    endpoint_tokenizer: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of the server's model. By default that of the first value model."},
    )
    endpoint_chat: bool = field(
        default=False,
        metadata={
            "help": "Whether to use the chat endpoint. By default messages are rendered here, by the tokenizer."
        },
    )
    endpoint_mode: str = field(
        default="token",
        metadata={
            "help": "What to request and choose among: the likeliest next tokens ('token'), short continuations "
            "('block'), or whole answers ('answer').",
            "choices": ["token", "block", "answer"],
        },
    )
    endpoint_blocks: int = field(
        default=8, metadata={"help": "Continuations per round in block mode, or answers in answer mode."}
    )
    endpoint_block_length: int = field(default=16, metadata={"help": "Length of these continuations, in tokens."})
    endpoint_concurrency: int = field(default=8, metadata={"help": "Maximum number of concurrent requests."})

    @property
    def active(self) -> bool:
        """Whether there are value models or a server."""
        return super().active or bool(self.endpoint)

    @property
    def served_at_once(self) -> int:
        """Number of concurrent answers of the server; 0 without a server."""
        return self.endpoint_concurrency if self.endpoint else 0

    def check(self) -> None:
        super().check()
        if not self.endpoint:
            return
        if not self.endpoint_model:
            raise ValueError("`endpoint` needs the name of the server's model: pass --endpoint_model.")
        if not self.value_model_name_or_path and not self.endpoint_tokenizer:
            raise ValueError(
                "`endpoint` without a value model needs the tokenizer of the server's model: pass "
                "--endpoint_tokenizer, or --value_model_name_or_path to guide it."
            )
        if self.endpoint_mode not in _IDLE:
            raise ValueError(f"`endpoint_mode` must be one of {', '.join(_IDLE)}, got {self.endpoint_mode!r}.")
        for name in _IDLE[self.endpoint_mode]:
            if getattr(self, name) != getattr(VASEndpointDecoding, name):
                raise ValueError(
                    f"`{name}` has no effect in {self.endpoint_mode} mode: remove it, or set `endpoint_mode` to block."
                )
        if self.endpoint_concurrency < 1:
            raise ValueError(f"`endpoint_concurrency` must be at least 1, got {self.endpoint_concurrency}.")
        self._extra_body()

    def _extra_body(self) -> dict[str, Any]:
        return as_mapping("endpoint_body", self.endpoint_body or None) or {}

    def served_tokenizer(self) -> PreTrainedTokenizerBase:
        """
        The tokenizer of the server's model.

        Raises:
            `ValueError` or `OSError`: There is none.
        """
        if self.endpoint_tokenizer:
            return load_tokenizer(self.endpoint_tokenizer)
        path = next(iter(self.named_paths().values()))
        try:
            return load_tokenizer(path, trust_remote_code=self.value_trust_remote_code)
        except (OSError, ValueError) as error:
            raise ValueError(
                "The value model was saved without a tokenizer: pass --endpoint_tokenizer, that of the server's model."
            ) from error

    def policies(
        self,
        model: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        name: str,
        batch_size: int,
    ) -> list[Policy]:
        """One policy per `beta`, of the server's model if `model` is `None`; one without value models."""
        if model is not None and tokenizer is not None:
            return super().policies(model, tokenizer, name=name, batch_size=batch_size)
        from trl_ext.endpoint.client import Endpoint

        from .decoding.endpoint_guide import EndpointGuide

        tokenizer = self.served_tokenizer()
        endpoint = Endpoint(
            str(self.endpoint),
            str(self.endpoint_model),
            api_key_variable=self.endpoint_key_variable,
            max_concurrency=self.endpoint_concurrency,
            extra_body=self._extra_body(),
        )
        if not self.value_model_name_or_path:
            return [unguided_policy(tokenizer, endpoint, chat=self.endpoint_chat, name=str(self.endpoint_model))]
        value_models, value_tokenizers = self.load_value_models(None)
        by_name: list[Any] = [value_tokenizers]
        if isinstance(value_tokenizers, dict):
            by_name = list(value_tokenizers.values())
        series = ", ".join(
            filter(None, [f"{self.endpoint_model} + {', '.join(self.named_paths())}", str(self.schedule)])
        )
        policies = []
        for text in self.beta:
            guide = EndpointGuide(
                endpoint,
                value_models,
                parse_weights(text, "beta"),
                tokenizer,
                mode=self.endpoint_mode,
                chat=self.endpoint_chat,
                top_k=self.guide_top_k,
                num_blocks=self.endpoint_blocks,
                block_length=self.endpoint_block_length,
                value_tokenizer=None if None in by_name else value_tokenizers,
                retokenize=self.value_retokenize,
                **self.schedule_arguments,
            )
            name = f"{series}, beta {text}"
            policies.append(guide.policy(name, series=series, method="VAS"))
        return policies
