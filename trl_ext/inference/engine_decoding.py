# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What chooses tokens inside an engine that has the language model and batches continuously, as vLLM.

A value model adds scores to logits, and is a guide there as anywhere (`guides/kinds.py`). What replaces the
distribution of the next token by another one is an [`EngineDecoder`].

Dimensions: N rows, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from trl_ext.method import discover, import_class


@dataclass(frozen=True)
class ServedModel:
    """
    The language model of an engine.

    Args:
        name (`str`): Directory or Hub id.
        config ([`~transformers.PreTrainedConfig`]): Config of its text model.
        trust_remote_code (`bool`): Whether code that comes with it is run.
    """

    name: str
    config: Any
    trust_remote_code: bool = False


class EngineDecoder(Protocol):
    """
    Computes the distribution of the next token from the language model's logits and hidden states.

    Attributes:
        reads_text (`bool`): Whether it needs the texts.
    """

    reads_text: bool

    def attach(self, embed: Callable[[torch.Tensor], torch.Tensor], last_vector: torch.Tensor) -> None:
        """
        Called once, when the engine has loaded the language model.

        Args:
            embed (`Callable`): Embeddings (N, D) of tokens (N,), as the model's own `embed_input_ids`.
            last_vector (`torch.Tensor`): Its last weight of one dimension, mostly that of the last norm.

        Raises:
            `ValueError`: What guides was trained on another language model.
        """

    def of_request(self, temperature: float, top_k: int) -> Hashable:
        """
        What is computed for a request with these sampling settings (0: greedy; all tokens).

        Raises:
            `ValueError`: It cannot be done with them.
        """

    def next_scores(
        self,
        logits_NV: torch.Tensor,
        hidden_ND: torch.Tensor,
        requests: Sequence[Any],
        text: Callable[[int], list[int]],
    ) -> torch.Tensor:
        """
        Logits of the next token that, divided by the request's temperature, are log-probabilities, (N, V).

        Args:
            logits_NV (`torch.Tensor` of shape `(N, V)`): The language model's logits, float32.
            hidden_ND (`torch.Tensor` of shape `(N, D)`): The hidden states that they were computed from.
            requests (`Sequence`): For each row what [`of_request`] returned.
            text (`Callable`): The text of a row, if `reads_text`.
        """
        ...


class EngineDecoding(Protocol):
    """
    The settings of an [`EngineDecoder`]: a dataclass whose fields are the keys of `"trl_ext"` in vLLM's
    `--additional-config`.

    A method names its class in [`~trl_ext.Method`]'s `engine`. The class variable `switch` is what requests switch it
    on by, and `example` a dictionary of some of its fields.
    """

    switch: ClassVar[str]
    example: ClassVar[dict[str, Any]]

    def check(self, llm: ServedModel) -> None:
        """
        Called before anything is loaded.

        Raises:
            `ValueError` or `OSError`: It is not there, does not fit the language model, or cannot work in an engine.
        """

    def load(self, llm: ServedModel, device: torch.device) -> EngineDecoder:
        """Load what guides, on the engine's device."""
        ...


def engine_decodings() -> dict[str, type[EngineDecoding]]:
    """
    Those of installed methods, by their switches.

    Raises:
        `ImportError`: The class of a method cannot be imported.
    """
    found: dict[str, type[EngineDecoding]] = {}
    for each in discover().methods.values():
        if each.method.engine:
            cls: Any = import_class(each.method.engine)
            found.setdefault(cls.switch, cls)
    return found
