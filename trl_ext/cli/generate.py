# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext generate`: completions for prompts, printed as they are generated. `trl-ext chat` is in `chat.py`.

    trl-ext generate --model_name_or_path M --prompt "Once upon a time"
    trl-ext generate --model_name_or_path M --dataset_name prompts.jsonl --output_file completions.jsonl

Prompts come from --prompt, from a dataset, or from the terminal, one per line. Methods that guide a frozen model while
it generates add flags of their own; with several settings of these, each setting completes each prompt. If such flags
name a server, the server's model generates and no model is loaded.

Completions are printed to stdout, everything else to stderr. A row of the output file has `prompt`, `completions`,
`ended`, the other columns of the dataset and, with several settings, `sources`; scores and the like of completions
that the dataset has are left out. It is written as soon as it is complete; with --prompt or a dataset, the same
command resumes an interrupted run.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.data.prompts import has_system_prompt, load_prompts
from trl_ext.data.resumable_file import ResumableFile
from trl_ext.data.schema import DataError
from trl_ext.devices import default_device
from trl_ext.endpoint.errors import EndpointError
from trl_ext.generation.generate import usual_batch_size
from trl_ext.inference.completer import Completer
from trl_ext.inference.policy import Decoding, served_at_once

from .arguments import LoadingArguments, OutputArguments, SamplingArguments, TypedPromptArguments, as_message
from .decoding_flags import active_decodings, check_beside_server, decoding_classes, settings_of
from .models import load_policy
from .parser import Parser


@dataclass
class GenerateArguments(TypedPromptArguments, SamplingArguments, OutputArguments):
    """Which model completes which prompts, and how."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model that generates: Hub id, directory, LoRA adapter directory."}
    )
    dataset_test_split: str | None = field(
        default=None,
        metadata={"help": "Split that the prompts are taken from. By default `test`, or the only one there is."},
    )

    def __post_init__(self) -> None:
        self.check_counts(max_num_prompts=0, generation_batch_size=0)
        if self.interactive and self.output_file is not None and not self.output_file.endswith(".jsonl"):
            raise ValueError(
                f"completions of typed prompts are written line by line, to .jsonl, not {self.output_file!r}."
            )
        self.check_prompts()
        self.check_output(self.dataset_name)
        self.settings()

    @property
    def interactive(self) -> bool:
        """Whether the prompts come from the terminal."""
        return self.prompt is None and self.dataset_name is None

    def rows(self) -> list[dict[str, Any]]:
        """The prompts, except those that are going to be typed."""
        if self.dataset_name is not None:
            return load_prompts(
                self.dataset_name,
                self.dataset_config,
                self.dataset_test_split,
                limit=self.max_num_prompts,
                columns=self.columns,
                dataset_format=self.dataset_format,
            )
        return [{"prompt": prompt} for prompt in self.prompt or []]


def run(args: GenerateArguments, loading: LoadingArguments, decodings: Sequence[Decoding] = ()) -> int:
    """
    Generate, print and write.

    Args:
        args ([`GenerateArguments`]): Which model completes which prompts, and how.
        loading ([`~trl_ext.cli.arguments.LoadingArguments`]): How the model is loaded.
        decodings (`Sequence[Decoding]`, *optional*): Guidance of the model, already checked.

    Returns:
        `int`: 0; 1 if a server failed for good; 130 after Ctrl-C. Completions that were finished before are printed
        and written in any case.
    """
    check_model(args, loading, decodings)
    rows = args.rows()
    file = open_output(args, loading, decodings, rows)
    if file is not None and file.complete:
        print(f"{file.path} is complete, with {file.rows} rows (--overwrite_output starts over).")
        return 0
    completer, tokenizer = load(args, loading, decodings)
    opening = args.opening_messages(tokenizer)
    try:
        if args.interactive:
            _complete_typed(completer, file, opening)
        else:
            step = 1 if args.prompt is not None else max(1, _batch_size(args, decodings) // args.num_generations)
            own = sum(has_system_prompt(row["prompt"]) for row in rows)
            if own and args.system_prompt is not None:
                print(f"{own} of {len(rows)} prompts keep a system message of their own", file=sys.stderr)
            rows = [as_message(row, opening) for row in rows]
            _complete_rows(completer, file, rows, step, stream=args.prompt is not None)
    except KeyboardInterrupt:
        where = f"; {file.rows_path} has {file.rows} rows" if file is not None else ""
        print(f"\ntrl-ext generate: interrupted{where}", file=sys.stderr)
        return 130
    except EndpointError as error:
        kept = f" {file.rows_path} has {file.rows} rows; the same command resumes there." if file is not None else ""
        print(f"trl-ext generate: error: {error}{kept}", file=sys.stderr)
        return 1
    return 0


def check_model(args: GenerateArguments, loading: LoadingArguments, decodings: Sequence[Decoding]) -> None:
    """Raise a `ValueError` unless either a model or a server generates, and for settings that only the other has."""
    if (args.model_name_or_path is None) is not bool(served_at_once(decodings)):
        raise ValueError(
            "there is no model to generate with: pass --model_name_or_path."
            if args.model_name_or_path is None
            else "the server's model generates: remove --model_name_or_path, or the flag that names the server."
        )
    check_beside_server(decodings, args, loading)


def open_output(
    args: GenerateArguments, loading: LoadingArguments, decodings: Sequence[Decoding], rows: list[dict[str, Any]]
) -> ResumableFile | None:
    """The output file, if there is to be one."""
    if args.output_file is None:
        return None
    of_decodings = settings_of(decodings)
    models = [name for name in (args.model_name_or_path, *texts_in(of_decodings)) if name]
    # The size of a batch says which rows are done, and by default it depends on the machine.
    batch = {} if args.interactive else {"generation_batch_size": _batch_size(args, decodings)}
    return args.open_output(rows, models, asdict(loading) | of_decodings | batch)


def texts_in(value: Any) -> list[str]:
    """All texts in a setting. Any of them may name a directory with weights."""
    if isinstance(value, dict | list):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in texts_in(item)]
    return [value] if isinstance(value, str) else []


def load(
    args: GenerateArguments, loading: LoadingArguments, decodings: Sequence[Decoding]
) -> tuple[Completer, PreTrainedTokenizerBase]:
    """What completes the prompts, and its tokenizer."""
    size = _batch_size(args, decodings)
    policy, model, tokenizer, name = None, None, None, ""
    if args.model_name_or_path is not None:
        policy = load_policy(args.model_name_or_path, loading, batch_size=size)
        policy.max_prompt_length(args.settings())  # an error if no prompt at all would fit
        model, tokenizer, name = policy.model, policy.tokenizer, policy.name
    policies = [
        guided for decoding in decodings for guided in decoding.policies(model, tokenizer, name=name, batch_size=size)
    ]
    if policy is None:
        policies = [loading.served(each) for each in policies]
    elif not policies:
        policies = [policy]
    return Completer(policies, args.settings(), args.seed, args.template_kwargs), policies[0].tokenizer


def _batch_size(args: GenerateArguments, decodings: Sequence[Decoding]) -> int:
    """Sequences per batch; with a server the number of parallel requests, so that few are unfinished at a time."""
    return args.generation_batch_size or served_at_once(decodings) or usual_batch_size(default_device())


def _complete_rows(
    completer: Completer, file: ResumableFile | None, rows: list[dict[str, Any]], step: int, *, stream: bool
) -> None:
    """Complete `step` rows at a time; print each while it is generated (`stream`) or when it is complete."""
    starts = range(0, len(rows), step) if file is None else file.missing_batches(len(rows), step)
    if starts.start:
        print(f"resuming after {starts.start} of {len(rows)} prompts", file=sys.stderr)
    for start in starts:
        batch = rows[start : start + step]
        if stream:
            completed = [stream_row(completer, batch[0], start, with_prompt=len(rows) > 1)]
        else:
            completed = completer.batch(batch, start)
            for row in completed:
                _print_row(row)
        if file is not None:
            file.append(completed)
    if file is not None:
        file.finish()


def _complete_typed(completer: Completer, file: ResumableFile | None, opening: list[dict[str, str]] | None) -> None:
    """Complete each line of the input until it ends."""
    number, empty = 0 if file is None else file.rows, True
    if sys.stdin.isatty():
        print("Ctrl-D ends.", file=sys.stderr)
    while (line := read_line()) is not None:
        if not line.strip():
            continue
        empty = False
        try:
            completed = stream_row(completer, as_message({"prompt": line}, opening), number)
        except (ValueError, DataError) as error:  # such as a prompt that is too long
            print(error, file=sys.stderr)
            continue
        number += 1
        if file is not None:
            file.append([completed])
    if empty and not sys.stdin.isatty():
        raise ValueError("there are no prompts: pass --prompt or --dataset_name, or write some to the standard input.")


def read_line() -> str | None:
    """The next line of the standard input, behind a prompt on a terminal; `None` at its end."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input("> ")
    except EOFError:
        print()
        return None


def stream_row(
    completer: Completer,
    row: dict[str, Any],
    number: int,
    *,
    with_prompt: bool = False,
    shown: list[str] | None = None,
) -> dict[str, Any]:
    """Complete a row and print its completions while they are generated; `shown` gets the pieces of their text."""
    several = len(completer.policies) > 1 or completer.settings.num_generations > 1
    if with_prompt:
        print(f"> {text_of(row['prompt'])}")
    first = True

    def title(name: str) -> None:
        nonlocal first
        if not first:
            print()
        first = False
        if several:
            print(f"[{name}]")

    def show(text: str) -> None:
        print(text, end="", flush=True)
        if shown is not None:
            shown.append(text)

    completed = completer.one(row, number, show, title)
    print(flush=True)
    return completed


def _print_row(row: dict[str, Any]) -> None:
    """Print a completed row."""
    print(f"> {text_of(row['prompt'])}")
    for index, completion in enumerate(row["completions"]):
        if "sources" in row:
            print(f"[{row['sources'][index]}]")
        print(text_of(completion), flush=True)


def text_of(content: Any) -> str:
    """The text of a prompt or completion; of messages, that of the last one."""
    return content if isinstance(content, str) else str(content[-1]["content"])


def make_parser(prog: str = "trl-ext generate") -> Parser:
    """The parser of the command's flags and YAML file."""
    own = [GenerateArguments, LoadingArguments]
    return Parser(
        [*own, *decoding_classes(own)],
        prog=prog,
        description="Generate completions for prompts from --prompt, a dataset or the terminal, and print them while "
        "they are generated.",
        epilog="`trl-ext chat` does the same in a running conversation.",
    )


def main(argv: list[str]) -> int:
    """
    `trl-ext generate`.

    Returns:
        `int`: See [`run`].

    Raises:
        `ValueError`, `OSError` or `ImportError`: Settings, data or models that cannot work.
    """
    parser = make_parser()
    args, loading, *decodings = parser.parse_args_and_config(argv)
    return run(args, loading, active_decodings(decodings, parser.given))
