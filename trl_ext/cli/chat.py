# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext chat`: a conversation with a model, guided or not, loaded or on a server.

    trl-ext chat --model_name_or_path M
    trl-ext chat --model_name_or_path M --value_model_name_or_path value --beta 2

Ctrl-C stops an answer and keeps what was shown. Lines that begin with / are commands: [`COMMANDS`] lists them.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from trl_ext.data.resumable_file import ResumableFile
from trl_ext.data.schema import DataError
from trl_ext.endpoint.errors import EndpointError
from trl_ext.inference.completer import Completer
from trl_ext.inference.policy import Decoding, GuideWeights

from .arguments import LoadingArguments, as_message
from .decoding_flags import active_decodings, decoding_classes
from .generate import (
    GenerateArguments,
    check_model,
    load,
    open_output,
    read_line,
    stream_row,
)
from .models import load_model_tokenizer
from .parser import Parser


_READS = "a conversation reads from the terminal: use `trl-ext generate`"


@dataclass
class ChatArguments(GenerateArguments):
    """Which model converses, and how: as in `generate`, without the settings that a conversation has no use for."""

    refused_settings: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("prompt", "dataset_name", "dataset_config", "dataset_test_split"), _READS),
        **dict.fromkeys(("columns", "dataset_format", "max_num_prompts"), _READS),
        "num_generations": "a conversation takes one completion: use `trl-ext generate`",
        "apply_chat_template": "a conversation needs the chat template: use `trl-ext generate`",
    }

    # `init=False`: they are no flags.
    prompt: None = field(default=None, init=False)
    dataset_name: None = field(default=None, init=False)
    dataset_config: None = field(default=None, init=False)
    dataset_test_split: None = field(default=None, init=False)
    columns: None = field(default=None, init=False)
    dataset_format: str = field(default="auto", init=False)
    max_num_prompts: int = field(default=0, init=False)
    num_generations: int = field(default=1, init=False)
    apply_chat_template: bool = field(default=True, init=False)


class Ended(Exception):
    """The user ends the conversation."""


@dataclass
class Conversation:
    """
    The state of a conversation.

    Args:
        completer ([`~trl_ext.inference.completer.Completer`]): What answers, with one policy.
        opening (`list[dict]`): The messages that it begins with.
        file ([`~trl_ext.data.resumable_file.ResumableFile`], *optional*): Gets a row for each answer.
        messages (`list[dict]`): The messages so far.
        number (`int`): Number of the next answer, which together with the seed decides it.
    """

    completer: Completer
    opening: list[dict[str, Any]]
    file: ResumableFile | None
    messages: list[dict[str, Any]]
    number: int

    @property
    def weights(self) -> GuideWeights:
        """
        The weights of what guides the model.

        Raises:
            `ValueError`: Nothing guides it, or its weights cannot change.
        """
        weights = self.completer.policies[0].weights
        if weights is None:
            raise ValueError("nothing with weights guides this model: start with --value_model_name_or_path.")
        return weights

    def say(self, text: str) -> None:
        """
        Answer a message of the user, and print the answer while it is generated.

        After Ctrl-C, the conversation has what was shown of the answer. After an error it is as before.
        """
        row = as_message({"prompt": text}, self.messages)
        shown: list[str] = []
        try:
            row = stream_row(self.completer, row, self.number, shown=shown)
        except KeyboardInterrupt:
            answer = "".join(shown)
            if not sys.stdin.isatty():
                raise
            print(f"\n(stopped{'' if answer else '; your message is not kept'})", file=sys.stderr)
            if not answer:
                return
            row |= {"completions": [[{"role": "assistant", "content": answer}]], "ended": [False]}
        self.number += 1
        self.messages = [*row["prompt"], *row["completions"][0]]
        if self.file is not None:
            self.file.append([row])


# ----------------------------------------------------------------------------------------------------------- commands


def _beta(conversation: Conversation, given: str) -> None:
    weights = conversation.weights
    parts = given.replace("=", " ").replace(",", " ").split()
    if len(parts) == 1 and len(weights.values) == 1:
        parts = [*weights.values, *parts]
    if not parts or len(parts) % 2:
        raise ValueError(
            f"a weight is a number behind a name: {', '.join(f'/beta {name} 2' for name in weights.values)}"
        )
    try:
        changed = {name: float(number) for name, number in zip(parts[::2], parts[1::2], strict=True)}
    except ValueError:
        raise ValueError(f"weights are numbers, got {given!r}.") from None
    policy = weights.change(weights.values | changed)
    conversation.completer = replace(conversation.completer, policies=[policy])
    _weights(conversation, "")


def _weights(conversation: Conversation, given: str) -> None:
    weights = conversation.weights
    for name, value in weights.values.items():
        about = weights.about.get(name, "")
        print(f"{name} {value:g}{f'  ({about})' if about else ''}")


def _retry(conversation: Conversation, given: str) -> None:
    before = conversation.messages
    questions = [i for i, message in enumerate(before) if message["role"] == "user" and i >= len(conversation.opening)]
    if not questions:
        raise ValueError("there is no answer yet.")
    conversation.messages = before[: questions[-1]]
    try:
        conversation.say(before[questions[-1]]["content"])
    finally:
        if len(conversation.messages) == questions[-1]:  # there is no other answer
            conversation.messages = before


def _reset(conversation: Conversation, given: str) -> None:
    conversation.messages = conversation.opening
    print("(a new conversation)")


def _save(conversation: Conversation, given: str) -> None:
    if not given:
        raise ValueError("name a file: /save chats.jsonl")
    if conversation.messages == conversation.opening:
        raise ValueError("there is nothing to save yet.")
    path = Path(given).expanduser()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"messages": conversation.messages}, ensure_ascii=False) + "\n")
    print(f"(added as a line to {path})")


def _help(conversation: Conversation, given: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        print(f"{command.usage:<{width}}  {command.meaning}")
    print("Ctrl-C stops an answer; at the prompt, Ctrl-C twice or Ctrl-D ends.")


def _exit(conversation: Conversation, given: str) -> None:
    raise Ended


@dataclass(frozen=True)
class Command:
    """
    A line that begins with /.

    Args:
        usage (`str`): How it is written.
        meaning (`str`): What it does, for /help.
        run (`Callable`): `(conversation, rest of the line)`. A `ValueError` or `OSError` is printed.
    """

    usage: str
    meaning: str
    run: Callable[[Conversation, str], None]


COMMANDS = {
    "/beta": Command("/beta [NAME] X", "change the weight of the value model, or of one of its heads", _beta),
    "/weights": Command("/weights", "show the weights, and the rewards that the values stand for", _weights),
    "/retry": Command("/retry", "answer the last message again", _retry),
    "/save": Command("/save FILE", "add the conversation to a .jsonl file, which training reads", _save),
    "/reset": Command("/reset", "begin a new conversation", _reset),
    "/help": Command("/help", "list these commands", _help),
    "/exit": Command("/exit", "end", _exit),
}


def respond(conversation: Conversation, line: str) -> None:
    """
    Run a command, or answer a message. What cannot work is printed, and the conversation goes on.

    Raises:
        [`Ended`]: The line ends the conversation.
    """
    try:
        if not line.startswith("/"):
            conversation.say(line.strip())
            return
        word, _, rest = line.strip().partition(" ")
        if word not in COMMANDS:
            raise ValueError(
                f"there is no {word}; there are {', '.join(COMMANDS)}. A message that begins with / has a space "
                "before it."
            )
        COMMANDS[word].run(conversation, rest.strip())
    except EndpointError as error:
        if not sys.stdin.isatty():
            raise
        print(f"{error} /retry asks again.", file=sys.stderr)
    except (ValueError, OSError) as error:
        hint = " /reset begins a new conversation." if isinstance(error, DataError) else ""
        print(f"{error}{hint}", file=sys.stderr)


# ----------------------------------------------------------------------------------------------------------- the loop


def run(args: ChatArguments, loading: LoadingArguments, decodings: Sequence[Decoding] = ()) -> int:
    """
    Converse until the input ends.

    Args:
        args ([`ChatArguments`]), loading ([`~trl_ext.cli.arguments.LoadingArguments`]),
        decodings (`Sequence[Decoding]`, *optional*): As for [`~trl_ext.cli.generate.run`].

    Returns:
        `int`: 0; 1 if a server failed for good and the input is no terminal.
    """
    check_model(args, loading, decodings)
    _check_template(args, loading, decodings)
    file = open_output(args, loading, decodings, [])
    completer, tokenizer = load(args, loading, decodings)
    if len(completer.policies) > 1:
        names = ", ".join(policy.name for policy in completer.policies)
        raise ValueError(f"a conversation takes one setting, got {names}: `trl-ext generate` compares several.")
    opening = args.opening_messages(tokenizer) or []
    conversation = Conversation(completer, opening, file, opening, 0 if file is None else file.rows)
    try:
        _converse(conversation)
    except EndpointError as error:
        print(f"trl-ext chat: error: {error}", file=sys.stderr)
        return 1
    return 0


def _check_template(args: ChatArguments, loading: LoadingArguments, decodings: Sequence[Decoding]) -> None:
    """Raise a `ValueError` if there is no chat template, before any model is loaded."""
    name, tokenizer = args.model_name_or_path, None
    if name is not None:
        tokenizer = load_model_tokenizer(name, loading)
    else:
        found: list[PreTrainedTokenizerBase] = [
            decoding.served_tokenizer() for decoding in decodings if hasattr(decoding, "served_tokenizer")
        ]
        tokenizer = loading.with_template(found[0]) if found else None
    if tokenizer is not None and tokenizer.chat_template is None:
        whose = repr(name) if name else "the tokenizer of the server's model"
        raise ValueError(f"{whose} has no chat template: use `trl-ext generate`, or pass --chat_template_path.")


def _converse(conversation: Conversation) -> None:
    """Read lines until the input ends, `/exit`, or Ctrl-C twice at the prompt."""
    terminal, interrupted = sys.stdin.isatty(), False
    if terminal:
        _edit_lines()
        print("Ctrl-C stops an answer, Ctrl-D ends, /help lists commands.", file=sys.stderr)
    while True:
        try:
            line = read_line()
            if line is None:
                return
            interrupted = False
            if line.strip():
                respond(conversation, line)
        except Ended:
            return
        except KeyboardInterrupt:  # at the prompt, or in a command
            if not terminal:
                raise
            if interrupted:
                print(file=sys.stderr)
                return
            interrupted = True
            print("\n(Ctrl-C again, Ctrl-D or /exit ends)", file=sys.stderr)


def _edit_lines() -> None:
    """Let `input` have a history and arrow keys, where the platform has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def make_parser(prog: str = "trl-ext chat") -> Parser:
    """The parser of the command's flags and YAML file."""
    own = [ChatArguments, LoadingArguments]
    return Parser(
        [*own, *decoding_classes(own)],
        prog=prog,
        description="Hold a conversation with a model. Ctrl-C stops an answer; /help lists commands, such as /beta, "
        "which changes the weight of a value model.",
        epilog="`trl-ext generate` completes single prompts.",
    )


def main(argv: list[str]) -> int:
    """
    `trl-ext chat`.

    Returns:
        `int`: See [`run`].

    Raises:
        `ValueError`, `OSError` or `ImportError`: Settings or models that cannot work.
    """
    parser = make_parser()
    args, loading, *decodings = parser.parse_args_and_config(argv)
    return run(args, loading, active_decodings(decodings, parser.given))
