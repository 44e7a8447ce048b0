# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A language model with guides as a policy, and the flags of the command line for guide files."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.decoding.scheduled_rows import GuidedTokens
from trl_ext.generation_settings import eos_token_ids, pad_token_id
from trl_ext.guides.base_guide import BaseGuide
from trl_ext.guides.blocks import BlockScorer
from trl_ext.guides.guide_file import GuideEntry, GuideFiles, GuideSettings, read_guide_files
from trl_ext.guides.logits_processor import GuidedLogitsProcessor
from trl_ext.guides.weights import describe_weights, full_names, head_weights, parse_weights
from trl_ext.models.properties import base_of, context_length

from .block_policy import block_policy
from .guided import guide_weights, policy_with_processors
from .policy import Policy


def policy_with_guides(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    guides: Mapping[str, BaseGuide],
    weights: float | Mapping[str, float] = 1.0,
    settings: GuideSettings | None = None,
    *,
    name: str = "guided",
    batch_size: int = 64,
    series: str = "",
    method: str = "",
) -> Policy:
    """
    The [`~trl_ext.inference.policy.Policy`] of a language model with guides.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        guides, weights: As for [`~trl_ext.guides.logits_processor.GuidedLogitsProcessor`]; the same for all rows.
        settings ([`~trl_ext.guides.guide_file.GuideSettings`], *optional*): How guides choose tokens.
        name, batch_size, series, method: As for [`~trl_ext.inference.guided.policy_with_processors`].

    Raises:
        `ValueError`: A weight or setting does not fit the guides, or a guide cannot choose among blocks.
    """
    settings = settings or GuideSettings()

    ends = eos_token_ids(model, tokenizer)

    def processors(ids_PT: torch.Tensor | None, mask_PT: torch.Tensor | None) -> list[GuidedLogitsProcessor]:
        common = {"attention_mask": mask_PT, "tokenizer": tokenizer, "end_token_ids": ends}
        return [GuidedLogitsProcessor(guides, weights, **settings.of_tokens(), **common)]

    [checked] = processors(None, None)  # raises errors before anything is generated
    vocabulary = base_of(model).config.get_text_config().vocab_size
    if not settings.guide_blocks:
        checked.check_top_k(vocabulary)

    def change(changed: dict[str, float]) -> Policy:
        return policy_with_guides(
            model,
            tokenizer,
            guides,
            changed,
            settings,
            name=f"{series or name}, weights {describe_weights(changed)}",
            batch_size=batch_size,
            series=series,
            method=method,
        )

    contexts = [context_length(model), *(guide.context_length for guide in checked.guides)]
    common: dict[str, Any] = {
        "name": name,
        "batch_size": batch_size,
        "extras": {"weights": checked.weights_by_head} | dataclasses.asdict(settings),
        "series": series,
        "method": method,
        "context": min((length for length in contexts if length), default=0),
        "weights": guide_weights(checked, change),
    }
    if settings.guide_blocks:
        scorer = BlockScorer(checked, vocabulary, pad_token_id(tokenizer), model.device)
        return block_policy(model, tokenizer, scorer, settings, **common)
    only = settings.guide_candidates_only and (settings.guide_top_k or settings.guide_min_p)
    truncation = f"top-k {settings.guide_top_k}" if settings.guide_top_k else f"min-p {settings.guide_min_p}"
    common["guided"] = None if settings.schedule.always else GuidedTokens()
    return policy_with_processors(model, tokenizer, processors, truncation=truncation if only else "", **common)


@dataclass
class GuideDecoding:
    """
    Guides of a frozen model, as flags of `trl-ext evaluate` and `trl-ext generate`.

    Parameters:
        guide (`list[str]`, *optional*):
            Guide files, whose guides add up.
        guide_weights (`list[str]`, *optional*):
            Weights in place of those in the files, one policy each: a number if there is one guide with one head, or
            `name=weight,name=weight`.
        guides (`dict[str, Any]`):
            What the files say, for reports. Set by [`check`].
    """

    in_files: ClassVar[tuple[str, ...]] = tuple(each.name for each in dataclasses.fields(GuideSettings))

    guide: list[str] | None = field(
        default=None,
        metadata={"help": "YAML files with guides of the model, which add up: recipes/decoding/args.yaml and others."},
    )
    guide_weights: list[str] | None = field(
        default=None,
        metadata={
            "help": "Weights of the guides instead of those in the files: a number or name=weight,name=weight. Each "
            "makes one policy."
        },
    )
    guides: dict[str, Any] = field(
        default_factory=dict, init=False, metadata={"help": "What the files say. Set by the command."}
    )

    @property
    def active(self) -> bool:
        """Whether there are guide files."""
        return bool(self.guide)

    def check(self) -> None:
        """Raise `ValueError` for files or weights that cannot work, and `OSError` for files that cannot be read."""
        files = self.files()
        self.guides = files.as_mapping()
        for text in self.guide_weights or []:
            weights = parse_weights(text, "guide_weights")
            names = [each.name for each in files.guides]
            if isinstance(weights, dict) and not all(each.settings.one_head for each in files.guides):
                names = list(weights)  # the heads are known when the guide is loaded
            head_weights(weights, names, "guide_weights")

    def files(self) -> GuideFiles:
        """The content of the files."""
        return read_guide_files(self.guide or [])

    def policies(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, batch_size: int
    ) -> list[Policy]:
        """One policy per entry of `guide_weights`; see [`~trl_ext.inference.policy.Decoding`]."""
        files = self.files()
        guides = {each.name: each.settings.load(model, tokenizer, each.name) for each in files.guides}
        series = ", ".join(filter(None, [f"{name} + {', '.join(guides)}", str(files.settings.schedule)]))
        make = partial(
            policy_with_guides,
            model,
            tokenizer,
            guides,
            settings=files.settings,
            batch_size=batch_size,
            series=series,
            method="guides",
        )
        if not self.guide_weights:
            weights: dict[str, float] = {}
            for each in files.guides:
                weights |= entry_weights(each, guides[each.name])
            return [make(weights, name=f"{series}, weights {describe_weights(weights)}")]
        heads = [full for name, guide in guides.items() for full in full_names(name, list(guide.heads))]
        given = {text: parse_weights(text, "guide_weights") for text in self.guide_weights}
        for weight in given.values():
            head_weights(weight, heads, "guide_weights")
        return [make(weight, name=f"{series}, weights {text}") for text, weight in given.items()]


def entry_weights(entry: GuideEntry, guide: BaseGuide) -> dict[str, float]:
    """
    The weights that a guide file gives the heads of a guide, by their full names.

    Raises:
        `ValueError`: It names a head that does not exist, or is one number for several heads.
    """
    found = head_weights(entry.weight, list(guide.heads), f"weight` of guide `{entry.name}")
    return dict(zip(full_names(entry.name, list(guide.heads)), found.rows[0], strict=True))
