# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""How the suite `preferences` does an arm: with the commands that users have, in processes of their own."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow.compute
import pyarrow.parquet

from benchmarks.harness.process import run, trainable_parameters
from benchmarks.harness.text import read_rows
from trl_ext.data.schema import DataError
from trl_ext.models.tokenizers import load_tokenizer

from . import preferences_train
from .chat_bench import ChatBench, by_prompt
from .experiment import Bench, slug
from .paired import pair_accuracy
from .preferences_arms import (
    BETA,
    DPO,
    JUDGE,
    REWARD,
    ROWS,
    SCORES,
    TRAINED_ON,
    Task,
    arm_name,
    is_against,
)
from .preferences_data import (
    DATASETS,
    HELD_OUT,
    OTHER,
    PARTS,
    TRAIN,
    Dataset,
    divide,
    fitting,
    load_rows,
    prompts_of,
    write_rows,
)
from .quality_arms import Arm
from .quality_bench import measured_models, training_command


JUDGE_SEED = 1_000  # added to the seed of the others
FEWEST = 4  # rows in each part, below which nothing can be measured


@dataclass
class PreferencesBench(Bench):
    """Divides the rows, trains, and measures how completions are ordered or what is answered."""

    task: Task

    def do(self, arm: Arm, seed: int) -> list[dict[str, Any]]:
        dataset = DATASETS[arm.name.partition(": ")[0]]
        folder = self.folder(arm.name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        if arm.series == ROWS:
            return [self._case(arm, seed, metrics=self._divide(dataset, folder))]
        if is_against(arm):
            return [self._answers(arm, dataset, seed)]
        settings, cost = self._train(arm, dataset, seed, folder) if arm.command else ({}, {})
        metrics, scoring = self._ordering(arm, dataset, seed, folder)
        if arm.series == JUDGE and dataset.of_harm:
            metrics |= self._harm_threshold(arm, dataset, seed, folder)
        return [self._case(arm, seed, metrics=metrics, settings=settings, cost={**cost, "scoring": scoring})]

    def _case(self, arm: Arm, seed: int, **found: Any) -> dict[str, Any]:
        return {"name": arm.name, "series": arm.series, "seed": seed, "settings": {}, "cost": {}, **found}

    # ------------------------------------------------------------------------------------------------------------ rows

    def rows(self, dataset: Dataset, part: str, seed: int) -> Path:
        """The file of a part of a dataset's rows."""
        return self.folder(arm_name(dataset.name, ROWS), seed) / f"{part}.jsonl"

    def _divide(self, dataset: Dataset, folder: Path) -> dict[str, Any]:
        """Write the parts and their prompts, and count."""
        task = self.task
        tokenizer = load_tokenizer(task.model)
        given = load_rows(Path(task.data) / dataset.file)
        tokens = task.tokens + dataset.passages
        usable = [row for row in (fitting(row, tokenizer, tokens, task.completions) for row in given) if row]
        parts = divide(usable, task.rows, task.held_out)
        if min(map(len, parts.values())) < FEWEST:
            found = ", ".join(f"{part} {len(rows)}" for part, rows in parts.items())
            raise DataError(
                f"{dataset.file}: of its {len(given)} rows, {len(usable)} have completions with different scores in "
                f"{tokens} tokens, which gives too few in a part ({found}; {FEWEST} are needed): raise --tokens or "
                "--rows, or use a larger file."
            )
        for part, rows in parts.items():
            write_rows(folder / f"{part}.jsonl", rows)
        for part, limit in ((TRAIN, task.prompts), (HELD_OUT, task.asked)):
            write_rows(folder / f"{part}_prompts.jsonl", prompts_of(parts[part], limit))
        counts = {part: len(parts[part]) for part in PARTS}
        pairs = [len({*row["scores"]}) for row in parts[HELD_OUT]]
        return {
            "given": len(given),
            "usable": len(usable),
            **counts,
            "tokens": tokens,
            "completions": fmean(len(row["scores"]) for row in parts[HELD_OUT]),
            "different_scores": fmean(pairs),
        }

    # -------------------------------------------------------------------------------------------------------- training

    def model(self, dataset: Dataset, what: str, seed: int) -> Path:
        """The folder of a trained model, whose last part is the name of a reward model in reports."""
        return self.folder(arm_name(dataset.name, what), seed) / slug(what)

    def _train(self, arm: Arm, dataset: Dataset, seed: int, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        output = self.model(dataset, arm.series, seed)
        config: dict[str, Any] = {
            **self.task.training,
            **arm.fields,
            **self.overrides,
            "model_name_or_path": self.task.model,
            "dataset_name": str(self.rows(dataset, TRAINED_ON[arm.series], seed)),
            "output_dir": str(output),
            # The judge begins with another score head than the model that it judges against.
            "seed": seed + JUDGE_SEED * (arm.series == JUDGE),
        }
        file = folder / "config.json"
        file.write_text(json.dumps(config, indent=1), encoding="utf-8")
        found = run(training_command(arm.command, file), folder / "train.log")
        return config, {
            **found.cost,
            "tokens_read": found.last("num_tokens"),
            "trainable_parameters": trainable_parameters(output),
        }

    # ------------------------------------------------------------------------------------------------------- measuring

    def _ordering(
        self, arm: Arm, dataset: Dataset, seed: int, folder: Path
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """How the model orders the completions of each held-out row, and the cost of scoring them."""
        held_out = self.rows(dataset, HELD_OUT, seed)
        scores, spent = self._scores(arm, dataset, seed, folder, held_out)
        return accuracy(read_rows(str(held_out)), scores), spent

    def _scores(
        self, arm: Arm, dataset: Dataset, seed: int, folder: Path, rows: Path
    ) -> tuple[list[list[float]], dict[str, float]]:
        """The model's score of each completion of a file's rows, and the cost of scoring them."""
        kind, file = SCORES[arm.series], folder / f"scores-{rows.stem}.json"
        config = {
            "model_name_or_path": str(self.model(dataset, arm.series, seed)) if arm.command else self.task.model,
            "tokenizer": self.task.model,
            "dtype": self.task.score_dtype if kind == "reward" else self.task.dtype,
            "beta": arm.fields.get("beta", BETA),
            "dataset_name": str(rows),
            "output_file": str(file),
        }
        config_file = folder / f"scores-{rows.stem}-config.json"
        config_file.write_text(json.dumps(config, indent=1), encoding="utf-8")
        found = run(["-m", preferences_train.__name__, kind, str(config_file)], folder / "scores.log")
        return json.loads(file.read_text(encoding="utf-8")), found.cost

    def _harm_threshold(self, arm: Arm, dataset: Dataset, seed: int, folder: Path) -> dict[str, float]:
        """The judge's score below which an answer counts as harmful, and how often that is right on held-out rows."""
        scores = {
            part: self._scores(arm, dataset, seed, folder, self.rows(dataset, part, seed))[0]
            for part in (OTHER, HELD_OUT)
        }
        rows = {part: read_rows(str(self.rows(dataset, part, seed))) for part in scores}
        threshold = best_threshold(rows[OTHER], scores[OTHER])
        right = classified(rows[HELD_OUT], scores[HELD_OUT], threshold)
        return {"harm_threshold": threshold, "harm_accuracy": fmean(right)}

    def _answers(self, arm: Arm, dataset: Dataset, seed: int) -> dict[str, Any]:
        """As the suite `chat` does it: train against the reward model, answer the held-out prompts, score by both."""
        train, held_out = (str(self.rows(dataset, f"{part}_prompts", seed)) for part in (TRAIN, HELD_OUT))
        reward, judge = (str(self.model(dataset, what, seed)) for what in (REWARD, JUDGE))
        task = self.task.against(reward, judge, train, held_out, prompts=len(read_rows(train)))
        work = self.work / f"{dataset.name}-answers"
        inner = replace(arm, name=arm.series, needs=())
        if arm.series == DPO:  # trained before, on the pairs
            inner = replace(inner, loading={"model_name_or_path": str(self.model(dataset, DPO, seed))})
        if arm.scored:
            scored = arm.scored | {"dataset_name": str(self.rows(dataset, TRAIN, seed))}
            inner = replace(inner, scored=scored)
        bench = ChatBench(task, work, self.overrides)
        [case] = bench.do(inner, seed)
        if dataset.of_harm:
            threshold = self._judged(dataset, seed)["metrics"]["harm_threshold"]
            file = bench.folder(inner.name, seed) / "evaluation-evaluation.parquet"
            case["metrics"] |= harmful(file, inner, threshold)
        return case | {"name": arm.name}

    def _judged(self, dataset: Dataset, seed: int) -> dict[str, Any]:
        """What the judge's arm has found."""
        file = self.work / f"{slug(arm_name(dataset.name, JUDGE))}-{seed}.json"
        [case] = json.loads(file.read_text(encoding="utf-8"))["cases"]
        return dict(case)


def best_threshold(rows: list[dict[str, Any]], scores: list[list[float]]) -> float:
    """
    The score that separates the best completions of rows from their worst with the fewest mistakes.

    Of equally good ones the middle one; each lies between two scores.
    """
    labelled = sorted(
        (own[place], place == best)
        for row, own in zip(rows, scores, strict=True)
        for best, worst in [_best_and_worst(row["scores"])]
        for place in (best, worst)
    )
    # Below the threshold all should be worst, above it best: mistakes are best ones below and worst ones above.
    mistakes, wrong = [], sum(not is_best for _, is_best in labelled)
    for (score, is_best), (above, _) in pairwise(labelled):
        wrong += 1 if is_best else -1
        if score < above:
            mistakes.append((wrong, (score + above) / 2))
    least = min(count for count, _ in mistakes)
    found = [threshold for count, threshold in mistakes if count == least]
    return found[len(found) // 2]


def classified(rows: list[dict[str, Any]], scores: list[list[float]], threshold: float) -> list[bool]:
    """Whether the best and the worst completion of each row are on the right side of a threshold."""
    right = []
    for row, own in zip(rows, scores, strict=True):
        best, worst = _best_and_worst(row["scores"])
        right += [own[best] > threshold, own[worst] < threshold]
    return right


def _best_and_worst(scores: list[float]) -> tuple[int, int]:
    return max(range(len(scores)), key=scores.__getitem__), min(range(len(scores)), key=scores.__getitem__)


def harmful(file: Path, arm: Arm, threshold: float) -> dict[str, float]:
    """
    The share of an arm's answers that the judge scores below a threshold, with its standard error over prompts.

    Args:
        file (`Path`): The Parquet file of its evaluation.
        arm ([`Arm`]): The arm in the evaluation.
        threshold (`float`): Below it, an answer counts as harmful.
    """
    [row] = measured_models(file.with_suffix(".json"), arm)
    table = pyarrow.parquet.read_table(file, columns=["model", "row_index", "sample", f"reward/{JUDGE}"])
    below = pyarrow.compute.less(table.column(f"reward/{JUDGE}"), threshold).cast("float64")
    place = table.schema.get_field_index(f"reward/{JUDGE}")
    shares = by_prompt(table.set_column(place, f"reward/{JUDGE}", below), row["model"], f"reward/{JUDGE}")
    known = [share for share in shares if share is not None]
    return {"harmful": fmean(known), "harmful_se": stdev(known) / len(known) ** 0.5}


def accuracy(rows: list[dict[str, Any]], scores: list[list[float]]) -> dict[str, Any]:
    """
    The pair accuracy of scores: of all rows, with its standard error, and of each row.

    Every row counts once, however many pairs it has.
    """
    by_row = [pair_accuracy(row["scores"], own) for row, own in zip(rows, scores, strict=True)]
    known = [value for value in by_row if value is not None]
    ties = [len(set(own)) < len(own) for own in scores]
    return {
        "accuracy": fmean(known),
        "accuracy_se": stdev(known) / len(known) ** 0.5,
        "rows_with_ties": sum(ties),
        "by_prompt": {"accuracy": [None if value is None else round(value, 6) for value in by_row]},
    }
