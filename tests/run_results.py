# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""What a training leaves in its folder, for runs that must end alike: log, weights, completions."""

import json
from pathlib import Path
from typing import Any


# Of the log: what the steps, rounds and evaluations came to, but no times.
TIMES = ("runtime", "per_second", "seconds/", "_time")


def newest_checkpoint(output: Path) -> Path:
    """The checkpoint with the highest number."""
    return max(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def run_results(output: Path, *, every_checkpoint: bool = True) -> dict[str, Any]:
    """
    The results of a run that do not depend on the clock.

    Args:
        output (`Path`): Its `output_dir`.
        every_checkpoint (`bool`, *optional*, defaults to `True`): Whether the weights are those of all checkpoints, or
            of the newest and the trained model only.
    """
    newest = newest_checkpoint(output)
    log = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    files = (
        output.rglob("*.safetensors")
        if every_checkpoint
        else [*output.glob("*.safetensors"), *newest.glob("*.safetensors")]
    )
    return {
        "log": [{k: v for k, v in entry.items() if not any(part in k for part in TIMES)} for entry in log],
        "weights": {str(path.relative_to(output)): path.read_bytes() for path in files},
        "completions": {path.name: path.read_bytes() for path in (output / "completions").glob("*.parquet")},
    }


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two results are equal bit for bit."""
    assert [repr(entry) for entry in one["log"]] == [repr(entry) for entry in other["log"]]  # NaN is NaN
    for kind in ("weights", "completions"):
        assert one[kind].keys() == other[kind].keys()
        differ = [name for name in one[kind] if one[kind][name] != other[kind][name]]
        assert not differ, f"{kind} differ: {differ}"
