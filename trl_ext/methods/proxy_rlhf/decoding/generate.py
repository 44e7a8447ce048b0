# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`proxy.generate(model, prompts)`: arguments and results like those of a model's own `generate`.

Dimensions: P prompts, K completions per prompt, N = P x K sequences, T tokens.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation import StopStringCriteria

from trl_ext.data.completion import decode_after
from trl_ext.data.tokenization import encode_prompt
from trl_ext.generation.observer import StreamerObserver
from trl_ext.generation_settings import eos_token_ids
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.modes import evaluation_mode
from trl_ext.validation import check_at_least, check_value

from .batch import ProxyCompletions, complete, proxy_schedule


class ProxyGenerateOutput(NamedTuple):
    """
    Output of [`ProxyModel.generate`] with `return_dict=True`.

    Args:
        sequences (`torch.Tensor` of shape `(N, T)`): Prompts and completions, padded.
        texts (`list[str]` or `None`): The completions as text, if there was a tokenizer.
        lengths (`torch.Tensor` of shape `(N,)`): Number of tokens of each completion.
        examined, rejected (`torch.Tensor` of shape `(N,)`): Number of candidates that the proxy was asked about, and
            that it rejected.
        forced (`torch.Tensor` of shape `(N,)`): Number of tokens that were taken because all candidates were rejected.
        ended (`torch.Tensor` of shape `(N,)`): Whether the completion ended, by an end of sequence or a stop string.
    """

    sequences: torch.Tensor
    texts: list[str] | None
    lengths: torch.Tensor
    examined: torch.Tensor
    rejected: torch.Tensor
    forced: torch.Tensor
    ended: torch.Tensor


def generate(
    proxy: Any,
    model: Any,
    inputs: Any = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    max_new_tokens: int | None = None,
    num_return_sequences: int | None = None,
    greedy: bool = False,
    stop_strings: str | list[str] | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    streamer: Any = None,
    seed: int | None = None,
    batch_size: int = 0,
    first_candidates: int = 0,
    cuda_graphs: str = "auto",
    return_dict: bool = False,
    guide_every: int | str = 1,
    guide_when: dict[str, Any] | None = None,
    **process: Any,
) -> Any:
    """
    Generate completions with a language model whose candidate tokens the proxy accepts or rejects.

    Args:
        proxy ([`ProxyModel`]): The proxy. It is moved to the model's device.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        inputs (`str`, a `list` of those, a conversation or a `list` of those, `torch.Tensor` or a tokenizer's output):
            The prompts. Text needs `tokenizer`; tensors are padded on the left, with `attention_mask`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The model's tokenizer.
        input_ids (`torch.Tensor`, *optional*): Another name of `inputs`.
        attention_mask (`torch.Tensor`, *optional*): 1 for tokens, 0 for padding.
        generation_config ([`~transformers.GenerationConfig`], *optional*): By default the model's. Its ends of
            sequence, padding, lengths, `stop_strings` and `num_return_sequences` are used; the sampling settings are
            those of the decision process. Others, such as `num_beams` or `suppress_tokens`, are errors in a config
            that is passed, and are left out of the model's own, as in training.
        max_new_tokens (`int`, *optional*): Maximum length of a completion. By default the generation config's, or 256.
        num_return_sequences (`int`, *optional*): K, completions per prompt. By default the generation config's, or 1.
        greedy (`bool`, *optional*, defaults to `False`): Accept where that is at least as likely as not, instead of
            sampling decisions. In descending order completions are then deterministic.
        stop_strings (`str` or `list[str]`, *optional*): Texts that end a completion; need `tokenizer`.
        eos_token_id, pad_token_id (*optional*): By default the generation config's and the tokenizer's.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*): For a single completion.
        seed (`int`, *optional*): Seed of the random numbers. By default from torch's global generator.
        batch_size (`int`, *optional*, defaults to `0`): Completions at once (`0`: all).
        first_candidates (`int`, *optional*, defaults to `0`): Candidates in the first forward pass; the others follow
            where all of these are rejected. `0` chooses by the size of the batch. Completions are the same.
        cuda_graphs (`str`, *optional*, defaults to `"auto"`): CUDA-graph decoding: `"auto"` on a GPU where possible,
            `"always"` (an error says why it is not possible), or `"never"`. Completions are the same.
        return_dict (`bool`, *optional*, defaults to `False`): Whether to return a [`ProxyGenerateOutput`].
        guide_every (`int` or `str`, *optional*, defaults to `1`), guide_when (`dict`, *optional*): Which tokens the
            proxy is asked about; see [`~trl_ext.decoding.guide_schedule.GuideSchedule`]. The others are samples of the
            language model among the candidates. Words and sentences need `tokenizer`.
        process: Fields of the [`DecisionProcess`] that differ from training: `top_k`, `top_p`, `min_p`,
            `temperature`, `repetition_penalty`, `order`, `forced`, `max_candidates`.

    Returns:
        `torch.Tensor` of shape `(N, T)`: Prompts and completions, as `model.generate` returns them; or a
        [`ProxyGenerateOutput`].

    Raises:
        `ValueError`: An argument or a setting of `generation_config` is unknown or contradicts another, or a prompt
            fills the context length.
    """
    trained = proxy.config.decision_process
    unknown = sorted(set(process) - set(trained.as_dict()) | ({"feature"} & set(process)))
    if unknown:
        raise ValueError(
            f"`generate` of a proxy takes no {', '.join(map(repr, unknown))}. Fields of the decision process are "
            f"{', '.join(n for n in trained.as_dict() if n != 'feature')}."
        )
    now = replace(trained, **process)
    llm = BackboneAndHead(model)
    prompts = _prompts(input_ids if inputs is None else inputs, attention_mask, tokenizer)
    if not prompts:
        raise ValueError("There are no prompts.")
    config = generation_config or getattr(model, "generation_config", None) or GenerationConfig()
    _check_generation_config(generation_config)
    eos = eos_token_id if eos_token_id is not None else _ends(model, tokenizer, config)
    pads = (pad_token_id, getattr(tokenizer, "pad_token_id", None), config.pad_token_id, 0)
    pad = next(p for p in pads if p is not None)
    stops = stop_strings or config.stop_strings
    if stops and tokenizer is None:
        raise ValueError("`stop_strings` need `tokenizer`, to decode the tokens that they are compared with.")
    limit, longest = _lengths(max_new_tokens, generation_config, config, llm.context)
    k = config.num_return_sequences or 1 if num_return_sequences is None else num_return_sequences
    k = _integer("num_return_sequences", k, 1)
    batch_size = _integer("batch_size", batch_size, 0)
    first_candidates = _integer("first_candidates", first_candidates, 0)
    for i, prompt in enumerate(prompts):
        if llm.context and len(prompt) >= llm.context:
            raise ValueError(
                f"Prompt {i} has {len(prompt)} tokens, which fills the model's context of {llm.context}: shorten it."
            )
    n = len(prompts) * k
    if streamer is not None and n > 1:
        raise ValueError(f"A streamer is for one completion, but {n} were requested.")
    if streamer is not None:
        streamer.put(torch.tensor(prompts[0]))
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
    with evaluation_mode(model), evaluation_mode(proxy):  # no dropout, and a cache
        completions = complete(
            llm, proxy, now, prompts,
            seeds=torch.randint(2**62, (n,), generator=generator).tolist(),
            max_new_tokens=limit, max_length=longest,
            eos=[eos] if isinstance(eos, int) else eos or [], pad=pad, batch_size=batch_size or n, greedy=greedy,
            first_candidates=first_candidates, cuda_graphs=cuda_graphs,
            observer=None if streamer is None else StreamerObserver(streamer),
            stop=StopStringCriteria(tokenizer, stops) if stops and tokenizer is not None else None,
            schedule=proxy_schedule(guide_every, guide_when), tokenizer=tokenizer,
        )  # fmt: skip
    if streamer is not None:
        streamer.end()
    return _output(completions, prompts, k, pad, tokenizer, llm.device, return_dict)


def _output(
    completions: ProxyCompletions,
    prompts: list[list[int]],
    k: int,
    pad: int,
    tokenizer: Any,
    device: Any,
    return_dict: bool,
) -> Any:
    owners = [p for p in prompts for _ in range(k)]
    before, after = max(map(len, prompts)), max(map(len, completions.ids))
    rows = []
    for prompt, ids in zip(owners, completions.ids, strict=True):
        rows.append([pad] * (before - len(prompt)) + prompt + ids + [pad] * (after - len(ids)))
    sequences = torch.tensor(rows, device=device)
    if not return_dict:
        return sequences
    texts = None if tokenizer is None else decode_after(tokenizer, owners, completions.ids)
    lengths = torch.tensor([len(ids) for ids in completions.ids])
    counts = (completions.examined, completions.rejected, completions.forced)
    return ProxyGenerateOutput(sequences, texts, lengths, *counts, torch.tensor(completions.ended))


def _lengths(
    max_new_tokens: int | None, given: GenerationConfig | None, config: GenerationConfig, context: int
) -> tuple[int, int]:
    """The maximum length of a completion, and that of a prompt and its completion (0: no limit)."""
    usual = config.max_new_tokens or 256
    if given is not None and given.max_length and not given.max_new_tokens and max_new_tokens is None:
        usual = given.max_length
        context = min(filter(None, (context, usual)))
    return _integer("max_new_tokens", usual if max_new_tokens is None else max_new_tokens, 1), context


# Settings of a generation config that are used, those that the decision process has, and those of caches and outputs.
_KNOWN_SETTINGS = (
    "eos_token_id pad_token_id bos_token_id max_new_tokens max_length stop_strings num_return_sequences do_sample "
    "temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty use_cache "
    "cache_implementation cache_config compile_config disable_compile transformers_version"
).split()


def _check_generation_config(config: GenerationConfig | None) -> None:
    """Raise `ValueError` for settings of a config that was passed which generation with a proxy does not have."""
    given, usual = vars(config or GenerationConfig()), vars(GenerationConfig())
    neutral = (None, False, 0, 1, 1.0)
    ignored = [
        name
        for name, value in given.items()
        if not name.startswith("_")
        and name not in _KNOWN_SETTINGS
        and value != usual.get(name)
        and not any(value is each or value == each for each in neutral)
    ]
    if ignored:
        raise ValueError(
            f"`generate` of a proxy has no {', '.join(map(repr, sorted(ignored)))}, which `generation_config` sets: "
            "the proxy decides about one candidate token after the other. Remove them."
        )


def _integer(name: str, value: Any, least: int) -> int:
    number: int = check_value(name, value, int)
    check_at_least(name, number, least)
    return number


def _ends(model: Any, tokenizer: Any, config: GenerationConfig) -> list[int]:
    given = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    of_tokenizer = eos_token_ids(model, tokenizer) if tokenizer is not None else []
    return sorted({i for i in [*given, *of_tokenizer] if i is not None})


def _prompts(inputs: Any, mask: torch.Tensor | None, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """Token ids of the prompts, from any of the accepted types."""
    if hasattr(inputs, "keys") and "input_ids" in inputs:
        mask, inputs = inputs.get("attention_mask", mask), inputs["input_ids"]
    if isinstance(inputs, torch.Tensor):
        rows = inputs if inputs.ndim == 2 else inputs[None]
        kept = torch.ones_like(rows) if mask is None else mask.reshape(rows.shape)
        return [row[keep.bool()].tolist() for row, keep in zip(rows, kept, strict=True)]
    if inputs is None:
        raise ValueError("There are no prompts: pass text with a `tokenizer`, or token ids.")
    several = not isinstance(inputs, str) and not (inputs and isinstance(inputs[0], dict))
    prompts = list(inputs) if several else [inputs]
    if all(isinstance(p, list) and p and isinstance(p[0], int) for p in prompts):
        return prompts
    if tokenizer is None:
        raise ValueError("Prompts that are text need `tokenizer`.")
    return [encode_prompt(tokenizer, prompt) for prompt in prompts]
