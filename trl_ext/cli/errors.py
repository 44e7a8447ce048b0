# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What every process of the command prints of errors and warnings: a bug keeps its traceback, others have one form."""

import argparse
import logging
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from typing import NoReturn

from trl_ext.validation import SettingErrors


_LESS_MEMORY = (
    "What takes less memory: a smaller per_device_train_batch_size with more gradient_accumulation_steps, a smaller "
    "generation_batch_size, max_length or num_generations, gradient_checkpointing, load_in_4bit with use_peft."
)
_PACKAGE = os.path.dirname(os.path.dirname(__file__))


class RaisingParser(argparse.ArgumentParser):
    """A parser of flags that raises a `ValueError`, for [`guarded`], where argparse ends the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def guarded(prog: str, run: Callable[[], int]) -> int:
    """
    Run a command. Errors that a user can correct become one line on stderr, or a line for each of several settings,
    unless `TRL_EXT_DEBUG` is set. Notes of an error follow it.

    Other exceptions are bugs, of this package or of a library, and are raised with their traceback. A warning of
    bitsandbytes about a path that is never taken is hidden.

    Args:
        prog (`str`):
            The command, for messages.
        run (`Callable`):
            Runs it and returns its exit status.

    Returns:
        `int`: The exit status of `run`; 2 after an error, 130 after Ctrl-C.
    """
    # It advises to install kernels for what `use_exact_4bit_on_cpu` switches off.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        return run()
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `trl-ext ... | head`; the interpreter flushes stdout at exit, which must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        bug = isinstance(error, RuntimeError) and not _is_out_of_memory(error)
        if bug or os.environ.get("TRL_EXT_DEBUG", "0") not in ("", "0"):
            raise
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            # Most errors occur in every process. The launcher ends all when the first one exits, so that only the main
            # process prints, unless the error occurs in this one alone.
            time.sleep(3)
            prog = f"{prog} (process {rank})"
        print(_shown(f"{prog}: error: ", error), file=sys.stderr)
        return 2


def _shown(start: str, error: BaseException) -> str:
    """The error as it is printed: in a terminal, lines end between words."""
    if isinstance(error, SettingErrors):
        lines = f"{start}{error}".splitlines()
    elif _is_out_of_memory(error):
        lines = [start + " ".join(str(error).split()), _LESS_MEMORY]
    else:
        hint = "" if _is_ours(error) else " (TRL_EXT_DEBUG=1 shows the traceback)"
        lines = [start + (" ".join(str(error).split()) or type(error).__name__) + hint]
    lines += getattr(error, "__notes__", [])  # what was kept, and how to go on
    if not sys.stderr.isatty():
        return "\n".join(lines)
    width = max(40, shutil.get_terminal_size().columns)
    wrap = textwrap.TextWrapper(width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrap.fill(line) for line in lines)


def _is_out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch's, which need not be imported here


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error; its messages say what to do, a library's may need the traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _PACKAGE in trace.tb_frame.f_code.co_filename
