# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The two parts of a causal language model."""

import torch
from conftest import make_model

from trl_ext.models.backbone_and_head import BackboneAndHead


class Head(torch.nn.Module):
    """A head that is not an `nn.Linear`, as code from the Hub may have."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden)


def test_the_vocabulary_is_that_of_the_head() -> None:
    model = make_model(34)
    assert BackboneAndHead(model).vocabulary == 34
    model.lm_head = Head(model.lm_head)
    assert BackboneAndHead(model).vocabulary == 34
