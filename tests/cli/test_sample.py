# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""`trl-ext sample` and `best_of_n`: what they write, that nothing is lost or repeated, and errors for bad input."""

import errno
import importlib
import json
import linecache
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_model, make_tokenizer
from datasets import load_dataset
from scripted_server import ScriptedServer

from trl_ext import from_scored_rows
from trl_ext.cli.sample import best_of_n, main
from trl_ext.data import resumable_file
from trl_ext.data.resumable_file import ResumableFile
from trl_ext.data.sampled_ids import ID_COLUMNS
from trl_ext.data.schema import DataError
from trl_ext.data.tokenization import prepare_dataset
from trl_ext.rewards.functions import RewardError, load_rewards
from trl_ext.rewards.settings import RewardSettings


PROMPTS = ["the film", "a", "I liked this movie", "we found the plot", "music", "the actor was", "no", "best", "it"]
REWARDS = """
def length(completions, **_):
    return [float(len(text if isinstance(text, str) else text[-1]["content"])) for text in completions]

def first_letter(prompts, completions, completion_ids, label, **_):
    assert len(prompts) == len(completions) == len(completion_ids) == len(label)
    return [ids[0] + 1000.0 * l for ids, l in zip(completion_ids, label)]

def short_only(completions, **_):
    return [1.0 if len(text) < 12 else None for text in completions]

def never(completions, **_):
    return [None] * len(completions)

def logs(completions, log_metric, log_extra, **_):
    log_metric("kept", 0.5)
    log_extra("length", list(map(len, completions)))
    return [float(len(text)) for text in completions]

def roles(prompts, completions, **_):
    return [float([m["role"] for m in p + c] == ["user", "assistant"]) for p, c in zip(prompts, completions)]

def broken(prompts, **_):
    if "music" in prompts:
        raise RuntimeError("no music please")
    return [0.0] * len(prompts)
"""


@pytest.fixture(autouse=True)
def reward_module(tmp_path, monkeypatch):
    (tmp_path / "sample_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "sample_rewards", raising=False)


def write_rows(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_rows(path="out.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().split("\n") if line]


@pytest.fixture
def prompts(tmp_path):
    return write_rows("prompts.jsonl", [{"prompt": p, "label": i % 2, "note": None} for i, p in enumerate(PROMPTS)])


def sample(dataset, model=None, output="out.jsonl", **settings):
    """Run the command with short completions, one prompt per batch."""
    settings = {"max_completion_length": 5, "num_generations": 3, "generation_batch_size": 3, **settings}
    words = ["--dataset_name", dataset, "--output_file", str(output)]
    words += ["--model_name_or_path", *([model] if isinstance(model, str) else model)] if model else []
    for name, value in settings.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return main(words)


# ------------------------------------------------------------------------------------------------------ what it writes


def test_rows_of_the_schema(tiny_model_dir, tiny_reward_dir, prompts, capsys):
    assert sample(prompts, tiny_model_dir, reward_model_name_or_path=tiny_reward_dir) == 0
    rows = read_rows()
    assert [row["prompt"] for row in rows] == PROMPTS
    assert list(rows[0]) == ["prompt", "completions", "scores", "ended", *ID_COLUMNS, "label", "note"]
    assert [row["label"] for row in rows] == [i % 2 for i in range(len(PROMPTS))]
    [judge] = load_rewards(tiny_reward_dir)
    for row in rows:
        assert len(row["completions"]) == len(row["scores"]) == len(row["ended"]) == 3
        assert row["scores"] == pytest.approx(judge([row["prompt"]] * 3, row["completions"]), abs=1e-5)
    mean = sum(sum(row["scores"]) for row in rows) / 27
    best = sum(max(row["scores"]) for row in rows) / 9
    assert "9 rows, 27 completions" in (printed := capsys.readouterr().out)
    assert f"score {mean:.3f}, best of a prompt {best:.3f}" in printed


def test_the_trainers_take_what_it_writes(tiny_model_dir):
    films = write_rows("films.jsonl", [{"prompt": f"the film {p}"} for p in PROMPTS])
    sample(films, tiny_model_dir, reward_funcs="sample_rewards.length")
    dataset, dropped = prepare_dataset(
        load_dataset("json", data_files="out.jsonl", split="train"), make_tokenizer(), name="train", max_length=64
    )
    assert (len(dataset), dropped) == (9, 0)


def test_several_rewards_with_weights(tiny_model_dir, prompts):
    funcs = ["sample_rewards.length", "sample_rewards:first_letter"]
    sample(prompts, tiny_model_dir, reward_funcs=funcs, reward_weights=[1.0, -0.5])
    for row in read_rows():
        assert list(row["rewards"]) == ["length", "first_letter"]
        assert row["rewards"]["length"] == [len(text) for text in row["completions"]]
        assert all((value >= 1000) == bool(row["label"]) for value in row["rewards"]["first_letter"])
        pairs = zip(*row["rewards"].values(), strict=True)
        assert row["scores"] == pytest.approx([a - 0.5 * b for a, b in pairs])


def test_what_functions_log_is_written_and_summed_up(tiny_model_dir, prompts, capsys):
    """As by GRPO; sorted with the completions."""
    sample(prompts, tiny_model_dir, reward_funcs="sample_rewards.logs", best_first=True, reward_batch_size=3)
    for row in read_rows():
        assert row["extra"] == {"length": list(map(len, row["completions"]))}
        assert row["scores"] == sorted(map(float, row["extra"]["length"]), reverse=True)
    assert "kept 0.500" in capsys.readouterr().out


def test_a_reward_server_and_a_label_of_a_classifier(tiny_model_dir, prompts, tmp_path):
    """Both by flags and in the YAML file, where a label may be a number."""
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), num_labels=2, seed=3).save_pretrained(tmp_path / "sentiment")
    tokenizer.save_pretrained(tmp_path / "sentiment")
    server = ScriptedServer(lambda path, body: {"rewards": [float(len(text)) for text in body.get("query", [])]})
    address = server.url.removesuffix("/v1") + "/get_reward"
    Path("rewards.yaml").write_text('reward_head: [1, ""]\nreward_server_kwargs: {timeout: 5, max_retries: 0}\n')
    sample(prompts, tiny_model_dir, reward_funcs=[str(tmp_path / "sentiment"), address], config="rewards.yaml")
    server.close()
    settings = RewardSettings(reward_head="1")
    [judge] = load_rewards(str(tmp_path / "sentiment"), settings=settings)
    for row in read_rows():
        assert row["rewards"]["get_reward"] == [len(row["prompt"] + text) for text in row["completions"]]
        expected = judge([row["prompt"]] * 3, row["completions"])
        assert row["rewards"]["sentiment"] == pytest.approx(expected, abs=1e-5)


def test_best_first_is_the_same_rows_in_another_order(tiny_model_dir, prompts):
    funcs = ["sample_rewards.length", "sample_rewards:first_letter"]
    sample(prompts, tiny_model_dir, reward_funcs=funcs)
    words = ["--dataset_name", prompts, "--output_file", "best.jsonl", "--model_name_or_path", tiny_model_dir]
    words += ["--max_completion_length", "5", "--num_generations", "3", "--generation_batch_size", "3"]
    assert best_of_n([*words, "--reward_funcs", *funcs]) == 0
    assert "vllm" not in Path("best.jsonl.state.json").read_text()  # a setting that the command does not have
    for row, best in zip(read_rows(), read_rows("best.jsonl"), strict=True):
        assert best["scores"] == sorted(row["scores"], reverse=True)
        order = sorted(range(3), key=lambda i: -row["scores"][i])
        for column in ("completions", "ended"):
            assert best[column] == [row[column][i] for i in order]
        assert best["rewards"] == {name: [x[i] for i in order] for name, x in row["rewards"].items()}
    with pytest.raises(ValueError, match="--reward_funcs or --reward_model_name_or_path"):
        best_of_n([*words, "--overwrite_output"])


def test_prompts_on_the_command_line_are_printed_best_first(tiny_model_dir, save_model, capsys):
    """As messages if there is a chat template; into a file only if there is to be one."""
    words = ["--prompt", "the film", "a", "--num_generations", "3", "--max_completion_length", "5"]
    words += ["--reward_funcs", "sample_rewards.length"]
    for model, prompt in ((save_model("plain"), "a"), (tiny_model_dir, [{"role": "user", "content": "a"}])):
        assert best_of_n(["--model_name_or_path", model, *words]) == 0
        printed = capsys.readouterr().out
        assert [line for line in printed.split("\n") if line.startswith("> ")] == ["> the film", "> a"]
        assert not Path("out.jsonl").exists()
        assert best_of_n(["--model_name_or_path", model, *words, "--output_file", "out.jsonl"]) == 0
        assert "> the film\n[" in capsys.readouterr().out
        assert [row["prompt"] for row in read_rows()][1] == prompt
        for row in read_rows():
            assert row["scores"] == sorted(row["scores"], reverse=True)
        assert "for prompts that were given one by one" in Path("out.jsonl.README.md").read_text()
        Path("out.jsonl").unlink()
    with pytest.raises(ValueError, match="not from both"):
        best_of_n(["--model_name_or_path", "plain", *words, "--dataset_name", "prompts.jsonl"])
    for more, message in (
        (["--dataset_completions"], "dataset_completions is for a dataset"),
        (["--format", "sft"], "pass --output_file"),
        (["--system_prompt", "so"], "system_prompt needs a chat template"),
    ):
        with pytest.raises(ValueError, match=message):
            best_of_n(["--model_name_or_path", "plain", *words, *more])


def test_conversations(tiny_model_dir):
    chats = write_rows("chats.jsonl", [{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS])
    sample(chats, tiny_model_dir, reward_funcs=["sample_rewards.roles", "think_format_reward"])
    for row in read_rows():
        assert row["prompt"][0]["role"] == "user"
        assert [[m["role"] for m in c] for c in row["completions"]] == [["assistant"]] * 3
        assert row["rewards"] == {"roles": [1.0] * 3, "think_format_reward": [0.0] * 3}


def test_without_rewards_there_are_no_scores(tiny_model_dir, prompts):
    sample(prompts, tiny_model_dir, max_num_prompts=2)
    assert [list(row) for row in read_rows()] == [["prompt", "completions", "ended", *ID_COLUMNS, "label", "note"]] * 2


def test_parquet(tiny_model_dir, prompts, capsys):
    settings = {"reward_funcs": ["sample_rewards.length", "sample_rewards.short_only"]}
    sample(prompts, tiny_model_dir, **settings)
    sample(prompts, tiny_model_dir, "deep/er/out.parquet", **settings)
    assert "Creating parquet" not in capsys.readouterr().err  # a bar of `datasets`: there is no terminal
    assert load_dataset("parquet", data_files="deep/er/out.parquet", split="train").to_list() == read_rows()
    assert sorted(os.listdir("deep/er")) == ["out.parquet", "out.parquet.README.md", "out.parquet.state.json"]


@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_the_card_of_a_dataset_has_code_that_runs(tiny_model_dir, prompts, output, capsys, tmp_path):
    rewards = ["sample_rewards.length", "sample_rewards.first_letter"]
    settings = {"reward_funcs": rewards, "reward_weights": [1.0, 0.5], "top_k": 5, "seed": 3}
    sample(prompts, tiny_model_dir, output, max_num_prompts=2, **settings)
    _, metadata, text = Path(f"{output}.README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(metadata)["configs"] == [{"config_name": "default", "data_files": output}]
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL))
    capsys.readouterr()
    exec(compile(blocks["python"], "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == PROMPTS[0]
    made = yaml.safe_load(blocks["yaml"])
    assert (made["seed"], made["top_k"], made["reward_funcs"]) == (3, 5, rewards) and "output_file" not in made
    assert made["dataset_name"] == f"path/to/{Path(prompts).name}" and str(tmp_path) not in text
    columns = load_dataset(Path(output).suffix[1:].replace("jsonl", "json"), data_files=output, split="train")
    assert re.findall(r"^\| `(\w+)` \| (?:.)", text, re.MULTILINE) == columns.column_names
    assert "| rows | 2 |" in text and "| completions | 6 |" in text and "- trl-ext: " in text
    assert f"Completions of the model `{Path(tiny_model_dir).name}`" in text and "scored by `sample_rewards." in text


def test_what_no_reward_applies_to_is_left_out_and_counted(tiny_model_dir, prompts, capsys):
    sample(prompts, tiny_model_dir, max_completion_length=3, reward_funcs="sample_rewards.short_only")
    rows = read_rows()
    kept = [text for row in rows for text in row["completions"]]
    assert 0 < len(kept) < 27
    assert all(len(text) < 12 for text in kept)
    assert all(row["scores"] == [1.0] * len(row["completions"]) for row in rows)
    assert f"{27 - len(kept)} completions that no reward function applies to" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"no row is left of 9: 27 completions that no reward .* 9 prompts"):
        sample(prompts, tiny_model_dir, "none.jsonl", reward_funcs="sample_rewards.never")


def test_settings_in_a_file(tiny_model_dir, prompts):
    Path("sample.yaml").write_text(
        f"model_name_or_path: {tiny_model_dir}\ndataset_name: {prompts}\noutput_file: out.jsonl\n"
        "num_generations: 2\nmax_completion_length: 4\ntemperature: 0.8\nmax_num_prompts: 3\n"
    )
    assert main(["--config", "sample.yaml", "--num_generations", "1"]) == 0
    assert [len(row["completions"]) for row in read_rows()] == [1, 1, 1]
    Path("sample.yaml").write_text("num_generation: 2\n")
    with pytest.raises(ValueError, match=r"num_generation.*num_generations"):
        main(["--config", "sample.yaml"])


# --------------------------------------------------------------------------------------- models, policies, beam search


def test_completions_of_models_and_of_the_dataset_are_merged(tiny_model_dir, adapter_dir):
    rows = [
        {"prompt": p, "completions": ["good film", "bad"], "scores": [0, 1], "id": i} for i, p in enumerate(PROMPTS)
    ]
    own = write_rows("own.jsonl", rows)
    models = [tiny_model_dir, adapter_dir]
    sample(
        own, models, dataset_completions=True, reward_funcs="sample_rewards.length", temperature=0, num_generations=1
    )
    rows = read_rows()
    for i, row in enumerate(rows):
        assert row["sources"] == [*models, "completions", "completions"]
        assert row["completions"][2:] == ["good film", "bad"]
        assert row["ended"][2:] == [True, True]
        assert row["scores"] == [len(text) for text in row["completions"]]
        assert row["id"] == i
    assert any(row["completions"][0] != row["completions"][1] for row in rows), "the adapter takes part"
    # Its own output is a dataset again: sources stay, and completions are added.
    sample("out.jsonl", tiny_model_dir, "again.jsonl", dataset_completions=True, temperature=0, num_generations=1)
    again = read_rows("again.jsonl")
    assert again[0]["sources"] == [tiny_model_dir, *rows[0]["sources"]]
    assert again[0]["ended"][1:] == rows[0]["ended"]
    assert again[0]["completions"][0] == rows[0]["completions"][0]


def test_duplicates_go_if_asked_to(tiny_model_dir, prompts):
    sample(prompts, tiny_model_dir, top_k=1, deduplicate=True, reward_funcs="sample_rewards.length")
    assert [len(row["completions"]) for row in read_rows()] == [1] * 9
    sample(prompts, tiny_model_dir, "all.jsonl", top_k=1, reward_funcs="sample_rewards.length")
    assert [row["completions"] for row in read_rows("all.jsonl")] == [row["completions"] * 3 for row in read_rows()]


def test_the_first_of_several_stays():
    own = write_rows(
        "own.jsonl", [{"prompt": "a", "completions": ["x", "y", "x", "z"], "ended": [False, True, True, True]}]
    )
    sample(own, dataset_completions=True, deduplicate=True)
    assert read_rows() == [{"prompt": "a", "completions": ["x", "y", "z"], "ended": [False, True, True]}]


@pytest.mark.parametrize(
    ("row", "sources"),
    [
        ({"prompt": "the film", "chosen": " is good", "rejected": " is bad"}, ["chosen", "rejected"]),
        ({"chosen": "the film is good", "rejected": "the film is bad"}, ["chosen", "rejected"]),
        ({"prompt": "the film", "completion": " is good"}, None),
        (
            {
                "chosen": [{"role": "user", "content": "film?"}, {"role": "assistant", "content": "good"}],
                "rejected": [{"role": "user", "content": "film?"}, {"role": "assistant", "content": "very bad"}],
            },
            ["chosen", "rejected"],
        ),
    ],
    ids=["pairs", "pairs without prompt", "completion", "chat pairs"],
)
def test_own_completions_need_no_model(row, sources):
    """Policy P: the dataset's own completions, scored."""
    own = write_rows("own.jsonl", [row | {"id": 1}])
    sample(own, dataset_completions=True, reward_funcs="sample_rewards.length")
    [found] = read_rows()
    texts = [c if isinstance(c, str) else c[0]["content"] for c in found["completions"]]
    assert found.get("sources") == sources
    assert found["scores"] == [len(text) for text in texts]
    assert [text.strip().split()[-1] for text in texts] == ["good", "bad"][: len(texts)]
    assert set(found) - {"sources"} == {"prompt", "completions", "scores", "ended", "id"}


def test_beams_and_own_completions(tiny_model_dir):
    """Policy BP; completions of a column of another name."""
    own = write_rows("own.jsonl", [{"prompt": p, "continuation": " is good"} for p in PROMPTS])
    settings = {"num_beams": 3, "dataset_completions": True, "completion_columns": "continuation"}
    sample(own, tiny_model_dir, **settings, reward_funcs="sample_rewards.length")
    for row in read_rows():
        assert row["sources"] == [tiny_model_dir] * 3 + ["continuation"]
        assert len(set(row["completions"])) == 4
    sample(own, tiny_model_dir, "again.jsonl", **settings, seed=7, reward_funcs="sample_rewards.length")
    assert read_rows("again.jsonl") == read_rows(), "a beam search does not depend on the seed"


def test_diverse_beams_out_of_reach(tiny_model_dir, prompts):
    diverse = {"num_beams": 4, "num_beam_groups": 4, "diversity_penalty": 1}
    with pytest.raises(ValueError, match=r"trust_remote_code.*temperature"):
        sample(prompts, tiny_model_dir, **diverse)
    with pytest.raises(OSError, match=r"Cannot load 'no/where'.*temperature"):
        sample(prompts, tiny_model_dir, **diverse, trust_remote_code=True, custom_generate="no/where")


def test_four_bits(tiny_model_dir, prompts):
    assert sample(prompts, tiny_model_dir, load_in_4bit=True, reward_funcs="sample_rewards.length") == 0
    assert len(read_rows()) == 9


def test_seed_and_dtype(tiny_model_dir, prompts):
    for name, settings in {"a": {}, "b": {}, "c": {"seed": 1}, "d": {"dtype": "bfloat16"}}.items():
        sample(prompts, tiny_model_dir, f"{name}.jsonl", **settings)
    texts = [Path(f"{name}.jsonl").read_text() for name in "abcd"]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] != texts[3]


def test_each_batch_has_samples_of_its_own(tiny_model_dir):
    same = write_rows("same.jsonl", [{"prompt": "the film"}] * 8)
    sample(same, tiny_model_dir, max_completion_length=8, generation_batch_size=1, num_generations=1)  # four a batch
    texts = [row["completions"][0] for row in read_rows()]
    assert len(set(texts)) == 8


# ------------------------------------------------------------------------------------------------------- interruptions

BATCHES = {"generation_batch_size": 8, "num_generations": 2, "reward_funcs": "sample_rewards.length"}  # of 4 prompts
BY_LENGTH = sorted(PROMPTS, key=len, reverse=True)  # the order in which they are generated


def stop_at(monkeypatch, name, number, error):
    """Let the `number`-th call of `os.<name>` in the writer fail, after its work or instead of it."""
    real, calls = getattr(os, name), []

    def stub(*args):
        calls.append(args)
        if len(calls) == number:
            raise error
        return real(*args)

    monkeypatch.setattr(resumable_file.os, name, stub)


def complete(tiny_model_dir, prompts, output="complete.jsonl"):
    sample(prompts, tiny_model_dir, output, **BATCHES)
    return Path(output).read_bytes()


# fsync: of the state at the start, then of rows and state for each batch, then of state, sorted rows and state;
# replace: of the state each time, and of the sorted rows
@pytest.mark.parametrize(
    ("kind", "name", "number"),
    [("Ctrl-C", "fsync", n) for n in range(2, 11)]
    + [("Ctrl-C", "replace", n) for n in range(2, 8)]
    + [("disk full", name, n) for name, n in (("fsync", 2), ("fsync", 5), ("fsync", 9), ("replace", 3))],
    ids=str,
)
def test_resumed_equals_uninterrupted(tiny_model_dir, prompts, monkeypatch, capsys, kind, name, number):
    expected = complete(tiny_model_dir, prompts)
    error = KeyboardInterrupt() if kind == "Ctrl-C" else OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        stop_at(patch, name, number, error)
        if kind == "Ctrl-C":
            assert sample(prompts, tiny_model_dir, **BATCHES) == 130
        else:
            with pytest.raises(
                OSError, match=r"disk is full: out.jsonl \(free some space, then run the same command\)"
            ):
                sample(prompts, tiny_model_dir, **BATCHES)
    printed = capsys.readouterr().err
    rows = read_rows()  # complete lines, whatever happened
    assert len(rows) in (0, 4, 8, 9)
    assert (f"keeps {len(rows)} rows, {len(rows)} of 9" in printed) if rows else ("no row was written yet" in printed)
    assert "To go on:\ntrl-ext sample --dataset_name prompts.jsonl" in printed
    assert sample(prompts, tiny_model_dir, **BATCHES) == 0
    assert Path("out.jsonl").read_bytes() == expected
    assert not list(Path().glob("*.part"))


@pytest.mark.parametrize("changed", ["reward", "template"])
def test_a_file_that_was_edited_ends_a_run(tiny_model_dir, prompts, monkeypatch, changed):
    """The rest would be scored by another function, or rendered by another template, under the same name."""
    template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    Path("template.jinja").write_text(template)
    settings = BATCHES | {"reward_funcs": "edited_rewards.py:length", "chat_template_path": "template.jinja"}
    Path("edited_rewards.py").write_text(REWARDS)
    with monkeypatch.context() as patch:
        stop_at(patch, "fsync", 6, KeyboardInterrupt())
        assert sample(prompts, tiny_model_dir, **settings) == 130
    sys.modules.pop("edited_rewards")
    if changed == "reward":
        Path("edited_rewards.py").write_text(REWARDS.replace("float(len", "-float(len"))
        message = "source of edited_rewards.py:length was"
    else:
        Path("template.jinja").write_text(template + "{# #}")
        message = "contents of template.jinja was"
    importlib.invalidate_caches()
    linecache.clearcache()
    with pytest.raises(ValueError, match=message):
        sample(prompts, tiny_model_dir, **settings)
    sys.modules.pop("edited_rewards")


def test_the_command_that_goes_on_does_not_start_over(tiny_model_dir, prompts, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, "fsync", 4, KeyboardInterrupt())
        sample(prompts, tiny_model_dir, **BATCHES, overwrite_output=True)
    command = capsys.readouterr().err.strip().splitlines()[-1].split()
    assert command[:2] == ["trl-ext", "sample"]
    assert main(command[2:]) == 0
    assert "resuming after 4 of 9 prompts" in capsys.readouterr().err
    assert [row["prompt"] for row in read_rows()] == PROMPTS


@pytest.mark.parametrize(("form", "settings"), [("pairs", {"pairing": "all"}), ("kto", {}), ("sft", {})])
def test_rows_of_other_trainers_are_resumed_too(tiny_model_dir, prompts, monkeypatch, capsys, form, settings):
    """They are those that `trl_ext.from_scored_rows` makes of the scored rows."""
    settings = BATCHES | {"format": form, **settings}
    sample(prompts, tiny_model_dir, "scored.jsonl", **BATCHES)
    with monkeypatch.context() as patch:
        stop_at(patch, "fsync", 6, KeyboardInterrupt())
        assert sample(prompts, tiny_model_dir, **settings) == 130
    assert sample(prompts, tiny_model_dir, **settings) == 0
    chosen = {name: value for name, value in settings.items() if name == "pairing"}
    assert read_rows() == from_scored_rows(read_rows("scored.jsonl"), form, **chosen).to_list()
    with pytest.raises(ValueError, match="no reward"):
        sample(prompts, tiny_model_dir, "none.jsonl", format="dpo")


def test_completions_that_were_cut_off_are_counted_where_no_column_has_them(tiny_model_dir, prompts, capsys):
    """In what is printed and in the card, and `ended_only` leaves them out. None ends within two tokens here."""
    settings = {"format": "sft", "max_completion_length": 2, "reward_funcs": "sample_rewards.length"}
    assert sample(prompts, tiny_model_dir, **settings) == 0
    cut = len(read_rows())
    assert f"{cut} completions that did not end, to which TRL's trainers add" in capsys.readouterr().out
    assert f"| completions in these rows that were cut off | {cut} |" in Path("out.jsonl.README.md").read_text()
    with pytest.raises(ValueError, match="no row is left"):
        sample(prompts, tiny_model_dir, "none.jsonl", **settings, ended_only=True)


def test_a_batch_that_fails_leaves_the_others(tiny_model_dir, prompts, capsys):
    settings = BATCHES | {"reward_funcs": "sample_rewards.broken"}
    with pytest.raises(RewardError, match="'broken' raised RuntimeError: no music please"):
        sample(prompts, tiny_model_dir, **settings)
    assert [row["prompt"] for row in read_rows()] == BY_LENGTH[:4]
    assert "out.jsonl keeps 4 rows, 4 of 9 prompts are done" in capsys.readouterr().err


def interrupted(tiny_model_dir, prompts, monkeypatch, output="out.jsonl", number=4):
    with monkeypatch.context() as patch:
        stop_at(patch, "fsync", number, KeyboardInterrupt())
        assert sample(prompts, tiny_model_dir, output, **BATCHES) == 130


@pytest.mark.parametrize("torn", ['{"prompt": "half a li', '{"prompt": "not counted yet", "completions": []}\n'])
def test_what_a_killed_run_leaves_is_cut_off(tiny_model_dir, prompts, monkeypatch, capsys, torn):
    expected = complete(tiny_model_dir, prompts)
    interrupted(tiny_model_dir, prompts, monkeypatch)
    with open("out.jsonl", "a") as file:
        file.write(torn)
    assert sample(prompts, tiny_model_dir, **BATCHES) == 0
    assert "resuming after 4 of 9 prompts" in capsys.readouterr().err
    assert Path("out.jsonl").read_bytes() == expected


def test_parquet_comes_at_the_end(tiny_model_dir, prompts, monkeypatch):
    complete(tiny_model_dir, prompts)
    interrupted(tiny_model_dir, prompts, monkeypatch, "out.parquet")
    assert not Path("out.parquet").exists()
    assert len(read_rows("out.parquet.rows.jsonl")) == 4
    assert sample(prompts, tiny_model_dir, "out.parquet", **BATCHES) == 0
    assert load_dataset("parquet", data_files="out.parquet", split="train").to_list() == read_rows("complete.jsonl")


def test_rows_that_were_left_out_do_not_shift_the_rest(tiny_model_dir, prompts, monkeypatch):
    settings = BATCHES | {"reward_funcs": "sample_rewards.short_only", "max_completion_length": 3}
    sample(prompts, tiny_model_dir, "complete.jsonl", **settings)
    assert sum(len(row["completions"]) for row in read_rows("complete.jsonl")) < 18
    with monkeypatch.context() as patch:
        stop_at(patch, "fsync", 4, KeyboardInterrupt())
        assert sample(prompts, tiny_model_dir, **settings) == 130
    assert sample(prompts, tiny_model_dir, **settings) == 0
    assert Path("out.jsonl").read_bytes() == Path("complete.jsonl").read_bytes()


def test_other_settings_are_named(tiny_model_dir, prompts, monkeypatch):
    interrupted(tiny_model_dir, prompts, monkeypatch)
    before = Path("out.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"temperature was 1\.0 and is 0\.5.*overwrite_output") as caught:
        sample(prompts, tiny_model_dir, **BATCHES, temperature=0.5)
    assert "seed" not in str(caught.value)
    write_rows(prompts, [{"prompt": p, "label": 0, "note": "changed"} for p in PROMPTS])
    with pytest.raises(ValueError, match=r"contents of the dataset was '9 rows, .*' and is '9 rows"):
        sample(prompts, tiny_model_dir, **BATCHES)
    assert Path("out.jsonl").read_bytes() == before
    assert sample(prompts, tiny_model_dir, **BATCHES, temperature=0.5, overwrite_output=True) == 0
    assert len(read_rows()) == 9


def test_other_weights_under_the_same_name(save_model, prompts, monkeypatch):
    save_model("model")
    interrupted("model", prompts, monkeypatch)
    save_model("model", seed=1)
    with pytest.raises(ValueError, match="weights of model was"):
        sample(prompts, "model", **BATCHES)


def test_settings_may_change_while_there_is_no_row(tiny_model_dir, prompts):
    with pytest.raises(OSError, match=r"no such model|does not exist|no model"):
        sample(prompts, "./misspelt")
    assert sample(prompts, tiny_model_dir) == 0


def test_a_complete_file_is_left_alone(tiny_model_dir, prompts, capsys):
    for output in ("out.jsonl", "out.parquet"):
        sample(prompts, tiny_model_dir, output)
        before = Path(output).stat().st_mtime_ns
        assert sample(prompts, tiny_model_dir, output) == 0
        assert "is complete, with 9 rows" in capsys.readouterr().out
        assert Path(output).stat().st_mtime_ns == before
        Path(output).unlink()
        assert sample(prompts, tiny_model_dir, output) == 0, "a file that was deleted is made again"


def test_a_card_that_was_not_written_is_written_by_the_same_command(tiny_model_dir, prompts):
    assert sample(prompts, tiny_model_dir) == 0
    card = Path("out.jsonl.README.md")
    expected = card.read_text()
    card.unlink()
    assert sample(prompts, tiny_model_dir) == 0
    assert card.read_text() == expected


def test_files_of_others_are_not_touched(tiny_model_dir, prompts, monkeypatch):
    for output in ("out.jsonl", "out.parquet"):
        Path(output).write_text("precious\n")
        with pytest.raises(ValueError, match="exists and was not left by an interrupted run"):
            sample(prompts, tiny_model_dir, output)
        assert Path(output).read_text() == "precious\n"
    interrupted(tiny_model_dir, prompts, monkeypatch, "mine.jsonl")
    Path("mine.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"has 0 bytes, but .* were written: the file was changed"):
        sample(prompts, tiny_model_dir, "mine.jsonl", **BATCHES)
    Path("mine.jsonl.state.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        sample(prompts, tiny_model_dir, "mine.jsonl", **BATCHES)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_long_prompts_are_dropped_and_counted(tiny_model_dir, capsys):
    long = "the film was good " * 60  # 240 words; the model has 256 positions
    rows = write_rows("long.jsonl", [{"prompt": p} for p in ["a", long, "b", long]])
    sample(rows, tiny_model_dir, max_completion_length=20)
    assert [row["prompt"] for row in read_rows()] == ["a", "b"]
    assert "2 prompts too long for the model with max_completion_length" in capsys.readouterr().out
    short = write_rows("short.jsonl", [{"prompt": p} for p in "ab"])
    greedy = {"temperature": 0, "num_generations": 1, "max_completion_length": 20}
    sample(rows, tiny_model_dir, "greedy.jsonl", **greedy)
    sample(short, tiny_model_dir, "greedy_short.jsonl", **greedy)
    assert read_rows("greedy.jsonl") == read_rows("greedy_short.jsonl"), "the others keep their own completions"
    only = write_rows("only.jsonl", [{"prompt": long}])
    with pytest.raises(DataError, match="no row is left of 1: 1 prompts too long"):
        sample(only, tiny_model_dir, "only_out.jsonl", max_completion_length=20)
    with pytest.raises(
        ValueError, match=r"max_completion_length \(256\) leaves no tokens .* context length of .* is 256"
    ):
        sample(rows, tiny_model_dir, "no_room.jsonl", max_completion_length=256)


def test_chat_prompts_need_a_chat_template(save_model):
    save_model("plain")
    chats = write_rows("chats.jsonl", [{"prompt": [{"role": "user", "content": "film?"}]}])
    with pytest.raises(DataError, match=r"'plain': .*no chat template"):
        sample(chats, "plain")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": 1}], "lacks the column 'prompt'; it has 'text', 'label'"),
        ([{"prompt": "a"}, {"prompt": ""}], "Row 1, column 'prompt'"),
        ([{"prompt": "a"}, {"prompt": None}], "Row 1, column 'prompt'"),
        ([{"prompt": 3}], "Row 0, column 'prompt'"),
        ([{"prompt": [{"text": "film?"}]}], "Row 0, column 'prompt'"),
    ],
)
def test_bad_prompts(tiny_model_dir, rows, message):
    with pytest.raises(DataError, match=message):
        sample(write_rows("bad.jsonl", rows), tiny_model_dir)
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"prompt": "a", "text": "b"}],
            "no completions of its own: it lacks 'completions'. It has prompt, text",
        ),
        ([{"prompt": "a", "completions": ["b"]}, {"prompt": "a", "completions": []}], "Row 1, column 'completions'"),
        ([{"prompt": "a", "completions": "b"}], "Row 0, column 'completions': must be a list"),
        ([{"prompt": "a", "completions": [""]}], "Row 0, column 'completions'.*empty"),
        ([{"prompt": "a", "completions": ["b"], "ended": [True, False]}], "Row 0, column 'ended'"),
        ([{"prompt": "a", "completions": ["b"], "sources": ["c", "d"]}], "Row 0, column 'sources'"),
    ],
)
def test_bad_completions(rows, message):
    with pytest.raises(DataError, match=message):
        sample(write_rows("bad.jsonl", rows), dataset_completions=True)


def test_empty_and_missing_data(tiny_model_dir, prompts):
    Path("empty.jsonl").write_text("")
    for name in ("empty.jsonl", "missing.jsonl"):
        with pytest.raises(DataError, match=name):
            sample(name, tiny_model_dir)
    with pytest.raises(DataError, match="no split 'test'"):
        sample(prompts, tiny_model_dir, dataset_train_split="test")


def test_values_that_json_does_not_know(tiny_model_dir):
    from datasets import Dataset

    Dataset.from_dict({"prompt": ["a"], "blob": [b"\x00"]}).to_parquet("binary.parquet")
    with pytest.raises(DataError, match="Output row 0, column 'blob': cannot be written as JSON"):
        sample("binary.parquet", tiny_model_dir)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 0}, "num_generations must be at least 1, got 0"),
        ({"max_num_prompts": -1}, "`max_num_prompts` must be at least 0"),
        ({"generation_batch_size": 0}, "`generation_batch_size` must be at least 1"),
        ({"temperature": 0}, "the same completion every time"),
        ({"reward_funcs": "nothing_like_that"}, "Unknown reward function 'nothing_like_that'"),
        ({"reward_weights": [1, 2]}, "`reward_weights` has 2 entries for 0 reward functions"),
        ({"completion_columns": "text"}, "no effect without --dataset_completions"),
        ({"output": "out.csv"}, "must end in .jsonl or .parquet"),
        ({"output": "folder.jsonl"}, "is a directory"),
        ({"output": "./prompts.jsonl"}, "output_file is the dataset itself"),
        ({"model": None}, "--model_name_or_path or --dataset_completions or --endpoint: the models to sample from"),
        ({"model": "./nowhere"}, "Cannot load the model './nowhere'"),
        ({"model": "nobody/nothing"}, "Cannot load the model 'nobody/nothing'"),
        ({"reward_model_name_or_path": "./nowhere"}, "Unknown reward function './nowhere'"),
    ],
    ids=str,
)
def test_bad_settings(tiny_model_dir, prompts, settings, message):
    Path("folder.jsonl").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        sample(prompts, **({"model": tiny_model_dir} | settings))
    assert len(read_rows("prompts.jsonl")) == 9


@pytest.mark.parametrize("missing", ["--dataset_name", "--output_file"])
def test_missing_settings(tiny_model_dir, prompts, missing):
    words = ["--model_name_or_path", tiny_model_dir, "--dataset_name", prompts, "--output_file", "out.jsonl"]
    place = words.index(missing)
    with pytest.raises(ValueError, match=f"{missing} or --prompt: the "):
        main(words[:place] + words[place + 2 :])


def test_one_process(tiny_model_dir, prompts, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process, but was started as 2"):
        sample(prompts, tiny_model_dir)


# ----------------------------------------------------------------------------------------------------------- the file


def test_totals_are_sums_over_what_is_written(tmp_path):
    file = ResumableFile("rows.jsonl", {"seed": 1})
    file.append([{"prompt": "ä\u2028"}], {"tokens": 3})
    file.append([], {"tokens": 4, "ended": 1})
    again = ResumableFile("rows.jsonl", {"seed": 1})
    assert (again.batches, again.rows, again.totals) == (2, 1, {"tokens": 7, "ended": 1})
    assert read_rows("rows.jsonl") == [{"prompt": "ä\u2028"}]


def test_half_a_surrogate_pair_is_written(tmp_path):
    ResumableFile("rows.jsonl", {}).append([{"prompt": "\ud83d!"}])
    assert read_rows("rows.jsonl") == [{"prompt": "?!"}]


def test_random_states_are_restored(tiny_model_dir, prompts):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    sample(prompts, tiny_model_dir, max_num_prompts=1)
    assert torch.rand(1) == expected
