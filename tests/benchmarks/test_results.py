# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The order of result files."""

import json

from benchmarks.harness.results import read_results


def test_results_of_one_second_are_in_the_order_of_their_numbers(tmp_path):
    """The name of the first file of a day ends without one, and the tenth comes after the ninth."""
    for number in (1, 2, 3, 9, 10, 11):
        name = "2026-01-02-speed-nvidia-h200" + (f"-{number}" if number > 1 else "")
        content = {"suite": "speed", "time": "2026-01-02T03:04:05", "number": number}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    older = {"suite": "speed", "time": "2026-01-01T00:00:00", "number": 0}
    (tmp_path / "2026-01-02-speed-cpu.json").write_text(json.dumps(older))
    (tmp_path / "2026-01-02-other-cpu.json").write_text(json.dumps(older | {"suite": "other"}))
    assert [result["number"] for result in read_results("speed", tmp_path)] == [0, 1, 2, 3, 9, 10, 11]
