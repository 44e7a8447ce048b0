# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Turns errors that a user can act on into one line."""

import os
import sys
import time
from collections.abc import Callable


_PACKAGE = os.path.dirname(os.path.dirname(__file__))


def guarded(prog: str, run: Callable[[], int]) -> int:
    """
    Run a command; turn errors that a user can do something about into one line, unless `TRL_EXT_DEBUG` is set.

    Other exceptions are bugs, ours or a library's, and keep their traceback.
    """
    try:
        return run()
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `trl-ext ... | head`; the interpreter's own flush at exit must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        missing = "to be installed" in str(error)  # what transformers raises of a tracker in `report_to`
        bug = isinstance(error, RuntimeError) and not missing
        if bug or os.environ.get("TRL_EXT_DEBUG", "0") not in ("", "0"):
            raise
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            # Most errors are everyone's. The launcher ends the others when the first process leaves, so that the main
            # one speaks alone unless this error is only ours.
            time.sleep(3)
            prog = f"{prog} (process {rank})"
        message = " ".join(str(error).split()) or type(error).__name__
        hint = "" if _is_ours(error) else " (TRL_EXT_DEBUG=1 shows the traceback)"
        print(f"{prog}: error: {message}{hint}", file=sys.stderr)
        return 2


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error: its messages say what to do, a library's may need the traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _PACKAGE in trace.tb_frame.f_code.co_filename
