# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What a guide of decoding is: value models with the weights of their heads."""

from typing import Any

import torch

from ..head_weights import full_names
from ..value_model.model import ValueModel
from .retokenize import Retokenizer, TextReader
from .tree_follower import Follower


class Guide:
    """One value model, and where its heads are among all."""

    def __init__(self, model: ValueModel, name: str, first: int, retokenizer: Retokenizer | None) -> None:
        self.model, self.retokenizer, self.checked = model, retokenizer, False
        names = list(model.head_names)
        self.heads = full_names(name, names)
        self.columns = slice(first, first + len(names))
        self.vocabulary = model.config.get_text_config().vocab_size
        self.device = next(model.parameters()).device
        self.reader: Follower | TextReader | None = None
        if model.config.form == "policy":
            if model.captured is None:
                raise ValueError(
                    "The value model reads the states of the language model that it guides: load it with "
                    "`ValueModel.from_pretrained(..., backbone=model)`, the model that generates."
                )
        elif retokenizer is None:
            self.reader = Follower(model.backbone)
        else:
            self.reader = TextReader(model.backbone, retokenizer)
        if retokenizer is not None and model.config.form != "state":
            raise ValueError(
                f"A value model of the form {model.config.form!r} scores tokens of its own vocabulary and cannot be "
                "used with another: use one of the form 'state'."
            )

    def reset(self) -> None:
        if isinstance(self.reader, Follower):
            self.reader.reset()
        if self.model.captured is not None:
            self.model.captured.clear()

    def values(self, ids: torch.Tensor, candidates: torch.Tensor, mask_of: Any, vocabulary: int) -> torch.Tensor:
        """Values of the text with each candidate at its end, of shape (N, k, H)."""
        if isinstance(self.reader, TextReader):
            return self.model.value_of(self.reader.branch(ids, mask_of(ids), candidates))
        if vocabulary != self.vocabulary:
            self._check(ids, candidates, vocabulary)
        if self.reader is None:
            assert self.model.captured is not None
            return self.model.action_values(self.model.captured.after(ids), candidates)
        ids, candidates = ids.to(self.device), candidates.to(self.device)
        if self.model.config.form == "action":
            return self.model.action_values(self.reader.read(ids, mask_of), candidates)
        return self.model.value_of(self.reader.branch(ids, candidates, mask_of))

    def _check(self, ids: torch.Tensor, candidates: torch.Tensor, vocabulary: int) -> None:
        """Some models pad their vocabulary; then the tokenizers must say that it is one, and padding never occurs."""
        if not self.checked:
            raise ValueError(
                f"The language model has {vocabulary} tokens and the value model {self.vocabulary}. If their "
                "tokenizers are the same nevertheless, pass them (`tokenizer=`, `value_tokenizer=`), to be compared; "
                "if not, add `retokenize=True`, which is slow."
            )
        largest = int(torch.cat([ids, candidates], 1).max())
        if largest >= self.vocabulary:
            raise ValueError(
                f"Token {largest} is not in the vocabulary of the value model ({self.vocabulary} tokens)."
            )
