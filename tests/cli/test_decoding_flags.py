# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A plug-in's decoding in `trl-ext evaluate` and `generate`: nothing here knows a method of ours."""

import dataclasses
import json
import sys
from typing import ClassVar

import pytest
from stranger import DECODING, METHOD, write_package

from trl_ext.cli import chat as cli_chat
from trl_ext.cli import evaluate as cli_evaluate
from trl_ext.cli import generate as cli_generate
from trl_ext.cli import sample as cli_sample
from trl_ext.cli.decoding_flags import active_decodings, check_beside_server, decoding_classes
from trl_ext.inference.policy import Decoding


REWARD = """
def goods(completions, **kwargs):
    return [float(text.count("good")) for text in completions]

def score(context, candidates):
    return candidates * 0.0
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on `sys.path` for packages; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "goods_reward.py").write_text(REWARD)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("the", "a film", "we")))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def good(site, tiny_tokenizer):
    """The stranger's package is installed; the id of a token that it can pull towards."""
    write_package(site)
    return str(tiny_tokenizer.convert_tokens_to_ids("good"))


def evaluate(model, *arguments):
    fixed = ["--dataset_name", "prompts.jsonl", "--max_completion_length", "6", "--num_generations", "4"]
    return cli_evaluate.main(["--model_name_or_path", model, *fixed, "--output_file", "out.json", *arguments])


def by_model(path="out.json"):
    with open(path) as file:
        return {row["model"]: row for row in json.load(file)["models"]}


@dataclasses.dataclass
class Idle:
    """A decoding that is not set."""

    path: str | None = None
    strength: float = 3
    server: str | None = None
    port: int = 0

    needs: ClassVar[dict[str, tuple[str, ...]]] = {"server": (), "port": ("server", "path")}

    active = False


def test_a_setting_without_those_that_it_needs_is_an_error():
    """Given means written, whatever the value is."""
    assert active_decodings([Idle()], {"seed"}) == []
    assert active_decodings([Idle(), Idle(path="a")], {"path"}) == []
    assert active_decodings([Idle(server="a")], {"server"}) == []
    assert active_decodings([Idle(path="a", server="b")], {"strength", "port"}) == []
    for given, settings, missing in (
        ("strength", {}, "path"),
        ("port", {"path": "a"}, "server"),
        ("port", {"server": "a"}, "path"),
    ):
        with pytest.raises(ValueError, match=f"`{given}` has no effect without `{missing}`"):
            active_decodings([Idle(**settings)], {given})


@dataclasses.dataclass
class Server(Idle):
    """A decoding that brings its model."""

    served_at_once: ClassVar[int] = 4


def test_what_guides_a_loaded_model_is_refused_beside_a_server():
    check_beside_server([Idle()])
    check_beside_server([Server()])
    with pytest.raises(ValueError, match="`path` guides a model that is loaded here, and a server's model"):
        check_beside_server([Server(), Idle()])


@pytest.mark.parametrize("command", [cli_generate, cli_sample])
def test_commands_refuse_it_before_they_ask_the_server(command, site):
    """The server does not exist, and the guide file's function is never called."""
    (site / "guide.yaml").write_text("guides: [{kind: function, function: goods_reward.score}]\n")
    words = ["--endpoint", "http://localhost:1/v1", "--endpoint_model", "m", "--endpoint_tokenizer", "nowhere"]
    more = ["--dataset_name", "prompts.jsonl", "--output_file", "out.jsonl", "--guide", "guide.yaml"]
    with pytest.raises(ValueError, match="`guide` guides a model that is loaded here"):
        command.main([*words, *more])


@pytest.mark.parametrize("command", [cli_generate, cli_chat, cli_sample])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "float16"),
        ("load_in_4bit", "true"),
        ("attn_implementation", "eager"),
        ("model_revision", "v2"),
        ("cuda_graphs", "never"),
    ],
)
def test_settings_of_a_loaded_model_are_refused_beside_a_server(command, name, value, site):
    words = ["--endpoint", "http://localhost:1/v1", "--endpoint_model", "m", "--endpoint_tokenizer", "nowhere"]
    more = [] if command is cli_chat else ["--dataset_name", "prompts.jsonl", "--output_file", "out.jsonl"]
    with pytest.raises(ValueError, match=f"`{name}` is about a model that is loaded here"):
        command.main([*words, *more, f"--{name}", value])


@pytest.mark.parametrize("words", [["--beta", "3"], ["--beta=3"], ["--config", "config.yaml"], ["--proxy_top_k", "0"]])
def test_a_default_that_is_written_counts_as_given(words, site, yaml_file):
    """Before any model is looked for."""
    yaml_file("beta: 3\nproxy_name_or_path: null\n")
    for module in (cli_generate, cli_evaluate):
        with pytest.raises(
            ValueError, match=r"`(beta|proxy_top_k)` has no effect without `(value_model|proxy)_name_or"
        ):
            module.main(["--model_name_or_path", "nowhere", *words, "--dataset_name", "prompts.jsonl"])


def test_evaluate_measures_each_setting_beside_the_base_and_best_of_n(good, tiny_model_dir, capsys):
    status = evaluate(
        tiny_model_dir, "--stranger_token", good, "--stranger_pull", "3", "6", "9", "--best_of_n", "2", "4",
        "--reward_funcs", "goods_reward.goods", "--frontier_file", "frontier.png",
    )  # fmt: skip
    assert status == 0
    rows = by_model()
    pulled = [f"{tiny_model_dir} pulled by {pull}" for pull in (3.0, 6.0, 9.0)]
    best = [f"{tiny_model_dir} best of {n}" for n in (2, 4)]
    assert list(rows) == [tiny_model_dir, *best, *pulled]
    assert rows[tiny_model_dir]["kl"] == 0.0
    assert [rows[name]["extras"] for name in pulled] == [{"pull": 3.0}, {"pull": 6.0}, {"pull": 9.0}]
    kls = [rows[name]["kl"] for name in pulled]
    assert kls == sorted(kls) and kls[-1] > 1  # the guided policies' own log-probabilities are used
    rewards = [rows[name]["reward/goods"] for name in [tiny_model_dir, *pulled]]
    assert rewards == sorted(rewards) and rewards[-1] > 3
    assert [rows[name]["kl"] for name in best] == [None, None]
    assert rows[best[1]]["reward/goods"] >= rows[best[0]]["reward/goods"]

    with open("out.json") as file:
        settings = json.load(file)["settings"]
    assert (settings["stranger_token"], settings["stranger_pull"]) == (int(good), [3.0, 6.0, 9.0])
    with open("frontier.points.json") as file:
        series = {entry["name"]: entry["points"] for entry in json.load(file)["series"]}
    assert list(series) == ["base", "best-of-n", "pulled"]
    assert [point["kl"] for point in series["pulled"]] == kls
    out = capsys.readouterr().out
    assert "≤ 0.64" in out
    assert "kl: not measured; at most 0.64 nats" in " ".join(out.split())


def test_evaluate_without_the_flags_measures_the_models_alone(good, tiny_model_dir):
    assert evaluate(tiny_model_dir) == 0
    [row] = by_model().values()
    assert row["notes"]["kl"] == "no base model was named"
    assert "extras" not in row


def test_a_decoding_that_does_not_fit_the_model_does_not_stop_the_others(good, tiny_model_dir, capsys):
    assert (
        evaluate(
            tiny_model_dir, "--stranger_token", "9999", "--best_of_n", "2", "--reward_funcs", "goods_reward.goods"
        )
        == 1
    )
    rows = by_model()
    assert rows[f"{tiny_model_dir} best of 2"]["reward/goods"] >= 0
    assert "stranger_token 9999 is no token" in rows[f"{tiny_model_dir} StrangerDecoding"]["error"]
    assert "stranger_token 9999 is no token" in capsys.readouterr().err


def test_bad_settings_are_refused_before_anything_is_loaded(good, tiny_model_dir):
    def fails(message, *arguments):
        with pytest.raises(ValueError, match=message):
            evaluate("./no/such/model", *arguments)

    fails("stranger_pull must be numbers", "--stranger_token", good, "--stranger_pull", "nan")
    fails("`stranger_pull` has no effect without `stranger_token`", "--stranger_pull", "2")
    fails("`best_of_n` must be at least 1, got 0", "--best_of_n", "0", "--reward_funcs", "goods_reward.goods")
    fails("`best_of_n` needs a reward", "--best_of_n", "4")
    fails("`frontier_file` needs a reward", "--frontier_file", "out.png")
    fails("`reward_weights` has 2 entries for 1", "--reward_funcs", "goods_reward.goods", "--reward_weights", "1", "0")
    fails("must end in .png", "--frontier_file", "out.jpeg", "--reward_funcs", "goods_reward.goods")
    with pytest.raises(ValueError, match="name it with --base_model_name_or_path"):
        cli_evaluate.main(
            ["--model_name_or_path", tiny_model_dir, "./other", "--dataset_name", "prompts.jsonl", "--best_of_n", "2",
             "--reward_funcs", "goods_reward.goods"]
        )  # fmt: skip


def test_several_models_are_measured_and_the_named_base_is_guided(good, tiny_model_dir, site):
    import shutil

    other = str(site / "other")
    shutil.copytree(tiny_model_dir, other)
    assert evaluate(other, "--base_model_name_or_path", tiny_model_dir, "--stranger_token", good) == 0
    assert list(by_model()) == [tiny_model_dir, f"{tiny_model_dir} pulled by 1.0", other]


def test_generate_completes_with_each_setting(good, tiny_model_dir, capsys):
    words = ["--model_name_or_path", tiny_model_dir, "--stranger_token", good, "--max_completion_length", "4"]
    assert (
        cli_generate.main([*words, "--prompt", "the film", "--stranger_pull", "90", "0", "--output_file", "a.jsonl"])
        == 0
    )
    out = capsys.readouterr().out
    with open("a.jsonl") as file:
        [row] = map(json.loads, file)
    assert row["completions"][0][0]["content"] == "goodgoodgoodgood"
    assert row["sources"] == [f"{tiny_model_dir} pulled by 90.0", f"{tiny_model_dir} pulled by 0.0"]
    assert f"[{row['sources'][0]}]\ngoodgoodgoodgood\n[{row['sources'][1]}]\n" in out


def test_help_names_the_flags(good, capsys):
    for module in (cli_evaluate, cli_generate):
        with pytest.raises(SystemExit):
            module.main(["--help"])
        out = capsys.readouterr().out
        assert "StrangerDecoding" in out
        assert "--stranger_pull" in out


def test_the_protocol_is_what_the_stranger_has(good):
    [cls] = [cls for cls in decoding_classes([]) if cls.__name__ == "StrangerDecoding"]
    assert isinstance(cls(), Decoding)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("class StrangerDecoding: pass", "TypeError: StrangerDecoding must be a dataclass with `active`"),
        (DECODING.replace("stranger_token", "seed"), "ValueError: its field `seed` is already a flag of Evaluate"),
        (
            DECODING.replace("stranger_pull", "config"),
            "ValueError: its field `config` is already a flag of the command",
        ),
        (DECODING.replace("default=0, ", "", 1), "its field `stranger_token` has no default"),
    ],
)
def test_an_unusable_one_is_named_and_takes_nothing_down(site, source, reason, capsys):
    write_package(site, files={"__init__.py": METHOD, "decoding.py": source})
    write_package(
        site,
        "other-pkg",
        {
            "__init__.py": METHOD.replace('name="stranger"', 'name="other"').replace("stranger_pkg", "other_pkg"),
            "decoding.py": DECODING.replace("stranger_", "other_"),
        },
        {"other": "other_pkg:METHOD"},
    )
    names = {field for cls in decoding_classes([cli_evaluate.EvaluateArguments]) for field in cls.__dataclass_fields__}
    assert "other_pull" in names
    assert "stranger_pull" not in names
    error = capsys.readouterr().err
    assert "trl-ext: stranger-pkg 0.3: the decoding of stranger is not usable: " in error
    assert reason in error
