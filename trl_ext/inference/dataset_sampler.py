# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Samples and scores completions for the rows of a dataset, a batch at a time, as `trl-ext sample` does.

The completions of a row come from models, from the dataset itself, or from both: the sampling policies of the RRHF
paper, section 4.1 (arXiv 2304.05302). BP is a beam search together with the dataset's completions, DP a diverse beam
search together with them, D a diverse beam search alone, and P the dataset's completions alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.data.chat_template import with_template_kwargs
from trl_ext.data.completion import Completion, encode_after
from trl_ext.data.load import load_dataset, short_name
from trl_ext.data.sampled_ids import ID_COLUMNS, tokenizer_tag
from trl_ext.data.schema import DataError, as_completion, check_row, is_conversational, where
from trl_ext.data.scored_rows import to_scored_rows
from trl_ext.generation_settings import GenerationSettings
from trl_ext.rewards.aggregation import SUM
from trl_ext.rewards.functions import Reward
from trl_ext.rewards.scoring import ScoredCompletion, score_completions
from trl_ext.seeds import seeded

from .policy import Policy


# Columns of the output. Columns of the dataset with these names are replaced.
OUTPUT_COLUMNS = ("prompt", "completions", "scores", "ended", "sources", "rewards", "extra", *ID_COLUMNS)
_LOGGED = "logged/"  # the totals of `log_metric`: sums, and the number of calls
_CALLS = "calls/"


# ------------------------------------------------------------------------------------------------------- the dataset


def load_rows(
    name: str,
    config: str | None,
    split: str,
    *,
    limit: int = 0,
    own: bool = False,
    asked: Sequence[str] | None = None,
    columns: dict[str, str] | str | None = None,
    dataset_format: str = "auto",
) -> tuple[Dataset, tuple[str, ...]]:
    """
    The rows to sample for, all of them checked, and the columns whose completions are added to the sampled ones.

    Args:
        name (`str`), config (`str`, *optional*), split (`str`):
            See [`~trl_ext.data.load.load_dataset`].
        limit (`int`, *optional*, defaults to `0`):
            Number of rows to take from the start. `0` takes all.
        own (`bool`, *optional*, defaults to `False`):
            Whether the dataset's own completions are added.
        asked (`Sequence[str]`, *optional*):
            The columns they are in. By default they are found by [`completion_columns`].
        columns (`dict[str, str]`, *optional*), dataset_format (`str`, *optional*, defaults to `"auto"`):
            Where prompts and completions are; see [`~trl_ext.data.scored_rows.to_scored_rows`].

    Raises:
        [`~trl_ext.data.schema.DataError`]: There is no row, no prompt, or no completion although `own` asks for them.
    """
    dataset = to_scored_rows(
        load_dataset(name, config, split),
        short_name(name),
        columns=columns,
        dataset_format=dataset_format,
        keep_columns=bool(asked) or not own,
        limit=limit,
    )
    own_columns = completion_columns(dataset[0], asked) if own else ()
    conversational = is_conversational(dataset[0])
    for index, row in enumerate(dataset):
        if not isinstance(row["prompt"], (str, list)):
            raise DataError(f"{where(index, column='prompt')}: must be text or messages, got {row['prompt']!r}.")
        check_row({"prompt": row["prompt"]}, index, conversational)
        dataset_completions(row, index, own_columns)
    return dataset, own_columns


def completion_columns(row: dict[str, Any], asked: Sequence[str] | None) -> tuple[str, ...]:
    """
    The columns with the dataset's own completions: those in `asked`, or `completions`, where conversion puts them.

    Args:
        row (`dict[str, Any]`): A row of the schema. Its `sources` are names of columns that it had before.
        asked (`Sequence[str]`, *optional*): Names of columns.

    Raises:
        [`~trl_ext.data.schema.DataError`]: There are no such columns.
    """
    names = tuple(asked or ["completions"])
    missing = [name for name in names if name not in row and name not in (row.get("sources") or ())]
    if missing:
        raise DataError(
            f"The dataset has no completions of its own: it lacks {' and '.join(map(repr, missing))}. It has "
            f"{', '.join(row)}."
        )
    return names


def dataset_completions(
    row: dict[str, Any], index: int, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase | None = None
) -> list[Completion]:
    """
    The completions that the dataset has for a row, each with the column as its source.

    Args:
        row (`dict[str, Any]`):
            A row with a `prompt`.
        index (`int`):
            Its number in the dataset, for errors.
        columns (`Sequence[str]`):
            The column `completions` has a list of completions, any other column one completion.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Adds token ids, which some reward functions use, to completions that have none beside their text.

    Raises:
        [`~trl_ext.data.schema.DataError`]: A column has no completions, or their form is not that of the prompt.
    """
    found = []
    for column in columns:
        contents, ended, sources = _column(row, index, column)
        own = column == "completions" and row.get("tokenizers") is not None
        for i, (content, flag, source) in enumerate(zip(contents, ended, sources, strict=True)):
            messages = None if isinstance(content, str) else content
            text = content if messages is None else "".join(message.get("content") or "" for message in messages)
            ids, tag = (row["completion_ids"][i], row["tokenizers"][i]) if own else ([], "")
            if not ids and tokenizer is not None:
                ids, tag = _tokenized(row, text, tokenizer), ""
            found.append(Completion(text, ids, bool(flag), source, tag, messages))
    return found


def _tokenized(row: dict[str, Any], text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if isinstance(row["prompt"], str):
        return encode_after(tokenizer, text)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # a template writes the space before it


def _column(row: dict[str, Any], index: int, column: str) -> tuple[list[Any], list[Any], list[str]]:
    """Completions of one column, whether each has ended, and where each comes from; all checked."""
    sources = row.get("sources") or ()
    if column in sources and column != "completions":  # conversion made a completion of the column
        kept = [i for i, source in enumerate(sources) if source == column]
        parts = {name: [row[name][i] for i in kept] for name in ("completions", "ended", "sources") if row.get(name)}
        return _column(row | parts, index, "completions")
    is_list = column == "completions"
    contents = row[column] if is_list else [row[column]]
    if not isinstance(contents, list):
        raise DataError(f"{where(index, column=column)}: must be a list of completions, got {contents!r}.")
    checked = {
        "prompt": row["prompt"],
        "completions": [as_completion(row, x) if isinstance(x, str) else x for x in contents],
        "ended": row.get("ended") if is_list else None,
    }
    # The scores are computed again, so those of the row need not be valid.
    check_row(checked, index, is_conversational(row), needs_scores=False)
    sources = (row.get("sources") if is_list else None) or [column] * len(contents)
    if len(sources) != len(contents):
        place = where(index, column="sources")
        raise DataError(f"{place}: has {len(sources)} entries for {len(contents)} completions.")
    return contents, checked["ended"] or [True] * len(contents), sources


# --------------------------------------------------------------------------------------------------------- sampling


@dataclass
class SampledBatch:
    """
    Output rows of one batch.

    Args:
        rows (`list[dict]`): Rows of the schema.
        indices (`list[int]`): The number in the dataset of each.
        totals (`dict[str, float]`): Counts and sums, to be added up over the batches.
    """

    rows: list[dict[str, Any]]
    indices: list[int]
    totals: dict[str, float]


_SORTED = 4  # batches whose prompts are sorted by length together


def batches_of_similar_length(prompts: Sequence[Any], size: int) -> list[list[int]]:
    """
    Numbers of prompts in batches of `size`. Prompts of similar length share a batch, which saves padding: those of
    four batches at a time are sorted by length, the longest first, so that an out-of-memory error comes early.

    Args:
        prompts (`Sequence`): Texts or lists of messages.
        size (`int`): Prompts per batch.
    """
    batches = []
    for start in range(0, len(prompts), _SORTED * size):
        numbers = range(start, min(start + _SORTED * size, len(prompts)))
        order = sorted(numbers, key=lambda i: -_length(prompts[i]))
        batches += [order[i : i + size] for i in range(0, len(order), size)]
    return batches


def _length(prompt: Any) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(str(message.get("content") or "")) for message in prompt)


@dataclass
class DatasetSampler:
    """
    Samples and scores completions for rows of a dataset.

    Args:
        policies (`list[Policy]`):
            Models to sample from; may be empty.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]):
            How to sample.
        rewards (`list[Reward]`):
            Reward functions. Without any, the rows have no scores.
        weights (`list[float]`, *optional*):
            One per reward, 1 by default.
        own_columns (`Sequence[str]`, *optional*):
            Columns of the dataset whose completions are added to the sampled ones.
        aggregation (`str`, *optional*, defaults to `"sum_then_normalize"`):
            How a score is made of several rewards, see [`~trl_ext.rewards.aggregation.aggregate`].
        deduplicate (`bool`, *optional*, defaults to `False`):
            Whether to keep one of several equal completions of a prompt.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the sampling.
        name_sources (`bool`, *optional*, defaults to `False`):
            Whether a column `sources` has the model or column that each completion comes from.
        best_first (`bool`, *optional*, defaults to `False`):
            Whether the completions of a row are sorted by score, the best first. Equal scores keep their order.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Arguments of the chat template. The rows get them as a column, so that training renders the same prompts;
            what a row has itself wins.
    """

    policies: list[Policy]
    settings: GenerationSettings
    rewards: list[Reward]
    weights: list[float] | None = None
    own_columns: Sequence[str] = ()
    aggregation: str = SUM
    deduplicate: bool = False
    seed: int = 42
    name_sources: bool = False
    best_first: bool = False
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._tags = [tokenizer_tag(policy.tokenizer) for policy in self.policies]

    def __call__(self, rows: Sequence[dict[str, Any]], indices: Sequence[int]) -> SampledBatch:
        """
        Sample and score one batch.

        The completions depend on the rows, the seed and the first index, not on what was sampled before.

        Args:
            rows (`Sequence[dict]`): Rows of the dataset.
            indices (`Sequence[int]`): Their numbers in the dataset.

        Raises:
            [`~trl_ext.rewards.functions.RewardError`]: A reward function failed.
        """
        rows = [with_template_kwargs(row, self.chat_template_kwargs) for row in rows]
        prompt_ids = [
            [policy.encode_rows([row], i)[0] for i, row in zip(indices, rows, strict=True)] for policy in self.policies
        ]
        fitting = self._fitting(prompt_ids, len(rows))
        groups: list[list[Completion]] = [[] for _ in fitting]
        num_tokens = 0
        for place, (policy, prompts) in enumerate(zip(self.policies, prompt_ids, strict=True)):
            with seeded(self.seed, indices[0], place):
                generated = policy.generate([prompts[i] for i in fitting], self.settings)
            for group, completions in zip(groups, generated, strict=True):
                tag = self._tags[place]
                group += [replace(completion, source=policy.name, tokenizer=tag) for completion in completions]
                num_tokens += sum(len(completion.ids) for completion in completions)
        kept_rows = [rows[i] for i in fitting]
        tokenizer = self.policies[0].tokenizer if self.policies else None
        for i, row, group in zip(fitting, kept_rows, groups, strict=True):
            group += dataset_completions(row, indices[i], self.own_columns, tokenizer)
        if self.deduplicate:
            groups = [_deduplicated(row, group) for row, group in zip(kept_rows, groups, strict=True)]
        prompts = [self._common_prompt(row, [ids[i] for ids in prompt_ids]) for i, row in enumerate(rows)]
        metrics: dict[str, list[float]] = {}
        found = self._output_rows(kept_rows, groups, [prompts[i] for i in fitting], metrics)
        made = [row for row in found if row is not None]
        totals = _totals(made, groups, too_long=len(rows) - len(fitting), num_tokens=num_tokens)
        totals |= {f"{_LOGGED}{name}": sum(values) for name, values in metrics.items()}
        totals |= {f"{_CALLS}{name}": len(values) for name, values in metrics.items()}
        kept = [indices[i] for i, row in zip(fitting, found, strict=True) if row is not None]
        return SampledBatch(made, kept, totals)

    def _fitting(self, prompt_ids: Sequence[Sequence[Sequence[int]]], num_rows: int) -> list[int]:
        """Numbers of the rows whose prompts are short enough for every policy."""
        fitting = list(range(num_rows))
        for policy, prompts in zip(self.policies, prompt_ids, strict=True):
            if longest := policy.max_prompt_length(self.settings):
                fitting = [i for i in fitting if len(prompts[i]) <= longest]
        return fitting

    def _common_prompt(self, row: dict[str, Any], prompts: list[list[int]]) -> list[int]:
        """The token ids of a prompt that all completions of its row were sampled from; empty if there are several."""
        if self.own_columns and row.get("tokenizers") is not None:
            prompts = [*prompts, row["prompt_ids"]]
        return prompts[0] if prompts and all(ids == prompts[0] for ids in prompts) else []

    def _output_rows(
        self,
        rows: Sequence[dict[str, Any]],
        groups: Sequence[Sequence[Completion]],
        prompt_ids: Sequence[list[int]],
        metrics: dict[str, list[float]],
    ) -> list[dict[str, Any] | None]:
        """
        Rows of the schema, with the other columns of the dataset.

        Completions to which no reward function applies are left out; a row without any other is `None`.
        """
        consumed = {"sources", *self.own_columns} - {"prompt"}
        inputs = [{name: value for name, value in row.items() if name not in consumed} for row in rows]
        made: list[dict[str, Any] | None] = []
        scored_groups = score_completions(
            inputs, groups, self.rewards, self.weights, aggregation=self.aggregation, metrics=metrics
        )
        for row, ids, group in zip(rows, prompt_ids, scored_groups, strict=True):
            kept = [scored for scored in group if not self.rewards or not math.isnan(scored.score)]
            if self.rewards and self.best_first:
                kept.sort(key=lambda scored: -scored.score)
            made.append(self._output_row(row, kept, ids) if kept else None)
        return made

    def _output_row(
        self, row: dict[str, Any], group: Sequence[ScoredCompletion], prompt_ids: list[int]
    ) -> dict[str, Any]:
        made = {"prompt": row["prompt"], "completions": [scored.completion.content(row) for scored in group]}
        if self.rewards:
            made["scores"] = [scored.score for scored in group]
        made["ended"] = [scored.completion.ended for scored in group]
        if self.name_sources:
            made["sources"] = [scored.completion.source for scored in group]
        if self.policies or (self.own_columns and row.get("tokenizers") is not None):
            kept = [scored.completion for scored in group]
            made["completion_ids"] = [completion.ids if completion.tokenizer else [] for completion in kept]
            made["tokenizers"] = [completion.tokenizer for completion in kept]
            made["prompt_ids"] = prompt_ids
        if len(self.rewards) > 1:
            made["rewards"] = {
                reward.name: [None if math.isnan(x.rewards[reward.name]) else x.rewards[reward.name] for x in group]
                for reward in self.rewards
            }
        if group[0].extra:
            made["extra"] = {name: [scored.extra[name] for scored in group] for name in group[0].extra}
        replaced = {*OUTPUT_COLUMNS, *self.own_columns}
        return made | {name: value for name, value in row.items() if name not in replaced}


def _deduplicated(row: dict[str, Any], group: Sequence[Completion]) -> list[Completion]:
    """The first of several completions with the same content."""
    first: dict[str, Completion] = {}
    for completion in group:
        first.setdefault(str(completion.content(row)), completion)
    return list(first.values())


def _totals(
    made: list[dict[str, Any]], groups: list[list[Completion]], *, too_long: int, num_tokens: int
) -> dict[str, float]:
    num_completions = sum(len(row["completions"]) for row in made)
    scores = [row["scores"] for row in made if "scores" in row]
    return {
        "too_long": too_long,
        "unscored": sum(map(len, groups)) - num_completions,
        "rows_unscored": len(groups) - len(made),
        "completions": num_completions,
        "prompts": len(made),
        "ended": sum(sum(row["ended"]) for row in made),
        "score": sum(map(sum, scores)),
        "best_score": sum(map(max, scores)),
        "tokens": num_tokens,
    }


def describe_logged(totals: dict[str, float]) -> str:
    """The means of the metrics that reward functions logged; empty if there are none."""
    names = [key.removeprefix(_LOGGED) for key in totals if key.startswith(_LOGGED)]
    return ", ".join(f"{name} {totals[_LOGGED + name] / totals[_CALLS + name]:.3f}" for name in sorted(names))


def describe_dropped(totals: dict[str, float]) -> str:
    """A description of the prompts and completions that the output lacks; empty if it lacks none."""
    descriptions = {
        "too_long": "prompts too long for the model with max_completion_length, left out",
        "unscored": "completions that no reward function applies to, left out",
        "rows_unscored": "prompts without a completion that one applies to, left out",
    }
    return ", ".join(f"{totals[name]:.0f} {text}" for name, text in descriptions.items() if totals.get(name))
