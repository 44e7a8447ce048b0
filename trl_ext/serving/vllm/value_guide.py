# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Value models inside vLLM: `--logits-processors trl_ext.vllm:ValueGuide`."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from trl_ext.devices import fast_dtype
from trl_ext.models.tokenizers import load_tokenizer
from trl_ext.upstream import vllm_config_of_caller

from .guided_batch import GIB, GuidedBatch
from .processor import EngineProcessor, EngineSize, GuidedRow, Texts
from .settings import ServingSettings, given_weight, heads_of_config, read_settings, request_weights


class ValueGuide(EngineProcessor):
    """
    Guides the models that vLLM serves by value models.

    Give it to vLLM by name, and its settings in `additional_config`:

        vllm serve MODEL --logits-processors trl_ext.vllm:ValueGuide \
            --additional-config '{"trl_ext": {"value_model": "outputs/value", "top_k": 20}}'

    A request is guided if it has a weight: `"vllm_xargs": {"beta": 2.0}` over HTTP,
    `SamplingParams(extra_args={"beta": 2.0})` in Python; `"helpful=1,concise=0.5"` for several heads. Requests without
    one, or with 0, cost nothing, in the same batch too.

    vLLM makes the object. Its settings are those of [`~trl_ext.serving.vllm.settings.ServingSettings`].

    Args:
        vllm_config (`vllm.config.VllmConfig`): The engine's config.
        where (`torch.device` or `LogitsProcRequestState`): The device (V1), or the engine's requests (V2).
        is_pin_memory (`bool`, *optional*): Of V1's interface; not used.

    Raises:
        `ValueError`: A setting is wrong, a value model does not fit the model or the engine, or the engine has a
            feature that guidance cannot work with.
        `OSError`: There is no such value model.
    """

    def setup(self, vllm_config: Any) -> None:
        """Load the value models, and allocate their KV cache."""
        settings, size = read_settings(vllm_config.additional_config, ServingSettings), EngineSize.of(vllm_config)
        dtype = fast_dtype(vllm_config.model_config.dtype, self.device)
        tokenizer = _tokenizer(vllm_config.model_config)
        guides = {
            name: kind.load_beside_engine(tokenizer, name, dtype, self.device) for name, kind in settings.kinds.items()
        }
        for guide in guides.values():
            if tokenizer is None and guide.vocabulary != size.vocabulary:
                raise ValueError(
                    f"The model has {size.vocabulary} tokens and the {guide.who} {guide.vocabulary}. Whether they are "
                    "the same can be compared only with the model's tokenizer: start vLLM without "
                    "`--skip-tokenizer-init`."
                )
        self.batch = GuidedBatch(guides, settings.top_k, size, int(settings.value_cache_gib * GIB))
        if self.batch.nbytes and getattr(vllm_config.model_config, "enable_prompt_embeds", False):
            raise ValueError(
                "`--enable-prompt-embeds` lets requests have prompts without tokens, which a value model cannot read: "
                "leave it out, or use a value model of the form 'policy'."
            )
        self.reads_hidden = self.batch.reads_hidden

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """
        Check the weight of a request. vLLM answers a `ValueError` with status 400 and its message.

        Args:
            sampling_params (`vllm.SamplingParams`): The request's settings.

        Raises:
            `ValueError`: As for [`~trl_ext.serving.vllm.settings.request_weights`].
        """
        if given_weight(sampling_params) is not None:
            config = vllm_config_of_caller()
            heads = None if config is None else heads_of_config(config.additional_config)
            request_weights(sampling_params, heads)

    def request_settings(self, sampling_params: Any) -> tuple[float, ...] | None:
        """The weights of a request's heads."""
        return request_weights(sampling_params, self.batch.heads)

    def guide(self, logits_NV: torch.Tensor, rows: Sequence[GuidedRow], texts: Texts) -> None:
        """Add weighted and centred values to the logits of the likeliest tokens."""
        self.batch.apply(logits_NV, rows, texts, self.hidden_of(logits_NV))

    def release(self, request: Hashable) -> None:
        """Its slot of the value models' cache is free."""
        self.batch.release(request)


def _tokenizer(model_config: Any) -> Any:
    """The tokenizer of the served model; `None` if vLLM does without."""
    if model_config.skip_tokenizer_init:
        return None
    return load_tokenizer(
        model_config.tokenizer,
        revision=model_config.tokenizer_revision,
        trust_remote_code=model_config.trust_remote_code,
    )
