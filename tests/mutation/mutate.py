# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs mutmut on one file, for `run.py`, in a process of its own: mutmut has one configuration per process.

Torch is imported once: each mutant is a fork that runs the tests which call the changed function. What is done is
kept in `mutants/`, and a run of the same file and tests goes on there.
"""

import json
import sys
from pathlib import Path
from typing import Any

from mutmut import __main__ as mutmut
from mutmut.configuration import config
from mutmut.mutation.diff_apply import find_mutant, get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from run import chosen


BEGUN = Path("mutants") / "begun.json"  # the contents of files and tests that results in mutants/ are of


def main(task_file: str) -> None:
    """
    Run a task.

    Args:
        task_file (`str`): JSON with `file`, `tests`, `contents` (a hash of both), `names` (mutants to run again;
            empty: those without a result), `per_module`, `seed`, `processes` and `results` (the file to write).
    """
    task: dict[str, Any] = json.loads(Path(task_file).read_text(encoding="utf-8"))
    settings = config()
    settings.only_mutate = [task["file"]]
    settings.pytest_add_cli_args_test_selection = task["tests"]
    begun = json.loads(BEGUN.read_text(encoding="utf-8")) if BEGUN.is_file() else {}
    goes_on = begun.get(task["file"]) == task["contents"]
    collect = mutmut.collect_source_file_mutation_data
    every: list[str] = []
    wanted: set[str] = set()

    def collect_some(**_: Any) -> Any:
        mutants, data = collect(mutant_names=())
        every.extend(name for _, name, _ in mutants)
        wanted.update(task["names"] or chosen(every, task["per_module"], task["seed"]))
        for of_file, name, _ in mutants:
            if not goes_on or name in task["names"]:
                of_file.exit_code_by_key[name] = None
        data[task["file"]].save()
        BEGUN.write_text(json.dumps(begun | {task["file"]: task["contents"]}), encoding="utf-8")
        return [
            (of_file, name, of_file.exit_code_by_key[name]) for of_file, name, _ in mutants if name in wanted
        ], data

    mutmut.collect_source_file_mutation_data = collect_some
    mutmut._run((), task["processes"])
    _, data = collect(mutant_names=())
    results = {}
    for name, code in data[task["file"]].exit_code_by_key.items():
        if name in wanted:
            status = status_by_exit_code[code]
            diff = get_diff_for_mutant(name, path=find_mutant(name).path) if status in ("survived", "no tests") else ""
            results[name] = {"status": status, "diff": diff}
    found = {"mutants": len(every), "results": results}
    Path(task["results"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
