# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
How a model scores the completions of a file, for the suite `preferences`.

    python -m benchmarks.quality.preferences_train {mean_logp,implicit_reward,reward,length} <config.json>

The config has `dataset_name` (rows of prompt and completions), `model_name_or_path` (a model or an adapter),
`tokenizer`, `dtype` and `output_file`, which gets a list of scores for each row.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness.text import read_rows
from trl_ext.data.tokenization import tokenize_row
from trl_ext.devices import default_device
from trl_ext.logprobs.logprobs import LogProbs, completion_logps
from trl_ext.models.load import adapter_disabled, load_model
from trl_ext.models.tokenizers import ensure_pad_token, load_tokenizer
from trl_ext.rewards.functions import load_rewards
from trl_ext.rewards.settings import RewardSettings


BATCH = 16  # completions of a forward pass

Scores = list[list[float]]
Rows = list[dict[str, Any]]


def mean_logp(config: dict[str, Any], rows: Rows) -> Scores:
    """RRHF's p: the mean log-probability of a completion's tokens, Eq. (1) of the paper with its exponent of 1."""
    logps = _Logps(config, rows)
    return [[own.mean().item() for own in group] for group in logps()]


def implicit_reward(config: dict[str, Any], rows: Rows) -> Scores:
    """DPO's implicit reward, beta (log pi(y | x) - log pi_ref(y | x)), where the adapter's base is the reference."""
    logps = _Logps(config, rows)
    trained = logps()
    with adapter_disabled(logps.model):
        reference = logps()
    return [
        [config["beta"] * (own.sum() - ref.sum()).item() for own, ref in zip(*groups, strict=True)]
        for groups in zip(trained, reference, strict=True)
    ]


def reward(config: dict[str, Any], rows: Rows) -> Scores:
    """The logit of a reward model."""
    settings = RewardSettings(reward_batch_size=BATCH, reward_model_init_kwargs={"dtype": config["dtype"]})
    [function] = load_rewards([config["model_name_or_path"]], settings=settings)
    prompts = [row["prompt"] for row in rows for _ in row["completions"]]
    values = function.func(prompts, [completion for row in rows for completion in row["completions"]])
    found = iter(values)
    return [[float(next(found)) for _ in row["completions"]] for row in rows]


def length(config: dict[str, Any], rows: Rows) -> Scores:
    """The number of tokens: what can be known without a model."""
    tokenizer = load_tokenizer(config["tokenizer"])
    return [[float(len(ids)) for ids in tokenize_row(row, tokenizer)["completion_ids"]] for row in rows]


class _Logps:
    """Log-probabilities of all completions of a file, each time under the model as it is then."""

    def __init__(self, config: dict[str, Any], rows: Rows) -> None:
        tokenizer = ensure_pad_token(load_tokenizer(config["tokenizer"]))
        self.model: Any = load_model(config["model_name_or_path"], dtype=config["dtype"]).to(default_device())
        self.pad: int = tokenizer.pad_token_id  # type: ignore[assignment]
        self.log_probs = LogProbs(self.model, self.pad)
        ids = [tokenize_row(row, tokenizer) for row in rows]
        self.prompts = [row["prompt_ids"] for row in ids]
        self.completions = [row["completion_ids"] for row in ids]

    def __call__(self) -> list[list[Any]]:
        return completion_logps(
            self.model,
            self.prompts,
            self.completions,
            pad_token_id=self.pad,
            batch_size=BATCH,
            log_probs=self.log_probs,
        )


KINDS = {function.__name__: function for function in (mean_logp, implicit_reward, reward, length)}


def main(argv: list[str] | None = None) -> int:
    kind, path = sys.argv[1:] if argv is None else argv
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    scores = KINDS[kind](config, read_rows(config["dataset_name"]))
    Path(config["output_file"]).write_text(json.dumps(scores), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
