# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A proxy inside an engine that has the language model (vLLM): the distribution of the next token that it induces.

The engine samples the tokens, so what is computed here is log q of each candidate, summed over all orders in which
candidates may be examined: the same that evaluation reports. There are no random numbers, and no forward pass of the
language model beside the engine's own.

Dimensions: N rows, V vocabulary, k candidates, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from trl_ext.generation_settings import GenerationSettings
from trl_ext.inference.engine_decoding import ServedModel
from trl_ext.models.architecture import hidden_width

from .decision_process import DecisionProcess
from .decoding.candidates import accept, choose, propose
from .decoding.walk import candidate_logps, context_features
from .model import DIGEST_TOKENS, ProxyConfig, ProxyModel, digest_of
from .policies import narrowed


class ProxyRequest(NamedTuple):
    """
    What is computed for a request.

    Args:
        process ([`DecisionProcess`]): The decision process.
        greedy (`bool`): Whether to take the likelier decision, in descending order.
        temperature (`float`): What the engine divides logits by afterwards.
    """

    process: DecisionProcess
    greedy: bool
    temperature: float


@dataclass(frozen=True, kw_only=True)
class ProxyEngineDecoding:
    """
    A proxy inside an engine: the object `"trl_ext"` in vLLM's `--additional-config`.

    Parameters:
        proxy (`str`):
            Directory or Hub id of a proxy that was trained with the feature `"context"`.
        top_k (`int`, *optional*, defaults to `0`):
            Candidates are among the k likeliest tokens (`0`: as in training).
        order (`str`, *optional*, defaults to `""`):
            Order in which candidates are examined, `"sampled"` or `"descending"`. By default as in training.
        allow_other_model (`bool`, *optional*, defaults to `False`):
            Whether the proxy may have been trained on another language model of the same hidden size.

    Raises:
        `ValueError`: A setting is out of range.
    """

    switch: ClassVar[str] = "proxy"
    example: ClassVar[dict[str, Any]] = {"proxy": "outputs/proxy"}

    proxy: str = field(metadata={"help": "Proxy: directory or Hub id."})
    top_k: int = field(default=0, metadata={"help": "Candidates are among the k likeliest tokens. 0: as in training."})
    order: str = field(default="", metadata={"help": "Order in which candidates are examined. As in training."})
    allow_other_model: bool = field(
        default=False, metadata={"help": "Whether it may have been trained on another model of the same hidden size."}
    )

    def __post_init__(self) -> None:
        if not self.proxy:
            raise ValueError("`proxy` is empty: name the directory or Hub id of a proxy.")
        self._with_settings(DecisionProcess())

    def _with_settings(self, process: DecisionProcess) -> DecisionProcess:
        given = {"top_k": self.top_k, "order": self.order}
        return replace(process, **{name: value for name, value in given.items() if value})  # type: ignore[arg-type]

    def check(self, llm: ServedModel) -> None:
        """See [`~trl_ext.inference.engine_decoding.EngineDecoding.check`]."""
        config: ProxyConfig = ProxyModel.check_saved(self.proxy)
        process = self._with_settings(config.decision_process)
        if process.feature != "context":
            raise ValueError(
                f"The proxy {self.proxy!r} was trained with feature={process.feature!r}, the hidden state at each "
                "candidate: that takes a forward pass over the candidates, which vLLM cannot make. Train one with "
                "feature='context' (`--feature context`), or serve this one by `trl-ext serve`."
            )
        if process.propose_rejected:
            raise ValueError(
                f"The proxy {self.proxy!r} may propose a rejected candidate again (`propose_rejected`), which is not "
                "there inside vLLM. Serve it by `trl-ext serve`."
            )
        if not process.exact:
            raise ValueError(
                f"The proxy {self.proxy!r} examines {process.max_candidates} candidates in a sampled order: the token "
                "probabilities that its decisions induce cannot be computed. Set `order` to 'descending', train one "
                "with max_candidates=0, or serve this one by `trl-ext serve`."
            )
        config.check_size(hidden_width(llm.config), llm.name)
        layer = _embedding(llm)
        if type(layer) is not nn.Embedding:
            raise ValueError(
                f"{llm.name!r} has embeddings of the type {type(layer).__name__}, which may scale them in another way "
                "than vLLM does: the proxy cannot have its feature there. Serve it by `trl-ext serve`."
            )

    def load(self, llm: ServedModel, device: torch.device) -> "ProxyEngineDecoder":
        """See [`~trl_ext.inference.engine_decoding.EngineDecoding.load`]."""
        proxy = ProxyModel.from_pretrained(self.proxy).eval().to(device)
        process = self._with_settings(proxy.config.decision_process)
        return ProxyEngineDecoder(proxy, process, llm, allow_other=self.allow_other_model)


def _embedding(llm: ServedModel) -> Any:
    """The embedding layer that transformers makes for a language model, without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llm.config, trust_remote_code=llm.trust_remote_code)
    return model.get_input_embeddings()


class ProxyEngineDecoder:
    """
    A proxy, with the embeddings of an engine's language model.

    Args:
        proxy ([`ProxyModel`]): The proxy.
        process ([`DecisionProcess`]): The decision process.
        llm ([`~trl_ext.inference.engine_decoding.ServedModel`]): The language model.
        allow_other (`bool`, *optional*, defaults to `False`): Whether it may be another one than in training.

    Attributes:
        reads_text (`bool`): Whether there is a repetition penalty.
    """

    def __init__(
        self, proxy: ProxyModel, process: DecisionProcess, llm: ServedModel, *, allow_other: bool = False
    ) -> None:
        self.proxy, self.process, self.llm, self.allow_other = proxy, process, llm, allow_other
        self.reads_text = process.repetition_penalty != 1
        self._embed: Callable[[torch.Tensor], torch.Tensor] | None = None

    def attach(self, embed: Callable[[torch.Tensor], torch.Tensor], last_vector: torch.Tensor) -> None:
        """See [`~trl_ext.inference.engine_decoding.EngineDecoder.attach`]."""
        first = embed(torch.arange(DIGEST_TOKENS, device=last_vector.device))
        config: ProxyConfig = self.proxy.config
        config.check_digest(
            digest_of(self.llm.config, [first, last_vector]),
            self.llm.name,
            allow_other=self.allow_other,
            setting='`"allow_other_model": true`',
        )
        self._embed = embed

    def of_request(self, temperature: float, top_k: int) -> ProxyRequest:
        """See [`~trl_ext.inference.engine_decoding.EngineDecoder.of_request`]."""
        settings = GenerationSettings(temperature=temperature, top_k=top_k, num_generations=1)
        return ProxyRequest(narrowed(self.process, settings), not temperature, temperature)

    @torch.no_grad()
    def next_scores(
        self,
        logits_NV: torch.Tensor,
        hidden_ND: torch.Tensor,
        requests: Sequence[ProxyRequest],
        text: Callable[[int], list[int]],
    ) -> torch.Tensor:
        """See [`~trl_ext.inference.engine_decoding.EngineDecoder.next_scores`]."""
        if len(set(requests)) == 1:  # mostly
            return self._scores(requests[0], logits_NV, hidden_ND, range(len(requests)), text)
        scores_NV = torch.empty_like(logits_NV)
        for request in dict.fromkeys(requests):
            rows = [row for row, each in enumerate(requests) if each == request]
            index = torch.tensor(rows, device=logits_NV.device)
            scores_NV[index] = self._scores(request, logits_NV[index], hidden_ND[index], rows, text)
        return scores_NV

    def _scores(
        self,
        request: ProxyRequest,
        logits_NV: torch.Tensor,
        hidden_ND: torch.Tensor,
        rows: Sequence[int],
        text: Callable[[int], list[int]],
    ) -> torch.Tensor:
        """Scores (N, V) of requests that are alike."""
        assert self._embed is not None
        process, (n, vocabulary), device = request.process, logits_NV.shape, logits_NV.device
        ids_NS = None if process.repetition_penalty == 1 else _padded([text(row) for row in rows], device)
        # log q is summed over all orders, so that any order will do.
        middle = torch.full((n, min(process.top_k, vocabulary)), 0.5, device=device)
        found = propose(logits_NV, process, middle if process.order == "sampled" else None, ids_NS)
        accept_Nk = self.proxy.accept_logits(context_features(self._embed_all, hidden_ND, found.tokens))
        if request.greedy:
            choice_N, *_ = choose(accept(accept_Nk, None), found.asked(process.forced), found.valid, process.forced)
            columns = torch.arange(found.tokens.shape[1], device=device)
            scores_Nk = torch.zeros_like(found.weights).masked_fill(columns != choice_N[:, None], -torch.inf)
        else:
            scores_Nk = candidate_logps(process, found, accept_Nk) * request.temperature
        nothing_NV = torch.full_like(logits_NV, -torch.inf)
        return nothing_NV.scatter(1, found.tokens, scores_Nk.to(logits_NV.dtype))

    def _embed_all(self, tokens_Nk: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, k, D); an engine's layer takes tokens in one dimension."""
        assert self._embed is not None
        return self._embed(tokens_Nk.flatten()).view(*tokens_Nk.shape, -1)


def _padded(texts: Sequence[list[int]], device: torch.device) -> torch.Tensor:
    """Texts of several lengths as (N, S); each is filled with its own last token, which occurs in it already."""
    longest = max(map(len, texts))
    return torch.tensor([text + text[-1:] * (longest - len(text)) for text in texts], device=device)
