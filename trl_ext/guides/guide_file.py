# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Guide files: YAML files that list guides and say how they choose tokens.

    guide_top_k: 10
    guide_candidates_only: true
    guides:
      - kind: classifier
        model: my-org/reward-model
        weight: 1.5
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from trl_ext.decoding.guide_schedule import GuideSchedule
from trl_ext.settings_file import plain, read_config
from trl_ext.validation import SettingErrors, check_value, convert, did_you_mean

from .kinds import GuideKind, guide_kinds
from .logits_processor import guide_schedule


@dataclass
class GuideSettings:
    """
    How guides choose tokens.

    Parameters:
        guide_top_k (`int`, *optional*, defaults to `20`):
            Number of likeliest tokens that are scored at each step (20 is that of VAS's reference code). `0` means the
            complete vocabulary.
        guide_candidates_only (`bool`, *optional*, defaults to `False`):
            Whether only these tokens can be chosen. Otherwise the others keep their logits.
        guide_min_p (`float`, *optional*, defaults to `0.0`):
            Probability under the language model, relative to its likeliest token, that a token needs to be scored. `0`
            means no limit.
        guide_every (`int` or `str`, *optional*, defaults to `1`):
            Guides every n-th new token only, or the tokens that begin a `word` or a `sentence`.
        guide_when (`dict`, *optional*):
            Further conditions, all of which have to be met: `entropy`, `margin` and `random`; see
            [`~trl_ext.decoding.guide_schedule.GuideSchedule`].
        guide_blocks (`int`, *optional*, defaults to `0`):
            Continuations to generate per round, of which the guides choose one. `0`: they choose tokens.
        guide_block_length (`int`, *optional*, defaults to `16`):
            Length of these continuations, in tokens.
        guide_block_choice (`str`, *optional*, defaults to `"sample"`):
            How one is chosen: `"sample"` with probabilities softmax(weight times score), or the `"best"`.
        guide_beams (`int`, *optional*, defaults to `1`):
            Number of texts that are kept in each round, of which the best one is returned. More than one are a beam
            search over scores, and need the choice `"best"`.
        guide_drop (`float`, *optional*, defaults to `0.0`):
            Share of these texts that is dropped after each round, down to one.

    Raises:
        `ValueError`: A setting is out of range, or has no effect beside another.
    """

    guide_top_k: int = field(
        default=20, metadata={"help": "Number of likeliest tokens that are scored at each step. 0 means all."}
    )
    guide_candidates_only: bool = field(
        default=False,
        metadata={"help": "Whether only these tokens can be chosen; others keep their logits otherwise."},
    )
    guide_min_p: float = field(
        default=0.0,
        metadata={
            "help": "Probability, relative to the likeliest token's, that scored tokens have at least. 0 means off."
        },
    )
    guide_every: int | str = field(
        default=1, metadata={"help": "Guide every n-th token, or those that begin a `word` or a `sentence`."}
    )
    guide_when: dict[str, Any] | None = field(
        default=None, metadata={"help": "Guide only there: a mapping with `entropy`, `margin` or `random`."}
    )
    guide_blocks: int = field(
        default=0,
        metadata={"help": "Continuations per round, of which the guides choose one. 0: they choose tokens."},
    )
    guide_block_length: int = field(default=16, metadata={"help": "Length of these continuations, in tokens."})
    guide_block_choice: str = field(
        default="sample",
        metadata={
            "help": "How a continuation is chosen: 'sample' by softmax(weight times score), or the 'best'.",
            "choices": ["sample", "best"],
        },
    )

    guide_beams: int = field(
        default=1, metadata={"help": "Texts that are kept in each round, of which the best one is returned."}
    )
    guide_drop: float = field(
        default=0.0, metadata={"help": "Share of these texts that is dropped after each round, down to one."}
    )

    def __post_init__(self) -> None:
        for name, least in (("guide_top_k", 0), ("guide_blocks", 0), ("guide_block_length", 1), ("guide_beams", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.guide_min_p <= 1:
            raise ValueError(f"`guide_min_p` must be between 0 (no limit) and 1, got {self.guide_min_p}.")
        _ = self.schedule
        if self.guide_blocks == 1 and self.guide_beams == 1:
            raise ValueError("`guide_blocks` must be at least 2, or 0 to choose tokens: of one there is no choice.")
        if self.guide_beams > 1 and self.guide_block_choice != "best":
            raise ValueError("`guide_beams` above 1 keeps the best texts: set `guide_block_choice` to best.")
        if not 0 <= self.guide_drop < 1:
            raise ValueError(f"`guide_drop` must be at least 0 and below 1, got {self.guide_drop}.")
        if self.guide_drop and self.guide_beams == 1:
            raise ValueError("`guide_drop` has no effect on one text: raise `guide_beams`, or remove it.")

    @property
    def schedule(self) -> GuideSchedule:
        """Which tokens are guided."""
        return guide_schedule(self.guide_every, self.guide_when)

    def of_tokens(self) -> dict[str, Any]:
        """The settings as arguments of [`~trl_ext.guides.logits_processor.GuidedLogitsProcessor`]."""
        return {
            "top_k": self.guide_top_k,
            "candidates_only": self.guide_candidates_only,
            "min_p": self.guide_min_p,
            "guide_every": self.guide_every,
            "guide_when": self.guide_when,
        }

    def check_given(self, given: Sequence[str]) -> None:
        """Raise a `ValueError` for a setting that was given and has no effect beside the others."""
        of_tokens = ("guide_top_k", "guide_candidates_only", "guide_min_p", "guide_every", "guide_when")
        of_blocks = ("guide_block_length", "guide_block_choice", "guide_beams", "guide_drop")
        idle = [name for name in (of_tokens if self.guide_blocks else of_blocks) if name in given]
        if idle:
            other = "with" if self.guide_blocks else "without"
            raise ValueError(f"`{idle[0]}` has no effect {other} `guide_blocks`: remove one of them.")
        if self.guide_candidates_only and not (self.guide_top_k or self.guide_min_p):
            raise ValueError(
                "`guide_candidates_only` has no effect with `guide_top_k: 0`, as all tokens are candidates: set "
                "`guide_top_k` or `guide_min_p`, or remove it."
            )


@dataclass(frozen=True)
class GuideEntry:
    """
    A guide that a file lists.

    Args:
        name (`str`): Its name, which weights use.
        settings ([`~trl_ext.guides.kinds.GuideKind`]): How to load it.
        weight (`float` or `dict[str, float]`): Its weight, or one for each of its heads.
    """

    name: str
    settings: GuideKind
    weight: float | dict[str, float]


@dataclass(frozen=True)
class GuideFiles:
    """
    What one or several guide files say together.

    Args:
        settings ([`GuideSettings`]): How guides choose tokens.
        guides (`list[GuideEntry]`): The guides, which add up.
    """

    settings: GuideSettings
    guides: list[GuideEntry]

    def as_mapping(self) -> dict[str, Any]:
        """All settings as one guide file would have them, for a report."""
        return dataclasses.asdict(self.settings) | {
            "guides": [
                {"kind": each.settings.kind, "name": each.name, "weight": each.weight, **plain(each.settings)}
                for each in self.guides
            ]
        }


_COMMON = ("kind", "name", "weight")


def read_guide_files(paths: Sequence[str]) -> GuideFiles:
    """
    Read guide files. Their guides add up; settings that several files have must be equal.

    Args:
        paths (`Sequence[str]`): The files.

    Raises:
        `ValueError`: A file is no mapping, has no guide, an unknown key or a value of the wrong type, two guides have
            one name, or two files contradict each other. The message names the file, the key, and the nearest one.
        `OSError`: A file cannot be read.
    """
    given: dict[str, Any] = {}
    origin: dict[str, str] = {}
    entries: list[GuideEntry] = []
    problems: list[str] = []
    for path in paths:
        content = read_config(path)
        listed = content.pop("guides", None)
        found = _fields(GuideSettings, content, path, problems, ("guides",))
        for name, value in found.items():
            if name in given and given[name] != value:
                problems.append(
                    f"{path}: `{name}` is {value!r}, but {given[name]!r} in {origin[name]}: make them equal"
                )
            given[name] = value
            origin.setdefault(name, path)
        if not isinstance(listed, list) or not listed:
            problems.append(f"{path}: `guides` must be a list of guides, each with a `kind`")
            continue
        for number, guide in enumerate(listed):
            entry = _entry(guide, f"{path}: guide {number}", problems)
            if entry is not None and any(entry.name == other.name for other in entries):
                problems.append(f"{path}: guide {number}: another guide is called {entry.name!r} too; set `name`")
            elif entry is not None:
                entries.append(entry)
    if problems:
        raise SettingErrors(problems)
    settings = GuideSettings(**given)
    settings.check_given(list(given))
    return GuideFiles(settings, entries)


def _fields(
    cls: type, content: Mapping[str, Any], where: str, problems: list[str], others: Sequence[str] = ()
) -> dict[str, Any]:
    """The values of a dataclass's fields in a mapping; what is wrong is added to the problems."""
    fields = {each.name: each for each in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            known = [*fields, *others]
            question = did_you_mean(name, known, lambda each: f"'{each}'") or f"; there is {', '.join(known)}"
            problems.append(f"{where}: unknown key '{key}'{question}")
            continue
        try:
            found[name] = convert(value, hints[name], fields[name].metadata.get("choices"))
        except ValueError as error:
            problems.append(f"{where}: `{key}` {error}")
    return found


def _entry(guide: Any, where: str, problems: list[str]) -> GuideEntry | None:
    """A guide of a list; `None` if it is not usable."""
    kinds = guide_kinds()
    if not isinstance(guide, dict) or guide.get("kind") not in kinds:
        kind = guide.get("kind") if isinstance(guide, dict) else None
        near = did_you_mean(str(kind), kinds, lambda each: f"'{each}'") if kind else ""
        problems.append(f"{where} must have a `kind`, one of {', '.join(kinds)}; got {kind!r}{near}")
        return None
    before = len(problems)
    cls: Any = kinds[guide["kind"]]
    own = {key: value for key, value in guide.items() if key not in _COMMON}
    found = _fields(cls, own, where, problems, _COMMON)
    required = [each.name for each in dataclasses.fields(cls) if each.default is dataclasses.MISSING]
    missing = [name for name in required if name not in own or found.get(name) == ""]
    problems += [f"{where}: a {cls.kind} needs `{name}`" for name in missing]
    weight: Any = 1.0
    try:
        weight = check_value("weight", guide.get("weight", 1.0), float | dict[str, float])
        if isinstance(weight, dict):
            weight = {str(head): check_value("weight", value, float) for head, value in weight.items()}
    except ValueError as error:
        problems.append(f"{where}: {error}")
    if len(problems) > before:
        return None
    settings = cls(**found)
    try:
        settings.check()
    except (ValueError, OSError) as error:
        problems.append(f"{where}: {error}")
        return None
    name = str(guide.get("name") or settings.default_name)
    if any(each in name for each in "=,"):
        problems.append(f"{where}: the name {name!r} has = or a comma, which separate weights; set another `name`")
        return None
    return GuideEntry(name, settings, weight)
