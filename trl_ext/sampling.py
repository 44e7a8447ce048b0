# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Completions drawn from a language model: what the trainers, `trl-ext sample` and `trl-ext evaluate` have in common.

P prompts, K completions a prompt, N = P x K sequences of one call of the model, T tokens.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation import BaseStreamer

from .completions import Completion, completions
from .decoding import Draw, prompt_cache
from .models import cache_name
from .sharding import behind, synchrony


# Logits processors for the prompts of one call of the model: ids and mask of shape (P, T), padded on the left
Processors = Callable[[torch.Tensor, torch.Tensor], Sequence[LogitsProcessor]]

# Diverse beam search left transformers with version 5: `generate` runs it from this repository on the hub.
DIVERSE_BEAM_SEARCH = "transformers-community/group-beam-search"
_INSTEAD_OF_DIVERSE_BEAMS = (
    "Diverse beam search is not part of transformers 5: it is code that `generate` downloads from the repository "
    f"'{DIVERSE_BEAM_SEARCH}' (or finds in a local copy, `custom_generate`), and runs with `trust_remote_code`. "
    "Without it, use a beam search (num_beam_groups 1, diversity_penalty 0) or, for variety, sample at a temperature "
    "of 1.2 or more (num_beams 1)."
)


@dataclass(frozen=True)
class GenerationSettings:
    """
    How completions are drawn. Names and meanings are TRL's; zero switches a setting off.

    Args:
        num_generations (`int`, *optional*, defaults to `4`):
            Completions a prompt, K.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Most tokens a completion may have.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature. `0` takes the likeliest token each time, which gives one completion a prompt.
        top_k (`int`, *optional*, defaults to `0`):
            Sample from the `top_k` likeliest tokens.
        top_p (`float`, *optional*, defaults to `1.0`):
            Sample from the smallest set of likeliest tokens whose probabilities add up to `top_p`.
        min_p (`float`, *optional*, defaults to `0.0`):
            Sample from tokens at least `min_p` times as likely as the likeliest one.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Above one makes tokens that are already there less likely.
        num_beams (`int`, *optional*, defaults to `1`):
            Beams of a beam search, whose best `num_generations` are kept. `1` samples instead.
        num_beam_groups (`int`, *optional*, defaults to `1`):
            Groups of a diverse beam search.
        diversity_penalty (`float`, *optional*, defaults to `0.0`):
            What a group pays for a token that another group chose at the same position.
        generation_kwargs (`dict[str, Any]`, *optional*):
            Further fields of [`~transformers.GenerationConfig`]; they win over the fields above.
        custom_generate (`str`, *optional*, defaults to `"transformers-community/group-beam-search"`):
            Hub repository, or local copy of it, that has the diverse beam search.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether that code may be run.
        cuda_graphs (`str`, *optional*, defaults to `"auto"`):
            Whether a token is one replay of a CUDA graph, in a cache of fixed size: `"auto"` on a GPU where that can
            be, `"always"` (an error says why it cannot be), `"never"`. The distribution is the same.

    Raises:
        `ValueError`: A setting is out of its range, or two of them contradict each other.
    """

    num_generations: int = 4
    max_completion_length: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    generation_kwargs: dict[str, Any] | None = None
    custom_generate: str = DIVERSE_BEAM_SEARCH
    trust_remote_code: bool = False
    cuda_graphs: str = "auto"

    def __post_init__(self) -> None:
        for name in ("num_generations", "max_completion_length", "num_beams", "num_beam_groups"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("temperature", "top_k", "diversity_penalty"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}.")
        _require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1 (1 = off), got {self.top_p}.")
        _require(0 <= self.min_p <= 1, f"min_p must be between 0 (off) and 1, got {self.min_p}.")
        _require(self.repetition_penalty > 0, f"repetition_penalty must be above 0, got {self.repetition_penalty}.")
        _require(
            self.num_beams == 1 or self.num_beams >= self.num_generations,
            f"num_beams ({self.num_beams}) must be at least num_generations ({self.num_generations}): a beam search "
            "returns at most as many completions as it has beams.",
        )
        _require(
            self.num_beams % self.num_beam_groups == 0,
            f"num_beams ({self.num_beams}) must be a multiple of num_beam_groups ({self.num_beam_groups}).",
        )
        _require(
            (self.num_beam_groups > 1) == (self.diversity_penalty > 0),
            "num_beam_groups above 1 and a diversity_penalty above 0 need each other (it is paid between groups), got "
            f"{self.num_beam_groups} and {self.diversity_penalty}.",
        )
        _require(self.num_beam_groups == 1 or self.trust_remote_code, _INSTEAD_OF_DIVERSE_BEAMS)
        _require(
            self.temperature > 0 or self.num_beams > 1 or self.num_generations == 1,
            f"temperature 0 gives the same completion every time, but num_generations is {self.num_generations}: ask "
            "for one, or raise the temperature.",
        )
        _require(
            self.cuda_graphs in ("auto", "always", "never"),
            f"cuda_graphs must be one of auto, always, never, got {self.cuda_graphs!r}.",
        )
        reserved = sorted({"num_return_sequences", "max_new_tokens", "num_beams"} & set(self.generation_kwargs or {}))
        _require(
            not reserved,
            f"generation_kwargs must not have {reserved}: use num_generations, max_completion_length and num_beams.",
        )

    @property
    def own_sampling(self) -> bool:
        """Whether [`~trl_ext.decoding.Draw`] samples; transformers does if there are `generation_kwargs`."""
        return self.num_beams == 1 and self.temperature > 0 and not self.generation_kwargs

    def generation_config(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, own_sampling: bool | None = None
    ) -> GenerationConfig:
        """
        What `generate` is given: all that shapes the distribution, as models bring defaults (a hidden top-k).

        With `own_sampling`, by default as the property says, the config leaves sampling to
        [`~trl_ext.decoding.Draw`]; an engine that draws by the config alone needs `False`.
        """
        own = self.own_sampling if own_sampling is None else own_sampling
        sample = self.num_beams == 1 and self.temperature > 0 and not own
        fields: dict[str, Any] = {
            "max_new_tokens": self.max_completion_length,
            "do_sample": sample,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
            "eos_token_id": eos_token_ids(model, tokenizer) or None,
            "pad_token_id": pad_token_id(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "use_cache": True,
            # Where transformers samples nothing: its own defaults, as others draw a warning
            "temperature": self.temperature if sample else 1.0,
            "top_k": self.top_k if sample else 50,
            "top_p": self.top_p if sample else 1.0,
            "min_p": self.min_p or None if sample else None,
        }
        if self.num_beam_groups > 1:
            fields |= {"num_beam_groups": self.num_beam_groups, "diversity_penalty": self.diversity_penalty}
        return GenerationConfig(**fields | (self.generation_kwargs or {}))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a completion: the tokenizer's, and the model's generation config's (chat models have several)."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return sorted({i for i in ids if i is not None})


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills short rows; the end of sequence serves where the tokenizer has no padding."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    _require(pad is not None, "The tokenizer has neither a pad nor an eos token: set `tokenizer.pad_token`.")
    return pad


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """
    No dropout and no gradient checkpointing inside; every module's own mode is put back at the end.

    Transformers' layers recompute only while they are in training mode, so leaving it is all it takes to have a cache.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    batch_size: int = 128,
    progress: Callable[[int], Any] | None = None,
    processors: Processors | None = None,
    streamer: BaseStreamer | None = None,
) -> list[list[Completion]]:
    """
    Draws K completions of each prompt.

    Chance comes from torch's global generator alone: `torch.manual_seed` before gives the same completions again.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model, or a PEFT model around one. Its mode is restored afterwards.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`list[list[int]]`):
            Token ids of the prompts, as [`~trl_ext.tokens.encode_prompt`] makes them. None may be empty.
        settings ([`GenerationSettings`]):
            How to draw.
        batch_size (`int`, *optional*, defaults to `128`):
            Sequences in one call of the model: `batch_size // K` prompts, at least one.
        progress (`Callable`, *optional*):
            Called with the number of prompts just done, after each of those.
        processors (`Callable`, *optional*):
            `(ids_PT, mask_PT) -> processors`: called with the prompts of each call of the model, padded on the left,
            for the [`~transformers.LogitsProcessor`]s that its logits go through before temperature and the rest.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*):
            What `generate` puts tokens into; for a single prompt and one completion.

    Returns:
        `list[list[Completion]]`: K completions for each prompt, in the order of `prompts`.
    """
    _require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}.")
    for i, prompt in enumerate(prompts):
        _require(len(prompt) > 0, f"Prompt {i} has no tokens: there is nothing to continue.")
    results: list[list[Completion]] = [[] for _ in prompts]
    config = settings.generation_config(model, tokenizer)
    step = max(1, batch_size // settings.num_generations)
    # The K of one prompt may be drawn in several calls, the beams of one search may not.
    most = batch_size if settings.num_beams == 1 else settings.num_generations
    # Equal lengths together waste little on padding; the longest first, so that memory runs out at once or never.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    calls = -(-len(order) // step) * -(-settings.num_generations // most)
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            for done in range(0, settings.num_generations, most):
                k = min(most, settings.num_generations - done)
                batch = [prompts[i] for i in chosen]
                rows = _sequences(model, tokenizer, batch, k, settings, config, processors, streamer)
                for n, completion in enumerate(completions(rows, tokenizer, config)):
                    results[chosen[n // k]].append(completion)
            if progress is not None:
                progress(len(chosen))
        for _ in behind(model, calls):
            _sequences(model, tokenizer, [[config.pad_token_id]], 1, settings, config, None, None)
    return results


def _sequences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Sequence[int]],
    k: int,
    settings: GenerationSettings,
    config: GenerationConfig,
    processors: Processors | None,
    streamer: BaseStreamer | None,
) -> list[list[int]]:
    """Generated ids (without the prompt, still padded) of prompts x k sequences, a prompt's k next to one another."""
    width = max(map(len, prompts))
    ids_PT = torch.tensor([[config.pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask_PT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    extra: dict[str, Any] = synchrony(model) | ({"streamer": streamer} if streamer is not None else {})
    steps = list(processors(ids_PT, mask_PT)) if processors is not None else []
    if settings.own_sampling:
        steps.append(Draw(settings))
    static = _static(model, steps, settings, config, streamer)
    if static is not None:
        extra["custom_generate"] = static
    if settings.own_sampling:
        if static is None:
            extra[cache_name(model)] = prompt_cache(model, ids_PT, mask_PT, k)
        ids_PT, mask_PT = (tensor.repeat_interleave(k, dim=0) for tensor in (ids_PT, mask_PT))
    else:
        config = copy.deepcopy(config)
        config.num_return_sequences = k
        if config.stop_strings:
            extra["tokenizer"] = tokenizer
    if steps:
        extra["logits_processor"] = LogitsProcessorList(steps)
    if settings.num_beam_groups > 1:
        extra |= {"custom_generate": settings.custom_generate, "trust_remote_code": settings.trust_remote_code}
    try:
        output = model.generate(input_ids=ids_PT, attention_mask=mask_PT, generation_config=config, **extra)
    except OSError as error:
        if settings.num_beam_groups == 1:
            raise
        raise OSError(f"Cannot load '{settings.custom_generate}'. {_INSTEAD_OF_DIVERSE_BEAMS}") from error
    return output[:, width:].tolist()


def _static(
    model: PreTrainedModel,
    steps: Sequence[LogitsProcessor],
    settings: GenerationSettings,
    config: GenerationConfig,
    streamer: BaseStreamer | None,
) -> Callable[..., Any] | None:
    """The loop of fixed shapes, where it is wanted and serves."""
    if settings.cuda_graphs == "never" or (settings.cuda_graphs == "auto" and model.device.type != "cuda"):
        return None
    from .static_generate import static_generate, static_reason

    reason = "tokens are streamed one by one" if streamer is not None else static_reason(model, steps, (), config)
    penalties = config.repetition_penalty not in (None, 1.0) or settings.generation_kwargs or config.stop_strings
    if not reason and penalties:
        reason = "`repetition_penalty` and `generation_kwargs` may look at the text so far"
    if reason and settings.cuda_graphs == "always":
        raise ValueError(f"cuda_graphs is 'always', but {reason}. Set it to 'auto' to use the ordinary loop there.")
    return None if reason else static_generate
