# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The alternative that `proxy_decode` measures against: a forward of the language model for every examined candidate.

N sequences, T tokens, k candidates for the next token, D hidden size.
"""

from typing import Any

import torch
from transformers import DynamicCache

from trl_ext.methods.proxy_rlhf.decision_process import DecisionProcess
from trl_ext.methods.proxy_rlhf.decoding.candidates import propose
from trl_ext.methods.proxy_rlhf.decoding.per_row_rng import PerRowRNG
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.properties import cache_name


class Sequential:
    """
    Generates by examining one candidate at a time, for sequences without padding or ends.

    Faster than it need be: the prefix is read once; a candidate that was rejected is cut off the cache again; rows
    that have accepted theirs keep reading it while others go on, so that no cache is copied; and the hidden state
    of an accepted candidate serves the next position.

    Args:
        llm ([`~trl_ext.models.backbone_and_head.BackboneAndHead`]): The language model.
        proxy ([`~trl_ext.methods.proxy_rlhf.model.ProxyModel`]): The proxy.
        process ([`~trl_ext.methods.proxy_rlhf.decision_process.DecisionProcess`]): With the feature `"candidate"`, and
            forced `"first"`.

    Attributes:
        forwards (`int`), examined (`int`): Of the last call: forwards after the prompt's, and candidates examined.
    """

    def __init__(self, llm: BackboneAndHead, proxy: Any, process: DecisionProcess) -> None:
        self.llm, self.proxy, self.process = llm, proxy, process
        self.forwards = self.examined = 0

    @torch.no_grad()
    def __call__(self, ids_NT: torch.Tensor, new: int, seeds: list[int]) -> torch.Tensor:
        """The next `new` tokens of each row, (N, new)."""
        cache, rng = DynamicCache(), PerRowRNG(seeds, self.process.top_k, self.llm.device)
        hidden_ND = self._read(ids_NT, cache)
        self.forwards = self.examined = 0
        tokens = []
        for _ in range(new):
            order_Nk, chance_Nk = rng.uniform()
            candidates_Nk = propose(self.llm.logits(hidden_ND), self.process, order_Nk).tokens
            choice_N, hidden_ND = self._decide(candidates_Nk, chance_Nk, cache)
            tokens.append(candidates_Nk.gather(1, choice_N[:, None]))
        return torch.cat(tokens, 1)

    def _decide(
        self, candidates_Nk: torch.Tensor, chance_Nk: torch.Tensor, cache: DynamicCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns of the tokens that are taken, (N,), and the hidden states after them, (N, D)."""
        choice_N = torch.zeros_like(candidates_Nk[:, 0])
        undecided_N = torch.ones_like(choice_N, dtype=torch.bool)
        for column in range(candidates_Nk.shape[1]):
            choice_N = choice_N.masked_fill(undecided_N, column)
            hidden_ND = self._read(candidates_Nk.gather(1, choice_N[:, None]), cache)
            self.examined += int(undecided_N.sum())
            accepted_N = chance_Nk[:, column] < self.proxy.accept_logits(hidden_ND).sigmoid()
            undecided_N = undecided_N & ~accepted_N
            if not bool(undecided_N.any()):
                return choice_N, hidden_ND
            cache.crop(-1)  # the last column
        choice_N = choice_N.masked_fill(undecided_N, 0)
        return choice_N, self._read(candidates_Nk.gather(1, choice_N[:, None]), cache)

    def _read(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        self.forwards += 1
        output = self.llm.backbone(input_ids=ids, use_cache=True, **{cache_name(self.llm.backbone): cache})
        return output.last_hidden_state[:, -1]
