# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of rewards, for training and the commands."""

from dataclasses import dataclass, field
from typing import Any

from trl_ext.validation import as_mapping, check_at_least


# Keyword arguments of `Endpoint`, and the name of the model on the server.
_SERVER_KEYS = "model timeout max_retries backoff max_wait max_concurrency api_key_variable extra_body".split()


@dataclass
class RewardSettings:
    """
    How rewards are loaded and called.

    Parameters:
        reward_batch_size (`int`, *optional*, defaults to `64`):
            Completions in one call of a reward function, in one forward pass of a reward model, or in one request to
            a reward server. The completions of a prompt stay together, so that a function can compare them. `0`: all
            completions in one call.
        reward_model_init_kwargs (`dict[str, Any]` or `str`, *optional*):
            Keyword arguments for `from_pretrained` of reward models given by name. `dtype` is that of the checkpoint
            by default; `load_in_4bit` and `load_in_8bit` quantize; `device` (`"cuda:1"`) is where the model is placed.
        reward_head (`list[str]`, `str` or `int`, *optional*):
            Label of a reward model with several labels whose logit is the reward: its name in `id2label`, or its
            number. One for all reward models, or a list with one entry per reward function (`""` for those that need
            none).
        reward_pairs (`bool`, *optional*, defaults to `False`):
            Whether reward models read prompt and completion as a pair of texts (`tokenizer(prompt, completion)`),
            as cross-encoders and OpenAssistant's DeBERTa models do, and not as one text.
        reward_server_kwargs (`dict[str, Any]` or `str`, *optional*):
            Keyword arguments of [`~trl_ext.endpoint.client.Endpoint`] for reward servers: `timeout`, `max_retries`,
            `max_concurrency`, `api_key_variable` and others; `model` is the model's name on a vLLM server.
    """

    reward_batch_size: int = field(
        default=64,
        metadata={
            "help": "Completions in one call of a reward function, in one forward pass of a reward model, or in one "
            "request to a reward server. 0 means all in one call."
        },
    )
    reward_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments for `from_pretrained` of reward models given by name: `dtype` (default: the "
            "checkpoint's), `load_in_4bit`, `load_in_8bit`, `device` and others."
        },
    )
    reward_head: list[str] | None = field(
        default=None,
        metadata={
            "help": "Label of a reward model with several labels whose logit is the reward, by name or number. One "
            "for all reward models, or one per reward function."
        },
    )
    reward_pairs: bool = field(
        default=False,
        metadata={
            "help": "Whether reward models read prompt and completion as a pair of texts, as cross-encoders do, and "
            "not as one text."
        },
    )
    reward_server_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "How reward servers are called: `timeout`, `max_retries`, `max_concurrency`, `api_key_variable` "
            "and others; `model` is the model's name on a vLLM server."
        },
    )

    def check_reward_settings(self) -> None:
        """
        Convert values to the types of their fields.

        Raises:
            `ValueError`: A setting is out of range or of another type; the message names it.
        """
        check_at_least("reward_batch_size", self.reward_batch_size, 0)
        for name in ("reward_model_init_kwargs", "reward_server_kwargs"):
            setattr(self, name, as_mapping(name, getattr(self, name)))  # the command line gives JSON
        if self.reward_head is not None:
            heads: Any = self.reward_head
            heads = list(heads) if isinstance(heads, list | tuple) else [heads]
            if not all(isinstance(head, str | int) and not isinstance(head, bool) for head in heads):
                raise ValueError(f"`reward_head` must have names or numbers of labels, got {self.reward_head!r}.")
            self.reward_head = [str(head) for head in heads]
        unknown = sorted(set(self.server_options) - set(_SERVER_KEYS))
        if unknown:
            raise ValueError(f"`reward_server_kwargs` has no {unknown}, only {', '.join(_SERVER_KEYS)}.")
        given = self.model_options
        if given.get("load_in_4bit") and given.get("load_in_8bit"):
            raise ValueError("`reward_model_init_kwargs` has both `load_in_4bit` and `load_in_8bit`: set one of them.")

    @property
    def model_options(self) -> dict[str, Any]:
        """A copy of `reward_model_init_kwargs`."""
        return dict(as_mapping("reward_model_init_kwargs", self.reward_model_init_kwargs) or {})

    @property
    def server_options(self) -> dict[str, Any]:
        """A copy of `reward_server_kwargs`."""
        return dict(as_mapping("reward_server_kwargs", self.reward_server_kwargs) or {})

    def heads_of(self, names: list[str]) -> list[str]:
        """
        The label of each reward function that `reward_head` names, `""` for none.

        Args:
            names (`list[str]`): Names of the reward functions, for the error.

        Raises:
            `ValueError`: There are several labels, and not one per reward function.
        """
        heads = self.reward_head or [""]
        if len(heads) == 1:
            return heads * len(names)
        if len(heads) != len(names):
            raise ValueError(
                f"`reward_head` has {len(heads)} entries for {len(names)} reward functions ({', '.join(names)}): "
                'give one for all, or one for each ("" for none).'
            )
        return heads
