# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
Does a chat model follow other people's instructions after a training on ours? IFEval, by lm-eval's strict checkers.

    python -m benchmarks.run ifeval --model outputs/models/SmolLM2-135M-Instruct --evaluation data/ifeval.jsonl

The arms are those of the suite `chat` that change the model. Each is trained as there and answers IFEval's prompts.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet

from benchmarks.harness.results import ROOT
from benchmarks.harness.tables import NOT_MEASURED
from benchmarks.harness.text import read_rows
from trl_ext.instructions.ifeval import LM_EVAL
from trl_ext.packages import require_package

from . import chat_arms, paired
from .chat_bench import by_answer, by_prompt
from .comparison import Comparison
from .experiment import Bench, Job, merged
from .quality_arms import SAMPLES, Arm
from .quality_bench import QualityBench, case_name, measured_models, reward_key
from .tables import Seeds, by_name, grid, metric, missing, sources


FOLLOWED = "trl_ext.instructions.ifeval.ifeval_met"


@dataclass(frozen=True)
class Task(chat_arms.Task):
    """
    Training as in `chat`, answers to IFEval's prompts.

    Args:
        evaluation (`str`): IFEval's rows, with `prompt`, `instruction_id_list` and `kwargs`.
        answer_length (`int`): Most tokens of an answer to them. IFEval allows 1,280.
    """

    evaluation: str = str(ROOT / "data" / "ifeval.jsonl")
    answers: int = 1
    answer_length: int = 256

    @property
    def rewards(self) -> list[str]:
        return [FOLLOWED]

    def measuring(self, place: str) -> dict[str, Any]:
        # Greedy, as lm-eval answers them.
        return {
            "max_completion_length": self.answer_length,
            "temperature": 0,
            "kl_prompts": 0,
            "completion_logps": "false",
        }


def arms(task: Task) -> list[Arm]:
    """The arms of `chat` that change the model, in full precision, and last the base."""
    found = [
        arm for arm in chat_arms.arms(task) if not arm.decoding and arm.command != "principle" and not arm.loading
    ]
    trained = [arm if arm == SAMPLES else replace(arm, other=False) for arm in found if arm.name != "base"]
    return [*trained, *(replace(arm, other=False) for arm in found if arm.name == "base")]


@dataclass
class IFEvalBench(QualityBench):
    """Trains arms and measures what they follow of IFEval's instructions."""

    task: Task

    def _evaluate(self, arm: Arm, seed: int, folder: Path, place: str, prompts: str) -> Path:
        # An evaluation of a trained arm has the base's answers too, and greedy ones are always the same.
        if arm.name == "base":
            for other in arms(self.task):
                if other != SAMPLES and Job(other, seed, self.work).is_done(self):
                    return self.folder(other.name, seed) / f"evaluation-{place}.json"
        return super()._evaluate(arm, seed, folder, place, prompts)

    def measured(self, file: Path, arm: Arm) -> dict[str, dict[str, Any]]:
        reward = reward_key(FOLLOWED)
        table = pyarrow.parquet.read_table(
            file.with_suffix(".parquet"), columns=["model", "row_index", "sample", reward]
        )
        found = {}
        for row in measured_models(file, arm):
            answers = by_answer(table, row["model"], reward)
            found[case_name(row, arm)] = {
                "reward": row[reward],
                "reward_se": row[f"{reward}_se"],
                "all_followed": sum(value == 1 for values in answers for value in values) / sum(map(len, answers)),
                "completion_length": row["completion_length"],
                "ended": row.get("ended"),
                "by_answer": {reward: answers},
                "by_prompt": {reward: by_prompt(table, row["model"], reward)},
            }
        return found


class IFEval(Comparison):
    """The arms of `chat` on IFEval's prompts."""

    name = "ifeval"
    what = "Does a chat model follow other people's instructions after a training on ours?"
    task = Task
    jobs = 1
    presets: ClassVar = {"cpu": Task(), "gpu": Task(passes=4, num_generations=8, batch=32)}
    arms = staticmethod(arms)
    bench_class = IFEvalBench

    def require(self, task: Task) -> None:
        """
        Stop before each arm fails for the same reason.

        Raises:
            `SystemExit`: A file, the model or a package is missing, or a flag of `chat` has no effect here.
        """
        if not Path(task.evaluation).exists():
            raise SystemExit(
                f"--evaluation: there is no file {task.evaluation}. benchmarks/results/ifeval.md says how to get it."
            )
        unchanged = Task()
        names = ("other", "second", "texts", "text_tokens")
        unused = [name for name in names if getattr(task, name) != getattr(unchanged, name)]
        if unused:
            raise SystemExit(
                f"--{unused[0]} has no effect here: answers to --evaluation are measured, and nothing else."
            )
        super().require(task)
        try:
            require_package("ifeval", LM_EVAL)
        except ImportError as error:
            raise SystemExit(str(error)) from error

    def bench(self, task: Any, work: Path, overrides: dict[str, Any]) -> Bench:
        file = work / "prompts.jsonl"
        if Path(task.evaluation).exists():  # not needed to collect what is done
            rows = [as_messages(row) for row in read_rows(task.evaluation)]
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return super().bench(replace(task, evaluation=str(file)), work, overrides)

    def settings(self, options: Any, task: Any) -> dict[str, Any]:
        found = super().settings(options, task)
        return found | {"task": found["task"] | {"evaluation": Path(task.evaluation).name}}

    def report(self, results: Sequence[dict[str, Any]]) -> str:
        """What each arm follows, and by how much more or less than the base."""
        if not results:
            return NOT_MEASURED
        result = merged(results, self.arms(self.task()))
        cases = by_name(result)
        base = cases.get("base", [])
        columns: dict[str, Callable[[Seeds], str]] = {
            "instructions followed": lambda seeds: paired.mean(_values(seeds)).text(3),
            "more than the base": lambda seeds: _difference(seeds, base),
            "prompts with all followed": metric("all_followed", 3),
            "tokens": metric("completion_length", 0),
            "ended": metric("ended", 2),
        }
        lines = [
            *grid("", cases, columns),
            "",
            f"Brackets are 95 % intervals by the bootstrap over {len(_values(base or next(iter(cases.values())))[0])} "
            "prompts and seeds.",
            "",
            sources(result, name_arms=True),
        ]
        return "\n".join([*lines, *missing(result)])


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A row of IFEval as a chat model needs it."""
    prompt = row["prompt"]
    return {**row, "prompt": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}


def _values(seeds: Seeds) -> list[list[float | None]]:
    return [next(iter(case["metrics"]["by_prompt"].values())) for case in seeds]


def _difference(seeds: Seeds, base: Seeds) -> str:
    pairs = [(a, b) for a in seeds for b in base if a["seed"] == b["seed"] and a["name"] != b["name"]]
    if not pairs:
        return "-"
    return paired.difference(*(_values([pair[i] for pair in pairs]) for i in (0, 1))).text(3)


SUITE = IFEval()
