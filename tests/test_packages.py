# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Optional packages are looked for before data and weights are loaded, by the command and by the trainers."""

from types import SimpleNamespace

import pytest
from tiny_trainers import METHODS

from trl_ext import RRHFConfig, packages
from trl_ext.method import discover
from trl_ext.packages import Package, check_packages, is_installed


def settings(**changes):
    """Settings of a config that need no package, with changes."""
    return SimpleNamespace(**({"report_to": [], "optim": "adamw_torch", "use_liger_kernel": False} | changes))


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(packages, "is_installed", lambda package: False)


def test_what_is_installed():
    assert is_installed(Package("pytest")) and is_installed(Package("x", ("no_such_module", "json")))
    assert not is_installed(Package("no-such-package"))


def test_all_that_are_missing_are_named_with_the_command_that_installs_them(nothing_installed):
    check_packages(settings())
    trackers = ["wandb", "comet_ml", "wandb,trackio"]
    with pytest.raises(ValueError) as caught:
        check_packages(settings(report_to=trackers, optim="galore_adamw", use_liger_kernel=True, use_vllm=True))
    lines = str(caught.value).splitlines()
    assert lines[0] == "6 settings are wrong:" and lines[1].startswith("  `report_to` has no 'wandb,trackio', only ")
    assert lines[1].endswith("with spaces between them")
    assert [line.rpartition("pip install ")[2] for line in lines[2:]] == [
        "wandb",
        "comet-ml",
        "galore-torch",
        "liger-kernel",
        "'trl-ext[vllm]'",
    ]


@pytest.mark.parametrize("alone", ["none", "all"])
def test_none_and_all_are_no_trackers_beside_others(alone):
    with pytest.raises(ValueError, match=f"`report_to` is {alone}, wandb, but {alone} cannot stand beside others"):
        check_packages(settings(report_to=[alone, "wandb"]))


@pytest.mark.parametrize("method", METHODS)
def test_trainers_ask_before_anything_is_loaded(tmp_path, nothing_installed, method):
    found = discover().methods[method].method
    args = found.config_class()(str(tmp_path), report_to="wandb")
    with pytest.raises(ValueError, match="`report_to: wandb` needs a package"):
        found.trainer_class()("no/such-model", args=args, train_dataset=None)


def test_deepspeed_is_asked_for_by_its_setting(tmp_path, nothing_installed):
    with pytest.raises(ImportError, match=r"`deepspeed` needs .* pip install 'trl-ext\[deepspeed\]'"):
        RRHFConfig(str(tmp_path), deepspeed="zero2.json")
