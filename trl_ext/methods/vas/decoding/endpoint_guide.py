# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Guides the model of an OpenAI-compatible server with value models, in one of three modes.

Token mode: for each token, the server returns its `top_k` likeliest tokens. Beta times their values is added to their
log-probabilities, one is sampled, and the prefix with this token is sent again. Tokens that the server does not return
are never sampled; the answer's `tail` is their probability. Where every n-th token is guided, the server samples the
n - 1 tokens between, in one request.

Block mode, for servers without log-probabilities: in each round, the server generates `num_blocks` continuations, and
one of them is chosen with probabilities softmax(beta times value). Reconstruction: the closed form of the paper, with
blocks in place of tokens, and samples in place of the sum over them. The paper guides an API by the probabilities of
tokens only.

Answer mode, for servers that only chat: the server generates `num_blocks` whole answers, and one of them is chosen in
the same way.
"""

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.data.completion import Completion
from trl_ext.data.tokenization import encode_prompt
from trl_ext.decoding.guide_schedule import GuideSchedule
from trl_ext.decoding.scheduled_rows import GuidedTokens, ScheduledRows
from trl_ext.endpoint.client import Endpoint
from trl_ext.endpoint.errors import EndpointError, RequestRefused
from trl_ext.endpoint.next_tokens import NextTokens, request_fields, sample_blocks, sample_option
from trl_ext.endpoint.protocol import Answer, Prompt
from trl_ext.endpoint.tokens import Option, ServedText
from trl_ext.generation_settings import GenerationSettings
from trl_ext.guides.blocks import choose_block
from trl_ext.guides.logits_processor import guide_schedule
from trl_ext.guides.weights import describe_weights
from trl_ext.inference.guided import guide_weights
from trl_ext.inference.policy import Policy
from trl_ext.inference.served import Served, answer_all, answer_file, check_served_settings, served_policy
from trl_ext.models.modes import evaluation_mode

from ..value_model.model import ValueModel
from .logits_processor import ValueAugmentedLogitsProcessor


Beta = float | Mapping[str, float]

MODES = ("token", "block", "answer")

_ONE_COMPLETION = GenerationSettings(num_generations=1)
_NOT_FINITE = (
    "A value model returned a value that is not finite, so that there is no distribution to sample from. Load it in a "
    "dtype of a larger range (bfloat16 or float32), and check its weights."
)


class EndpointGuide:
    """
    A server's model, guided by value models. Safe to use from several threads.

    An answer takes one request per token in token mode, one per round in block mode, and one in answer mode
    (`num_blocks` times as many if the server ignores `n`). The value models compute for one answer at a time.

    Args:
        endpoint ([`~trl_ext.endpoint.client.Endpoint`]):
            The server.
        value_models ([`ValueModel`] or `dict[str, ValueModel]`):
            The value models, as for [`ValueAugmentedLogitsProcessor`].
        beta (`float` or `dict[str, float]`):
            Weight of the values, one for all heads or one per head, as for [`ValueAugmentedLogitsProcessor`]. Calls
            may pass others.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer of the server's model. Without log-probabilities, that of the value models will do.
        mode (`str`, *optional*, defaults to `"token"`):
            `"token"`, `"block"` or `"answer"`.
        chat (`bool`, *optional*, defaults to `False`):
            Whether to use the chat endpoint, which must be able to continue an unfinished answer, except in answer
            mode. Otherwise messages are rendered here, with the tokenizer's chat template, for the completions
            endpoint.
        top_k (`int`, *optional*, defaults to `20`):
            Number of tokens to request and choose among. Servers have a limit, often 20 (vLLM: `--max-logprobs`).
        num_blocks (`int`, *optional*, defaults to `8`):
            Continuations per round in block mode; whole answers in answer mode.
        block_length (`int`, *optional*, defaults to `16`):
            Their length, in tokens.
        end_tokens (`Sequence[str]`, *optional*):
            Tokens that end an answer, in addition to the tokenizer's end of sequence.
        value_tokenizer, retokenize (*optional*):
            For value models of another vocabulary, as for [`ValueAugmentedLogitsProcessor`]. In block and answer mode,
            `value_tokenizer` is enough.
        guide_every, guide_when (*optional*):
            In token mode, which tokens are guided, as for
            [`~trl_ext.guides.logits_processor.GuidedLogitsProcessor`]; by default all. A number saves requests. With
            `"word"`, `"sentence"` and the conditions each token still takes a request, and one that is not guided is
            sampled here, among the tokens that the server returns. There is no condition `entropy`: the server does
            not return the complete distribution.

    Raises:
        `ValueError`: A setting is out of range, or a value model has another vocabulary.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        value_models: ValueModel | Mapping[str, ValueModel],
        beta: Beta,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mode: str = "token",
        chat: bool = False,
        top_k: int = 20,
        num_blocks: int = 8,
        block_length: int = 16,
        end_tokens: Sequence[str] = (),
        value_tokenizer: PreTrainedTokenizerBase | Mapping[str, PreTrainedTokenizerBase] | None = None,
        retokenize: bool = False,
        guide_every: int | str = 1,
        guide_when: Mapping[str, Any] | None = None,
    ) -> None:
        self.schedule = _served_schedule(guide_every, guide_when, mode)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
        for name, number, least in (("num_blocks", num_blocks, 2), ("block_length", block_length, 1)):
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {number}.")
        self.endpoint, self.tokenizer, self.mode, self.chat = endpoint, tokenizer, mode, chat
        self.beta, self.top_k, self.num_blocks, self.block_length = beta, top_k, num_blocks, block_length
        self.next = NextTokens(endpoint, tokenizer, top_k, chat=chat, ends=end_tokens)
        self._make: dict[str, Any] = {"value_model": value_models, "top_k": top_k, "value_tokenizer": value_tokenizer}
        if self.schedule.margin:
            self._make["guide_when"] = {"margin": self.schedule.margin}
        if mode == "token" or value_tokenizer is None:
            self._make |= {"tokenizer": tokenizer, "retokenize": retokenize}
        self._make["end_token_ids"] = sorted(self.next.names.ends)
        models = value_models if isinstance(value_models, Mapping) else {"": value_models}
        for model in models.values():
            form = model.config.form
            if form == "policy" or (mode != "token" and form != "state"):
                raise ValueError(
                    f"A value model of the form {form!r} cannot guide a server in {mode} mode: use one of 'state'."
                )
            if model.config.value_prompt:
                raise ValueError(
                    "The value model reads a column `value_prompt`, which prompts for a server do not have: use one "
                    "that was trained without it."
                )
        by_name = value_tokenizer if isinstance(value_tokenizer, Mapping) else dict.fromkeys(models, value_tokenizer)
        self._tokenizers = [by_name.get(model) for model in models]
        self._lock = threading.Lock()  # of the value models
        self._processor(beta)  # raises the errors of the settings before the first request

    def _processor(self, beta: Beta | None, width: int = 1) -> ValueAugmentedLogitsProcessor:
        with self._lock:
            return ValueAugmentedLogitsProcessor(
                beta=self.beta if beta is None else beta, attention_mask=torch.ones(1, width).long(), **self._make
            )

    def answer(
        self,
        prompt: Prompt,
        settings: GenerationSettings | None = None,
        *,
        beta: Beta | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        seed: int | str = 0,
        show: Callable[[str], None] | None = None,
    ) -> Served:
        """
        Answer a prompt once.

        Args:
            prompt (`str`, `list[int]` or `list[dict]`): Text, token ids or messages.
            settings ([`~trl_ext.generation_settings.GenerationSettings`], *optional*): Its `temperature`, `top_k`,
                `top_p`, `min_p` and `max_completion_length` apply: in token mode to the guided candidates here, else
                on the server. By default [`GenerationSettings`]'s own, with one completion.
            beta (`float` or `dict[str, float]`, *optional*): Replaces the guide's own.
            chat_template_kwargs (`dict[str, Any]`, *optional*): Arguments of the chat template for messages, such as
                `{"enable_thinking": False}`, and `tools`. A chat endpoint is sent them.
            seed (`int` or `str`, *optional*, defaults to `0`): Seed of the choices made here. The server samples
                blocks and answers with a seed of its own.
            show (`Callable`, *optional*): Called with the text so far, whenever it has grown.

        Raises:
            [`~trl_ext.endpoint.errors.EndpointError`]: The server failed, or lacks what the mode needs.
            `ValueError`: The prompt is empty, an endpoint lacks one of the settings, or the server's model has another
                vocabulary than the tokenizer.
        """
        settings = _checked(settings or _ONE_COMPLETION, self.mode)
        token = self.mode == "token"
        if token:
            text = self.next.text(prompt, chat_template_kwargs)
        else:
            text = ServedText(
                self.tokenizer, prompt, chat=self.chat, by_id=False, chat_template_kwargs=chat_template_kwargs
            )
        processor = self._processor(beta, len(text.ids))
        generate = self._tokens if token else self._blocks
        return generate(text, settings, processor, random.Random(seed), show or (lambda _: None))

    def _tokens(
        self,
        text: ServedText,
        settings: GenerationSettings,
        processor: ValueAugmentedLogitsProcessor,
        rng: random.Random,
        show: Callable[[str], None],
    ) -> Served:
        schedule, rows = self.schedule, ScheduledRows(self.schedule, tokenizer=self.tokenizer)
        rows.start(torch.tensor([text.ids]))
        tails: list[float] = []
        kl, written, guided, ended = 0.0, 0, 0, False
        while not ended and written < settings.max_completion_length:
            if schedule.skips(written):
                assert isinstance(schedule.every, int)
                wanted = min(schedule.every - written % schedule.every, settings.max_completion_length - written)
                before = len(text.ids)
                with _full_context(written) as full:
                    added, ended = self.next.sample(text, wanted, settings)
                if full:
                    break
                written += added + ended
                for token in text.ids[before:]:  # of servers that take text: as this tokenizer reads it
                    rows.append(torch.tensor([token]))
                show(text.answer)
                if not ended and added < wanted:  # the server's context is full
                    break
                continue
            with _full_context(written) as full:
                options = self.next.after(text)
            if full or (ended := not options):
                break
            logps_k = torch.tensor([option.logprob for option in options])
            guided_k = logps_k
            if schedule.always or bool(rows.guided(_spread(options, logps_k, len(self.tokenizer)))):
                with self._lock:
                    guided_k = _guided(processor, text.ids, options, logps_k, len(self.tokenizer))
                guided += processor.scheduled is None or not torch.equal(guided_k, logps_k)
            chosen = sample_option(guided_k, settings, rng)
            new_k = guided_k.log_softmax(0)
            kl += float((new_k.exp() * (new_k - logps_k)).sum())
            tails.append(max(0.0, 1.0 - float(logps_k.exp().sum())))
            ended = options[chosen].end
            written += 1
            rows.append(torch.tensor([options[chosen].id]))
            if not ended:
                text.add_token(options[chosen].id, options[chosen].text)
                show(text.answer)
        return self._answer(text, ended, kl, sum(tails) / max(1, len(tails)), guided, written)

    def _blocks(
        self,
        text: ServedText,
        settings: GenerationSettings,
        processor: ValueAugmentedLogitsProcessor,
        rng: random.Random,
        show: Callable[[str], None],
    ) -> Served:
        kl, written, ended = 0.0, 0, False
        while not ended and written < settings.max_completion_length:
            left = settings.max_completion_length - written
            length = left if self.mode == "answer" else min(self.block_length, left)
            with _full_context(written) as full:
                blocks = sample_blocks(self.endpoint, text, self.num_blocks, length, **request_fields(settings))
            if full:
                break
            with self._lock:
                logits_n = self._values(processor, text, blocks)
            chosen, gain = choose_block(logits_n, rng.random())
            kl += gain
            block, ended = blocks[chosen].text, blocks[chosen].ended
            written += length
            if not block and not ended:  # the server's context is full
                break
            text.add_text(block)
            show(text.answer)
        return self._answer(text, ended, kl, 0.0)

    def _values(
        self, processor: ValueAugmentedLogitsProcessor, text: ServedText, blocks: list[Answer]
    ) -> torch.Tensor:
        """Weighted values after each of the blocks, shape (n,)."""
        total_n = torch.zeros(len(blocks))
        weights_H = processor.row_weights(1, torch.device("cpu"))[0]
        placed = zip(processor.value_guides, processor.columns, self._tokenizers, strict=True)
        for guide, columns, tokenizer in placed:
            assert guide.reader is not None  # the form is "state"
            own = tokenizer or self.tokenizer
            rows = []
            for block in blocks:
                if own is self.tokenizer:
                    ids = text.with_text(block.text)
                else:
                    ids = encode_prompt(own, text.prompt + text.answer + block.text)
                rows.append([*ids, own.eos_token_id] if block.ended and own.eos_token_id is not None else ids)
            guide.reader.check_length(max(map(len, rows)))
            values_nH = _last_values(guide.model, rows)
            if not values_nH.isfinite().all():
                raise ValueError(_NOT_FINITE)
            total_n += values_nH.cpu() @ weights_H[columns]
        return total_n

    def _answer(
        self, text: ServedText, ended: bool, kl: float, tail: float, guided: int = 0, tokens: int = 0
    ) -> Served:
        end = [self.tokenizer.eos_token_id] if ended or not text.answer_ids else []
        return Served(Completion(text.answer, [*text.answer_ids, *end], ended), kl, tail, guided, tokens)

    def answer_all(
        self,
        prompts: Sequence[Prompt],
        settings: GenerationSettings | None = None,
        *,
        chat_template_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[list[Served]]:
        """
        Answer prompts, several at once: [`~trl_ext.inference.served.answer_all`]; `chat_template_kwargs` as for
        [`answer`].
        """
        answer = partial(self.answer, chat_template_kwargs=chat_template_kwargs)
        return answer_all(
            answer, prompts, settings or _ONE_COMPLETION, workers=self.endpoint.max_concurrency, **kwargs
        )

    def answer_file(
        self,
        rows: Sequence[dict[str, Any]],
        output_file: str,
        settings: GenerationSettings | None = None,
        **kwargs: Any,
    ) -> int:
        """Answer the prompts of a dataset and write a file, resumably: [`~trl_ext.inference.served.answer_file`]."""
        made_with = {
            "endpoint": [self.endpoint.base_url, self.endpoint.model, self.endpoint.extra_body],
            "guide": [self.mode, self.chat, self.beta, self.top_k, self.num_blocks, self.block_length],
            **({} if self.schedule.always else {"schedule": str(self.schedule), "seed": self.schedule.seed}),
            "values": [
                float(sum(p.detach().double().norm() for p in g.model.parameters()))
                for g in self._processor(None).value_guides
            ],
        }
        return answer_file(
            self.answer, rows, output_file, settings or _ONE_COMPLETION, self.endpoint, made_with, **kwargs
        )

    def policy(self, name: str = "api", *, beta: Beta | None = None, **fields: Any) -> Policy:
        """
        The guided server as a [`~trl_ext.inference.policy.Policy`], for [`~trl_ext.evaluation.evaluate.evaluate`].

        Args:
            name (`str`, *optional*, defaults to `"api"`): Its name in tables.
            beta (`float` or `dict[str, float]`, *optional*): Replaces the guide's own.
            fields: Further arguments of [`~trl_ext.inference.served.served_policy`], such as `series`.
        """
        beta = self.beta if beta is None else beta
        extras = {"beta": beta, "mode": self.mode, "model": self.endpoint.model, **self.schedule.changes()}
        guided = None if self.schedule.always else GuidedTokens()
        answer = partial(self.answer, beta=beta)

        def change(weights: dict[str, float]) -> Policy:
            return self.policy(
                f"{fields.get('series') or name}, beta {describe_weights(weights)}", beta=weights, **fields
            )

        weights = guide_weights(self._processor(beta), change)
        return served_policy(
            answer,
            self.tokenizer,
            self.endpoint,
            name=name,
            extras=extras,
            weights=weights,
            guided=guided,
            takes_messages=self.chat,
            own_kl="exact" if self.mode == "token" else "bound",
            **fields,
        )


@contextmanager
def _full_context(written: int) -> Iterator[list[EndpointError]]:
    """
    Inside this context a server may refuse an answer that fills its context, if something was `written` before: the
    answer is cut there. A prompt that is too long is an error.

    Yields a list that is not empty afterwards if it did.
    """
    refused: list[EndpointError] = []
    try:
        yield refused
    except RequestRefused as error:
        if not written or "context" not in str(error).lower():
            raise
        refused.append(error)


def _checked(settings: GenerationSettings, mode: str) -> GenerationSettings:
    check_served_settings(settings)
    if mode != "token" and not settings.temperature:
        raise ValueError(f"temperature 0 gives the same {mode} every time: raise it, or use mode='token'.")
    return settings


def _served_schedule(every: int | str, when: Mapping[str, Any] | None, mode: str) -> GuideSchedule:
    """The schedule of an answer, as far as a server allows it."""
    schedule = guide_schedule(every, when)
    if schedule.entropy:
        raise ValueError(
            "`guide_when` has the condition 'entropy': a server returns its likeliest tokens only, so the entropy of "
            "its model's distribution is not known. Use `guide_every`, or `margin`."
        )
    if mode != "token" and not schedule.always:
        raise ValueError(
            f"`guide_every` and `guide_when` are about single tokens, and in {mode} mode whole {mode}s are chosen: "
            "leave them out, or use the token mode. `block_length` is what makes block mode cheaper."
        )
    return schedule


def _spread(options: list[Option], logps_k: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The log-probabilities of the options among all tokens, shape (1, V); -inf elsewhere."""
    tokens_k = torch.tensor([option.id for option in options])
    vocabulary = max(vocabulary, 1 + int(tokens_k.max()))  # ids may have holes
    return torch.full((1, vocabulary), -torch.inf).scatter(1, tokens_k[None], logps_k[None])


def _guided(
    processor: ValueAugmentedLogitsProcessor,
    ids: list[int],
    options: list[Option],
    logps_k: torch.Tensor,
    vocabulary: int,
) -> torch.Tensor:
    """Guided logits of the options, shape (k,). All other tokens have probability 0."""
    tokens_k = torch.tensor([option.id for option in options])
    scores_1V = _spread(options, logps_k, vocabulary)
    processor.top_k = len(options)
    guided_k = processor(torch.tensor([ids]), scores_1V)[0, tokens_k]
    if guided_k.isnan().any():
        raise ValueError(_NOT_FINITE)
    return guided_k


@torch.no_grad()
def _last_values(model: ValueModel, rows: list[list[int]]) -> torch.Tensor:
    """Values after the last token of each row, shape (N, H)."""
    width = max(map(len, rows))
    pad = rows[0][0]  # any token, as the padding is masked
    ids_NT = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=model.device)
    last_N = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    mask_NT = (torch.arange(width, device=model.device) <= last_N[:, None]).long()
    with evaluation_mode(model):
        hidden_NTD = model(ids_NT, attention_mask=mask_NT).last_hidden_state
    return model.value_of(hidden_NTD[torch.arange(len(rows), device=model.device), last_N])
