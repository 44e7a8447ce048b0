# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Settings for generating completions, with TRL's names, and the [`~transformers.GenerationConfig`] made of them."""

import difflib
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .validation import check_fields, require


CUDA_GRAPHS = ["auto", "always", "never"]

# Transformers 5 has no diverse beam search of its own: `generate` runs it from this repository on the Hub.
DIVERSE_BEAM_SEARCH = "transformers-community/group-beam-search"
INSTEAD_OF_DIVERSE_BEAMS = (
    "Diverse beam search is not part of transformers 5. `generate` downloads its code from the repository "
    f"'{DIVERSE_BEAM_SEARCH}', or reads it from a local copy (`custom_generate`), and runs it if `trust_remote_code` "
    "is set. Without it, use a beam search (num_beam_groups 1, diversity_penalty 0) or, for more variety, sample at a "
    "temperature of 1.2 or more (num_beams 1)."
)


@dataclass(frozen=True)
class GenerationSettings:
    """
    Settings for generating completions. Names and meanings are those of TRL.

    Args:
        num_generations (`int`, *optional*, defaults to `4`):
            Completions per prompt, K.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Maximum number of tokens of a completion.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature. `0` takes the most likely token each time, so it allows only one completion per
            prompt.
        top_k (`int`, *optional*, defaults to `0`):
            Sample from the `top_k` most likely tokens. `0` means all.
        top_p (`float`, *optional*, defaults to `1.0`):
            Sample from the smallest set of most likely tokens whose probabilities add up to `top_p`.
        min_p (`float`, *optional*, defaults to `0.0`):
            Sample from tokens at least `min_p` times as likely as the most likely one. `0` means all.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            A value above 1 makes tokens that are already in the sequence less likely.
        num_beams (`int`, *optional*, defaults to `1`):
            Beams of a beam search; the best `num_generations` are kept. `1` means sampling.
        num_beam_groups (`int`, *optional*, defaults to `1`):
            Groups of a diverse beam search. `1` means off.
        diversity_penalty (`float`, *optional*, defaults to `0.0`):
            Penalty on a token that another group of beams chose at the same position. `0` means off.
        generation_kwargs (`dict[str, Any]`, *optional*):
            Further fields of [`~transformers.GenerationConfig`], which override the fields above.
        custom_generate (`str`, *optional*, defaults to `"transformers-community/group-beam-search"`):
            Hub repository with the diverse beam search, or a local copy of it.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run that code.
        cache_implementation (`str`, *optional*, defaults to `""`):
            KV cache of `generate`, as in [`~transformers.GenerationConfig`]. Empty: chosen by the model.
        cuda_graphs (`str`, *optional*, defaults to `"auto"`):
            Whether each decoding step replays one CUDA graph over a static KV cache: `"auto"` (on a GPU, if the model
            and settings allow it), `"always"` (or else an error with the reason) or `"never"`. The distribution is the
            same.

    Raises:
        `ValueError`: A setting is out of its range, or two of them contradict each other.
    """

    num_generations: int = 4
    max_completion_length: int = 256
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature. 0 takes the most likely token."})
    top_k: int = field(default=0, metadata={"help": "Sample from the k most likely tokens. 0 means all."})
    top_p: float = field(
        default=1.0, metadata={"help": "Sample from the most likely tokens whose probabilities sum to this."}
    )
    min_p: float = field(
        default=0.0,
        metadata={"help": "Sample from tokens at least min_p times as likely as the most likely one. 0 means off."},
    )
    repetition_penalty: float = field(default=1.0, metadata={"help": "A value above 1 discourages repetition."})
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    generation_kwargs: dict[str, Any] | None = None
    custom_generate: str = DIVERSE_BEAM_SEARCH
    trust_remote_code: bool = False
    cache_implementation: str = field(
        default="", metadata={"help": "KV cache of `generate`, such as 'static'. Empty: chosen by the model."}
    )
    cuda_graphs: str = field(
        default="auto",
        metadata={
            "help": "Whether each decoding step replays one CUDA graph over a static KV cache: 'auto' (on a GPU, if "
            "the model and settings allow it), 'always' (or else an error with the reason) or 'never'.",
            "choices": CUDA_GRAPHS,
        },
    )

    def __post_init__(self) -> None:
        check_fields(self, [each.name for each in fields(self)])
        for name in ("num_generations", "max_completion_length", "num_beams", "num_beam_groups"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("temperature", "top_k", "diversity_penalty"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}.")
        require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1 (1 = off), got {self.top_p}.")
        require(0 <= self.min_p <= 1, f"min_p must be between 0 (off) and 1, got {self.min_p}.")
        require(self.repetition_penalty > 0, f"repetition_penalty must be above 0, got {self.repetition_penalty}.")
        require(
            self.num_beams == 1 or self.num_beams >= self.num_generations,
            f"num_beams ({self.num_beams}) must be at least num_generations ({self.num_generations}): a beam search "
            "returns at most as many completions as it has beams.",
        )
        require(
            self.num_beams % self.num_beam_groups == 0,
            f"num_beams ({self.num_beams}) must be a multiple of num_beam_groups ({self.num_beam_groups}).",
        )
        require(
            (self.num_beam_groups > 1) == (self.diversity_penalty > 0),
            "num_beam_groups above 1 and a diversity_penalty above 0 must be set together (the penalty applies "
            f"between groups), got {self.num_beam_groups} and {self.diversity_penalty}.",
        )
        require(self.num_beam_groups == 1 or self.trust_remote_code, INSTEAD_OF_DIVERSE_BEAMS)
        require(
            self.temperature > 0 or self.num_beams > 1 or self.num_generations == 1,
            f"temperature 0 gives the same completion every time, but num_generations is {self.num_generations}: set "
            "it to 1, or raise the temperature.",
        )
        require(
            self.cuda_graphs in CUDA_GRAPHS,
            f"cuda_graphs must be one of auto, always, never, got {self.cuda_graphs!r}.",
        )
        if self.cache_implementation:
            kwargs = {"cache_implementation": self.cache_implementation, **(self.generation_kwargs or {})}
            object.__setattr__(self, "generation_kwargs", kwargs)
        reserved = sorted({"num_return_sequences", "max_new_tokens"} & set(self.generation_kwargs or {}))
        require(
            not reserved,
            f"generation_kwargs must not have {reserved}: use num_generations and max_completion_length.",
        )
        require(
            self.num_beams == 1 or not self.searches_each,
            "num_beams is set twice, by itself and in generation_kwargs: set it once.",
        )

    @classmethod
    def of(cls, source: Any, **changes: Any) -> "GenerationSettings":
        """
        The settings among the fields of another dataclass, such as a trainer's config or a command's arguments.

        Args:
            source (`Any`): The dataclass. Settings that it does not have keep their defaults.
            changes: Settings that override those of `source`.
        """
        names = {each.name for each in fields(cls)} & {each.name for each in fields(source)}
        return cls(**{name: getattr(source, name) for name in names} | changes)

    def check_generation_kwargs(self) -> None:
        """
        Check `generation_kwargs` for generation with transformers. vLLM has other names.

        Raises:
            `ValueError`: `generation_kwargs` has a name that is not a field of
                [`~transformers.GenerationConfig`].
        """
        if self.num_beam_groups > 1:  # the downloaded code of the diverse beam search has settings of its own
            return
        known = vars(GenerationConfig())
        for name in self.generation_kwargs or {}:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ValueError(f"`generation_kwargs` has {name!r}, which `generate` does not know{hint}")

    @property
    def searches_each(self) -> bool:
        """
        Whether each completion comes from a beam search of its own, as in TRL with `num_beams` in `generation_kwargs`.
        With the setting `num_beams`, the completions of a prompt are the best of one search.
        """
        return "num_beams" in (self.generation_kwargs or {})

    @property
    def own_sampling(self) -> bool:
        """
        Whether [`~trl_ext.decoding.token_sampling.SamplingProcessor`] samples the tokens. With `generation_kwargs`,
        transformers samples them.
        """
        return self.num_beams == 1 and self.temperature > 0 and not self.generation_kwargs

    def generation_config(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, own_sampling: bool | None = None
    ) -> GenerationConfig:
        """
        The config for `generate`. Settings of the model's own generation config, such as a top-k or suppressed tokens,
        have no effect, except for its end-of-sequence tokens.

        Args:
            model ([`~transformers.PreTrainedModel`]): The model, for its end-of-sequence tokens.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
            own_sampling (`bool`, *optional*): Whether the config leaves sampling to
                [`~trl_ext.decoding.token_sampling.SamplingProcessor`]; by default the property of this name. A
                generation backend that samples from the config alone needs `False`.

        Raises:
            `ValueError`: See [`check_generation_kwargs`].
        """
        from .upstream import CompleteGenerationConfig  # imports torch, which the command line's help does without

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
            # If transformers does not sample, its own defaults: other values cause a warning.
            "temperature": self.temperature if sample else 1.0,
            "top_k": self.top_k if sample else 50,
            "top_p": self.top_p if sample else 1.0,
            "min_p": self.min_p or None if sample else None,
        }
        if self.num_beam_groups > 1:
            fields |= {"num_beam_groups": self.num_beam_groups, "diversity_penalty": self.diversity_penalty}
        self.check_generation_kwargs()
        return CompleteGenerationConfig(**fields | (self.generation_kwargs or {}))


def setting(name: str, further_help: str = "") -> Any:
    """
    A field of [`GenerationSettings`] for another dataclass, with its default, help and choices.

    Args:
        name (`str`): Name of the setting, which must have a help.
        further_help (`str`, *optional*): Text to add to the help.
    """
    own = GenerationSettings.__dataclass_fields__[name]
    return field(
        default=own.default, metadata={**own.metadata, "help": f"{own.metadata['help']} {further_help}".strip()}
    )


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a completion: the tokenizer's and those of the model's generation config, as of a chat model."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return sorted({i for i in ids if i is not None})


def stop_at_eos_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the tokenizer's end-of-sequence token to those that end generation, in the configs that a model saves."""
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = eos_token_ids(model, tokenizer)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the padding token; the end-of-sequence token if the tokenizer has none."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    require(pad is not None, "The tokenizer has neither a pad nor an eos token: set `tokenizer.pad_token`.")
    return pad
