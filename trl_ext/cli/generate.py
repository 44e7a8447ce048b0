# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext generate` and `trl-ext chat`: answers to prompts, on the terminal while they are written.

    trl-ext generate --model_name_or_path M --prompt "Once upon a time"
    trl-ext generate --model_name_or_path M --dataset_name prompts.jsonl --output_file answers.jsonl
    trl-ext chat --model_name_or_path M

Prompts come from --prompt, from a data set, or from the terminal, a line a prompt. `chat` keeps the conversation.
What steers a frozen model at decoding is set by the flags of the methods that have such a thing; several settings
answer each prompt in turn. Where such flags name a server, its model answers and none is loaded.

A row of the output has `prompt`, `completions`, `ended`, the other columns of the data set and, where several settings
answer, `sources`. It is written as soon as it is there; with --prompt or a data set, the same command goes on where an
interrupted one has stopped.
"""

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.data.prompts import load_prompts
from trl_ext.data.resumable_file import ResumableFile, rows_fingerprint, weights_fingerprint
from trl_ext.endpoint.errors import EndpointError
from trl_ext.generation.generate import usual_batch_size
from trl_ext.generation_settings import GenerationSettings, setting
from trl_ext.inference.completer import Completer
from trl_ext.inference.policy import Decoding, served_at_once
from trl_ext.models.load import default_device

from .decoding_flags import asked_for, decoding_classes, policies, settings_of
from .models import SampleLoadingArguments, load_policy
from .parser import Parser, set_environment
from .terminal import answer_typed, as_message, print_row, show_answer


@dataclass
class GenerateArguments:
    """What is to be answered, by which model, and how. The meaning of each field is its help text."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model that answers: hub id, directory, LoRA adapter directory."}
    )
    prompt: list[str] | None = field(
        default=None,
        metadata={"help": "Prompts. Without any, and without a data set, they are read from the terminal."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Data set with a column `prompt` (text or messages): hub id, directory, or a .jsonl, .json, "
            ".parquet or .csv file. It is answered in batches."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to answer. By default `test`, or the only one there is."}
    )
    max_num_prompts: int = field(default=0, metadata={"help": "Answer the first so many prompts. 0 means all."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message before each conversation."})
    apply_chat_template: bool = field(
        default=True,
        metadata={
            "help": "Whether text is a user's message where the tokenizer has a chat template. Otherwise the model "
            "continues it."
        },
    )
    num_generations: int = field(default=1, metadata={"help": "Answers to a prompt."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest answer, in tokens."})
    temperature: float = setting("temperature")
    top_k: int = setting("top_k")
    top_p: float = setting("top_p")
    min_p: float = setting("min_p")
    repetition_penalty: float = setting("repetition_penalty")
    cuda_graphs: str = setting("cuda_graphs")
    seed: int = field(default=42, metadata={"help": "Seed of the draws."})
    generation_batch_size: int = field(
        default=0,
        metadata={"help": "Sequences that are written at once. 0 means 64 on CPU, 128 elsewhere; a server's number."},
    )
    output_file: str | None = field(
        default=None, metadata={"help": "File for the answers: .jsonl or .parquet. An interrupted run is resumed."}
    )
    overwrite_output: bool = field(default=False, metadata={"help": "Whether to start over if the file exists."})

    def __post_init__(self) -> None:
        if self.prompt is not None and self.dataset_name is not None:
            raise ValueError("prompts come from --prompt or from --dataset_name, not from both.")
        for index, prompt in enumerate(self.prompt or []):
            if not prompt:
                raise ValueError(f"prompt {index} is empty: there is nothing to answer.")
        for name in ("max_num_prompts", "generation_batch_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.interactive and self.output_file is not None and not self.output_file.endswith(".jsonl"):
            raise ValueError(
                f"answers to what is typed are written line by line, to .jsonl, not {self.output_file!r}."
            )
        self.settings()

    @property
    def interactive(self) -> bool:
        """Whether the prompts come from the terminal."""
        return self.prompt is None and self.dataset_name is None

    def settings(self) -> GenerationSettings:
        """The fields that say how answers are drawn."""
        return GenerationSettings.of(self)

    def rows(self) -> list[dict[str, Any]]:
        """The prompts that are known before."""
        if self.dataset_name is not None:
            return load_prompts(
                self.dataset_name, self.dataset_config, self.dataset_test_split, limit=self.max_num_prompts
            )
        return [{"prompt": prompt} for prompt in self.prompt or []]


def run(
    args: GenerateArguments, loading: SampleLoadingArguments, decodings: Sequence[Decoding] = (), *, chat: bool = False
) -> int:
    """
    Answer, show and write.

    Args:
        args ([`GenerateArguments`]): What to answer.
        loading ([`~trl_ext.cli.models.SampleLoadingArguments`]): How the model is loaded.
        decodings (`Sequence[Decoding]`, *optional*): What steers the model; checked.
        chat (`bool`, *optional*, defaults to `False`): Whether each prompt goes on with the conversation.

    Returns:
        `int`: 0; 1 if a server failed for good; 130 after Ctrl-C. What was answered before is shown and written all
        the same.
    """
    if (args.model_name_or_path is None) is not bool(served_at_once(decodings)):
        raise ValueError(
            "there is no model to answer: pass --model_name_or_path."
            if args.model_name_or_path is None
            else "a server's model answers: leave out --model_name_or_path, or what names the server."
        )
    if chat and not args.interactive:
        raise ValueError("chat reads from the terminal: leave out --prompt and --dataset_name, or use generate.")
    rows = args.rows()
    file = _output(args, loading, decodings, rows)
    if file is not None and file.complete:
        print(f"{file.path} is complete, with {file.rows} rows (--overwrite_output starts over).")
        return 0
    completer, tokenizer = _load(args, loading, decodings)
    if chat and (tokenizer.chat_template is None or not args.apply_chat_template):
        raise ValueError(f"{args.model_name_or_path!r} has no chat template: use `trl-ext generate`.")
    if chat and len(completer.policies) > 1:
        names = ", ".join(policy.name for policy in completer.policies)
        raise ValueError(f"a conversation takes one setting, got {names}: `trl-ext generate` compares several.")
    start = _opening(args, tokenizer)
    try:
        if args.interactive:
            answer_typed(completer, file, start, keep=chat)
        else:
            size = 1 if args.prompt is not None else max(1, _batch_size(args, decodings) // args.num_generations)
            _answer_rows(
                completer, file, [as_message(row, start) for row in rows], size, shown=args.prompt is not None
            )
    except KeyboardInterrupt:
        where = f"; {file.rows_path} has {file.rows} rows" if file is not None else ""
        print(f"\ntrl-ext {'chat' if chat else 'generate'}: interrupted{where}", file=sys.stderr)
        return 130
    except EndpointError as error:
        kept = f" {file.rows_path} has {file.rows} rows; the same command goes on there." if file is not None else ""
        print(f"trl-ext {'chat' if chat else 'generate'}: error: {error}{kept}", file=sys.stderr)
        return 1
    return 0


def _output(
    args: GenerateArguments,
    loading: SampleLoadingArguments,
    decodings: Sequence[Decoding],
    rows: Iterable[dict[str, Any]],
) -> ResumableFile | None:
    if args.output_file is None:
        return None
    settings = {**dataclasses.asdict(args), **dataclasses.asdict(loading), **settings_of(decodings)}
    del settings["output_file"], settings["overwrite_output"]
    settings["contents of the data set"] = rows_fingerprint(rows)
    named = [args.model_name_or_path or "", *(x for value in settings_of(decodings).values() for x in _texts(value))]
    settings |= {f"weights of {name}": found for name in named if (found := weights_fingerprint(str(name)))}
    return ResumableFile(args.output_file, settings, overwrite=args.overwrite_output)


def _texts(value: Any) -> list[str]:
    """The texts of a setting, any of which may name a directory with weights."""
    return [x for x in (value if isinstance(value, list) else [value]) if isinstance(x, str)]


def _load(
    args: GenerateArguments, loading: SampleLoadingArguments, decodings: Sequence[Decoding]
) -> tuple[Completer, PreTrainedTokenizerBase]:
    size = _batch_size(args, decodings)
    if args.model_name_or_path is None:
        served = list(policies(decodings, None, None, name="", batch_size=size))
        return Completer(served, args.settings(), args.seed), served[0].tokenizer
    policy = load_policy(args.model_name_or_path, loading, batch_size=size)
    policy.max_prompt_length(args.settings())  # an error if no prompt at all would fit
    guided = list(policies(decodings, policy.model, policy.tokenizer, name=policy.name, batch_size=size))
    return Completer(guided or [policy], args.settings(), args.seed), policy.tokenizer


def _batch_size(args: GenerateArguments, decodings: Sequence[Decoding]) -> int:
    """Answers at once; a batch of a server's is as many as it is asked for at once, so that few are under way."""
    return args.generation_batch_size or served_at_once(decodings) or usual_batch_size(default_device())


def _opening(args: GenerateArguments, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]] | None:
    """The messages that a conversation begins with; `None` if text is continued as it is."""
    chat = args.apply_chat_template and tokenizer.chat_template is not None
    if args.system_prompt is None:
        return [] if chat else None
    if not chat:
        raise ValueError("system_prompt needs a chat model: the tokenizer has no chat template, or is not to use it.")
    return [{"role": "system", "content": args.system_prompt}]


def _answer_rows(
    completer: Completer, file: ResumableFile | None, rows: list[dict[str, Any]], step: int, *, shown: bool
) -> None:
    """Answer `step` rows at a time, each row `shown` while it is written or printed when it is done."""
    done = 0 if file is None else min(file.batches * step, len(rows))
    if done:
        print(f"going on after {done} of {len(rows)} prompts", file=sys.stderr)
    for begin in range(done, len(rows), step):
        batch = rows[begin : begin + step]
        if shown:
            answers = [show_answer(completer, batch[0], begin, with_prompt=len(rows) > 1)]
        else:
            answers = completer.batch(batch, begin)
            for answer in answers:
                print_row(answer)
        if file is not None:
            file.append(answers)
    if file is not None:
        file.finish()


def make_parser(prog: str = "trl-ext generate") -> Parser:
    """The parser of the command's flags and YAML file."""
    own = [GenerateArguments, SampleLoadingArguments]
    return Parser(
        [*own, *decoding_classes(own)],
        prog=prog,
        description="Answer prompts from --prompt, a data set or the terminal; show answers while they are written.",
        epilog="`trl-ext chat` is the same with a running conversation.",
    )


def main(argv: list[str], chat: bool = False) -> int:
    """
    `trl-ext generate`, or with `chat` `trl-ext chat`.

    Returns:
        `int`: See [`run`].

    Raises:
        `ValueError`, `OSError` or `ImportError`: Settings, data or models that cannot work.
    """
    set_environment(argv)
    args, loading, *decodings = make_parser(f"trl-ext {'chat' if chat else 'generate'}").parse_args_and_config(argv)
    return run(args, loading, asked_for(decodings), chat=chat)
