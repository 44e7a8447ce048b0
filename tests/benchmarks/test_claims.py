# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The verdicts on the papers' claims are what the results give, and change with them."""

import copy
import itertools
import json
import shlex
from dataclasses import replace
from importlib.util import find_spec

import pytest
from conftest import REPOSITORY

from benchmarks import report, run
from benchmarks.claims import figures, verdicts
from benchmarks.claims.figures import Figure, Missing, Reference, Sources, Task, number
from benchmarks.claims.file import Claim, read_claims, verdict_of
from benchmarks.claims.page import page
from benchmarks.claims.verdicts import Check, Verdict, judge
from benchmarks.harness.results import RESULTS, read_results, write_result
from benchmarks.quality import chat_arms, ifeval, imdb_arms, preferences_arms, quality_arms, tools
from benchmarks.quality.experiment import Experiment, arm_of, needed_arms
from benchmarks.run import SUITES
from trl_ext.commands import COMMANDS
from trl_ext.method import discover


CLAIMS = read_claims()
HOLDS, DOES_NOT_HOLD, NOT_SHOWN, NOT_TESTED = Verdict
FAR = 1e6


@pytest.fixture(scope="module")
def sources():
    return Sources()


@pytest.fixture(scope="module")
def judged(sources):
    return {claim.id: verdict_of(claim, sources) for claim in CLAIMS.claims}


# ------------------------------------------------------------------------------------------------- the committed file


def test_the_committed_page_is_what_the_results_give(sources):
    text = report.CLAIMS.read_text(encoding="utf-8")
    assert report.renewed(text, "claims", page(CLAIMS, sources), "claims.md") == text, (
        "run `python -m benchmarks.report`"
    )


def test_every_method_has_claims_and_every_verdict_occurs(judged):
    assert {claim.paper for claim in CLAIMS.claims} == {"rrhf", "vas", "proxy_rlhf", "psle"} == set(CLAIMS.papers)
    assert {found.verdict for found in judged.values()} == set(Verdict)


def arms_of(task):
    """The arms that a suite of a task can measure."""
    compared = {"quality": quality_arms, "chat": chat_arms, "ifeval": ifeval, "preferences": preferences_arms}
    compared["tools"] = tools
    if task.suite in compared:
        return compared[task.suite].arms(compared[task.suite].Task())
    return imdb_arms.chosen(task.where["method"])


@pytest.mark.parametrize("claim", [c for c in CLAIMS.claims if c.checks], ids=lambda claim: claim.id)
def test_what_a_claim_names_exists(claim, judged, sources):
    """Rows are of arms that the suite has, and where one has no result, the claim is not tested and says how to."""
    for check in claim.checks:
        for name in check.names:
            if check.task.suite:
                names = [arm.name for arm in arms_of(check.task)]
                assert arm_of(name, names) in names, name
        try:
            judge(check, sources)
        except Missing:
            assert judged[claim.id].verdict in (NOT_TESTED, DOES_NOT_HOLD, NOT_SHOWN) and judged[claim.id].missing
    if judged[claim.id].verdict is NOT_TESTED:
        assert judged[claim.id].missing and claim.run


@pytest.mark.parametrize("claim", [c for c in CLAIMS.claims if "benchmarks.run" in c.run], ids=lambda claim: claim.id)
def test_the_command_of_a_claim_measures_all_that_the_claim_compares(claim):
    words = shlex.split(claim.run)
    texts = [""]
    if "--arms" in words:
        after = words[words.index("--arms") + 1 :]
        texts = list(itertools.takewhile(lambda word: not word.startswith("--"), after))
    for check in claim.checks:
        if check.task.suite == words[3]:
            every = arms_of(check.task)
            measured = {arm.name for arm in needed_arms(every, texts)}
            asked = {arm_of(name, [arm.name for arm in every]) for name in check.names}
            assert asked <= measured, f"{claim.run}: does not measure {', '.join(sorted(asked - measured))}"


def shifted(sources, check, column, rows, by):
    """The same sources, in which a column of some rows is another."""
    found = Sources()
    found._tasks = copy.deepcopy(sources._tasks)
    part, _, key = column.rpartition(".")
    for result in found.results(check.task.suite):
        for case in result["cases"]:
            if case["name"] in rows and figures._fits(result["settings"], check.task.where):
                case[part or "metrics"][key] += by
    return found


COMMITTED = Sources()


def has_figures(check):
    """Whether the results have what a check compares; where they do not, another check decides the claim."""
    try:
        judge(check, COMMITTED)
    except Missing:
        return False
    return True


DECIDED = [
    (claim, check)
    for claim in CLAIMS.claims
    for check in claim.checks
    if check.task.suite and verdict_of(claim, COMMITTED).verdict in (HOLDS, DOES_NOT_HOLD) and has_figures(check)
]


@pytest.mark.parametrize(("claim", "check"), DECIDED, ids=lambda value: getattr(value, "id", ""))
def test_another_number_gives_another_verdict(claim, check, sources):
    before = judge(check, sources).verdict
    first = check.left[0]
    rows, column = [first.row, *first.rows], first.column
    up = check.compare in ("greater", "as_good")
    if before is HOLDS:
        far = -FAR if up else FAR
        assert judge(check, shifted(sources, check, column, rows, far)).verdict is DOES_NOT_HOLD
        assert verdict_of(claim, shifted(sources, check, column, rows, far)).verdict is DOES_NOT_HOLD
    elif check.compare in ("greater", "less", "as_good"):
        assert judge(check, shifted(sources, check, column, rows, FAR if up else -FAR)).verdict is HOLDS
    elif check.compare == "ordered":
        changed = sources
        for place, reference in enumerate(check.left):  # so far apart that nothing else decides the order
            changed = shifted(changed, check, reference.column, [reference.row, *reference.rows], place * FAR)
        assert judge(check, changed).verdict is HOLDS
    else:
        assert check.compare == "within" and check.right is not None
        left, right = (figures.figure(r, check.task, sources, check.names, ()) for r in (first, check.right))
        moved = shifted(sources, check, column, rows, right.value - left.value)
        assert judge(check, moved).verdict is not DOES_NOT_HOLD


def test_commands_name_suites_and_commands_that_exist():
    for claim in CLAIMS.claims:
        for command in filter(None, [claim.run, *(check.task.run for check in claim.checks)]):
            words = command.split()
            if words[:3] == ["python", "-m", "benchmarks.run"]:
                assert words[3] in SUITES, command
            elif words[:2] == ["python", "-m"]:
                assert words[2].startswith("benchmarks.") and find_spec(words[2]), command
            else:
                assert words[0] in ("trl-ext", "lm-eval"), command
                assert words[0] == "lm-eval" or words[1] in (*COMMANDS, *discover().methods), command


def test_a_row_of_the_page_is_one_line(sources):
    for line in page(CLAIMS, sources).splitlines():
        assert (not line.startswith("`") and line.count(" | ") in (0, 3)) or line.startswith("| ---"), line


def test_two_figures_of_one_seed_are_compared_prompt_by_prompt():
    """Differences 0.1, 0.2, 0.1, 0.2: mean 0.15, standard deviation 0.0577, standard error 0.0289."""
    low, high = (0.1, 0.5, 0.3, 0.9), (0.2, 0.7, 0.4, 1.1)
    left = figures.Figure("a", 0.6, 0.5, 1, by_prompt=high)
    right = figures.Figure("b", 0.45, 0.5, 1, by_prompt=low)
    assert verdicts._margin(left, right) == pytest.approx(2 * 0.0288675)
    assert verdicts._compared("greater", left, right, 0.0, 0.0) is HOLDS
    assert verdicts._compared("greater", left, right, 0.1, 0.0) is NOT_SHOWN
    other = figures.Figure("b", 0.45, 0.5, 1, by_prompt=low[:3])
    assert verdicts._compared("greater", left, other, 0.0, 0.0) is NOT_SHOWN  # not the same prompts: spreads of 0.5


def test_a_column_that_one_seed_has_is_of_that_seed():
    old, new = {"reward": 1.0}, {"reward": 2.0, "judge": 3.0, "judge_se": 0.25}
    found = figures.figure(Reference("a", "judge"), MADE, Made(a=[old, new]), ["a"], ())
    assert (found.value, found.spread, found.seeds) == (3.0, 0.5, 1)


def test_another_number_in_a_table_of_a_page_gives_another_verdict(judged):
    """The reward of a guided model behind an API is 4.98 in the table, and the unguided one's -0.53."""
    assert judged["vas-api"].verdict is HOLDS and "4.98" in judged["vas-api"].findings[0].text
    other = Sources()
    other._pages["vas.md"] = other._pages["vas.md"].replace("4.98 ±", "−4.98 ±")
    [claim] = [claim for claim in CLAIMS.claims if claim.id == "vas-api"]
    assert verdict_of(claim, other).verdict is DOES_NOT_HOLD


# ----------------------------------------------------------------------------------------------------------- verdicts


class Made(Sources):
    """Rows with given rewards, one for each seed."""

    def __init__(self, **rewards):
        super().__init__()
        cases = [
            {"name": name, "seed": seed, "metrics": metrics(value), "cost": {}, "settings": {}}
            for name, values in rewards.items()
            for seed, value in enumerate(values)
        ]
        self._tasks["made"] = [{"settings": {"preset": "cpu", "task": {"prompts": 3}}, "cases": cases}]


def metrics(value):
    return value if isinstance(value, dict) else {"reward": value}


MADE = Task("made", suite="made")


def check_of(compare, *left, right="b", **more):
    rows = [row if isinstance(row, Reference) else Reference(row, "reward") for row in left or ("a",)]
    right = right if isinstance(right, Reference) else Reference(right, "reward")
    return Check(MADE, compare, rows, None if compare == "ordered" else right, **more)


@pytest.mark.parametrize(
    ("compare", "a", "b", "more", "expected"),
    [
        # Means 3 and 1, spreads 0.5 and 1: 2 is more than 1.5. A spread of 2 hides it; the reverse is wrong.
        ("greater", (2.5, 3.5), (0.0, 2.0), {}, HOLDS),
        ("greater", (1.0, 5.0), (0.0, 2.0), {}, NOT_SHOWN),
        ("greater", (0.0, 2.0), (2.5, 3.5), {}, DOES_NOT_HOLD),
        ("greater", (2.5, 3.5), (0.0, 2.0), {"by": 1.0}, NOT_SHOWN),
        ("less", (0.0, 2.0), (2.5, 3.5), {}, HOLDS),
        ("less", (2.5, 3.5), (0.0, 2.0), {}, DOES_NOT_HOLD),
        # 2.9 is at most 0.2 below 3, give or take 0.05; 2.7 is not; 2.8 may be.
        ("as_good", (2.85, 2.95), (3.0, 3.0), {"tolerance": 0.2}, HOLDS),
        ("as_good", (2.65, 2.75), (3.0, 3.0), {"tolerance": 0.2}, DOES_NOT_HOLD),
        ("as_good", (2.75, 2.85), (3.0, 3.0), {"tolerance": 0.2}, NOT_SHOWN),
        ("as_good", (9.0, 9.0), (3.0, 3.0), {"tolerance": 0.2}, HOLDS),
        ("within", (9.0, 9.0), (3.0, 3.0), {"tolerance": 0.2}, DOES_NOT_HOLD),
        ("within", (3.1, 3.1), (3.0, 3.0), {"tolerance": 0.2}, HOLDS),
        # A tenth of the way from 1 to 3.
        ("within", (3.1, 3.1), (3.0, 3.0), {"tolerance": 0.1, "share_above": Reference(value=1.0)}, HOLDS),
        ("within", (3.3, 3.3), (3.0, 3.0), {"tolerance": 0.1, "share_above": Reference(value=1.0)}, DOES_NOT_HOLD),
    ],
)
def test_a_difference_counts_beyond_the_spreads_of_both(compare, a, b, more, expected):
    found = judge(check_of(compare, "a", **more), Made(a=a, b=b))
    assert found.verdict is expected and found.seeds == 2


@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        ((0.9, 1.1), (1.4, 1.6), (1.9, 2.1), HOLDS),
        ((0.5, 1.5), (1.0, 1.8), (1.9, 2.9), HOLDS),  # neighbours overlap; the ends, 1 ± 0.5 and 2.4 ± 0.5, do not
        ((0.5, 1.5), (1.0, 2.0), (1.2, 2.4), NOT_SHOWN),  # neither do the ends
        (
            (0.9, 1.1),
            (0.8, 1.0),
            (1.9, 2.1),
            NOT_SHOWN,
        ),  # the first two are in the wrong order, by less than they vary
        ((0.9, 1.1), (3.9, 4.1), (1.9, 2.1), DOES_NOT_HOLD),
    ],
)
def test_an_order_is_of_means_whose_ends_differ(a, b, c, expected):
    assert judge(check_of("ordered", "a", "b", "c"), Made(a=a, b=b, c=c)).verdict is expected


def test_one_seed_has_twice_its_standard_error():
    """3 against 2: 1 is more than twice 0.2 + 0.2, less than twice 0.3 + 0.3, and nothing without an error."""
    for error, expected in ((0.2, HOLDS), (0.3, NOT_SHOWN), (None, NOT_SHOWN)):
        a, b = ({"reward": value, "reward_se": error} for value in (3.0, 2.0))
        assert judge(check_of("greater"), Made(a=[a], b=[b])).verdict is expected


def test_between_the_settings_of_a_method_is_a_line():
    """At a KL of 3, between 1 at 2 and 3 at 4, is 2; of another row's mean KL; and nothing beyond the last setting."""
    points = {
        "b1": [{"reward": 1.0, "kl": 2.0}, {"reward": 1.5, "kl": 2.0}],
        "b2": [{"reward": 3.0, "kl": 4.0}, {"reward": 3.5, "kl": 4.0}],
        "b": [{"reward": 0.0, "kl": 2.5}, {"reward": 0.0, "kl": 3.5}],
    }
    for at in ({"kl": 3}, {"kl": "b"}):
        between = Reference(column="reward", rows=["b1", "b2"], at=at, name="method")
        found = judge(check_of("greater", between), Made(**points))
        assert found.verdict is HOLDS and "“method at a KL of 3” 2.25 ± 0.25" in found.text
    with pytest.raises(Missing, match="does not reach"):
        judge(check_of("greater", replace(between, at={"kl": 5})), Made(**points))


def test_a_claim_takes_all_of_its_checks_and_its_premise():
    made = Made(a=(3.0, 3.1), b=(1.0, 1.1), c=(0.9, 1.3))
    yes, no, unclear = check_of("greater"), check_of("less"), check_of("greater", "b", right="c")
    missing = check_of("greater", "d")

    def verdict(*checks, premise=None):
        return verdict_of(Claim("x", "p", "c", "s", checks, premise), made).verdict

    assert verdict(yes, yes) is HOLDS and verdict(yes, no) is DOES_NOT_HOLD and verdict(yes, unclear) is NOT_SHOWN
    assert verdict(yes, missing) is NOT_TESTED and verdict(no, missing) is DOES_NOT_HOLD and verdict() is NOT_TESTED
    assert verdict(yes, premise=yes) is HOLDS and verdict(yes, premise=unclear) is NOT_SHOWN
    assert verdict(yes, premise=missing) is NOT_TESTED


def test_columns_seeds_and_settings():
    made = Made(a=(1.0, 3.0), b=({"reward": 0.0, "kl": 7.0},) * 2)
    only = check_of("greater", Reference("a", "reward", seeds=[1]), show=["kl"])
    assert judge(only, made).text == "reward: “a” 3.00, “b” 0.00 ± 0.00 (KL 7.00 ± 0.00)"
    for where, fits in (
        ({"preset": "cpu", "task.prompts": 3}, True),
        ({"task.prompts": 4}, False),
        ({"x.y": 1}, False),
    ):
        check = replace(check_of("greater"), task=Task("made", suite="made", where=where))
        if fits:
            assert judge(check, made).verdict is HOLDS
        else:
            with pytest.raises(Missing, match="no result of the suite `made` has “a” or “b”"):
                judge(check, made)
    with pytest.raises(Missing, match="no result has the seconds of “a”"):
        judge(check_of("greater", Reference("a", "cost.seconds")), made)


def test_seconds_of_two_processors_are_not_compared():
    def made(*processors):
        found = Made(a=(1.0, 1.0), b=(2.0, 2.0))
        for case in found._tasks["made"][0]["cases"]:
            case["cost"]["cpu_seconds"] = 9.0 if case["name"] == "b" else 4.0
            case["processor"] = processors[case["name"] == "b"]
        return found

    seconds = [Reference(name, "cost.cpu_seconds") for name in "ab"]
    check = check_of("less", seconds[0], right=seconds[1])
    assert judge(check, made("one", "one")).verdict is HOLDS
    with pytest.raises(Missing, match=r"different processors say nothing \(of “a” on one, of “b” on another"):
        judge(check, made("one", "another"))
    mixed = made("one", "one")
    mixed._tasks["made"][0]["cases"][0].update(processor="another", cost={"cpu_seconds": 400.0})
    assert judge(check, mixed).text == "CPU seconds: “a” 4.00, “b” 9.00 ± 0.00"  # on the processor that has both
    both = Made(a=(1.0, 1.0, 1.0), b=(2.0, 2.0, 2.0))
    for case in both._tasks["made"][0]["cases"]:
        of_b, once = case["name"] == "b", case["seed"] == 0
        case |= {
            "processor": "another" if once else "one",
            "cost": {"cpu_seconds": (9.0 if of_b else 4.0) + 90 * once},
        }
    assert judge(check, both).text == "CPU seconds: “a” 4.00 ± 0.00, “b” 9.00 ± 0.00"  # on the one with more runs
    assert (
        "CPU seconds 4.00 ± 0.00 of one" in judge(check_of("less", show=["cost.cpu_seconds"]), made("one", "two")).text
    )


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (4321.0, 12.0, "4,321 ± 12"),
        (-12.345, 0.06, "−12.3 ± 0.1"),
        (0.5, 0.0, "0.50 ± 0.00"),
        (1.0, float("inf"), "1.00"),
    ],
)
def test_numbers(value, spread, text):
    assert number(Figure("", value, spread, 3)) == text


# ---------------------------------------------------------------------------------------------------- files of claims


def test_a_new_suite_needs_no_code(tmp_path, monkeypatch, result_of):
    """Results of a suite of arms and seeds are found by its name; of two tasks, the newer one that has all rows."""

    class Chat(Experiment):
        name = "chat"

        def measures(self):
            return {write_result}

    suite = Chat()
    monkeypatch.setattr(figures, "SUITES", {"chat": "a new one"})
    monkeypatch.setattr(figures, "suite_of", {"chat": suite}.get)
    for prompts, reward in ((8, 0.2), (16, 0.4)):
        cases = [
            {"name": name, "seed": seed, "settings": {}, "metrics": {"reward": value}, "cost": {"seconds": 2.0}}
            for name, value in (("PSLE", reward + 0.1), ("TRL's GRPO", reward))
            for seed in (0, 1)
        ]
        result = result_of(suite, *cases, preset="cpu", seeds=[0, 1], task={"prompts": prompts})
        result["time"] = f"2026-01-{prompts:02}T00:00:00+00:00"
        (tmp_path / f"{prompts}.json").write_text(json.dumps(result))
    file = tmp_path / "claims.yaml"
    file.write_text(CHAT)
    claims = read_claims(file)
    found = verdict_of(claims.claims[0], Sources(tmp_path))
    assert found.verdict is HOLDS and "0.50 ± 0.00" in found.findings[0].text
    assert "| PSLE is better than GRPO. | Table 2 | **holds** | Reward: “PSLE” 0.50" in page(claims, Sources(tmp_path))


CHAT = """
papers: {psle: PSLE}
tasks:
  chat: {suite: chat, where: {preset: cpu}, run: python -m benchmarks.run chat, what: A chat model.}
claims:
  - id: psle-grpo
    paper: psle
    claim: PSLE is better than GRPO.
    source: Table 2
    check: {task: chat, column: reward, compare: greater, left: PSLE, right: TRL's GRPO}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("compare: greater", "compare: more", "claim psle-grpo: `compare` is 'more', and there are greater"),
        ("compare: greater", "compare: as_good", "claim psle-grpo: as_good needs a tolerance"),
        ("compare: greater", "compare: ordered", "claim psle-grpo: ordered needs rows"),
        ("left: PSLE, ", "", "claim psle-grpo: greater needs left"),
        ("left: PSLE", "left: {row: PSLE, colum: kl}", "claim psle-grpo: colum unknown"),
        ("column: reward, ", "", "needs a `row` and a `column`"),
        ("task: chat", "task: chart", "claim psle-grpo: `task` is 'chart', and the tasks are chat"),
        ("paper: psle", "paper: plse", "no paper is named plse; there are psle"),
        ("source: Table 2", "origin: Table 2", "claim psle-grpo: origin unknown"),
        ("    source: Table 2\n", "", "claim psle-grpo: source missing"),
        ("suite: chat, ", "", "task chat: `suite` or `page` is needed"),
        ("run: python -m benchmarks.run chat, ", "", "claim psle-grpo: `run`, the command that tests it"),
        ("claims:", "claim:", "claims.yaml: claim unknown"),
    ],
)
def test_a_malformed_claim_is_an_error_that_names_it(tmp_path, old, new, message):
    file = tmp_path / "claims.yaml"
    assert old in CHAT
    file.write_text(CHAT.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_claims(file)


def test_two_claims_of_one_id_are_an_error(tmp_path):
    file = tmp_path / "claims.yaml"
    head, claim = CHAT.split("claims:\n")
    file.write_text(f"{head}claims:\n{claim}{claim}")
    with pytest.raises(ValueError, match="two claims have the id psle-grpo"):
        read_claims(file)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (Task("", page="vas.md", section="No such heading"), "x", "vas.md has no heading 'No such heading'"),
        (Task("", page="none.md", section="x"), "x", "there is no page none.md"),
        (Task("", page="vas.md", section="Models behind an API"), "x", "no row 'x' with a 'reward' under"),
        (Task("", suite="rrhf_step"), "x", "there is no suite 'rrhf_step' of arms and seeds"),
        (Task("", suite="nothing"), "x", "there is no suite 'nothing' of arms and seeds"),
    ],
)
def test_a_wrong_place_is_an_error(sources, task, row, message):
    with pytest.raises(ValueError, match=message):
        judge(replace(check_of("greater", row), task=task), sources)


def test_results_of_a_task_are_those_that_the_tables_have():
    """The suite `quality` makes its table of the same cases."""
    suite = run.suite_of("quality")
    results = read_results("quality")
    [table] = [found for found in suite.by_task(results) if found["settings"]["preset"] == "cpu"]
    named = {(case["name"], case["seed"]): case["metrics"] for case in table["cases"]}
    from benchmarks.quality.quality import SUITE

    assert named == {(c["name"], c["seed"]): c["metrics"] for c in SUITE.by_preset(results)["cpu"]["cases"]}
    assert REPOSITORY in RESULTS.parents
