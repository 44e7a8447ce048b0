# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Results as suites write them."""

import copy
import functools
import sys

import pytest
import torch
from conftest import REPOSITORY


sys.path.insert(0, str(REPOSITORY))  # `benchmarks` is not part of the package

from benchmarks.harness import results


@pytest.fixture(autouse=True)
def committed(monkeypatch):
    """What is being worked on differs from its commit, which suites refuse to measure."""
    monkeypatch.setattr(results, "current_commit", lambda: "0123456789ab")


@functools.cache
def facts_of(suite):
    return results.environment(torch.device("cpu"), suite.measures())


@pytest.fixture(scope="session")
def result_of():
    """Make a result of a suite from its cases; settings are those of a timed suite unless some are given."""

    def make(suite, *cases, gpu=None, time="2026-01-02T00:00:00+00:00", **settings):
        facts = copy.deepcopy(facts_of(suite))
        facts["hardware"]["gpu"] = gpu
        return {
            "schema": results.SCHEMA,
            "suite": suite.name,
            "device": "cpu",
            "time": time,
            "settings": settings or {"seed": 0, "rounds": 1, "batches": 1, "clock": "cpu"},
            "environment": facts,
            "cases": list(copy.deepcopy(cases)),
        }

    return make
