# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Reward models behind HTTP, in the protocols of OpenRLHF's reward server and of vLLM's `/classify` and `/score`."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.data.chat_template import TEMPLATE_COLUMNS, render, template_kwargs
from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.errors import BadAnswer, EndpointError, EndpointUnreachable, excerpt
from trl_ext.endpoint.protocol import served_models

from .reward_model import RewardModel
from .settings import RewardSettings


# OpenRLHF's client waits as long for an answer.
_TIMEOUT = 180.0
# The dataset's column that OpenRLHF sends to a server as `labels`, and those that chat templates get.
_SENT_COLUMNS = ("label", *TEMPLATE_COLUMNS)


class ServerReward(RewardModel):
    """
    Reward function that asks a server. The last part of the address says which protocol it speaks:

    - `/classify` (vLLM, SGLang): sends `model` and `input`, the concatenated texts, or, for conversations, `messages`,
      one request per conversation; the server renders them with the chat template of its model. The reward is in
      `data[i].probs`: the only one, or that of `reward_head`. The server is asked for the logit (`use_activation:
      false`).
    - `/score` (vLLM): sends `model` and the pairs `text_1` (prompts), `text_2` (completions). The reward is
      `data[i].score`.
    - any other (OpenRLHF: `/get_reward`): sends `query` (prompt and completion as one text), `prompts` and, if the
      dataset has a column `label`, `labels`. The rewards are in `rewards`. Conversations are rendered with the chat
      template of `tokenizer`. Numbers in `extra_logs` are logged.

    Requests are repeated and timed out as [`~trl_ext.endpoint.client.Endpoint`] does.

    Args:
        address (`str`):
            Address of the server, with the path.
        settings ([`~trl_ext.rewards.settings.RewardSettings`]):
            How to call it: `reward_batch_size` and `reward_server_kwargs`.
        head (`str`, *optional*, defaults to `""`):
            Number of the label whose value is the reward, for `/classify` with several labels.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its chat template renders conversations for a server that takes text.

    Raises:
        `ValueError`: The address or a setting cannot be used.
        `ConnectionError`: The server cannot be reached, or has several models and none is named.
    """

    is_served = True

    def __init__(
        self,
        address: str,
        settings: RewardSettings,
        head: str = "",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        base, _, path = address.rstrip("/").rpartition("/")
        if base in ("http:/", "https:/") or "?" in path or "#" in path:
            raise ValueError(
                f"The reward server {address!r} needs a path, such as http://localhost:5000/get_reward, and nothing "
                "after it."
            )
        options = {"timeout": _TIMEOUT} | settings.server_options
        model = options.pop("model", "")
        self.address, self.tokenizer, self.batch_size = address.rstrip("/"), tokenizer, settings.reward_batch_size
        self.label = _label(head, self.address)
        self._ask: Callable[..., list[Any]] = {"classify": self._classify, "score": self._score}.get(
            path, self._get_reward
        )
        self._path = path
        self.endpoint = Endpoint(base, model, **options)
        if path in ("classify", "score") and not model:
            self.endpoint.model = self._served_model(base, options)
        self._check_reachable()

    @property
    def identity(self) -> str:
        """What distinguishes its rewards from those of another server."""
        return f"{self.address} model {self.endpoint.model} label {self.label}"

    @property
    def calls_at_once(self) -> int:
        """Requests of `batch_size` completions that are in flight at once."""
        return self.endpoint.max_concurrency

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The reward of each completion."""
        size = self.batch_size or len(prompts)
        if self._path == "classify" and not isinstance(prompts[0], str):
            size = 1
        parts = [slice(start, start + size) for start in range(0, len(prompts), size)]

        def ask(part: slice) -> list[Any]:
            sent = {name: columns[name][part] for name in _SENT_COLUMNS if name in columns}
            return self._ask(prompts[part], completions[part], sent, log_metric)

        with ThreadPoolExecutor(max_workers=min(self.endpoint.max_concurrency, len(parts))) as pool:
            jobs = [pool.submit(ask, part) for part in parts]
            try:
                found = [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [self._number(value, i) for i, value in enumerate(value for part in found for value in part)]

    # --------------------------------------------------------------------------------------------------- protocols

    def _get_reward(self, prompts: Any, completions: Any, columns: dict[str, Any], log_metric: Any) -> list[Any]:
        """OpenRLHF's protocol."""
        texts = [
            self._texts(prompt, completion, _template_kwargs(columns, i))
            for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        body = {"query": [prompt + completion for prompt, completion in texts], "prompts": [text[0] for text in texts]}
        labels = {"labels": list(columns["label"])} if "label" in columns else {}

        def read(answer: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
            found = answer.get("rewards")
            if not isinstance(found, list):
                raise self._malformed(f"the answer has no list `rewards`: {excerpt(str(answer))}")
            # A server of models with one label per text returns a list of one number for each.
            numbers = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in found]
            return self._as_many(numbers, texts), answer.get("extra_logs") or {}

        rewards: list[Any]
        rewards, logs = self.endpoint.post(self._path, body | labels, read=read)
        for name, values in logs.items() if log_metric is not None else ():
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, int | float):  # servers also send texts, and null
                    log_metric(name, value)
        return rewards

    def _classify(self, prompts: Any, completions: Any, columns: dict[str, Any], log_metric: Any) -> list[Any]:
        """vLLM's `/classify`."""
        if isinstance(prompts[0], str):
            text = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
            body: dict[str, Any] = {"input": text}
        else:
            body = {"messages": [*prompts[0], *completions[0]]}
            if kwargs := _template_kwargs(columns, 0):
                body["chat_template_kwargs"] = kwargs

        def read(answer: dict[str, Any]) -> list[Any]:
            return self._as_many([self._of_label(entry) for entry in self._data(answer, "probs")], prompts)

        found: list[Any] = self.endpoint.post(self._path, body | {"use_activation": False}, read=read)
        return found

    def _of_label(self, probs: Any) -> Any:
        if not isinstance(probs, list) or not probs:
            raise self._malformed(f"`probs` is no list of numbers: {excerpt(str(probs))}")
        if self.label is None and len(probs) > 1:
            raise BadAnswer(
                f"{self.address}: the model has {len(probs)} labels, but a reward is one number: set `reward_head` to "
                f"the number of one of them, 0 to {len(probs) - 1}.",
                status=200,
            )
        if (self.label or 0) >= len(probs):
            raise BadAnswer(
                f"{self.address}: `reward_head` is {self.label}, but the model has {len(probs)} labels.", status=200
            )
        return probs[self.label or 0]

    def _score(self, prompts: Any, completions: Any, columns: dict[str, Any], log_metric: Any) -> list[Any]:
        """vLLM's `/score`."""
        texts = [_pair(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        body = {"text_1": [first for first, _ in texts], "text_2": [second for _, second in texts]}

        def read(answer: dict[str, Any]) -> list[Any]:
            return self._as_many(self._data(answer, "score"), prompts)

        found: list[Any] = self.endpoint.post(self._path, body | {"use_activation": False}, read=read)
        return found

    # ----------------------------------------------------------------------------------------------------- answers

    def _data(self, answer: dict[str, Any], name: str) -> list[Any]:
        """One field of each entry of `data`, in the order of the texts."""
        try:
            entries = sorted(answer["data"], key=lambda entry: entry.get("index") or 0)
            return [entry[name] for entry in entries]
        except (AttributeError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise self._malformed(
                f"the answer does not follow the protocol ({reason}): {excerpt(str(answer))}"
            ) from error

    def _as_many(self, found: list[Any], texts: Sequence[Any]) -> list[Any]:
        if len(found) != len(texts):
            raise self._malformed(f"the server returned {len(found)} rewards for {len(texts)} completions.")
        return found

    def _malformed(self, problem: str) -> BadAnswer:
        """The error for an answer that is asked for again: gateways answer so for a server that is overloaded."""
        return BadAnswer(f"{self.address}: {problem}", status=200, transient=True)

    def _number(self, value: Any, i: int) -> float | None:
        """A finite number, or `None` (`null`) where the reward does not apply."""
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise BadAnswer(
                f"{self.address}: the reward of completion {i} is {value!r}, which is not a number.", status=200
            )
        if value is not None and not abs(value) < float("inf"):
            raise BadAnswer(f"{self.address}: the reward of completion {i} is {value}.", status=200)
        return value

    # ------------------------------------------------------------------------------------------------------- texts

    def _texts(self, prompt: Any, completion: Any, kwargs: dict[str, Any]) -> tuple[str, str]:
        """Prompt and completion as text, that of the prompt with the beginning of the assistant's turn."""
        if isinstance(prompt, str):
            return prompt, completion
        if self.tokenizer is None or self.tokenizer.chat_template is None:
            raise ValueError(
                f"the prompts are conversational, but {self.address} takes text: pass a tokenizer with a chat "
                "template in `reward_processing_classes`, or use a server with /classify, which takes messages."
            )
        whole = render(self.tokenizer, [*prompt, *completion], **kwargs)
        begun = render(self.tokenizer, prompt, add_generation_prompt=True, **kwargs)
        if not whole.startswith(begun):  # a template that writes the turns before the last in another way
            begun = ""
        return begun, whole[len(begun) :]

    # ------------------------------------------------------------------------------------------------ the beginning

    def _served_model(self, base: str, options: dict[str, Any]) -> str:
        """The name of the only model of a vLLM server."""
        root = base.removesuffix("/v1")
        models = Endpoint(f"{root}/v1", "", **options)
        try:
            found = served_models(models)
        except EndpointError as error:
            raise ConnectionError(f"The reward server {self.address} cannot be used: {error}") from error
        finally:
            models.close()
        if len(found) != 1:
            raise ConnectionError(
                f"The reward server {self.address} has the models {', '.join(map(repr, found))}: name one, "
                "`reward_server_kwargs={'model': ...}`."
            )
        return found[0]

    def _check_reachable(self) -> None:
        """Raise an error now rather than after the first completions are generated. Any answer will do."""
        try:
            self.endpoint.get(self._path)
        except EndpointUnreachable as error:
            raise ConnectionError(f"The reward server {self.address} cannot be reached: {error}") from error
        except EndpointError:
            pass  # it answers, though not to a GET


def _label(head: str, address: str) -> int | None:
    if head and not head.isdigit():
        raise ValueError(
            f"`reward_head` must be a number for the server {address}, whose labels are unknown: {head!r}."
        )
    return int(head) if head else None


def _template_kwargs(columns: dict[str, Any], i: int) -> dict[str, Any]:
    """Arguments of the chat template for one completion."""
    return template_kwargs({name: columns[name][i] for name in TEMPLATE_COLUMNS if name in columns})


def _pair(prompt: Any, completion: Any) -> tuple[str, str]:
    """The two texts that a server compares."""
    if isinstance(prompt, str):
        return prompt, completion
    if len(prompt) != 1 or len(completion) != 1:
        raise ValueError("a prompt has several messages, but /score compares two texts: use a server with /classify.")
    return prompt[0]["content"], completion[0]["content"]
