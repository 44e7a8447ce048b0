# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""Planning from flags and recipes: sizes without weights, the nearest settings that fit, what the command prints."""

import json
import shlex
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
from record_memory_table import BEGIN, CONFIGS, END, PAGE, table

from trl_ext.cli import plan
from trl_ext.cli.recipes import _recipes
from trl_ext.cli.train import make_parser
from trl_ext.memory.fitting import fit, largest_batch
from trl_ext.memory.needs import Needs, needs_of
from trl_ext.memory.planner import Planner
from trl_ext.method import Discovery, Found, Method, discover
from trl_ext.upstream import parser_actions


GIB = 2**30
METHODS = {name: found.method for name, found in discover().methods.items() if found.package == "trl-ext"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Files with the configs of a 0.5B, of one with two of its layers, and of a 7B."""
    folder = tmp_path_factory.mktemp("configs")
    configs = {name: CONFIGS[name] for name in ("Qwen2.5-0.5B", "Qwen2.5-7B")}
    configs["two layers"] = CONFIGS["Qwen2.5-0.5B"] | {"num_hidden_layers": 2}
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return {name: str(folder / f"{name}.json") for name in configs}


def planner(method: str, model: str, flags: str = "", **lengths: int) -> Planner:
    words = ["--model_name_or_path", model, *shlex.split(flags)]
    return Planner(METHODS[method], make_parser(METHODS[method]).parse_flags(words), **lengths)


def test_weights_are_those_of_the_config(models) -> None:
    """494,032,768 parameters, of which 357,826,560 are in linear maps of layers: counted by hand from the config."""
    of_4_bits = planner("rrhf", models["Qwen2.5-0.5B"], "--load_in_4bit true --use_peft true")
    inventory = of_4_bits.model(models["Qwen2.5-0.5B"], of_4_bits.flags, trained=True)
    assert (inventory.parameters, inventory.linear) == (494_032_768, 357_826_560)
    parts = of_4_bits.estimate().parts
    assert parts["weights"] * GIB == pytest.approx(357_826_560 * 0.516 + 136_206_208 * 2, rel=1e-3)
    # LoRA of rank 16 on the linear maps of 24 layers, in bfloat16: inputs + outputs of each
    of_a_layer = 2 * (896 + 896) + 2 * (896 + 128) + 3 * (896 + 4864)
    assert parts["adapter"] * GIB == 24 * 16 * of_a_layer * 2


def test_the_largest_batch_by_hand() -> None:
    """1 GiB and half a GiB for each prompt: 6 of them need 4 GiB, 1 needs 1.5, and with 1.4 there is none."""

    class HalfAGiBEach:
        def estimate(self, settings: dict[str, int]) -> Namespace:
            return Namespace(needed_gib=1 + settings["per_device_train_batch_size"] / 2)

    for card, prompts in ((4.0, 6), (4.4, 6), (4.5, 7), (1.5, 1), (1.4, 0)):
        assert largest_batch(HalfAGiBEach(), card) == prompts


@pytest.mark.parametrize(
    ("options", "bytes_of_linear", "bytes_of_others"),
    [
        ("{}", 2, 2),
        ('{"dtype": "float32"}', 4, 4),
        ('{"load_in_8bit": true}', 1, 2),
        ('{"load_in_4bit": true}', 0.516, 2),
    ],
    ids=["as saved", "float32", "8 bits", "4 bits"],
)
def test_reward_models_are_counted_as_other_models_are(options, bytes_of_linear, bytes_of_others, models) -> None:
    """A server and a function need nothing here. 357,826,560 of the 494,032,768 parameters are in linear maps."""
    folder = Path(models["Qwen2.5-0.5B"]).parent / "reward"
    folder.mkdir(exist_ok=True)
    shutil.copy(models["Qwen2.5-0.5B"], folder / "config.json")
    names = f"--reward_funcs '{folder}' a_function http://localhost:8000/score"
    parts = planner("rrhf", models["two layers"], f"{names} --reward_model_init_kwargs '{options}'").estimate().parts
    expected = 357_826_560 * bytes_of_linear + 136_206_208 * bytes_of_others
    assert parts["reward model"] * GIB == pytest.approx(expected, rel=1e-3)


def test_bf16_is_read_as_training_reads_it(models) -> None:
    def autocast(flags: str) -> bool:
        return planner("rrhf", models["two layers"], flags).sizes().autocast

    assert autocast("") and autocast("--bf16") and autocast("--bf16 auto") and autocast("--bf16 false --fp16 true")
    assert not autocast("--bf16 false")
    with pytest.raises(ValueError, match="`bf16` must be true, false or 'auto', got 'half'"):
        autocast("--bf16 half")


@pytest.mark.parametrize("method", METHODS)
def test_settings_that_lower_memory_do(method, models) -> None:
    own = f"--value_model_name_or_path '{models['two layers']}'" if method == "vas" else ""
    common = "--reward_funcs a_function --use_peft true --dtype bfloat16"

    def needed(flags: str) -> dict[str, float]:
        phases = planner(method, models["two layers"], f"{own} {common} {flags}").estimate().phases
        totals = {name: sum(parts.values()) for name, parts in phases.items()}
        return {"generation": totals.pop("generation"), "training": max(totals.values())}

    usual = needed("")
    assert needed("--generation_batch_size 16")["generation"] < usual["generation"]
    assert needed("--max_length 512 --max_completion_length 128")["training"] < usual["training"]
    assert needed("--per_device_train_batch_size 1")["training"] < usual["training"]
    if method != "proxy_rlhf":  # which trains none of the language model
        assert usual["training"] < needed("--gradient_checkpointing false")["training"]
        assert usual["training"] < needed("--shared_prefix never")["training"]
        assert needed("--optim sgd")["training"] < usual["training"]


def test_the_nearest_settings_fit_and_each_is_needed(models) -> None:
    of_7b = planner("rrhf", models["Qwen2.5-7B"])
    found = fit(of_7b, 12)
    assert found.fits and found.estimate.needed_gib <= 12
    flags = shlex.split(" ".join(change.flags for change in found.changes))
    again = planner("rrhf", models["Qwen2.5-7B"], shlex.join(flags)).estimate()
    assert again.needed_gib == pytest.approx(found.estimate.needed_gib)
    assert {"--load_in_4bit", "--use_peft"} <= set(flags)
    assert not fit(of_7b, 3).fits


def test_many_completions_fit_in_parts(models, capsys) -> None:
    """Memory does not grow with their number, and where they do not fit in one pass the size of a part is proposed."""
    common = "--use_peft true --dtype bfloat16 --per_device_train_batch_size 1 --generation_batch_size 16"

    def needed(k: int, per_forward: int) -> float:
        flags = f"{common} --num_generations {k} --completions_per_forward {per_forward}"
        return planner("rrhf", models["Qwen2.5-0.5B"], flags).estimate().total_gib

    assert needed(128, 0) > 2 * needed(32, 0)
    assert needed(128, 4) == pytest.approx(needed(8, 4), rel=0.01)
    assert needed(4, 4) == needed(4, 0)  # they fit into one part, which is one pass
    many = planner("rrhf", models["Qwen2.5-0.5B"], f"{common} --num_generations 128")
    found = fit(many, 4)
    assert found.fits and [list(change.settings) for change in found.changes] == [["completions_per_forward"]]
    of_psle = planner("psle", models["Qwen2.5-0.5B"], f"{common} --num_generations 64 --reward_funcs f")
    assert any("completions_per_forward" in change.settings for change in fit(of_psle, 4).changes)
    flags = (
        f"--model {models['Qwen2.5-0.5B']} --method rrhf --card 24GB --num_generations 64 --completions_per_forward 4"
    )
    plan.main(shlex.split(flags))
    assert "at most 4 completions in a forward pass" in " ".join(capsys.readouterr().out.split())


def test_the_command_says_what_fits(models, capsys) -> None:
    model = models["Qwen2.5-0.5B"]
    assert plan.main(["--model", model, "--method", "rrhf", "--card", "24GB"]) == 0
    text = capsys.readouterr().out
    assert "It fits, with up to" in text and "counted, not measured" in text and "CUDA context" in text
    assert max(map(len, text.splitlines())) <= 80 + len(model)
    assert plan.main(["--model", model, "--method", "rrhf", "--card", "4GB", "--num_generations", "6"]) == 1
    text = capsys.readouterr().out
    assert "It does not fit" in text and "--use_peft true" in text


def test_the_help_has_every_flag_and_method(capsys) -> None:
    assert plan.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {action.option_strings[0]} " in text for action in parser_actions(plan.make_parser()))
    assert ", ".join(discover().methods) in text and "trl-ext plan --model MODEL --method METHOD" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--card 8GB", "set --method: one of"),
        ("--method rrf --card 8GB", "there is no method 'rrf'"),
        ("--method rrhf --card 8TB", "--card must be a size such as 8GB"),
        ("--method rrhf --card 8GB --model MODEL --prompt_length -1", "must be positive numbers of tokens"),
        ("--method rrhf --card 8GB --model MODEL --num_generation 4", "unknown flag '--num_generation'"),
        ("--method rrhf --card 8GB --model MODEL --load_in_4bit true", "cannot be trained without an adapter"),
        ("--method vas --card 8GB --model MODEL", "There is no value model"),
    ],
)
def test_bad_input(words, message, models) -> None:
    with pytest.raises(ValueError, match=message):
        plan.main(words.replace("MODEL", models["Qwen2.5-0.5B"]).split())


def test_a_model_that_cannot_be_read_says_what_is_needed() -> None:
    with pytest.raises(OSError, match=r"pass the path of a config\.json"):
        plan.main("--method rrhf --card 8GB --model nobody/such-a-model".split())


def test_a_method_whose_config_is_of_another_kind_says_so(monkeypatch) -> None:
    method = Method("mine", "", "Mine.", config="trl:SFTConfig", trainer="trl:SFTTrainer")
    monkeypatch.setattr(plan, "discover", lambda: Discovery({"mine": Found(method, "mine", "1")}))
    with pytest.raises(ValueError, match=r"memory of 'mine' cannot be counted: its config is no trl_ext\.ExtConfig"):
        plan.main("--method mine --card 8GB --model m".split())


def test_a_method_that_declares_no_needs_trains_on_its_completions() -> None:
    method = Method("mine", "", "Mine.", config="mine:Config", trainer="mine:Trainer")
    assert needs_of(method, Namespace(num_generations=4, beta=0.1)) == Needs(completions=4, reference=True)
    assert needs_of(method, Namespace()) == Needs(completions=1)


RECIPES = [path for path in _recipes() if path.parent.name in METHODS and "_cpu" not in path.stem]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_can_be_planned(path, models) -> None:
    """Every recipe for GPUs, on the config of a small model in the place of its own."""
    words = ["--config", str(path), "--model_name_or_path", models["two layers"]]
    method = METHODS[path.parent.name]
    if method.name == "vas":
        words += ["--value_model_name_or_path", models["two layers"]]
    planned = Planner(method, make_parser(method).parse_flags(words))
    assert planned.estimate().total_gib > 0.2


def test_the_table_of_the_page_is_this_one() -> None:
    """The rows of the smallest model, which take a second."""
    name = "Qwen2.5-0.5B"
    lines = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()
    for method in ("rrhf", "proxy_rlhf"):
        assert table({name: CONFIGS[name]}, (method,))[2] in lines, "run `python tests/record_memory_table.py`"
