# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
A language model with a proxy as a policy, and the flags of the command line for it.

Dimensions: N completions, T tokens of one.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import StopStringCriteria

from trl_ext.data.completion import Completion, decode_groups
from trl_ext.data.tokenization import left_padded
from trl_ext.decoding.guide_schedule import GuideSchedule
from trl_ext.decoding.scheduled_rows import GuidedTokens
from trl_ext.generation.generate import check_observable
from trl_ext.generation.observer import Observer
from trl_ext.generation.streaming import streamed
from trl_ext.generation_settings import GenerationSettings, eos_token_ids, pad_token_id
from trl_ext.inference.guided import logps_in_batches
from trl_ext.inference.policy import Policy
from trl_ext.models.backbone_and_head import BackboneAndHead
from trl_ext.models.modes import evaluation_mode
from trl_ext.progress import progress

from .decision_process import DecisionProcess
from .decoding.batch import ProxyCompletions, complete, proxy_schedule, scheduled_rows
from .decoding.walk import Walk
from .model import ProxyConfig, ProxyModel


def proxy_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    proxy: ProxyModel,
    process: DecisionProcess | None = None,
    *,
    greedy: bool = False,
    name: str = "proxy",
    batch_size: int = 64,
    extras: dict[str, Any] | None = None,
    series: str = "",
    start: str = "",
    schedule: GuideSchedule | None = None,
) -> Policy:
    """
    The [`~trl_ext.inference.policy.Policy`] of a language model whose candidate tokens a proxy accepts or rejects.

    Generation settings restrict the decision process that the proxy was trained with: the temperatures are multiplied
    (0 means greedy decisions in descending order), and the stricter of `top_k`, `top_p` and `min_p` applies.

    Log-probabilities are those of the tokens that the decisions induce, computed exactly: see
    [`~trl_ext.methods.proxy_rlhf.losses.induced_logps`] for the descending order and
    [`~trl_ext.methods.proxy_rlhf.losses.marginal_logps`] for the sampled one. A token that is tied with the last
    candidate up to rounding counts as that candidate ([`proxy_logps`]). The policy has no log-probabilities for a
    sampled order with `max_candidates`, nor for greedy decisions.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        proxy ([`ProxyModel`]): The proxy. It is moved to the model's device.
        process ([`DecisionProcess`], *optional*): By default the one it was trained with.
        greedy (`bool`, *optional*, defaults to `False`): Whether to take the likelier decision instead of sampling.
        name, batch_size, extras, series: As for [`~trl_ext.inference.guided.policy_with_processors`].
        start (`str`, *optional*, defaults to `""`): As in [`~trl_ext.inference.policy.Policy`].
        schedule ([`~trl_ext.decoding.guide_schedule.GuideSchedule`], *optional*): Which tokens the proxy is asked
            about; by default all. The others are samples of the language model among the candidates.
    """
    guided = None if schedule is None or schedule.always else GuidedTokens()
    process = process or proxy.config.decision_process
    llm = BackboneAndHead(model)
    proxy.to(llm.device)

    def run(
        prompts: list[list[int]], settings: GenerationSettings, observer: Observer | None
    ) -> list[list[Completion]]:
        now = narrowed(process, settings)
        config = settings.generation_config(model, tokenizer)
        k = settings.num_generations
        seeds = observer.seeds if observer is not None else None
        with evaluation_mode(model), evaluation_mode(proxy):
            found: ProxyCompletions = complete(
                llm, proxy, now, prompts,
                seeds=torch.randint(2**62, (len(prompts) * k,)).tolist() if seeds is None else seeds,
                max_new_tokens=settings.max_completion_length, max_length=llm.context,
                eos=eos_token_ids(model, tokenizer), pad=pad_token_id(tokenizer), batch_size=batch_size,
                greedy=greedy or not settings.temperature,
                stop=StopStringCriteria(tokenizer, config.stop_strings) if config.stop_strings else None,
                observer=observer, cuda_graphs=settings.cuda_graphs, schedule=schedule, tokenizer=tokenizer,
            )  # fmt: skip
        if guided is not None:
            guided.add(int(found.asked.sum()), sum(map(len, found.ids)))
        return decode_groups(found.ids, prompts, tokenizer, config)

    def sample(
        prompts: list[list[int]], settings: GenerationSettings, *, observer: Observer | None = None
    ) -> list[list[Completion]]:
        if observer is not None:
            check_observable(observer, settings)
            return run(prompts, settings, observer)
        # In several calls: prompts are sorted by length within a call, which decides what is padded together.
        step, groups = max(1, batch_size // settings.num_generations) * 4, []
        with progress("sampling", len(prompts)):
            for start in range(0, len(prompts), step):
                groups += run(prompts[start : start + step], settings, None)
        return groups

    def logps(prompts: list[list[int]], groups: list[list[list[int]]]) -> list[list[torch.Tensor]]:
        return proxy_logps(
            llm, proxy, process, prompts, groups, pad_token_id=pad_token_id(tokenizer), batch_size=batch_size,
            schedule=schedule, tokenizer=tokenizer,
        )  # fmt: skip

    exact = process.exact and not greedy
    more: dict[str, Any] = {"extras": extras or {}, "series": series, "start": start, "context": llm.context}
    more |= {"method": "Proxy-RLHF", "truncation": process.truncation, "guided": guided}
    more["shows_guidance"] = process.exact
    return Policy(name, tokenizer, sample, logps if exact else None, partial(streamed, tokenizer, sample), **more)


def untrained(config: ProxyConfig) -> ProxyModel:
    """The proxy that training began with, up to small random weights: accepts every candidate equally often."""
    proxy = ProxyModel(config).eval()
    with torch.no_grad():
        proxy.actor[-1].weight.zero_()
    return proxy


def narrowed(process: DecisionProcess, settings: GenerationSettings) -> DecisionProcess:
    """
    The decision process restricted by generation settings.

    The stricter of the two settings applies; temperatures are multiplied.

    Args:
        process ([`DecisionProcess`]): The decision process.
        settings ([`~trl_ext.generation_settings.GenerationSettings`]): The generation settings.

    Raises:
        `ValueError`: The settings ask for a beam search, or the resulting process is not valid.
    """
    if settings.num_beams > 1:
        raise ValueError("A proxy cannot be used with a beam search: set num_beams to 1.")
    changes: dict[str, Any] = {
        "top_k": min(process.top_k, settings.top_k or process.top_k),
        "top_p": min(process.top_p, settings.top_p),
        "min_p": max(process.min_p, settings.min_p),
        "repetition_penalty": process.repetition_penalty * settings.repetition_penalty,
    }
    if settings.temperature:
        changes["temperature"] = process.temperature * settings.temperature
    else:
        changes["order"] = "descending"
    return replace(process, **changes)


@torch.no_grad()
def proxy_logps(
    llm: BackboneAndHead,
    proxy: ProxyModel,
    process: DecisionProcess,
    prompts: list[list[int]],
    groups: list[list[list[int]]],
    *,
    pad_token_id: int,
    batch_size: int = 64,
    schedule: GuideSchedule | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[list[torch.Tensor]]:
    """
    Log-probabilities of the tokens of completions, as the decisions induce them.

    Args:
        llm ([`BackboneAndHead`]), proxy ([`ProxyModel`]), process ([`DecisionProcess`]): The model,
            the proxy and the process.
        prompts (`list[list[int]]`): Prompts of at least one token.
        groups (`list[list[list[int]]]`): For each prompt its completions. They may be empty.
        pad_token_id (`int`): Token id of padding.
        batch_size (`int`): Completions at once.
        schedule ([`~trl_ext.decoding.guide_schedule.GuideSchedule`], *optional*), tokenizer (*optional*): As for
            [`~trl_ext.methods.proxy_rlhf.decoding.batch.complete`]. What it decides is decided again.

    Returns:
        `list[list[torch.Tensor]]`: For each completion the log-probabilities of its tokens in nats, of shape (T,),
        float32 on the CPU; -inf for a token that is not a candidate. A token that is tied with the last candidate up
        to rounding (0.001 in the logit in float32, 0.5 in bfloat16, 0.1 in float16) takes the place of that candidate.

    Raises:
        `ValueError`: The log-probabilities cannot be computed for this process.
    """
    if not process.exact:
        raise ValueError(
            "Log-probabilities cannot be computed for a sampled order with `max_candidates`: set max_candidates=0 or "
            "order='descending'."
        )

    def batch_logps(prompts: list[list[int]], completions: list[list[int]]) -> torch.Tensor:
        ids, mask = left_padded(prompts, pad_token_id, llm.device)
        walk = Walk(llm, proxy.accept_logits, process, ids, mask, scheduled=scheduled_rows(schedule, tokenizer))
        columns = []
        for t in range(len(completions[0])):
            tokens = [completion[t] if t < len(completion) else pad_token_id for completion in completions]
            columns.append(walk.follow(torch.tensor(tokens, device=llm.device)))
        return torch.stack(columns, 1)

    return logps_in_batches(prompts, groups, batch_logps, batch_size)


@dataclass
class ProxyDecoding:
    """
    Proxies for a frozen model, as flags of `trl-ext evaluate` and `trl-ext generate`.

    Parameters:
        proxy_name_or_path (`list[str]`, *optional*):
            Directories or Hub ids of proxies, one policy each.
        proxy_greedy (`bool`, *optional*, defaults to `False`):
            Whether the proxy takes the likelier decision instead of sampling it.
        proxy_order (`str`, *optional*, defaults to `""`):
            Order in which candidates are examined. By default as in training.
        proxy_top_k (`int`, *optional*, defaults to `0`):
            Candidates are among the k likeliest tokens (`0`: as in training).
        proxy_max_candidates (`int`, *optional*, defaults to `0`):
            Maximum number of candidates to examine (`0`: as in training).
        proxy_every (`str`, *optional*, defaults to `"1"`):
            The proxy is asked about every n-th new token, or about the tokens that begin a `word` or a `sentence`.
        proxy_when (`dict`, *optional*):
            Further conditions, all of which have to be met: `entropy`, `confidence` and `random`; see
            [`~trl_ext.decoding.guide_schedule.GuideSchedule`].
        proxy_allow_other_model (`bool`, *optional*, defaults to `False`):
            Whether the proxy may have been trained on another language model of the same hidden size.
    """

    proxy_name_or_path: list[str] | None = field(
        default=None, metadata={"help": "Proxies that accept or reject the model's tokens: directories or Hub ids."}
    )
    proxy_greedy: bool = field(
        default=False, metadata={"help": "Whether the proxy takes the likelier decision instead of sampling it."}
    )
    proxy_order: str = field(
        default="",
        metadata={
            "help": "Order in which candidates are examined. By default as in training.",
            "choices": ["", "sampled", "descending"],
        },
    )
    proxy_top_k: int = field(
        default=0, metadata={"help": "Candidates are among the k likeliest tokens. 0 means as in training."}
    )
    proxy_max_candidates: int = field(
        default=0, metadata={"help": "Maximum number of candidates to examine. 0 means as in training."}
    )
    proxy_every: str = field(
        default="1",
        metadata={"help": "Ask the proxy about every n-th token, or about those that begin a `word` or a `sentence`."},
    )
    proxy_when: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Where to ask it: {"entropy": x}, {"confidence": x} or {"random": share}; JSON on a command line.'
        },
    )
    proxy_allow_other_model: bool = field(
        default=False,
        metadata={"help": "Whether the proxy may have been trained on another model of the same hidden size."},
    )

    @property
    def active(self) -> bool:
        """Whether there is a proxy."""
        return bool(self.proxy_name_or_path)

    def check(self) -> None:
        """Raise `ValueError` for settings that are out of range, and `OSError` if there is no such proxy."""
        for name in ("proxy_top_k", "proxy_max_candidates"):
            if getattr(self, name) < 0 or getattr(self, name) == 1:
                raise ValueError(
                    f"`{name}` must be 0 (as in training) or at least 2, got {getattr(self, name)}: with a single "
                    "candidate there is nothing to decide."
                )
        self._with_flags(DecisionProcess())
        _ = self.schedule
        for path in self.proxy_name_or_path or []:
            ProxyModel.check_saved(path)

    @property
    def schedule(self) -> GuideSchedule:
        """Which tokens the proxy is asked about."""
        return proxy_schedule(self.proxy_every, self.proxy_when, prefix="proxy")

    def _with_flags(self, process: DecisionProcess) -> DecisionProcess:
        given = {"order": self.proxy_order, "top_k": self.proxy_top_k, "max_candidates": self.proxy_max_candidates}
        return replace(process, **{name: value for name, value in given.items() if value})  # type: ignore[arg-type]

    def policies(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_size: int,
    ) -> list[Policy]:
        """One policy per proxy; see [`~trl_ext.inference.policy.Decoding`]."""
        found, schedule = [], self.schedule
        for path in self.proxy_name_or_path or []:
            proxy = ProxyModel.from_pretrained(path).eval().to(model.device)
            proxy.check_model(model, allow_other=self.proxy_allow_other_model)
            process = self._with_flags(proxy.config.decision_process)
            series = ", ".join(filter(None, [f"{name} + {Path(path).name}", str(schedule)]))
            found.append(
                proxy_policy(
                    model, tokenizer, proxy, process, greedy=self.proxy_greedy, name=series,
                    batch_size=batch_size,
                    extras={"proxy": path, "greedy": self.proxy_greedy, **process.as_dict(), **schedule.changes()},
                    series=series, start=_name_untrained(name, proxy.config, process, schedule), schedule=schedule,
                )
            )  # fmt: skip
        return found

    def untrained_policies(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_size: int,
    ) -> list[Policy]:
        """One policy per decision process of the proxies: without training, it differs from the model alone."""
        found: dict[str, Policy] = {}
        schedule = self.schedule
        for path in self.proxy_name_or_path or []:
            config: ProxyConfig = ProxyModel.from_pretrained(path).config
            process = self._with_flags(config.decision_process)
            own = _name_untrained(name, config, process, schedule)
            extras = {"greedy": self.proxy_greedy, **process.as_dict(), **schedule.changes()}
            if own not in found and process.exact and not self.proxy_greedy:
                found[own] = proxy_policy(
                    model, tokenizer, untrained(config), process, name=own, batch_size=batch_size, extras=extras,
                    series=own, schedule=schedule,
                )  # fmt: skip
        return list(found.values())


def _name_untrained(name: str, config: ProxyConfig, process: DecisionProcess, schedule: GuideSchedule) -> str:
    """Name of the policy before training, with the settings that are not the defaults."""
    usual = DecisionProcess().as_dict()
    unusual = {key: value for key, value in process.as_dict().items() if value != usual[key] and key != "feature"}
    if config.initial_accept_rate != ProxyConfig().initial_accept_rate:
        unusual["initial_accept_rate"] = config.initial_accept_rate
    parts = [f"{name} + untrained proxy", *(f"{key} {value}" for key, value in unusual.items()), str(schedule)]
    return ", ".join(filter(None, parts))
