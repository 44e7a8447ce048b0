# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
`trl-ext judge`: the win rate between the completions of two evaluations.

    trl-ext judge A.parquet B.parquet --reward_funcs R --output_file judged.json
    trl-ext judge A.parquet B.parquet --endpoint http://localhost:8000/v1 --endpoint_model M --output_file judged.json
    trl-ext judge A.parquet B.parquet --judge_func judges.py:shorter
    trl-ext judge A.parquet B.parquet --by reward/brevity

`judged.json` has the fields of [`~trl_ext.judging.judge.JudgeResult`]; `judged.jsonl` beside it has every verdict
(`judging/verdicts.py` has its columns), so that the same command asks only for those that are missing. Only a reward
model imports torch.
"""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from trl import TrlParser

from trl_ext.rewards.settings import RewardSettings
from trl_ext.validation import as_mapping, check_at_least

from .errors import RaisingParser


if TYPE_CHECKING:
    from trl_ext.judging.verdicts import Judge

_HELP = """\
usage: trl-ext judge A B (--by COLUMN | --reward_funcs R | --judge_func F |
                          --endpoint URL --endpoint_model M) [--FLAG VALUE ...]

example:
  trl-ext judge mine.parquet base.parquet --reward_funcs my-reward-model \\
      --output_file judged.json
  trl-ext judge mine.parquet base.parquet --endpoint http://localhost:8000/v1 \\
      --endpoint_model Qwen/Qwen3-8B --output_file judged.json

Win rate between the completions of two evaluations, pair by pair, with ties, a
95 % interval, and for completions of equal length. A and B are .parquet files
of `trl-ext evaluate`, or the .json files beside them. For two policies of one
file, pass it twice with --policy_a and --policy_b."""


@dataclass
class JudgeArguments(RewardSettings):
    """The judge, what it judges, and where the result is written."""

    policy_a: str | None = field(
        default=None,
        metadata={"help": "Policy of the first file, by name or its last part. Needed where it has several."},
    )
    policy_b: str | None = field(default=None, metadata={"help": "The same for the second file."})
    by: str | None = field(
        default=None,
        metadata={"help": "Judge by a column of numbers that both files have, such as reward/brevity. No model runs."},
    )
    reward_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Judge by a reward model: a sequence classifier, or the address of a reward server."},
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Judge by reward functions, named as for `trl-ext evaluate`: dotted paths, files "
            "(`my_rewards.py:my_reward`), reward models, addresses of reward servers."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of several rewards, whose sum decides. All 1 by default."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run the code of reward models."})
    judge_func: str | None = field(
        default=None,
        metadata={
            "help": "Judge by a Python function that sees both completions and returns A, B or TIE, as a dotted path "
            "or a file (`judges.py:shorter`)."
        },
    )
    endpoint: str | None = field(
        default=None,
        metadata={"help": "Judge by the model of an OpenAI-compatible chat server, e.g. http://localhost:8000/v1."},
    )
    endpoint_model: str | None = field(default=None, metadata={"help": "Name of the model on the server."})
    endpoint_key_variable: str = field(default="", metadata={"help": "Environment variable with the server's key."})
    endpoint_body: str = field(
        default="", metadata={"help": 'JSON object of fields to add to every request, e.g. {"seed": 1}.'}
    )
    endpoint_concurrency: int = field(default=8, metadata={"help": "Maximum number of concurrent requests."})
    endpoint_timeout: float = field(default=60.0, metadata={"help": "Seconds to wait for each part of an answer."})
    rubric: str | None = field(
        default=None,
        metadata={"help": "Text file that says what makes an answer better. By default the package's own."},
    )
    judge_max_tokens: int = field(default=256, metadata={"help": "Longest answer of the server's model, in tokens."})
    judge_temperature: float = field(default=0.0, metadata={"help": "Temperature of its answers."})
    output_file: str | None = field(
        default=None,
        metadata={"help": "JSON file for the result; it is replaced. The verdicts are in a .jsonl file beside it."},
    )
    verdicts_file: str | None = field(
        default=None,
        metadata={
            "help": ".jsonl file for the verdicts, if not beside `output_file`. The same command asks only for those "
            "that it lacks."
        },
    )
    overwrite_output: bool = field(
        default=False, metadata={"help": "Whether to start over if there is a file of verdicts."}
    )
    retry_faults: bool = field(
        default=False, metadata={"help": "Whether to ask again where the file of verdicts has a fault."}
    )
    allow_missing: bool = field(
        default=False,
        metadata={"help": "Whether to leave out, with a note, prompts and completions that only one file has."},
    )
    bootstrap_samples: int = field(
        default=2000, metadata={"help": "Samples of the bootstrap over prompts. 0: no intervals."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of the bootstrap."})

    @property
    def rewards(self) -> list[str]:
        """All rewards that are named, the reward model first, which is the order of their weights."""
        return [*filter(None, [self.reward_model_name_or_path]), *(self.reward_funcs or [])]

    @property
    def kept_in(self) -> str | None:
        """The file of verdicts."""
        if self.verdicts_file is not None or self.output_file is None:
            return self.verdicts_file
        return str(Path(self.output_file).with_suffix(".jsonl"))

    def __post_init__(self) -> None:
        judges = {
            "by": self.by,
            "reward_funcs": self.rewards,
            "judge_func": self.judge_func,
            "endpoint": self.endpoint,
        }
        given = [name for name, value in judges.items() if value]
        if len(given) != 1:
            listed = "--by, --reward_funcs (or --reward_model_name_or_path), --judge_func or --endpoint"
            found = f", not {' and '.join(f'--{name}' for name in given)}" if given else ""
            raise ValueError(f"one judge is needed: pass {listed}{found}")
        self.check_reward_settings()
        for name in _others(self, given[0]):
            raise ValueError(f"`{name}` has no effect with --{given[0]}: leave it out")
        if self.endpoint and not self.endpoint_model:
            raise ValueError("`endpoint` needs the name of the server's model: pass --endpoint_model")
        if self.endpoint and self.kept_in is None:
            raise ValueError(
                "verdicts of a server cost time or money: name a file that keeps them, --output_file judged.json or "
                "--verdicts_file verdicts.jsonl"
            )
        for name in ("retry_faults", "overwrite_output"):
            if getattr(self, name) and self.kept_in is None:
                raise ValueError(f"`{name}` has no effect without --output_file or --verdicts_file")
        if self.output_file is not None and Path(self.output_file).suffix != ".json":
            raise ValueError(
                f"`output_file` is a JSON file, with a .jsonl file beside it: its name must end in .json, got "
                f"{self.output_file!r}"
            )
        if self.verdicts_file is not None and Path(self.verdicts_file).suffix != ".jsonl":
            raise ValueError(f"`verdicts_file` must end in .jsonl, got {self.verdicts_file!r}")
        check_at_least("endpoint_concurrency", self.endpoint_concurrency, 1)
        check_at_least("judge_max_tokens", self.judge_max_tokens, 1)
        check_at_least("judge_temperature", self.judge_temperature, 0)
        check_at_least("bootstrap_samples", self.bootstrap_samples, 0)


# Settings that belong to one judge, by the flag that names it.
_OF_JUDGE = {
    "reward_funcs": (*RewardSettings.__dataclass_fields__, "reward_weights", "trust_remote_code"),
    "endpoint": (
        *("endpoint_model", "endpoint_key_variable", "endpoint_body", "endpoint_concurrency", "endpoint_timeout"),
        *("rubric", "judge_max_tokens", "judge_temperature"),
    ),
}


def _others(args: JudgeArguments, judge: str) -> list[str]:
    """Settings of other judges that were set."""
    fields = type(args).__dataclass_fields__
    names = [name for owner, of_judge in _OF_JUDGE.items() if owner != judge for name in of_judge]
    return [name for name in names if getattr(args, name) != fields[name].default]


class _Parser(TrlParser, RaisingParser):  # TRL's makes flags of the fields
    """The parser of this command: light, as the help and most judges need no torch."""


def make_parser(prog: str = "trl-ext judge") -> argparse.ArgumentParser:
    """The parser of the command's flags."""
    parser = _Parser([JudgeArguments], prog=prog, allow_abbrev=False)  # type: ignore[misc, arg-type]  # TRL's has no types
    parser.add_argument("files", nargs=2, metavar="FILE", help="Parquet files of trl-ext evaluate.")
    return parser


# Settings in the order of the help, by group.
_GROUPS = {
    "judge, one of these": ("by", "reward_funcs", "reward_model_name_or_path", "judge_func", "endpoint"),
    "files": (
        *("policy_a", "policy_b", "allow_missing", "output_file", "verdicts_file", "overwrite_output", "retry_faults"),
        *("bootstrap_samples", "seed"),
    ),
    "with --endpoint": _OF_JUDGE["endpoint"],
    "with --reward_funcs and --reward_model_name_or_path": _OF_JUDGE["reward_funcs"],
}
_MEANING = 26  # column where meanings begin


def help_text() -> str:
    """The help, on 80 columns."""
    fields = JudgeArguments.__dataclass_fields__
    lines = [_HELP]
    for title, names in _GROUPS.items():
        lines += ["", f"{title}:"]
        for name in names:
            default = fields[name].default
            shown = "" if default is None or default is False or default == "" else f" (default: {default})"
            flag = f"  --{name}"
            start = f"{flag:<{_MEANING}}" if len(flag) < _MEANING - 1 else ""
            lines += [] if start else [flag]
            lines.append(
                textwrap.fill(
                    f"{fields[name].metadata['help']}{shown}",
                    80,
                    initial_indent=start or " " * _MEANING,
                    subsequent_indent=" " * _MEANING,
                    break_on_hyphens=False,
                )
            )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """
    `trl-ext judge`.

    Returns:
        `int`: 0; 1 if a server failed, or no pair has a verdict; 130 after Ctrl-C. Verdicts stay in the file.

    Raises:
        `ValueError`, `OSError` or `ImportError`: Settings or files that cannot work.
    """
    words = list(argv)
    parser = make_parser()
    if any(word in ("--help", "-h") for word in words):
        print(help_text())
        return 0
    given = vars(parser.parse_args(words))
    files = given.pop("files")
    names = set(get_type_hints(JudgeArguments))
    return run(files[0], files[1], JudgeArguments(**{name: x for name, x in given.items() if name in names}))


def run(file_a: str, file_b: str, args: JudgeArguments) -> int:
    """
    Judge, print and write the result; see [`main`].

    Args:
        file_a, file_b (`str`): The evaluations.
        args ([`JudgeArguments`]): The judge and the other settings.
    """
    from trl_ext.endpoint.errors import EndpointError
    from trl_ext.evaluation.files import check_writable, write_json
    from trl_ext.judging.judge import judge
    from trl_ext.judging.report import report

    if args.output_file is not None:
        for file in (file_a, file_b):
            if Path(args.output_file).resolve() == Path(file).with_suffix(".json").resolve():
                raise ValueError(
                    f"--output_file would replace {args.output_file}, which belongs to {file}: choose another name"
                )
    check_writable(args.output_file, "output_file")
    check_writable(args.kept_in, "verdicts_file")
    try:
        result = judge(
            file_a,
            file_b,
            _judge(args),
            policy_a=args.policy_a,
            policy_b=args.policy_b,
            verdicts_file=args.kept_in,
            overwrite=args.overwrite_output,
            retry_faults=args.retry_faults,
            allow_missing=args.allow_missing,
            bootstrap_samples=args.bootstrap_samples,
            seed=args.seed,
        )
    except KeyboardInterrupt as error:
        print(f"\ntrl-ext judge: interrupted{_kept(args, error)}", file=sys.stderr)
        return 130
    except EndpointError as error:
        print(f"trl-ext judge: error: {error}{_kept(args, error)}", file=sys.stderr)
        return 1
    print(report(result))
    if args.output_file is not None:
        write_json(args.output_file, {**result.as_dict(), "arguments": asdict(args)})
        print(f"\nwrote {args.output_file} and {args.kept_in}")
    return int(result.win_rate is None)


def _kept(args: JudgeArguments, error: BaseException) -> str:
    """Where the verdicts are that came before an error."""
    notes = [note for note in getattr(error, "__notes__", []) if "resumes there" in note]
    return "; " + notes[-1].replace("the same call", "the same command") if notes and args.kept_in is not None else ""


def _judge(args: JudgeArguments) -> "Judge":
    """The judge that was chosen."""
    if args.by:
        from trl_ext.judging.scores import ColumnJudge

        return ColumnJudge(args.by)
    if args.judge_func:
        from trl_ext.judging.functions import FunctionJudge

        return FunctionJudge(args.judge_func)
    if args.rewards:
        from trl_ext.judging.scores import RewardJudge
        from trl_ext.rewards.functions import load_rewards

        rewards = load_rewards(args.rewards, settings=args, trust_remote_code=args.trust_remote_code)
        return RewardJudge(rewards, args.reward_weights)
    from trl_ext.endpoint.client import Endpoint
    from trl_ext.judging.endpoint import EndpointJudge, read_rubric

    body: dict[str, Any] = as_mapping("endpoint_body", args.endpoint_body or None) or {}
    endpoint = Endpoint(
        str(args.endpoint),
        str(args.endpoint_model),
        api_key_variable=args.endpoint_key_variable,
        max_concurrency=args.endpoint_concurrency,
        timeout=args.endpoint_timeout,
        extra_body=body,
    )
    rubric = None if args.rubric is None else read_rubric(args.rubric)
    return EndpointJudge(endpoint, rubric, max_tokens=args.judge_max_tokens, temperature=args.judge_temperature)
