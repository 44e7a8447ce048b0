# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
What the suite `quality` compares: the four methods, TRL's DPO, GRPO and PPO, best-of-n, a principle in the prompt.

All trained arms get the same prompts, the same reward and the same number of sampled completions ([`Task.budget`]),
except where an arm's name has another number; those that train on scored samples share one file of them. Each arm has
one setting, taken from runs on a larger model (recipes/rrhf/README.md describes its task): none was tuned on the task
here.
"""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.models import MODELS, MODELS_7M, REWARDS, judge_of
from benchmarks.harness.ppo_environment import PPO
from benchmarks.harness.results import ROOT
from benchmarks.harness.text import DATA, PRINCIPLE, WRONG_PRINCIPLE
from benchmarks.quality import experiment


# Fields of all that train: of TRL's trainers as of ours.
TRAINING: dict[str, Any] = {
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "gradient_checkpointing": False,
    "bf16": True,
}
# Prompts, and scored samples of each, that value models learn from: equally many samples in two groups (3,200; 800).
PARTS = ((3200, 1), (1600, 2), (800, 4), (400, 8), (200, 16), (200, 4), (50, 16))
# Samples that each of these value models reads in training, and those of a step: as many as for the arm `VAS`.
READ, STEP = 3200, 64


@dataclass(frozen=True)
class Task:
    """
    Models, prompts and how much may be sampled.

    Args:
        model, reward, value (`str`): The policy, the reward (a sequence classifier), the trunk of value models.
        train, evaluation, other (`str`): Files of prompts: to train on, to measure on, and of another kind.
        prompts (`int`): Training prompts used.
        passes (`int`): How often each is sampled for the budget.
        num_generations (`int`): Completions per prompt and pass.
        answers (`int`): Completions per prompt that are measured.
        batch (`int`): Prompts of a step.
    """

    model: str = str(MODELS / "imdb-2m")
    reward: str = REWARDS[0]
    value: str = str(MODELS / "imdb-2m")
    train: str = str(ROOT / "recipes" / "quickstart" / "prompts_train.jsonl")
    evaluation: str = str(ROOT / "benchmarks" / "prompts" / "films.jsonl")
    other: str = str(ROOT / "benchmarks" / "prompts" / "books_and_restaurants.jsonl")
    prompts: int = 200
    passes: int = 2
    num_generations: int = 8
    answers: int = 2
    batch: int = 16
    max_completion_length: int = 48
    top_k: int = 50
    learning_rate: float = 1e-4

    @property
    def rows(self) -> int:
        """Rows to train on: every prompt once a pass."""
        return self.prompts * self.passes

    @property
    def budget(self) -> int:
        """Completions that a trained arm may sample."""
        return self.rows * self.num_generations

    @property
    def sampling(self) -> dict[str, Any]:
        """Settings of all completions, in training and in measuring."""
        return {"max_completion_length": self.max_completion_length, "top_k": self.top_k}

    @property
    def training(self) -> dict[str, Any]:
        """Fields of all that train: of TRL's trainers as of ours."""
        return TRAINING

    @property
    def scoring(self) -> dict[str, Any]:
        """Fields of all that score completions while they train."""
        return {}

    @property
    def loading(self) -> dict[str, Any]:
        """Flags with which commands load a model that they do not train."""
        return {}

    def measuring(self, place: str) -> dict[str, Any]:
        """Flags with which completions are measured on the prompts of a place, `evaluation` or `other`."""
        return {}

    @property
    def rewards(self) -> list[str]:
        """The rewards that are measured; the first is the one that is trained for."""
        return [self.reward, self.judge] if self.judge else [self.reward]

    @property
    def judge(self) -> str:
        """A reward that is measured and never trained on, where the task has one."""
        return judge_of(self.reward)

    @property
    def principle(self) -> str:
        """The principle of PSLE, and of the arm that has it in its prompt."""
        return PRINCIPLE.strip()

    @property
    def other_answers(self) -> int:
        """Completions per prompt that are measured on the other prompts."""
        return 1


PRESETS = {
    # What is in the repository, on two CPU cores.
    "cpu": Task(),
    # The IMDB task of recipes/rrhf/README.md, whose prompts `imdb_prompts` makes.
    "gpu": Task(
        model=str(MODELS_7M / "imdb-7m"),
        reward=REWARDS[1],
        value=str(MODELS_7M / "imdb-7m"),
        train=str(DATA / "imdb_prompts_train.jsonl"),
        evaluation=str(DATA / "imdb_prompts_eval.jsonl"),
        prompts=6000,
        passes=1,
        batch=64,
        learning_rate=3e-5,
    ),
    # The models of `cpu` and the prompts of the IMDB task, for arms that need more prompts than the repository has.
    "cpu-imdb": Task(train=str(DATA / "imdb_prompts_train.jsonl"), prompts=3200, passes=1, num_generations=16),
}


SAMPLES_NAME = "samples"  # of the arm that leaves scored samples of the untrained model


@dataclass(frozen=True)
class Arm(experiment.Arm):
    """
    One way to get completions.

    Args:
        series (`str`): Its line in the plot.
        command (`str`, *optional*): `"rrhf"`, ... of `trl-ext`, or `"dpo"`, `"grpo"`, `"ppo"` of TRL; empty: no
            training.
        fields (`dict`, *optional*): Fields of its training config beside those of the task.
        decoding (`dict`, *optional*): Flags of `trl-ext evaluate` for what is not an ordinary model; `"@"` becomes
            the folder of the trained model.
        loading (`dict`, *optional*): Flags of `trl-ext evaluate` that say how its model is loaded, beside the task's.
        answers (`int`, *optional*): Completions per prompt that are measured, where they differ from the task's.
        other (`bool`, *optional*, defaults to `True`): Whether it is measured on the other prompts too.
        through (`str`, *optional*): What goes through the language model for a token of a completion.
        forwards (`float`, *optional*, defaults to `1`): The same as a number of tokens, through models of its size.
        ablation (`bool`, *optional*, defaults to `False`): It shows what a setting of another arm is good for: it is
            in the tables, and not in the plot.
        budget (`float`, *optional*, defaults to `1`): Completions that it is trained on, in the task's budget.
        part (`tuple[int, int]`, *optional*): Prompts, and samples of each, that it trains on of the scored samples.
        value_prompt (`str`, *optional*): Text before each prompt that its value model alone reads.
        scored (`dict`, *optional*): Flags of `trl-ext sample` that differ from those of the shared samples: it trains
            on scored completions of its own. `None` leaves a flag out.
    """

    series: str
    command: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    answers: int = 0
    other: bool = True
    through: str = "1"
    forwards: float = 1
    ablation: bool = False
    budget: float = 1
    part: tuple[int, int] | None = None
    value_prompt: str = ""
    scored: dict[str, Any] = field(default_factory=dict)

    @property
    def reads_samples(self) -> bool:
        """Whether it trains on completions that were scored before."""
        return SAMPLES_NAME in self.needs or bool(self.scored)


# What goes through models for a token that is guided.
VALUES = "1, and k = 50 candidates through the value model"

# Scored samples of the untrained model, a file that several arms train on.
SAMPLES = Arm(SAMPLES_NAME, "", "sample")


def arms(task: Task) -> list[Arm]:
    """All arms of a task."""
    sampling = {"num_generations": task.num_generations}
    # The ranking methods see half as many completions of a prompt at a time, of twice as many prompts.
    half = {"num_generations": task.num_generations // 2}
    few = {"per_device_train_batch_size": task.batch}
    one_by_one = {"learning_rate": task.learning_rate, "num_train_epochs": 1, **few}
    proxy = {
        "top_k": 20,
        "per_device_train_batch_size": 64,
        "max_steps": 16 * (task.budget // 64),  # 4 epochs of 4 minibatches on the decisions of each round
        "proxy_layer_sizes": [128],
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
    }
    # Batches, minibatches and epochs are Proxy-RLHF's; the rest is TRL's default (kl_coef 0.05: GRPO's beta
    # here). In float32: TRL's PPO samples outside of autocast, under which its ratios would not begin at 1.
    ppo = {
        "per_device_train_batch_size": 64,
        "num_mini_batches": 4,
        "total_episodes": task.budget,
        "temperature": 1.0,
        "stop_token": "eos",
        "num_sample_generations": 0,
        "learning_rate": task.learning_rate,
        "bf16": False,
    }
    psle = {
        "principles": [task.principle],
        "num_generations": 1,
        "num_iterations": task.num_generations // 2,
        "learning_rate": task.learning_rate,
        **few,
    }
    # The loss of recipes/psle/imdb-7m_full_imdb_cpu.yaml: four completions of the current model per prompt and pass.
    ranked = {
        **psle,
        "num_generations": 2,
        "num_iterations": task.num_generations // 4,
        "resample_steps": 1,
        "rank_weight": 10.0,
        "two_sided": True,
        "beta": 0.05,
    }
    vas = {
        "value_model_name_or_path": task.value,
        "learning_rate": 1e-3 if task.value == task.model else task.learning_rate,
        "num_train_epochs": 1,
        "num_epochs_per_batch": 1,
        "per_device_train_batch_size": 8,
    }
    guided = {"value_model_name_or_path": ["@"], "beta": ["1", "2", "4"], "guide_top_k": 50}
    parts = [(n, each) for n, each in PARTS if n <= task.prompts and each <= task.passes * task.num_generations]
    online = {**one_by_one, **half, "resample_steps": 1}
    return [
        SAMPLES,
        Arm("base", "base"),
        Arm("base with the principle in its prompt", "principle in the prompt", command="principle"),
        Arm("best of n", "best of n", decoding={"best_of_n": [4, 16, 64, 128]}, answers=1, other=False, through="n"),
        Arm("TRL's DPO", "TRL's DPO", "dpo", {**one_by_one, "beta": 0.1}, needs=(SAMPLES.name,)),
        Arm("TRL's GRPO", "TRL's GRPO", "grpo", {**one_by_one, **sampling, "beta": 0.05}),
        Arm(PPO, PPO, "ppo", ppo),
        Arm(f"{PPO}, KL coefficient 0.1", PPO, "ppo", {**ppo, "kl_coef": 0.1}, ablation=True),
        Arm("RRHF, offline", "RRHF", "rrhf", one_by_one, needs=(SAMPLES.name,)),
        *(
            Arm(
                f"RRHF, offline, {what}",
                "RRHF",
                "rrhf",
                {**one_by_one, "rank_weight": weight},
                needs=(SAMPLES.name,),
                ablation=True,
            )
            for what, weight in (
                ("without the ranking loss", 0.0),
                ("ranking x 10", 10.0),
                ("ranking x 100", 100.0),
            )
        ),
        Arm(
            "RRHF, IP-2",
            "RRHF",
            "rrhf",
            {**one_by_one, **sampling, "resample_epochs": 1, "num_train_epochs": 2, "max_rows": task.rows // 2},
            ablation=True,
        ),
        Arm(
            "RRHF, IP-3",
            "RRHF",
            "rrhf",
            # Three rounds on a third of the rows with all completions: the budget.
            {**one_by_one, **sampling, "resample_epochs": 1, "num_train_epochs": 3, "max_rows": task.rows // 3},
        ),
        Arm("RRHF, OP-k", "RRHF", "rrhf", {**online, "num_train_epochs": 2}),
        Arm("RRHF, OP-k with a KL term", "RRHF", "rrhf", {**online, "num_train_epochs": 2, "beta": 0.05}),
        Arm(
            "RRHF, OP-k, KL coefficient 0.1",
            "RRHF",
            "rrhf",
            {**online, "num_train_epochs": 2, "beta": 0.1},
            ablation=True,
        ),
        # On the processor of the first results, as much CPU time as PPO takes for the task's budget.
        Arm(
            "RRHF, OP-k, 8 x the samples", "RRHF", "rrhf", {**online, "num_train_epochs": 16}, ablation=True, budget=8
        ),
        Arm("PSLE", "PSLE", "psle", psle),
        Arm(
            "PSLE, wrong principle",
            "PSLE",
            "psle",
            {**psle, "principles": [WRONG_PRINCIPLE.strip()]},
            ablation=True,
        ),
        Arm("PSLE, mostly ranking, with a KL term", "PSLE", "psle", ranked),
        Arm(
            "Proxy-RLHF, sampled",
            "Proxy-RLHF",
            "proxy_rlhf",
            {**proxy, "order": "sampled"},
            decoding={"proxy_name_or_path": ["@"]},
            through="k = 20 candidates in one forward",
        ),
        Arm(
            "Proxy-RLHF, descending",
            "Proxy-RLHF",
            "proxy_rlhf",
            {**proxy, "order": "descending"},
            decoding={"proxy_name_or_path": ["@"]},
            through="k = 20 candidates in one forward",
        ),
        Arm(
            "Proxy-RLHF, sampled, hidden 32",  # 0.5 % of the parameters of imdb-2m
            "Proxy-RLHF",
            "proxy_rlhf",
            {**proxy, "order": "sampled", "proxy_layer_sizes": [32]},
            decoding={"proxy_name_or_path": ["@"]},
            through="k = 20 candidates in one forward",
            ablation=True,
        ),
        # Without either half of the restraint on what may be proposed. Limited to 50 candidates, an evaluation would
        # put the first half back, so `top_k` is 0 there; its KL is of fewer prompts, as all candidates are read.
        Arm(
            "Proxy-RLHF, sampled, 200 candidates",
            "Proxy-RLHF",
            "proxy_rlhf",
            {**proxy, "order": "sampled", "top_k": 200},
            decoding={"proxy_name_or_path": ["@"], "top_k": 0, "kl_prompts": 40, "completion_logps": "false"},
            through="k = 200 candidates, 4 of them first",
            other=False,
            ablation=True,
        ),
        Arm(
            "Proxy-RLHF, sampled, rejected ones proposed again",
            "Proxy-RLHF",
            "proxy_rlhf",
            {**proxy, "order": "sampled", "propose_rejected": True},
            decoding={"proxy_name_or_path": ["@"]},
            through="k = 20 candidates in one forward",
            ablation=True,
        ),
        *(
            Arm(
                f"Proxy-RLHF, hidden 32, {what}",
                "Proxy-RLHF",
                "proxy_rlhf",
                {**proxy, "order": "sampled", "proxy_layer_sizes": [32], **fields},
                decoding={"proxy_name_or_path": ["@"]},
                through="k = 20 candidates in one forward",
                ablation=True,
            )
            for what, fields in (
                ("missing_eos_penalty 3", {"missing_eos_penalty": 3.0}),
                ("missing_eos_penalty 3, kl_coef 0.05", {"missing_eos_penalty": 3.0, "kl_coef": 0.05}),
                ("missing_eos_penalty 3, kl_coef 0.15", {"missing_eos_penalty": 3.0, "kl_coef": 0.15}),
            )
        ),
        Arm("VAS", "VAS", "vas", vas, needs=(SAMPLES.name,), decoding=guided, through=VALUES),
        # FUDGE's targets: the outcome itself for each state, instead of TD(0.95).
        Arm("FUDGE", "FUDGE", "vas", {**vas, "lam": 1.0}, needs=(SAMPLES.name,), decoding=guided, through=VALUES),
        # As FUDGE, with the distribution of the reward: what guides is another statistic of it.
        *(
            Arm(
                f"VAS, distribution of the reward, {what}",
                "VAS",
                "vas",
                {**vas, "lam": 1.0, "value_head": "categorical"},
                needs=(SAMPLES.name,),
                decoding={**guided, "value_statistic": statistic},
                through=VALUES,
                other=False,
                ablation=True,
            )
            for what, statistic in (
                ("its mean", "mean"),
                ("log-mean-exp of 2", "log_mean_exp=2"),
                ("quantile 0.2", "quantile=0.2"),
            )
        ),
        Arm(
            "VAS, values that read the principle",
            "VAS",
            "vas",
            vas,
            needs=(SAMPLES.name,),
            decoding=guided,
            through=VALUES,
            other=False,
            ablation=True,
            value_prompt=task.principle + "\n",
        ),
        *(
            Arm(
                f"VAS, {each} sample{'s' if each > 1 else ''} of {prompts:,} prompts",
                "VAS",
                "vas",
                {**vas, "max_steps": READ // STEP, "per_device_train_batch_size": STEP // each},
                needs=(SAMPLES.name,),
                decoding=guided,
                through=VALUES,
                other=False,
                ablation=True,
                budget=prompts * each / task.budget,
                part=(prompts, each),
            )
            for prompts, each in parts
        ),
    ]
