# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Log-probabilities of completions, without (tokens, vocabulary) logits and with each prompt computed once where that is
cheaper.

Dimensions: B prompts, N completions in all, L tokens per row, R tokens of a completion.
"""

import logging
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from trl_ext.models.modes import evaluation_mode
from trl_ext.models.probe import Tolerance, probe
from trl_ext.models.properties import base_of, has_virtual_tokens, inserted_tokens
from trl_ext.models.sharding import catch_up_calls
from trl_ext.progress import progress

from .balancing_loss import Routing, can_return_router_logits, router_logits
from .lm_head import add_fused_head, copy_with_own_weights, from_logits
from .parts import Parts, split
from .shared_prefix import IGNORE, SharedPrefixRows, unwrapped
from .token_logps import TokenLogps


logger = logging.getLogger(__name__)


class LogProbs(SharedPrefixRows):
    """
    Builds rows for a policy and computes log-probabilities from them.

    The form of the rows is chosen and verified as in [`~trl_ext.logprobs.shared_prefix.SharedPrefixRows`]. The fused
    head is compared with the model's own in the same way; a model whose head is more than a matrix product computes
    full logits.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model, before any distributed wrapper.
            Its forward gains a fused head (see [`~trl_ext.logprobs.lm_head.add_fused_head`]); other forward
            passes and generation do not change.
        pad_token_id (`int`): Token in padding.
        completions_per_forward (`int`, *optional*, defaults to `0`): Most completions in a forward pass. A larger
            batch is read in parts, see [`~trl_ext.logprobs.parts.Parts`]. `0`: all completions in one.
        kwargs: `shared_prefix` and `pad_to_multiple_of`; see [`~trl_ext.logprobs.shared_prefix.SharedPrefixRows`].

    Raises:
        `ValueError`: `shared_prefix` is none of the three.
    """

    quantity = "log-probabilities"

    def __init__(
        self, model: PreTrainedModel, pad_token_id: int, *, completions_per_forward: int = 0, **kwargs: Any
    ) -> None:
        base = base_of(model)
        self.fused = True
        self.completions_per_forward = completions_per_forward
        self.inserted = inserted_tokens(model)
        if has_virtual_tokens(model):  # they are not among the positions of a row
            kwargs["shared_prefix"] = "never"
        super().__init__(base, pad_token_id, **kwargs)
        add_fused_head(base)
        copy_with_own_weights(model)

    def __call__(
        self,
        model: torch.nn.Module,
        prompts: list[list[int]],
        completions: list[list[list[int]]],
        *,
        aux_loss: bool = False,
    ) -> TokenLogps:
        """
        Log-probabilities of completions under `model`.

        Args:
            model (`torch.nn.Module`): The model, possibly in a distributed wrapper, or another one of the same
                architecture with the fused head.
            prompts (`list[list[int]]`): B prompts of at least one token.
            completions (`list[list[list[int]]]`): For each prompt its completions, of at least one token each.
            aux_loss (`bool`, *optional*, defaults to `False`): Whether to compute the load balancing loss of a mixture
                of experts. It is that of separate rows.

        Returns:
            [`~trl_ext.logprobs.token_logps.TokenLogps`]: Where its `parts` are set, the gradient of a loss goes
            through them ([`~trl_ext.logprobs.parts.Parts.shares`]), not through `backward`.
        """
        self.verify(model)

        def read(prompts: list[list[int]], completions: list[list[list[int]]]) -> TokenLogps:
            form = self.form_of(prompts, completions)
            return self._forward(model, form, prompts, completions, self.fused, aux_loss)

        if not self.completions_per_forward:
            return read(prompts, completions)
        batches = split(prompts, completions, self.completions_per_forward)
        # On a sharded model, every process has to make as many forward passes.
        fillers = [([[self.pad_token_id]], [[[self.pad_token_id]]]) for _ in catch_up_calls(model, len(batches))]
        if len(batches) + len(fillers) == 1:
            return read(prompts, completions)
        return Parts(model, read, batches, fillers).first_pass()

    def _forward(
        self, model: torch.nn.Module, form: str, prompts: list, completions: list, fused: bool, aux_loss: bool = False
    ) -> TokenLogps:
        rows, inputs = self.inputs(model, form, prompts, completions)
        labels = rows["shift_labels"].to(inputs["input_ids"].device)
        labels = pad(labels, (self.inserted, 0), value=IGNORE)
        base = self.base_in(unwrapped(model))
        if can_return_router_logits(base):
            inputs["output_router_logits"] = False  # the model's own loss takes no mask of four dimensions
        recording: Any = router_logits(base) if aux_loss else nullcontext([])
        with recording as routers:
            if fused:
                outputs = model(**inputs, shift_labels=labels, fused_lm_head=True)
            else:
                logits = model(**inputs, use_cache=False).logits
                outputs = from_logits(logits, labels.to(logits.device))
        logps, entropy, is_top1 = (
            values[:, self.inserted :] for values in (outputs.log_probs, outputs.entropy, outputs.is_top1)
        )
        index = rows["completion_index"].to(outputs.log_probs.device)
        tokens = TokenLogps(
            logps, entropy, is_top1, index, sum(map(len, completions)), form, rows["input_ids"].numel()
        )
        if aux_loss:
            tokens.routing = Routing(base, list(routers), pad(rows["counts"], (self.inserted, 0), value=1))
        return tokens

    def probe_values(self, model: torch.nn.Module, form: str, prompts: list, completions: list) -> torch.Tensor:
        """log P of the completions, as one vector of shape (1, N)."""
        return self._forward(model, form, prompts, completions, self.fused).sums()[None]

    def verify_reference(self, model: torch.nn.Module, batch: tuple[list, list]) -> None:
        """Compares the fused head with the model's own, and falls back to full logits where they differ."""
        if hasattr(next(model.parameters()), "ds_id"):
            # ZeRO-3 fetches weights in the order in which the previous forward pass used them: after one through the
            # model's own head it would fetch the head at that point of TRL's. TRL's is used without a comparison.
            return
        reason = probe(
            model,
            "fused head",
            lambda: self._forward(model, "separate", *batch, fused=True).sums()[None],
            lambda: self._forward(model, "separate", *batch, fused=False).sums()[None],
            Tolerance(rounded=4e-3, smallest_norm=1.0),
            quantity=self.quantity,
        )
        if reason is not None:
            logger.warning("The full logits of a batch are kept in memory, because with the fused head %s.", reason)
            self.fused = False


@torch.no_grad()
def completion_logps(
    model: PreTrainedModel,
    prompts: list[list[int]],
    completions: list[list[list[int]]],
    *,
    pad_token_id: int,
    batch_size: int = 64,
    log_probs: LogProbs | None = None,
) -> list[list[torch.Tensor]]:
    """
    Per-token log-probabilities of completions, without gradients.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A causal language model; it is in evaluation
            mode during the call.
        prompts (`list[list[int]]`): B prompts.
        completions (`list[list[list[int]]]`): For each prompt its completions; an empty one gets an empty tensor.
        pad_token_id (`int`): Token in padding.
        batch_size (`int`, *optional*, defaults to `64`): Most completions per forward pass.
        log_probs ([`LogProbs`], *optional*): The object that computes them; a new one by default.

    Returns:
        `list[list[torch.Tensor]]`: For each completion its log-probabilities in nats, of shape (R,), float32 on the
        CPU.
    """
    log_probs = log_probs or LogProbs(model, pad_token_id)
    results: list[list[torch.Tensor]] = [[torch.zeros(0) for _ in group] for group in completions]
    kept = [(b, [k for k, c in enumerate(group) if c]) for b, group in enumerate(completions)]
    # Rows of similar length share a batch, so that little of it is padding.
    kept = sorted(
        (item for item in kept if item[1]),
        key=lambda item: len(prompts[item[0]]) + max(len(c) for c in completions[item[0]]),
    )
    groups = [[completions[b][k] for k in ks] for b, ks in kept]
    batches = split([prompts[b] for b, _ in kept], groups, batch_size)
    places = ((b, k) for b, ks in kept for k in ks)
    with progress("log-probabilities", len(kept)) as phase, evaluation_mode(model):
        fillers = catch_up_calls(model, len(batches))  # first: from here on, all processes make the same calls
        for some, batch in batches:
            tokens = log_probs(model, some, batch)
            for n, (b, k) in enumerate(islice(places, tokens.num_completions)):
                results[b][k] = tokens.logps[tokens.completion_index == n].float().cpu()
            phase.advance(len(some))
        for _ in fillers:
            log_probs(model, [[pad_token_id]], [[[pad_token_id]]])
    return results
