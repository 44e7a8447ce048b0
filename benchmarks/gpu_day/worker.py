# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The process of a part: it imports the suite, then waits for its turn.

    python -m benchmarks.gpu_day.worker SUITE

The imports take longer than some measurements, so they run while the part before is measured. A line on the standard
input, the arguments of the suite in JSON, is the turn. When the input ends before, there is none; when it ends after,
the day has been killed, and the part ends too.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence

from benchmarks.harness.measured_code import reached
from benchmarks.harness.results import ROOT
from benchmarks.run import suite_of


def main(argv: Sequence[str]) -> int:
    suite = suite_of(argv[0])
    reached(suite.measures(), ROOT)  # it keeps what it has read of the code
    line = sys.stdin.readline()
    if not line:
        return 0
    threading.Thread(target=_end_with_the_day, daemon=True).start()
    return suite.main(json.loads(line))


def _end_with_the_day() -> None:
    """End the process group, which has what the part has started. `sys.stdin` has a lock, which a fork would copy."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # what waits at the end of an interpreter must not cost the next part
