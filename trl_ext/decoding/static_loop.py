# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The loop of `generate` in a room of fixed size: a token is one replay of a CUDA graph, whatever steers it.

        token -> backbone -> hidden state -> head -> logits -> processors -> next token, written to its place
        \\________________________ one graph, nothing waits for the device ________________________/

N rows, P tokens of a prompt, S columns of the room, V vocabulary, D hidden size.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.load import base_of
from trl_ext.upstream import attention_implementation

from .cuda_graph import Replay
from .static_tree import StaticTree
from .token_sampling import sample_columns


COLUMN_MULTIPLE = 64  # rooms have a multiple of so many columns, so that a loop serves prompts of other lengths
CHECK_EVERY = 16  # tokens between two looks at whether all rows have ended: each look waits for the device


class StaticLoop:
    """
    A language model's room, the rooms of what steers it, and the graph of a token.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        rows (`int`), columns (`int`): N and S.
        processors (`Sequence[LogitsProcessor]`): What its logits go through; others of the same keys may follow.
        ends (`Sequence[int]`): Tokens that end a text.
        pad (`int` or `None`): What follows an end.
        sample (`bool`): Whether a token is drawn, or the likeliest is taken.
    """

    def __init__(
        self,
        model: Any,
        rows: int,
        columns: int,
        processors: Sequence[Any],
        ends: Sequence[int],
        pad: int | None,
        sample: bool,
    ) -> None:
        self.llm, self.sample = BackboneAndHead(model), sample
        device = self.llm.device
        self.tree = StaticTree(self.llm.backbone, rows, columns)
        self.steps: list[Any] = [
            p.static_guide(rows, columns) if isinstance(p, StaticProcessor) else p for p in processors
        ]
        self.token_N1 = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.written_NS = torch.zeros(rows, columns, dtype=torch.long, device=device)
        self.ended_N1 = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self.count_1 = torch.zeros(1, dtype=torch.long, device=device)
        self.ends = torch.tensor(list(ends), dtype=torch.long, device=device)
        self.pad = torch.tensor(0 if pad is None else pad, device=device)
        state = [self.tree.length_1, self.token_N1, self.written_NS, self.ended_N1, self.count_1]
        for step in self.steps:
            state += getattr(step, "state", [])
        self.next = Replay(self._next, state, device)

    @property
    def nbytes(self) -> int:
        """Bytes of the rooms."""
        return self.tree.nbytes + sum(tree.nbytes for step in self.steps for tree in getattr(step, "trees", ()))

    def run(self, ids_NP: torch.Tensor, mask_NP: torch.Tensor, processors: Sequence[Any], new: int) -> torch.Tensor:
        """
        Up to `new` tokens for each row, (N, T): as many as the row that ends last has.

        Args:
            ids_NP, mask_NP (`torch.Tensor` of shape `(N, P)`): Prompts, padded on the left.
            processors (`Sequence[LogitsProcessor]`): Those of this call.
            new (`int`): The most.
        """
        # Without the last token: the graph begins with it. Where there is no other, it is read for the shapes alone.
        alone = ids_NP.shape[1] == 1
        before, mask = (ids_NP, mask_NP) if alone else (ids_NP[:, :-1], mask_NP[:, :-1])
        self.tree.start(before, mask)
        for step, processor in zip(self.steps, processors, strict=True):
            if isinstance(processor, StaticProcessor):
                step.start(processor, before, mask)
        if alone:
            for tree in (self.tree, *(tree for step in self.steps for tree in getattr(step, "trees", ()))):
                tree.cut(0)
        self.token_N1.copy_(ids_NP[:, -1:])
        self.ended_N1.zero_()
        self.count_1.zero_()
        for t in range(1, new + 1):
            self.next()
            if len(self.ends) and t % CHECK_EVERY == 0 and bool(self.ended_N1.all()):
                break
        written = self.written_NS[:, :t].clone()
        if not len(self.ends):
            return written
        hits = torch.isin(written, self.ends)
        lengths = torch.where(hits.any(1), hits.int().argmax(1) + 1, t)
        return written[:, : int(lengths.max())]

    def _next(self) -> None:
        hidden_ND = self.tree.append(self.token_N1)
        scores = self.llm.logits(hidden_ND)
        for step in self.steps:
            steers = hasattr(step, "state")
            scores = step(scores, self.token_N1, hidden_ND) if steers else step(self.token_N1, scores)
        token = sample_columns(scores.softmax(-1)) if self.sample else scores.argmax(-1, keepdim=True)
        if len(self.ends):
            token = torch.where(self.ended_N1, self.pad, token)
            self.ended_N1.logical_or_(torch.isin(token, self.ends))
        self.written_NS.index_copy_(1, self.count_1, token)
        self.token_N1.copy_(token)
        self.count_1.add_(1)


def graph_key(model: Any) -> tuple[Hashable, ...]:
    """What a graph has recorded of a model beside its inputs: where weights are, adapters, attention, dtypes."""
    base = base_of(model)
    tuners = (m for m in base.modules() if hasattr(m, "disable_adapters") and hasattr(m, "merged_adapters"))
    tuner: Any = next(tuners, None)
    adapters = tuner and (tuple(tuner.active_adapters), tuner.disable_adapters, tuple(tuner.merged_adapters))
    scales = [tuple(m.scaling.items()) for m in base.modules() if isinstance(getattr(m, "scaling", None), dict)]
    kind = base.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    attention = attention_implementation(base.config.get_text_config())
    return adapters, *scales, weights_key(base), attention, autocast


def weights_key(module: torch.nn.Module) -> Hashable:
    """Where a module's weights are: others in their place make another graph."""
    return tuple((parameter.data_ptr(), parameter.dtype) for parameter in module.parameters())


class StaticGuide(Protocol):
    """What a steering processor does in a loop of fixed shapes; it serves other processors of the same key too."""

    state: list[torch.Tensor]
    trees: list[StaticTree]

    def start(self, processor: Any, ids_NP: torch.Tensor, mask_NP: torch.Tensor) -> None:
        """Read prompts without their last token, and the processor's settings of the moment."""

    def __call__(self, scores_NV: torch.Tensor, token_N1: torch.Tensor, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Scores after the token, whose hidden state in the language model is given."""
        ...


@runtime_checkable
class StaticProcessor(Protocol):
    """A logits processor that can work in such a loop."""

    def static_unsupported_reason(self, llm: BackboneAndHead) -> str:
        """Why it cannot for this language model, or nothing."""

    def static_key(self) -> Hashable:
        """Equal for processors that can use one another's guide."""

    def static_columns(self) -> int:
        """Columns that it needs behind the text."""

    def static_guide(self, rows: int, columns: int) -> StaticGuide:
        """The guide, in a room of its own."""
