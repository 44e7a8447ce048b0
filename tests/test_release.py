# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A release: one version and one address everywhere, PyPI's page, and the files that GitHub reads."""

import re
import tomllib
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from trl_ext.method import discover
from trl_ext.plugins import OWN_PACKAGE


PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = PYPROJECT["project"]["version"]
ADDRESS = PYPROJECT["project"]["urls"]["Repository"]
CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def test_the_version_is_the_same_everywhere() -> None:
    assert CITATION["version"] == VERSION
    released = re.findall(
        r"^## \[(\d[^]]*)\]", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert released[0] == VERSION, "the newest version of CHANGELOG.md is another"


def test_the_address_is_the_same_everywhere() -> None:
    assert CITATION["repository-code"] == ADDRESS
    owner_and_name = ADDRESS.removeprefix("https://github.com/")
    pages = [*GITHUB.rglob("*.*"), REPOSITORY / "pyproject.toml", REPOSITORY / "docs" / "releasing.md"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        found = set(re.findall(r"(?:github|raw\.githubusercontent)\.com/([\w.-]+/trl-ext)\b", text))
        assert found <= {owner_and_name}, page


def test_versions_that_go_together() -> None:
    """The table of docs/releasing.md is that of pyproject.toml and constraints.txt."""
    text = (REPOSITORY / "docs" / "releasing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\S+) or later(?:, below (\S+))? \| (\S+)", text, flags=re.MULTILINE)
    taken = {
        name: (low, cap)
        for each in PYPROJECT["project"]["dependencies"]
        for name, low, cap in re.findall(r"^([\w-]+)>=([\d.]+)(?:,<([\d.]+))?", each)
    }
    taken["Python"] = (PYPROJECT["project"]["requires-python"].removeprefix(">="), "")
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", pins, flags=re.MULTILINE)) | {"Python": taken["Python"][0]}
    assert [row[0] for row in rows][:4] == ["Python", "torch", "trl", "transformers"] and len(rows) == 8
    assert {row[0]: (row[1], row[2]) for row in rows} == {row[0]: taken[row[0]] for row in rows}
    assert {row[0]: row[3] for row in rows} == {row[0]: pinned[row[0]] for row in rows}


def test_the_models_of_the_benchmarks_are_not_in_the_distribution() -> None:
    """28 MB that a clone has: the wheel takes the package and the recipes, the source distribution leaves them out."""
    targets = PYPROJECT["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["packages"] == ["trl_ext"] and list(targets["wheel"]["force-include"]) == ["recipes"]
    assert "benchmarks" in targets["sdist"]["include"] and targets["sdist"]["exclude"] == ["/benchmarks/models"]
    large = [path for path in (REPOSITORY / "benchmarks").rglob("*") if path.is_file() and path.stat().st_size > 2**21]
    assert all((REPOSITORY / "benchmarks" / "models") in path.parents for path in large)


def test_pypis_page_has_no_relative_link() -> None:
    """With the substitutions that the build applies; `.ci/package` looks at the metadata of a wheel."""
    settings = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    [fragment] = settings["fragments"]
    text = (REPOSITORY / fragment["path"]).read_text(
        encoding="utf-8"
    ) + "![picture](docs/a.png) [section](#quickstart) [mail](mailto:a@b.c)\n"
    code = re.findall(r"^```.*?^```", text, flags=re.DOTALL | re.MULTILINE)
    for change in settings["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    text = text.replace("$HFPR_VERSION", VERSION)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    pictures = re.findall(r"<[^>]+ src(?:set)?=\"([^\"]+)\"", text)
    assert len(links) > 20 and all(link.startswith(("https://", "mailto:")) for link in links)
    assert f"]({ADDRESS}/blob/v{VERSION}/CONTRIBUTING.md#add-a-method-in-seven-steps)" in text
    assert f"[section]({ADDRESS}/blob/v{VERSION}/README.md#quickstart)" in text
    raw = f"{ADDRESS.replace('github.com', 'raw.githubusercontent.com')}/v{VERSION}"
    assert f"![picture]({raw}/docs/a.png)" in text
    assert pictures == [f"{raw}/benchmarks/results/quality-cpu{dark}.png" for dark in ("-dark", "")]
    assert re.findall(r"^```.*?^```", text, flags=re.DOTALL | re.MULTILINE) == code


def test_the_citation_has_the_papers_of_the_methods() -> None:
    """With the title and the authors that a model card cites."""
    cited = {entry["url"].rpartition("/")[2]: entry for entry in CITATION["references"]}
    papers = {
        found.method.paper: found.method.trainer_class()._paper
        for found in discover().methods.values()
        if found.package == OWN_PACKAGE
    }
    assert cited.keys() == papers.keys()
    for number, paper in papers.items():
        authors = re.search(r"author\s*= \{(.*?)\}", paper["citation"], flags=re.DOTALL)[1]
        names = [f"{author['given-names']} {author['family-names']}" for author in cited[number]["authors"]]
        assert names == re.split(r"\s+and\s+", authors)
        assert cited[number]["title"] == paper["title"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_uses_pinned_actions_and_commands_that_exist(path: Any) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["name"] and workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"]
        for step in job["steps"]:
            assert "uses" in step or "run" in step
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])
            for command in re.findall(r"(?<!\S)\.ci/\w+", step.get("run", "")):
                assert (REPOSITORY / command).stat().st_mode & 0o111, command


def test_ci_runs_the_lowest_the_constrained_and_the_newest_torch() -> None:
    jobs = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    [lowest] = [re.search(r">=([\d.]+)", line)[1] for line in PYPROJECT["project"]["dependencies"] if "torch>" in line]
    assert jobs["torch"]["strategy"]["matrix"]["torch"] == [f"=={lowest}.0", f">={lowest}"]
    assert any(".ci/run" in step.get("run", "") for step in jobs["test"]["steps"])


def test_a_tag_publishes_without_a_stored_secret() -> None:
    """`on` is read as the boolean by YAML 1.1."""
    text = (GITHUB / "workflows" / "publish.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert list(workflow[True]["push"]) == ["tags"] and "secrets." not in text
    publish = workflow["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["needs"] == "build"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_has_what_github_asks_for(path: Any) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"] and form["description"]
    fields = [field["id"] for field in form["body"]]
    assert len(set(fields)) == len(fields) and all(field["attributes"]["label"] for field in form["body"])


def test_a_bug_report_asks_for_the_environment() -> None:
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "bug_report.yml").read_text(encoding="utf-8"))
    [field] = [field for field in form["body"] if "trl-ext env" in field["attributes"]["label"]]
    assert field["validations"]["required"]
