# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Proxies inside vLLM: `--logits-processors trl_ext.vllm:ProxyGuide`."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from trl_ext.inference.engine_decoding import EngineDecoding, ServedModel, engine_decodings
from trl_ext.upstream import vllm_model_of_caller

from .processor import EngineProcessor, GuidedRow, Texts
from .settings import read_settings


SWITCH = "proxy"  # in a request's `vllm_xargs`, and the name of what guides among those of installed methods
_GREEDY_BELOW = 1e-5  # temperatures that vLLM takes for 0


class ProxyGuide(EngineProcessor):
    """
    Lets a proxy accept or reject candidate tokens of the models that vLLM serves.

    Give it to vLLM by name, and its settings in `additional_config`:

        vllm serve MODEL --logits-processors trl_ext.vllm:ProxyGuide \
            --additional-config '{"trl_ext": {"proxy": "outputs/proxy"}}'

    A request is guided with `"vllm_xargs": {"proxy": 1}` over HTTP, `SamplingParams(extra_args={"proxy": 1})` in
    Python. Requests without it, or with 0, cost nothing, in the same batch too.

    It writes the distribution of the accepted token, from which vLLM samples: see
    [`~trl_ext.methods.proxy_rlhf.engine_decoding`]. A request's temperature applies to the model's probabilities,
    before the proxy; with 0, candidates are examined by decreasing probability, and decisions are greedy. Its `top_k`
    limits the candidates. Its `top_p` and `min_p`, which vLLM applies afterwards, truncate the distribution of the
    accepted token.

    vLLM makes the object. Its settings are those of
    [`~trl_ext.methods.proxy_rlhf.engine_decoding.ProxyEngineDecoding`].

    Args:
        vllm_config (`vllm.config.VllmConfig`): The engine's config.
        where (`torch.device` or `LogitsProcRequestState`): The device (V1), or the engine's requests (V2).
        is_pin_memory (`bool`, *optional*): Of V1's interface; not used.

    Raises:
        `ValueError`: A setting is wrong, the proxy does not fit the model, or the engine has a feature that guidance
            cannot work with.
        `OSError`: There is no such proxy.
    """

    def setup(self, vllm_config: Any) -> None:
        """Check the settings, then load the proxy."""
        known = engine_decodings()
        if SWITCH not in known:
            raise ValueError("No installed package has proxies: reinstall trl-ext.")
        settings: EngineDecoding = read_settings(vllm_config.additional_config, known[SWITCH])
        if getattr(vllm_config.parallel_config, "pipeline_parallel_size", 1) > 1:
            raise ValueError(
                "A proxy reads the embeddings of candidates, which the last stage of a pipeline does not have: leave "
                "out `--pipeline-parallel-size`."
            )
        model = vllm_config.model_config
        llm = ServedModel(model.model, model.hf_text_config, model.trust_remote_code)
        settings.check(llm)
        self.decoder = settings.load(llm, self.device)
        if self.decoder.reads_text and getattr(model, "enable_prompt_embeds", False):
            raise ValueError(
                "`--enable-prompt-embeds` lets requests have prompts without tokens, to which the proxy's repetition "
                "penalty cannot be applied: leave it out."
            )
        self.reads_hidden, self._attached = True, False

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """
        Check what a request says about the proxy. vLLM answers a `ValueError` with status 400 and its message.

        Args:
            sampling_params (`vllm.SamplingParams`): The request's settings.

        Raises:
            `ValueError`: `proxy` is neither 0 nor 1, or `top_k` leaves the proxy nothing to decide.
        """
        _switched_on(sampling_params)

    def request_settings(self, sampling_params: Any) -> Hashable | None:
        """The decision process of a request."""
        if not _switched_on(sampling_params):
            return None
        temperature = sampling_params.temperature
        return self.decoder.of_request(temperature if temperature >= _GREEDY_BELOW else 0.0, _top_k(sampling_params))

    def see_hidden(self, hidden_ND: torch.Tensor) -> None:
        """Take the model's embeddings, when it computes logits for the first time, and its hidden states."""
        if not self._attached:
            model = vllm_model_of_caller()
            vectors = [] if model is None else [each for each in model.parameters() if each.ndim == 1]
            if not vectors:
                raise RuntimeError(
                    "No model was found from which vLLM computes logits: this version cannot be guided by a proxy."
                )
            self.decoder.attach(model.embed_input_ids, vectors[-1])
            self._attached = True
        super().see_hidden(hidden_ND)

    def guide(self, logits_NV: torch.Tensor, rows: Sequence[GuidedRow], texts: Texts) -> None:
        """Write the distribution of the accepted token."""
        hidden_ND = self.hidden_of(logits_NV)
        assert hidden_ND is not None
        places, requests = [row.place for row in rows], [row.settings for row in rows]
        index = None
        if places != list(range(len(logits_NV))):
            index = torch.tensor(places, device=logits_NV.device)
        scores_NV = self.decoder.next_scores(
            logits_NV if index is None else logits_NV[index],
            hidden_ND if index is None else hidden_ND[index],
            requests,
            lambda row: texts.complete(rows[row]),
        )
        if index is None:
            logits_NV.copy_(scores_NV)
        else:
            logits_NV[index] = scores_NV


def _switched_on(sampling_params: Any) -> bool:
    """Whether a request is guided."""
    given = (getattr(sampling_params, "extra_args", None) or {}).get(SWITCH)
    found = {"0": False, "1": True}.get(given) if isinstance(given, str) else given
    if given is not None and (not isinstance(found, int | float) or found not in (0, 1)):
        raise ValueError(
            f"`{SWITCH}` must be 1, which lets the proxy accept or reject tokens, or 0, the model alone, got "
            f"{given!r}."
        )
    if found and sampling_params.temperature >= _GREEDY_BELOW and _top_k(sampling_params) == 1:
        raise ValueError(
            f"`top_k` is 1, which leaves nothing for the proxy to decide: set it to at least 2, or `{SWITCH}` to 0. "
            "For greedy decisions set `temperature` to 0."
        )
    return bool(found)


def _top_k(sampling_params: Any) -> int:
    """The request's limit; 0 if there is none, which some versions of vLLM write as -1."""
    return max(sampling_params.top_k, 0)
