# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""`trl-ext evaluate` from its arguments to its table and file."""

import hashlib
import json
import os
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_tokenizer
from peft import LoraConfig, get_peft_model
from scripted_server import ScriptedServer
from transformers import AutoModelForCausalLM

import trl_ext.cli.evaluate
import trl_ext.evaluation.report
from trl_ext.cli.arguments import LoadingArguments
from trl_ext.cli.evaluate import EvaluateArguments, main, make_parser
from trl_ext.cli.main import main as trl_ext_main
from trl_ext.cli.models import trained_by
from trl_ext.data.schema import DataError
from trl_ext.evaluation.files import check_writable, short_names
from trl_ext.inference.policy import model_policy
from trl_ext.models.load import load_model
from trl_ext.models.tokenizers import load_tokenizer


METRICS = ["kl", "perplexity", "distinct_2", "completion_length", "ended"]
REWARDS = """
def length(completions, **kwargs):
    return [float(len(text)) for text in completions]

def sometimes(completions, **kwargs):
    return [None, *[1.0] * (len(completions) - 1)]

def broken(completions, **kwargs):
    raise RuntimeError("the judge is out")
"""


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    """A file of prompts; the working directory has reward functions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "eval_rewards.py").write_text(REWARDS)
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"the movie was {word}"}) + "\n" for word in ("good", "a", "so", "it"))
    )
    return str(file)


@pytest.fixture(scope="module")
def changed_dir(tiny_model_dir, tmp_path_factory):
    """The tiny model with other weights."""
    path = tmp_path_factory.mktemp("changed") / "changed"
    shutil.copytree(tiny_model_dir, path)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return str(path)


@pytest.fixture
def evaluate(prompts, tmp_path):
    """Run the command on the prompts; the exit status and what was written."""

    def run(*arguments: str) -> tuple[int, dict | None]:
        out = tmp_path / "out.json"
        fixed = ["--dataset_name", prompts, "--max_completion_length", "6", "--output_file", str(out)]
        status = main([*fixed, *arguments])
        return status, json.loads(out.read_text()) if out.exists() else None

    return run


def by_model(report: dict) -> dict[str, dict]:
    return {row["model"]: row for row in report["models"]}


def test_base_model_and_adapter_in_one_table(
    evaluate, tiny_model_dir, changed_dir, adapter_dir, tiny_reward_dir, capsys
):
    status, report = evaluate(
        "--model_name_or_path", changed_dir, adapter_dir, "--base_model_name_or_path", tiny_model_dir,
        "--reward_funcs", tiny_reward_dir, "eval_rewards.length", "--top_k", "20", "--num_completions_to_print", "2",
    )  # fmt: skip
    assert status == 0
    assert [row["model"] for row in report["models"]] == [tiny_model_dir, changed_dir, adapter_dir]
    reward = "reward/" + tiny_reward_dir.rstrip("/").rpartition("/")[2]
    for row in report["models"]:
        for key in [*METRICS, reward, "reward/length"]:
            assert isinstance(row[key], float), key
            assert row[f"{key}_se"] >= 0
        assert row["notes"] == {}
    rows = by_model(report)
    assert (rows[tiny_model_dir]["kl"], rows[tiny_model_dir]["kl_se"]) == (0.0, 0.0)
    assert rows[changed_dir]["kl"] > 0.1
    assert rows[adapter_dir]["kl"] > 0.01

    assert len(report["completions"]) == 2
    for shown in report["completions"]:
        assert shown["prompt"].startswith("the movie was")
        for model in rows:
            assert shown["models"][model]["rewards"]["length"] == len(shown["models"][model]["completion"])

    settings = report["settings"]
    assert (settings["num_prompts"], settings["top_k"], settings["seed"]) == (4, 20, 42)
    assert settings["base_model_name_or_path"] == tiny_model_dir
    assert settings["versions"]["torch"] == torch.__version__

    out = capsys.readouterr().out
    assert "(base)" in out
    for word in ("changed", "adapter", "length", "KL to base", "±", "the movie was good"):
        assert word in out


def test_completions_are_kept_and_scored_again_without_a_model(
    evaluate, tiny_model_dir, changed_dir, tmp_path, monkeypatch, capsys
):
    """Sampled once with top-k 20, then scored by another function: all but the rewards is as before."""
    _, first = evaluate(
        "--model_name_or_path", changed_dir, "--base_model_name_or_path", tiny_model_dir, "--num_generations", "2",
        "--reward_funcs", "eval_rewards.length", "--top_k", "20", "--best_of_n", "2",
    )  # fmt: skip
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    changed = [row for row in table if row["model"] == changed_dir]
    assert len(changed) == 4 * 2 * 2  # prompts, completions, and those for the KL
    kl = [row["logp"] - row["base_logp"] for row in changed if row["sample"] == "kl"]
    assert sum(kl) / len(kl) == pytest.approx(by_model(first)[changed_dir]["kl"])
    assert all(row["kl"] == row["logp"] - row["base_logp"] for row in changed)  # of those with top-k 20 as well
    lengths = [row["reward/length"] for row in changed if row["sample"] == "evaluated"]
    assert sum(lengths) / len(lengths) == pytest.approx(by_model(first)[changed_dir]["reward/length"])
    differences = by_model(first)[changed_dir]["difference/length"]
    assert differences == pytest.approx(
        by_model(first)[changed_dir]["reward/length"] - by_model(first)[tiny_model_dir]["reward/length"]
    )

    monkeypatch.setattr(trl_ext.cli.evaluate, "Models", None)  # none is loaded
    (tmp_path / "more_rewards.py").write_text(
        "def words(completions, **_):\n    return [len(text.split()) for text in completions]\n"
        "def of_some(completions, **_):\n    return [None, *map(len, completions[1:])]\n"
    )
    capsys.readouterr()
    again = ["--from", str(tmp_path / "out.json"), "--reward_funcs", "more_rewards.words"]
    assert main([*again, "--output_file", str(tmp_path / "again.json"), "--num_completions_to_print", "1"]) == 0
    second = json.loads((tmp_path / "again.json").read_text())
    for row, before in zip(second["models"], first["models"], strict=True):
        same = [key for key in before if not key.startswith(("reward/", "difference/", "notes"))]
        assert {key: row[key] for key in same} == {key: before[key] for key in same}
        assert row["reward/words"] >= 1 and "reward/length" not in row
    assert second["models"][1]["notes"]["reward/words"] == "of the completions that length chose"
    assert second["settings"] == first["settings"] | {
        "reward_funcs": ["more_rewards.words"], "from_file": str(tmp_path / "out.json"),
        "output_file": str(tmp_path / "again.json"), "num_completions_to_print": 1,
    }  # fmt: skip
    assert second["comparison"]["prompts"] == first["comparison"]["prompts"]
    [(name, words)] = second["comparison"]["rewards"].items()
    assert (name, words["name"], words["weights"]) == ("words", "more_rewards.words", None)
    own = "def words(completions, **_):\n    return [len(text.split()) for text in completions]\n"
    assert words["source"] == hashlib.sha256(own.encode()).hexdigest()[:16]  # not that of the rest of the file
    scored = pq.read_table(tmp_path / "again.parquet").to_pylist()
    assert [row["completion"] for row in scored] == [row["completion"] for row in table]
    assert all(row["reward"] == len(row["completion"].split()) for row in scored if row["sample"] == "evaluated")
    assert "words" in capsys.readouterr().out
    of_some = ["--reward_funcs", "more_rewards.of_some", "--output_file", str(tmp_path / "some.json")]
    assert main(["--from", str(tmp_path / "out.json"), *of_some]) == 0
    notes = [row["notes"]["reward/of_some"] for row in json.loads((tmp_path / "some.json").read_text())["models"]]
    few = "not defined for 1 of 8 completions"
    assert notes == [few, f"{few}; of the completions that length chose", few]

    fails(["--from", str(tmp_path / "out.json")], ValueError, "--from needs the rewards")
    fails([*again, "--top_k", "5"], ValueError, "`top_k`: no effect with --from")
    fails([*again, "--dtype", "float32", "--proxy_top_k", "5"], ValueError, "`dtype`, `proxy_top_k`: no effect")
    fails([*again, "--output_file", str(tmp_path / "out.json")], ValueError, "would replace .*out.json, which is read")
    fails([*again, "--output_file", str(tmp_path / "x.parquet")], ValueError, "`output_file` is a JSON file")


def test_the_method_of_a_model_is_a_tag_of_its_card(tmp_path):
    assert trained_by(str(tmp_path)) == ""
    for tags, method in ((["trl", "generated_from_trainer", "dpo"], "DPO"), (["text-generation"], ""), (["trl"], "")):
        listed = "".join(f"\n- {tag}" for tag in tags)
        (tmp_path / "README.md").write_text(f"---\ntags:{listed}\n---\n# A model\n")
        assert trained_by(str(tmp_path)) == method


def test_a_reward_server_and_what_a_function_logs(evaluate, tiny_model_dir, tmp_path, capsys):
    """The metric is in the table beside the rewards, the column with the completions."""
    (tmp_path / "logging_rewards.py").write_text(
        "def logs(completions, log_metric, log_extra, **_):\n"
        "    log_metric('share', 0.25)\n"
        "    log_extra('letters', [len(text) for text in completions])\n"
        "    return [0.0] * len(completions)\n"
    )
    server = ScriptedServer(lambda path, body: {"rewards": [float(len(text)) for text in body.get("query", [])]})
    address = server.url.removesuffix("/v1") + "/get_reward"
    status, report = evaluate(
        "--model_name_or_path", tiny_model_dir, "--reward_funcs", address, "logging_rewards.logs",
        "--reward_server_kwargs", '{"timeout": 5, "max_retries": 0}', "--num_completions_to_print", "1",
    )  # fmt: skip
    server.close()
    [row] = report["models"]
    assert status == 0 and row["metric/share"] == 0.25 and row["reward/logs"] == 0.0
    sent = [len(text) for _, body, _ in server.requests for text in body.get("query", [])]
    assert row["reward/get_reward"] == pytest.approx(sum(sent) / len(sent))
    [shown] = report["completions"]
    assert shown["models"][tiny_model_dir]["extra"] == {"letters": len(shown["models"][tiny_model_dir]["completion"])}
    assert "share" in (printed := capsys.readouterr().out) and "letters" in printed


def test_prompts_that_leave_no_context_for_completions_are_not_measured(evaluate, prompts, tiny_model_dir, capsys):
    """Past its positions a model writes nonsense, which would be measured as well as anything."""
    with open(prompts, "a") as file:
        file.write(json.dumps({"prompt": "a " * 300}) + "\n")
    assert evaluate("--model_name_or_path", tiny_model_dir)[0] == 1
    message = (
        "prompt 4 has 301 tokens, but with max_completion_length (6) the model's context length leaves 250 for it: "
        "shorten either"
    )
    assert message in capsys.readouterr().err
    assert evaluate("--model_name_or_path", tiny_model_dir, "--max_num_prompts", "4")[0] == 0


def test_an_adapter_brings_its_base_and_agrees_with_the_base_named(evaluate, tiny_model_dir, adapter_dir):
    alone = evaluate("--model_name_or_path", adapter_dir)[1]
    named = evaluate("--model_name_or_path", adapter_dir, "--base_model_name_or_path", tiny_model_dir)[1]
    assert [row["model"] for row in alone["models"]] == [tiny_model_dir, adapter_dir]
    for row in alone["models"] + named["models"]:
        assert row.pop("generation_seconds") > 0  # a clock's
    assert alone["models"] == named["models"]


def test_the_base_of_an_adapter_that_changed_it_is_a_model_of_its_own(evaluate, tiny_model_dir, tmp_path):
    """Without an adapter by PiSSA, the model is not its base: a new one is at no distance from the base."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights="pissa")
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    rows = evaluate("--model_name_or_path", str(tmp_path / "adapter"))[1]["models"]
    assert [row["model"] for row in rows] == [tiny_model_dir, str(tmp_path / "adapter")]
    assert rows[1]["kl"] == pytest.approx(0, abs=1e-3)
    loaded = load_model(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match="without its adapter is not the base model"):
        model_policy(loaded, make_tokenizer(chat=True), use_adapter=False)


def test_kl_does_not_depend_on_whether_the_base_is_a_model_of_its_own(evaluate, tiny_model_dir, adapter_dir, tmp_path):
    shared = evaluate("--model_name_or_path", adapter_dir)[1]["models"][1]
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model_dir, copy)
    separate = evaluate("--model_name_or_path", adapter_dir, "--base_model_name_or_path", str(copy))[1]["models"][1]
    assert separate["kl"] == pytest.approx(shared["kl"], rel=1e-4)


def test_the_kl_of_fewer_prompts_and_a_file_without_log_probabilities(evaluate, adapter_dir, tmp_path):
    """The file has the log-probabilities of the completions of the KL, and no others."""
    flags = ["--kl_prompts", "1", "--completion_logps", "false", "--top_k", "2"]
    report = evaluate("--model_name_or_path", adapter_dir, *flags)[1]
    row = report["models"][1]
    assert row["kl"] is not None and row["notes"]["kl"].startswith("of the first 1 of ")
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    mine = [entry for entry in table if entry["model"] == adapter_dir]
    assert {entry["row_index"] for entry in mine if entry["sample"] == "kl"} == {0}
    for entry in mine:
        assert (entry["logp"] is None) == (entry["sample"] == "evaluated")


def test_settings_of_the_kl_and_the_file_are_checked(tiny_model_dir):
    words = ["--model_name_or_path", tiny_model_dir, "--dataset_name", "no.jsonl"]
    fails([*words, "--kl_prompts", "-1"], ValueError, "kl_prompts")
    fails([*words, "--completion_logps", "false"], ValueError, "--output_file")


def test_without_a_base_the_table_gives_the_reason_for_no_kl(evaluate, changed_dir, capsys):
    status, report = evaluate("--model_name_or_path", changed_dir)
    assert status == 0
    (row,) = report["models"]
    assert row["kl"] is row["kl_se"] is row["perplexity"] is None
    assert row["notes"]["kl"] == "no base model was named"
    assert "changed, kl: no base model was named" in capsys.readouterr().out


def test_perplexity_under_a_model_of_its_own(evaluate, tiny_model_dir, changed_dir):
    own = ["--model_name_or_path", tiny_model_dir, "--perplexity_model_name_or_path"]
    by_itself, by_other = (evaluate(*own, judge)[1]["models"][0] for judge in (tiny_model_dir, changed_dir))
    assert by_itself["kl"] is None
    assert 1 < by_itself["perplexity"] < by_other["perplexity"]  # of its own completions, the model thinks best


def test_a_base_that_measures_the_perplexity_is_loaded_once(evaluate, tiny_model_dir, changed_dir, monkeypatch):
    loaded, load = [], LoadingArguments.load

    def counted(self, name, *args, **kwargs):
        loaded.append(name)
        return load(self, name, *args, **kwargs)

    monkeypatch.setattr(LoadingArguments, "load", counted)
    words = ["--model_name_or_path", changed_dir, "--base_model_name_or_path", tiny_model_dir]
    _, report = evaluate(*words, "--perplexity_model_name_or_path", tiny_model_dir)
    assert loaded == [tiny_model_dir, changed_dir]
    assert all(row["perplexity"] > 1 for row in report["models"])


def test_the_base_named_twice_is_one_row(evaluate, tiny_model_dir):
    _, report = evaluate(
        "--model_name_or_path", tiny_model_dir + "/", tiny_model_dir, "--base_model_name_or_path", tiny_model_dir
    )
    assert [row["model"] for row in report["models"]] == [tiny_model_dir]


def test_four_bit(evaluate, adapter_dir, tiny_model_dir):
    status, report = evaluate(
        "--model_name_or_path", adapter_dir, "--load_in_4bit", "--reward_funcs", "eval_rewards.length"
    )
    assert status == 0
    exact = evaluate("--model_name_or_path", adapter_dir)[1]
    for four_bit, full in zip(report["models"], exact["models"], strict=True):
        assert four_bit["model"] == full["model"]
        assert four_bit["perplexity"] != full["perplexity"]
    assert report["models"][0]["kl"] == 0.0
    assert report["models"][1]["kl"] > 0.01


def test_settings_come_from_yaml_and_flags_win(prompts, changed_dir, tmp_path):
    config = tmp_path / "evaluate.yaml"
    config.write_text(
        f"model_name_or_path: {changed_dir}\ndataset_name: {prompts}\nmax_completion_length: 5\nseed: 1\n"
        f"reward_funcs: [eval_rewards.length]\noutput_file: {tmp_path}/yaml.json\nmax_num_prompts: 3\n"
    )
    assert main(["--config", str(config), "--seed", "2"]) == 0
    report = json.loads((tmp_path / "yaml.json").read_text())
    assert {key: report["settings"][key] for key in ("max_completion_length", "seed", "num_prompts")} == {
        "max_completion_length": 5, "seed": 2, "num_prompts": 3,
    }  # fmt: skip
    assert report["settings"]["model_name_or_path"] == [changed_dir]


def test_completions_that_look_like_markup_are_printed_as_they_are(capsys):
    report = trl_ext.evaluation.report.Report([{"prompt": "[bold]x[/nothing]"}], {}, num_completions=1)
    found = trl_ext.evaluation.report.Evaluation(
        completions=[[trl_ext.generation.generate.Completion("see [/red] and [link=x]", [1], True)]],
        rewards={"r": [[0.5]]},
    )
    report.add("m", found)
    report.show()
    out = capsys.readouterr().out
    assert "[bold]x[/nothing]" in out
    assert "see [/red] and [link=x]" in out
    assert "r 0.50" in out


def test_rewards_that_do_not_apply_are_counted(evaluate, changed_dir, capsys):
    _, report = evaluate("--model_name_or_path", changed_dir, "--reward_funcs", "eval_rewards.sometimes")
    assert report["models"][0]["reward/sometimes"] == 1.0
    assert report["completions"][0]["models"][changed_dir]["rewards"] == {"sometimes": None}
    assert "reward/sometimes: not defined for 1 of 4 completions" in capsys.readouterr().out


def test_a_model_that_does_not_exist_is_named_and_the_others_are_kept(evaluate, changed_dir, tiny_model_dir, capsys):
    status, report = evaluate("--model_name_or_path", changed_dir, "./no/such/model", tiny_model_dir)
    assert status == 1
    rows = by_model(report)
    assert list(rows) == [changed_dir, "./no/such/model", tiny_model_dir]
    assert "directory does not exist" in rows["./no/such/model"]["error"]
    assert rows[changed_dir]["completion_length"] > 0
    assert rows[tiny_model_dir]["completion_length"] > 0
    captured = capsys.readouterr()
    assert "model './no/such/model'" in captured.err
    assert "failed" in captured.out


def test_a_model_that_fails_later_is_named_and_the_others_are_kept(
    evaluate, changed_dir, tiny_model_dir, tmp_path, capsys
):
    torn = tmp_path / "torn"
    shutil.copytree(changed_dir, torn)
    (torn / "model.safetensors").write_bytes(b"no weights")
    status, report = evaluate("--model_name_or_path", tiny_model_dir, str(torn), changed_dir)
    assert status == 1
    assert [("error" in row) for row in report["models"]] == [False, True, False]
    assert f"model {str(torn)!r}" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_finished(evaluate, changed_dir, tiny_model_dir, monkeypatch, capsys):
    measure = trl_ext.cli.evaluate.Models.measure

    def interrupted(self, policy, *args, **kwargs):
        if policy.name == changed_dir:
            raise KeyboardInterrupt
        return measure(self, policy, *args, **kwargs)

    monkeypatch.setattr(trl_ext.cli.evaluate.Models, "measure", interrupted)
    status, report = evaluate("--model_name_or_path", tiny_model_dir, changed_dir)
    assert status == 130
    assert list(by_model(report)) == [tiny_model_dir]
    assert "perplexity" in capsys.readouterr().out


def test_a_full_disk_leaves_the_old_file_and_the_table(evaluate, changed_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "out.json").write_text('{"old": 1}')

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trl_ext.atomic_files.os.fsync", full)
    status, report = evaluate("--model_name_or_path", changed_dir)
    assert status == 1
    assert report == {"old": 1}
    assert not list(tmp_path.glob("out.json.*"))
    captured = capsys.readouterr()
    assert "No space left" in captured.err
    assert "perplexity" in captured.out


def fails(arguments: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        main(arguments)


def test_bad_data(prompts, changed_dir, tmp_path):
    def with_rows(*rows: dict) -> list[str]:
        file = tmp_path / f"rows{len(list(tmp_path.iterdir()))}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ["--model_name_or_path", changed_dir, "--dataset_name", str(file)]

    fails(with_rows({"text": "a", "id": 1}), DataError, "lacks the column 'prompt'; it has 'text', 'id'")
    fails(with_rows(), DataError, "empty")
    fails(with_rows({"prompt": "a"}, {"prompt": ""}), DataError, "Row 1 of .*, column 'prompt': is empty")
    fails(["--model_name_or_path", changed_dir, "--dataset_name", "./nothing.jsonl"], DataError, "nothing.jsonl")
    split = ["--model_name_or_path", changed_dir, "--dataset_name", prompts, "--dataset_test_split", "test"]
    fails(split, DataError, "no split 'test'; it has 'train'")


def test_a_file_is_tried_and_leaves_nothing(tmp_path):
    (tmp_path / "there.json").write_text("old")
    for name in ("there.json", "new.json"):
        check_writable(str(tmp_path / name), "output_file")
    check_writable(None, "output_file")
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]
    assert (tmp_path / "there.json").read_text() == "old"


def test_bad_settings(prompts, changed_dir, tmp_path):
    def given(*more: str) -> list[str]:
        return ["--model_name_or_path", changed_dir, "--dataset_name", prompts, *more]

    fails(["--dataset_name", prompts], ValueError, "--model_name_or_path")
    fails(["--model_name_or_path", changed_dir], ValueError, "--dataset_name")
    fails(
        given("--output_file", str(tmp_path / "no" / "out.json")), ValueError, "folder of --output_file does not exist"
    )
    fails(given("--output_file", str(tmp_path)), ValueError, "--output_file is a folder")
    for name in ("beta_0.5", "out.jsn", "out"):  # beta_0.7 would have the same Parquet file as beta_0.5
        fails(given("--output_file", str(tmp_path / name)), ValueError, r"its name must end in \.json")
    for name in ("rows.json", "rows.parquet"):
        replaced = ["--model_name_or_path", changed_dir, "--dataset_name", str(tmp_path / name)]
        fails([*replaced, "--output_file", str(tmp_path / "rows.json")], ValueError, f"{name}' is the dataset")
    if os.path.isdir("/proc/self"):  # no file can be made there, whatever its permissions say to whom
        nowhere = ["--model_name_or_path", "./no/model", "--dataset_name", "./no/rows.jsonl"]
        nowhere += ["--output_file", "/proc/self/out.json"]
        fails(nowhere, ValueError, "--output_file cannot be written in /proc")
    fails(given("--base_model_name_or_path", "./no/base"), OSError, "'./no/base'")
    fails(given("--perplexity_model_name_or_path", "./no/judge"), OSError, "no/judge")
    fails(given("--reward_funcs", "eval_rewards.missing"), ValueError, "missing")
    fails(given("--max_num_prompts", "-1"), ValueError, "`max_num_prompts` must be at least 0")
    fails(given("--top_p", "0"), ValueError, "top_p")
    fails(["--model_name_or_path", "./no/model", "--dataset_name", prompts], OSError, "no/model")
    with pytest.raises(ValueError, match="there is no model to measure"):  # as with a plug-in's server that is off
        trl_ext.cli.evaluate.run(EvaluateArguments(dataset_name=prompts), LoadingArguments())


def test_a_failing_reward_is_named_and_stops_at_the_base(evaluate, tiny_model_dir, changed_dir, capsys):
    status, report = evaluate(
        "--model_name_or_path", changed_dir, "--base_model_name_or_path", tiny_model_dir,
        "--reward_funcs", "eval_rewards.broken",
    )  # fmt: skip
    assert (status, report) == (1, None)
    error = capsys.readouterr().err
    assert f"model {tiny_model_dir!r}: RewardError: The reward function 'broken' raised RuntimeError" in error
    assert repr(changed_dir) not in error


@pytest.fixture
def chat(tiny_model_dir, changed_dir, tmp_path):
    """Conversational prompts, a base whose tokenizer has no chat template, and a model whose tokenizer has one."""
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"prompt": [{"role": "user", "content": "good"}]}) + "\n")
    tokenizer = load_tokenizer(tiny_model_dir)
    paths = []
    for name, source, template in (
        ("plain", tiny_model_dir, None),
        ("chat", changed_dir, "{% for m in messages %}{{ m.content }}{% endfor %}"),
    ):
        paths.append(str(tmp_path / name))
        shutil.copytree(source, paths[-1], ignore=shutil.ignore_patterns("*.jinja"))
        tokenizer.chat_template = template
        tokenizer.save_pretrained(paths[-1])
    return str(file), *paths


def test_a_base_without_chat_template_is_prompted_with_the_models(evaluate, chat):
    file, plain, with_template = chat
    status, report = evaluate(
        "--model_name_or_path", with_template, "--base_model_name_or_path", plain, "--dataset_name", file
    )
    assert status == 0
    assert [row["model"] for row in report["models"]] == [plain, with_template]
    assert report["models"][1]["kl"] is not None


def test_messages_for_a_model_without_chat_template(evaluate, chat, capsys):
    file, plain, _ = chat
    assert evaluate("--model_name_or_path", plain, "--dataset_name", file) == (1, None)
    assert "no chat template" in capsys.readouterr().err


def test_adapters_of_different_bases_need_one_named(prompts, adapter_dir, changed_dir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(adapter_dir, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": changed_dir}))
    fails(
        ["--model_name_or_path", adapter_dir, str(other), "--dataset_name", prompts],
        ValueError,
        "different base models .*--base_model_name_or_path",
    )


def test_the_command_line_turns_errors_into_one_line(prompts, capsys):
    assert trl_ext_main(["evaluate", "--model_name_or_path", "./no/model", "--dataset_name", prompts]) == 2
    error = capsys.readouterr().err
    assert "trl-ext evaluate: error: model './no/model'" in error
    assert "Traceback" not in error
    # neither models nor prompts are required to score completions again
    assert trl_ext_main(["evaluate", "--from", "./none.json", "--reward_funcs", "eval_rewards.length"]) == 2
    assert "trl-ext evaluate: error: there is no file 'none.json'" in capsys.readouterr().err


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        make_parser().parse_args_and_config(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for name in EvaluateArguments.__dataclass_fields__:
        assert f"--{name}" in out
    assert "(required, or --from)" in out


def test_short_names_are_the_shortest_that_differ():
    assert short_names(["run/a/last", "run/b/last"]) == {"run/a/last": "a/last", "run/b/last": "b/last"}
    assert short_names(["org/x", "/models/y/"]) == {"org/x": "x", "/models/y/": "y"}
    assert short_names(["x", "./x"]) == {"x": "x", "./x": "./x"}
