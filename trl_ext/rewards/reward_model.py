# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What reward models have in common, on this machine and on servers. Imports neither torch nor transformers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar


class RewardModel(ABC):
    """
    A reward model as a reward function: [`~trl_ext.rewards.classifiers.ClassifierReward`] or
    [`~trl_ext.rewards.servers.ServerReward`].

    Attributes:
        is_served (`bool`): Whether it is on a server.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Its tokenizer.
    """

    is_served: ClassVar[bool]
    tokenizer: Any  # not annotated with its type, which imports torch

    @property
    @abstractmethod
    def identity(self) -> str:
        """What distinguishes its rewards from those of another model."""

    @property
    @abstractmethod
    def calls_at_once(self) -> int:
        """Batches of completions in one call."""

    @abstractmethod
    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> Sequence[float | None]:
        """The reward of each completion."""

    def check_conversation(self, prompt: list[dict[str, Any]], completion: list[dict[str, Any]]) -> None:  # noqa: B027
        """Raise a `ValueError` if it cannot read a conversation. A server says so itself."""


def is_address(spec: str) -> bool:
    """Whether the name of a reward is the address of a server."""
    return spec.startswith(("http://", "https://"))
