# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The Parquet file of completions, and evaluations that are read back from it."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trl_ext.data.completion import Completion
from trl_ext.evaluation.completions import completions_file, read_evaluations
from trl_ext.evaluation.evaluate import Evaluation
from trl_ext.evaluation.report import Report


PROMPTS = [
    {"prompt": "a", "answer": 1},
    {"prompt": [{"role": "user", "content": "b \ud800"}], "answer": {"of": [2, None]}},
]
TEXTS = [[Completion("x y", [1, 2, 0], True)], [Completion("z", [3], False)]]
OTHERS = [[Completion("for the KL", [4, 4], False)], [Completion("", [0], True)]]


def evaluation(rewards, **more):
    return Evaluation(
        metrics={"reward/r": 0.0, "reward/r_se": 0.0, "kl": 1.5, "kl_se": 0.5, "metric/logged": 1.0},
        notes={"reward/r": "a note", "perplexity": "no judge"},
        completions=TEXTS,
        rewards={"r": rewards},
        scores=[[2.0], [math.nan]],
        prompt_lengths=[1, 7],
        seconds=2.5,
        **more,
    )


@pytest.fixture
def written(tmp_path):
    """A base, whose KL is of its evaluated completions, and a guided policy with completions for its KL."""
    path = str(tmp_path / "out.json")
    report = Report(PROMPTS, {"top_k": 2}, base="m", path=path, comparison={"sampling": {}})
    own = [[-1.0], [-2.0]]
    report.add("m", evaluation([[1.0], [4.0]], logps={"policy": own, "base": own}), series="", extras={})
    guided = evaluation(
        [[2.5], [math.nan]],
        logps={"base": [[-3.0], [-4.0]]},
        kl_completions=OTHERS,
        kl_logps={"policy": [[-1.0], [-0.5]], "base": [[-2.5], [-2.0]]},
        extra={"why": [["long"], [{"of": 1}]]},
    )
    report.add("m + v", guided, series="m + v", extras={"beta": 2.0}, method="V", truncation="", start="")
    report.fail("torn", "OSError: torn")
    return path


def test_every_completion_is_a_row_with_its_rewards_and_log_probabilities(written):
    rows = pq.read_table(completions_file(written)).to_pylist()
    kinds = [(row["model"], row["sample"], row["row_index"], row["completion_index"]) for row in rows]
    assert kinds == [
        *(("m", "evaluated", index, 0) for index in (0, 1)),
        *(("m + v", sample, index, 0) for sample in ("evaluated", "kl") for index in (0, 1)),
    ]
    base, _, guided, undefined, for_kl, _ = rows
    assert (base["prompt"], base["completion"], base["completion_ids"]) == ("a", "x y", [1, 2, 0])
    assert (base["prompt_tokens"], base["completion_tokens"], base["ended"]) == (1, 3, True)
    assert (base["reward/r"], base["reward"], base["kl"]) == (1.0, 2.0, 0.0)
    assert base["logp"] == base["base_logp"] == -1.0
    assert (guided["method"], guided["series"], json.loads(guided["extras"])) == ("V", "m + v", {"beta": 2.0})
    assert (guided["base_logp"], guided["logp"], guided["kl"]) == (-3.0, None, None)
    assert undefined["reward/r"] is undefined["reward"] is None
    assert json.loads(undefined["prompt"]) == [{"role": "user", "content": "b ?"}]
    assert json.loads(undefined["row"])["answer"] == {"of": [2, None]}
    assert json.loads(undefined["extra"]) == {"why": {"of": 1}}
    assert (for_kl["kl"], for_kl["reward"], for_kl["completion"]) == (1.5, None, "for the KL")


def test_the_difference_to_the_base_is_paired_by_prompt(written):
    """One prompt of the guided policy has no reward, so the other alone counts: 2.5 - 1."""
    with open(written) as file:
        base, guided, torn = json.load(file)["models"]
    assert (guided["difference/r"], guided["difference/r_se"]) == (1.5, None)
    assert "difference/r" not in base and torn == {"model": "torn", "error": "OSError: torn"}


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_evaluations_are_read_back_without_rewards(written, suffix):
    saved = read_evaluations(written.replace(".json", suffix))
    assert saved.prompts == [PROMPTS[0], {**PROMPTS[1], "prompt": [{"role": "user", "content": "b ?"}]}]
    assert saved.report["settings"] == {"top_k": 2}
    found = saved.evaluations["m + v"]
    assert list(saved.evaluations) == ["m", "m + v"]
    assert (found.completions, found.kl_completions) == (TEXTS, OTHERS)
    assert found.metrics == {"kl": 1.5, "kl_se": 0.5} and found.notes == {"perplexity": "no judge"}
    assert found.logps == {"base": [[-3.0], [-4.0]]}
    assert found.kl_logps == {"policy": [[-1.0], [-0.5]], "base": [[-2.5], [-2.0]]}
    assert (found.rewards, found.prompt_lengths, found.seconds) == ({}, [1, 7], 2.5)


def test_files_that_do_not_belong_together(written, tmp_path):
    content = json.loads((tmp_path / "out.json").read_text())
    content["models"][0]["model"] = "other"
    (tmp_path / "out.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lacks the completions of 'other'"):
        read_evaluations(written)
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "out.parquet")
    with pytest.raises(ValueError, match=r"not written by trl-ext evaluate: it lacks the columns .*completion"):
        read_evaluations(written)
    (tmp_path / "out.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file '.*out\.parquet', which holds the completions"):
        read_evaluations(written)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.json"):
        read_evaluations(str(tmp_path / "none.parquet"))
