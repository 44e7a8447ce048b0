# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The gradient of a loss over more completions than fit in one forward pass, exactly, with the memory of a few of them.

A loss of a batch is a function of all its log-probabilities together: a ranking loss compares each completion with all
others of its prompt. Its gradient by the weights is a sum over completions all the same, by the chain rule:

    dL / dw = sum_i (dL / d log P_i) (d log P_i / dw)

So the completions are read in parts, twice. The first pass computes the log-probabilities without a graph; the loss of
them is a function of a few numbers, and gives dL / d log P_i. The second pass reads each part again, with a graph, and
its backward pass has these derivatives as weights. (For losses over embeddings: Gao et al., "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup", arXiv 2101.06983.)

In the second pass each part starts from the RNG state that it had in the first, so that dropout and other noise are
the same in both.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch

from trl_ext.devices import generator_states
from trl_ext.seeds import replayed

from .token_logps import TokenLogps


# Prompts, and the completions of each.
Batch: TypeAlias = tuple[list[list[int]], list[list[list[int]]]]


def split(prompts: list[list[int]], completions: list[list[list[int]]], size: int) -> list[Batch]:
    """
    Batches of at most `size` completions, which together are those of the given batch in their order.

    The completions of a prompt stay together where they fit into a batch, since they share the prompt.

    Args:
        prompts (`list[list[int]]`): B prompts.
        completions (`list[list[list[int]]]`): The completions of each.
        size (`int`): Most completions of a batch, at least 1.
    """
    batches: list[Batch] = []
    free = 0
    for prompt, group in zip(prompts, completions, strict=True):
        if free < len(group) <= size:
            free = 0
        start = 0
        while start < len(group):
            if not free:
                batches.append(([], []))
                free = size
            some = group[start : start + free]
            batches[-1][0].append(prompt)
            batches[-1][1].append(some)
            start, free = start + len(some), free - len(some)
    return batches


class Parts:
    """
    The parts that a batch is read in.

    Args:
        model (`torch.nn.Module`): The model, possibly in a distributed wrapper.
        read (`Callable`): From prompts and completions to their [`~trl_ext.logprobs.token_logps.TokenLogps`] under
            `model`.
        batches (`list[Batch]`): The parts.
        fillers (`list[Batch]`, *optional*): More batches to read, whose results are not used: on a sharded model
            every process makes as many forward passes.
    """

    def __init__(
        self, model: torch.nn.Module, read: Callable[..., TokenLogps], batches: list[Batch], fillers: list[Batch]
    ) -> None:
        self._model, self._read = model, read
        self._batches, self._num_used = [*batches, *fillers], len(batches)
        self._states: list[list[torch.Tensor]] = []  # of the random number generators, before each part
        self._sizes: list[list[int]] = []  # of what the loss is a function of, for each part
        self._leaves: list[torch.Tensor] = []  # log-probabilities and router logits: of these the loss is a function
        self._in_shares = False

    def __len__(self) -> int:
        return len(self._batches)

    def first_pass(self) -> TokenLogps:
        """
        The log-probabilities of all parts together.

        Their gradient goes through [`shares`]. Without gradients, as in evaluation, there is no second pass.
        """
        needs_gradient = torch.is_grad_enabled()
        found = []
        for batch in self._batches:
            if needs_gradient:
                self._states.append(generator_states())
            with torch.no_grad():
                found.append(self._read(*batch))
        tokens = TokenLogps.joined(found[: self._num_used])
        if needs_gradient:
            self._sizes = [[part.logps.numel(), *map(len, _router_logits(part))] for part in found]
            self._leaves = [tokens.logps, *_router_logits(tokens)]
            for leaf in self._leaves:
                leaf.requires_grad_().register_hook(self._refuse)
            tokens.parts = self
        return tokens

    def shares(self, loss: torch.Tensor) -> Iterator[torch.Tensor]:
        """
        One number for each part, whose gradients by the weights of the model add up to that of the loss.

        The backward pass of each has to follow before the next is taken. Gradients are left to this process until the
        last one, with which DDP synchronizes them; FSDP2 does it with each, and keeps what it has of them sharded.

        Args:
            loss (`torch.Tensor`): A function of what [`first_pass`] returned.
        """
        self._in_shares = True
        weights = torch.autograd.grad(loss, self._leaves, allow_unused=True)
        self._in_shares, self._leaves = False, []
        rest = [weight if weight is None or i else weight.flatten() for i, weight in enumerate(weights)]
        for number, (batch, state, sizes) in enumerate(zip(self._batches, self._states, self._sizes, strict=True)):
            is_last = number == len(self._batches) - 1
            with nullcontext() if is_last else _local_gradients(self._model):
                with replayed(state):
                    tokens = self._read(*batch)
                values = [tokens.logps.flatten(), *_router_logits(tokens)]
                if number < self._num_used:
                    own = [None if w is None else w[:n] for w, n in zip(rest, sizes, strict=True)]
                    rest = [None if w is None else w[n:] for w, n in zip(rest, sizes, strict=True)]
                    share = sum((v * w).sum() for v, w in zip(values, own, strict=True) if w is not None)
                else:
                    share = values[0].sum() * 0.0
                yield share

    def _refuse(self, gradient: torch.Tensor) -> None:
        if not self._in_shares:
            raise RuntimeError(
                "These log-probabilities were computed in parts (`completions_per_forward`), so that `backward` alone "
                "does not reach the model: let `compute_loss` return `self._through_parts(loss, tokens)`."
            )


def _router_logits(tokens: TokenLogps) -> list[torch.Tensor]:
    """The router logits of each layer, where the load balancing loss was asked for."""
    return [] if tokens.routing is None else tokens.routing.logits


def _local_gradients(model: Any) -> AbstractContextManager[Any]:
    """Inside this context DDP adds gradients up on each process, and leaves it to a later step to average them."""
    no_sync: Callable[[], AbstractContextManager[Any]] = getattr(model, "no_sync", nullcontext)
    return no_sync()
