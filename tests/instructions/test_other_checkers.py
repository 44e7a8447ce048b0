# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The rewards whose checkers other packages have: IFEval's by lm-eval, and readability by textstat."""

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trl_ext.instructions import ifeval, readability
from trl_ext.instructions.constraints import ConstraintError
from trl_ext.packages import is_installed
from trl_ext.rewards.functions import RewardError, load_rewards


def make_module(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


# ------------------------------------------------------------------------------------------------------------- IFEval

NAMES = ["punctuation:no_comma", "length_constraints:number_words"]


@dataclass
class InputExample:
    key: int
    instruction_id_list: list[str]
    prompt: str
    kwargs: list[dict[str, Any]]


def strict(inp: InputExample, response: str) -> Any:
    """As lm-eval's function of this name, for two instructions."""
    checks = {NAMES[0]: lambda: "," not in response, NAMES[1]: lambda: len(response.split()) >= words_of(inp)}
    return SimpleNamespace(follow_instruction_list=[bool(response) and checks[n]() for n in inp.instruction_id_list])


def words_of(inp: InputExample) -> int:
    """The argument has to be at the place of its instruction, and the prompt has to be text."""
    assert inp.prompt == "Write 3 words."
    return inp.kwargs[inp.instruction_id_list.index(NAMES[1])]["num_words"]


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A mock of the package, and of the language detector, whose seed is looked at."""
    registry = SimpleNamespace(INSTRUCTION_DICT=dict.fromkeys(NAMES))
    utils = make_module(
        "lm_eval.tasks.ifeval.utils",
        InputExample=InputExample,
        instructions_registry=registry,
        test_instruction_following_strict=strict,
    )
    package = make_module("lm_eval.tasks.ifeval", utils=utils)
    detector = SimpleNamespace(seed=None)
    modules = {
        "lm_eval": make_module("lm_eval"),
        "lm_eval.tasks": make_module("lm_eval.tasks"),
        package.__name__: package,
    }
    modules |= {utils.__name__: utils, "langdetect": make_module("langdetect", DetectorFactory=detector)}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    ifeval._checkers.cache_clear()
    yield detector
    ifeval._checkers.cache_clear()


def ifeval_reward(answers: list[str], names: list[Any], arguments: list[Any], log_metric: Any = None) -> Any:
    [reward] = load_rewards("trl_ext.instructions.ifeval:ifeval_met")
    prompts = [[{"role": "user", "content": "Write 3 words."}]] * len(answers)
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    columns = {"instruction_id_list": names, "kwargs": arguments, "key": list(range(len(answers)))}
    return reward(prompts, completions, log_metric=log_metric, **columns)


def test_the_reward_is_the_share_that_is_followed(lm_eval: Any) -> None:
    """By hand: both, one of two, and the only one; `None` is what datasets write for arguments that there are not."""
    logged: dict[str, float] = {}
    arguments = [{"num_words": None}, {"num_words": 3}]
    rewards = ifeval_reward(
        ["one two three", "one, two", "one"],
        [NAMES, NAMES, NAMES[:1]],
        [arguments, arguments, [None]],
        logged.__setitem__,
    )
    assert rewards == [1.0, 0.0, 1.0]
    assert ifeval_reward(["one two"], [NAMES], [arguments]) == [0.5]
    assert logged == {"ifeval/all_followed": pytest.approx(2 / 3)}
    assert lm_eval.seed == 0


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (["punctuation:no_commas"], [{}], "Row 0: lm-eval has no checker of the instruction 'punctuation:no_commas'"),
        (NAMES, [{}], "Row 0: `instruction_id_list` has 2 instructions and `kwargs` 1 entries"),
        ([], [], "Row 0: `instruction_id_list` has 0 instructions"),
    ],
)
@pytest.mark.usefixtures("lm_eval")
def test_a_bad_row_is_named(names: Any, arguments: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message) as error:
        ifeval_reward(["one"], [names], [arguments])
    assert isinstance(error.value.__cause__, ConstraintError)


def test_its_columns_are_required() -> None:
    [reward] = load_rewards("trl_ext.instructions.ifeval:ifeval_met")
    assert reward.required_columns == ["instruction_id_list", "kwargs"]


@pytest.mark.skipif(not is_installed(ifeval.LM_EVAL), reason="lm-eval is not installed")
def test_lm_evals_own_checkers() -> None:
    """Rows in the form of the dataset: every row has all arguments, `None` where an instruction has none."""
    ifeval._checkers.cache_clear()
    none = dict.fromkeys(["num_words", "relation", "keywords", "forbidden_words", "capital_relation"])
    names = ["punctuation:no_comma", "length_constraints:number_words", "keywords:existence"]
    arguments = [none, none | {"num_words": 3, "relation": "at least"}, none | {"keywords": ["sun"]}]
    answers = ["The sun is warm.", "The moon, is cold.", "", "Sun"]
    assert ifeval_reward(answers, [names] * 4, [arguments] * 4) == [
        1.0,
        pytest.approx(1 / 3),
        0.0,
        pytest.approx(2 / 3),
    ]


# -------------------------------------------------------------------------------------------------------- readability

EASY = "The cat sat on the mat. It was a warm day. The dog ran to the sea."
HARD = (
    "Notwithstanding considerable methodological disagreements, contemporary epistemologists acknowledge fallibilism."
)


@pytest.fixture
def textstat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, and where it is not installed a mock with the formula: letters and sentences per 100 words."""
    if not is_installed(readability.TEXTSTAT):

        def index(text: str) -> float:
            n = len(text.split())
            letters = sum(map(str.isalpha, text))
            return 0.0588 * 100 * letters / n - 0.296 * 100 * text.count(".") / n - 15.8

        monkeypatch.setitem(sys.modules, "textstat", make_module("textstat", coleman_liau_index=index))


@pytest.mark.usefixtures("textstat")
def test_readability() -> None:
    """Grades by hand with the formula: below 0 (three short sentences), above 20; and texts that are none."""
    [reward] = load_rewards("trl_ext.instructions.readability:readability")
    assert reward.required_columns == []
    middle = "We plan to visit the museum with our neighbours. Later we might take a slow walk along the river."
    found = reward(["?"] * 5, [EASY, middle, HARD, "", "so so so so so so"])
    assert found[0] == 0
    assert -8 < found[1] < -3
    assert found[2:] == [-20, -20, -20]


@pytest.mark.parametrize(
    ("module", "call", "name"),
    [
        (ifeval, lambda: ifeval.ifeval_met([], [], [], []), "ifeval_met"),
        (readability, lambda: readability.readability([]), "readability"),
    ],
)
def test_a_missing_package_is_named(module: Any, call: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("lm_eval", "textstat"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=rf"`{name}` needs a package that is not installed: pip install 'trl-ext\["):
        call()
