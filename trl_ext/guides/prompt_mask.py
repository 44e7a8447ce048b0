# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The attention mask of sequences that `generate` passes to a logits processor as ids alone.

Dimensions: N sequences, P tokens of a prompt, S columns of the sequences so far.
"""

import torch


def mask_of_left_padding(ids_NS: torch.Tensor, pad_token_id: int, *, also_text: bool) -> torch.Tensor:
    """
    Infer the attention mask from the run of padding that each row begins with.

    Args:
        ids_NS (`torch.Tensor` of shape `(N, S)`): Token ids.
        pad_token_id (`int`): Token id of padding.
        also_text (`bool`): Whether texts may begin with this token too, as with GPT-2, where start, end and padding
            are one token. The run that all rows begin with is then text.

    Returns:
        `torch.Tensor` of shape `(N, S)`: True at tokens, False at padding.
    """
    runs = (ids_NS == pad_token_id).long().cumprod(1).sum(1, keepdim=True)
    if also_text and ids_NS.shape[0]:
        runs = runs - runs.min()
    return torch.arange(ids_NS.shape[1], device=ids_NS.device) >= runs


class PromptMask:
    """
    Attention mask of sequences that are read from the start.

    Args:
        given (`torch.Tensor` of shape `(N, P)`, *optional*): Attention mask of the first prompts, one row per
            sequence or per prompt. For other prompts the mask is inferred from the padding.
        pad_token_id (`int`, *optional*): Token id of padding.
        also_text (`bool`): As for [`mask_of_left_padding`].
    """

    def __init__(self, given: torch.Tensor | None, pad_token_id: int | None, *, also_text: bool) -> None:
        self.given, self.pad_token_id, self.also_text = given, pad_token_id, also_text
        self._prompts: torch.Tensor | None = None
        self._columns = -1

    def check(self, ids_NS: torch.Tensor) -> None:
        """
        Check that a batch whose mask is not known has no padding within its texts. Costs nothing while a text grows
        token by token.

        Args:
            ids_NS (`torch.Tensor` of shape `(N, S)`): Token ids.

        Raises:
            `ValueError`: It has, as in the second turn of a batched chat. The message names the row.
        """
        n, columns = ids_NS.shape
        grown, self._columns = columns - self._columns, columns
        given = 0 if self.given is None else self.given.shape[1]
        if grown == 1 or n == 1 or self.pad_token_id is None or given >= columns:
            return
        text_NS = ids_NS != self.pad_token_id
        holes_NS = (~text_NS & (text_NS.cumsum(1) > 0))[:, given:]
        if self.also_text:  # one such token may be the end of a turn
            holes_NS = holes_NS[:, 1:] & holes_NS[:, :-1]
        if holes_NS.any():
            row = int(holes_NS.any(1).nonzero()[0])
            raise ValueError(
                f"Row {row} has the padding token within or after its text: which of them are padding depends on the "
                "attention mask. Pass it (`attention_mask=`), or assign it to the processor's `attention_mask` before "
                "the next turn of a batch of conversations."
            )

    def __call__(self, ids_NS: torch.Tensor) -> torch.Tensor:
        """
        The mask of these sequences.

        Args:
            ids_NS (`torch.Tensor` of shape `(N, S)`): Token ids.

        Returns:
            `torch.Tensor` of shape `(N, S)`: 1 for tokens, 0 for padding.

        Raises:
            `ValueError`: The sequences are empty; or the given mask belongs to other prompts, and no `pad_token_id`
                is known.
        """
        n, columns = ids_NS.shape
        if not columns:
            raise ValueError("Row 0 has no tokens: there is nothing to continue.")
        given = self.given
        if given is not None and n % len(given) == 0 and given.shape[1] <= columns:
            mask_NP = given.to(ids_NS).repeat_interleave(n // len(given), 0)
            prompts_NP = ids_NS[:, : given.shape[1]]
            if self._prompts is None:
                self._prompts = prompts_NP.clone()
            if torch.equal(self._prompts, prompts_NP):
                return torch.nn.functional.pad(mask_NP, (0, columns - given.shape[1]), value=1)
        if self.pad_token_id is not None:
            return mask_of_left_padding(ids_NS, self.pad_token_id, also_text=self.also_text).long()
        if given is None:
            return torch.ones_like(ids_NS)
        raise ValueError(
            "These are not the prompts that `attention_mask` was given for: pass their mask, or a `pad_token_id`."
        )
