# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What a guide says about itself beyond its scores, with defaults.

Dimensions: N sequences, k candidate tokens, D hidden size, H heads.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch

from trl_ext.decoding.guide import Guide, GuideContext
from trl_ext.decoding.slot_tree import SlotTree
from trl_ext.decoding.static_tree import StaticTree
from trl_ext.models.backbone_and_head import BackboneAndHead


class StaticScorer(Protocol):
    """Scores of candidate tokens in CUDA-graph decoding, on static KV caches."""

    trees: list[StaticTree]
    device: torch.device

    def score(self, candidates_Nk: torch.Tensor, after_NT: torch.Tensor, hidden_ND: torch.Tensor) -> torch.Tensor:
        """
        Scores of shape `(N, k, H)`.

        Args:
            candidates_Nk (`torch.Tensor` of shape `(N, k)`): Candidate tokens.
            after_NT (`torch.Tensor` of shape `(N, T)`): Last tokens of each sequence, which the trees do not have yet.
            hidden_ND (`torch.Tensor` of shape `(N, D)`): The language model's hidden states at the last one.
        """
        ...


class SlotScorer(Protocol):
    """
    Scores of candidate tokens for texts that are in slots, in an engine that batches continuously.

    Attributes:
        trees (`list[SlotTree]`): The texts.
        hidden_size (`int`): Channels of the language model's hidden states, if it reads them; else `0`.
    """

    trees: list[SlotTree]
    hidden_size: int

    def score(
        self,
        candidates_Nk: torch.Tensor,
        slots: Sequence[int],
        next_N: torch.Tensor,
        hidden_ND: torch.Tensor | None,
    ) -> torch.Tensor:
        """
        Scores of shape `(N, k, H)`.

        Args:
            candidates_Nk (`torch.Tensor` of shape `(N, k)`): Candidate tokens.
            slots (`Sequence[int]`): N different slots, in which the trees have the texts but for their last tokens.
            next_N (`torch.Tensor` of shape `(N,)`): These last tokens.
            hidden_ND (`torch.Tensor` of shape `(N, D)`): The language model's hidden states at them; `None` if there
                `hidden_size` is 0.
        """
        ...


class BaseGuide(ABC):
    """
    A [`~trl_ext.decoding.guide.Guide`] with defaults for what a logits processor asks it.

    Attributes:
        who (`str`): What it is, for messages: `"value model 'helpful'"`.
        heads (`Sequence[str]`): Names of its H heads. With one head, scores may have the shape `(N, k)`.
        vocabulary (`int`): Number of tokens that it can score; `0` for any. Further tokens keep their logits.
        context_length (`int`): Maximum number of tokens of a text; `0` if not known.
        reads_candidates (`bool`): Whether its model reads each candidate, so that many take long. Otherwise one
            forward pass scores all of them.
        learned_positions (`bool`): Whether it cannot read longer texts at all.
        scores_tokens (`bool`): Whether scores are those of single tokens, so that the score of a text is their sum. By
            default a score is that of the whole text.
        own_prompts (`bool`): Whether it reads `guide_prompts` of the processor in place of the prompts.
        config (`Any`): Config of its model, which may know the padding token; `None` if there is none.
        calls (`int`), tokens (`int`): Forward passes of its models so far, and tokens in them, padding included.
    """

    who: str = "guide"
    heads: Sequence[str] = ("score",)
    vocabulary: int = 0
    context_length: int = 0
    reads_candidates: bool = False
    learned_positions: bool = False
    scores_tokens: bool = False
    own_prompts: bool = False
    config: Any = None

    @abstractmethod
    def score(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
        """See [`~trl_ext.decoding.guide.Guide.score`]."""

    @property
    def calls(self) -> int:
        """Forward passes of its models so far."""
        return 0

    @property
    def tokens(self) -> int:
        """Tokens in these forward passes, padding included."""
        return 0

    @property
    def about(self) -> dict[str, str]:
        """What to know about a head to choose its weight, by its name."""
        return {}

    def blocks_unsupported_reason(self) -> str:
        """Why it cannot score blocks, which the language model has generated before; `""` if it can."""
        return ""

    def reset(self) -> None:  # noqa: B027 (most guides keep nothing)
        """Free the memory of caches."""

    # -------------------------------------------------- CUDA-graph decoding: see `trl_ext/decoding/static_generate.py`

    def static_unsupported_reason(self, llm: BackboneAndHead) -> str:
        """Why CUDA-graph decoding cannot use it with this language model; `""` if it can."""
        return f"the {self.who} reads the text so far outside of a graph"

    def static_key(self) -> Hashable:
        """Key of the recorded graph: everything that it depends on, except prompts and weights."""
        return id(self)

    def static_columns(self, top_k: int) -> int:
        """Columns of the static KV cache that so many candidates of one step need."""
        return 0

    def static_scorer(self, rows: int, columns: int) -> StaticScorer:
        """Scores for CUDA-graph decoding of `rows` sequences with a static KV cache of `columns` columns."""
        raise NotImplementedError(f"{type(self).__name__} has no scores for CUDA-graph decoding.")

    # ------------------------------------------------ engines that batch continuously: see `trl_ext/serving/vllm`

    def slot_bytes(self, columns: int) -> int:
        """Bytes of the KV cache for one text of so many columns, its candidates included."""
        raise NotImplementedError(f"{type(self).__name__} has no scores for texts in slots.")

    def slot_scorer(self, slots: int, columns: int) -> SlotScorer:
        """
        Scores for texts in `slots` slots of `columns` columns.

        Raises:
            `ValueError`: Its model cannot read texts in slots.
        """
        raise NotImplementedError(f"{type(self).__name__} has no scores for texts in slots.")


class FunctionGuide(BaseGuide):
    """
    A Python function that scores candidate tokens.

    Args:
        function (`Callable`):
            `(context, candidates_Nk) -> scores`, as [`~trl_ext.decoding.guide.Guide.score`]. The scores may also be
            nested lists of numbers.
        name (`str`, *optional*, defaults to `""`):
            Its name in messages. By default that of the function.

    Raises:
        `ValueError`: When called: the scores have another shape than the candidates, or are not finite.
    """

    def __init__(self, function: Callable[[GuideContext, torch.Tensor], Any], name: str = "") -> None:
        self.function = function
        self.who = f"function {name or getattr(function, '__qualname__', type(function).__name__)!r}"

    def score(self, context: GuideContext, candidates_Nk: torch.Tensor) -> torch.Tensor:
        scores = torch.as_tensor(self.function(context, candidates_Nk), dtype=torch.float32)
        if not scores.isfinite().all():
            raise ValueError(
                f"The {self.who} returned a score that is not finite. To exclude a token, return a number much "
                "lower than the other scores."
            )
        return scores


def as_guide(guide: Guide | Callable[[GuideContext, torch.Tensor], Any], name: str = "") -> BaseGuide:
    """
    A guide with everything that a logits processor asks it.

    Args:
        guide ([`~trl_ext.decoding.guide.Guide`] or `Callable`): A guide, any object with a method `score`, or a
            function `(context, candidates_Nk) -> scores`.
        name (`str`, *optional*, defaults to `""`): Its name in messages, for an object or function.

    Raises:
        `TypeError`: It is none of these.
    """
    if isinstance(guide, BaseGuide):
        return guide
    if isinstance(guide, Guide):
        return FunctionGuide(guide.score, name or type(guide).__name__)
    if callable(guide):
        return FunctionGuide(guide, name)
    raise TypeError(
        f"A guide must have a method `score(context, candidates)` or be such a function, got {type(guide).__name__}."
    )
