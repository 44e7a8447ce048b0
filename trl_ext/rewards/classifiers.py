# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""A sequence classifier (reward model) as a reward function."""

import functools
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase
from trl import ModelConfig

from trl_ext.data.chat_template import TEMPLATE_COLUMNS, left_out, render, template_kwargs
from trl_ext.data.row_errors import shortened
from trl_ext.devices import default_device
from trl_ext.models.load import hub_arguments, load_model, loading_error, quantization_config_from
from trl_ext.models.properties import accepts_argument, context_length, is_causal, is_quantized
from trl_ext.models.sharding import gathered_parameters
from trl_ext.models.tokenizers import ensure_pad_token, load_tokenizer
from trl_ext.upstream import get_config_model_id

from .reward_model import RewardModel
from .settings import RewardSettings


logger = logging.getLogger(__name__)


class ClassifierReward(RewardModel):
    """
    Reward function that returns a sequence classifier's logit for prompt and completion.

    Text prompts and completions are concatenated; messages are rendered with the classifier's own chat template. A
    model that reads in one direction gets no special tokens, as in TRL's GRPO. An encoder (BERT, RoBERTa, DeBERTa,
    T5) gets those that its tokenizer adds to a text, or to a pair of texts if `pairs` is set; without a chat template
    it reads a question and its answer as a pair. Texts that are longer than the classifier's context length are
    truncated at the start; the special tokens stay.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Sequence classifier. Its `pad_token_id` is set to the tokenizer's.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts in one forward pass. `0`: all of them.
        head (`str`, *optional*, defaults to `""`):
            Name or number of the label whose logit is returned. Needed for a model with several labels.
        pairs (`bool`, *optional*, defaults to `False`):
            Whether it reads prompt and completion as a pair of texts.

    Raises:
        `ValueError`: The model has several labels and `head` names none of them, or its tokenizer has no form for
            pairs.
    """

    is_served = False
    calls_at_once = 16  # type: ignore[assignment]  # texts are sorted by length, which needs more than one batch

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 64,
        head: str = "",
        pairs: bool = False,
    ) -> None:
        config: Any = model.config
        self.head = label_index(config, head)
        self.is_encoder = not is_causal(model)
        special = [tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True)]
        if pairs and not (self.is_encoder and special[0] < special[1]):
            raise ValueError(
                f"`reward_pairs` is set, but the reward model '{get_config_model_id(config)}' is no encoder whose "
                "tokenizer has a form for pairs of texts: leave it out for this model."
            )
        ensure_pad_token(tokenizer)
        # Classifiers use the last position that is not padding, and recognize padding by this id.
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        limits = [context_length(model), min(tokenizer.model_max_length, 1 << 20)]
        self.max_length = min(filter(None, limits)) if self.is_encoder else limits[0] or limits[1]
        self.model, self.tokenizer, self.batch_size, self.pairs = model, tokenizer, batch_size, pairs
        self.warned = self.warned_of_template = False

    @classmethod
    def load(
        cls,
        model: Any,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: RewardSettings,
        *,
        head: str = "",
        device: torch.device | str | None = None,
        trust_remote_code: bool = False,
    ) -> "ClassifierReward":
        """
        Load the model if it is a name, and the tokenizer if it is `None`.

        Args:
            model ([`~transformers.PreTrainedModel`] or `str`): The classifier, its directory or Hub id.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Its tokenizer.
            settings ([`~trl_ext.rewards.settings.RewardSettings`]): How to load and call it.
            head (`str`, *optional*, defaults to `""`): Name or number of the label whose logit is the reward.
            device (`torch.device` or `str`, *optional*): Device of the model. By default the accelerator for a model
                that is loaded here; any other model stays on its device.
            trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run code from the Hub.

        Raises:
            `OSError`: The model or the tokenizer cannot be loaded. The message names the model.
            `ValueError`: The model has no score head, or several labels and `head` names none of them.
        """
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        options = settings.model_options if isinstance(model, str) else {}
        options.setdefault("trust_remote_code", trust_remote_code)
        hub = hub_arguments(options) | {"trust_remote_code": options["trust_remote_code"]}
        if tokenizer is None and not name:
            raise ValueError(
                f"The reward model, a `{type(model).__name__}`, has no name to load its tokenizer from: pass the "
                "tokenizer in `reward_processing_classes`."
            )
        try:
            if tokenizer is None:
                tokenizer = load_tokenizer(name, padding_side="right", **hub)
            if isinstance(model, str):
                model, device = load_classifier(model, options, device)
        except OSError as error:
            raise loading_error("reward model", name, error) from error
        spread = len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1
        if device is not None and not is_quantized(model) and not spread:
            model.to(device)
        return cls(model.eval(), tokenizer, settings.reward_batch_size, head, settings.reward_pairs)

    @functools.cached_property
    def identity(self) -> str:
        """What distinguishes its rewards from those of another model: name, label, and one number of each weight."""
        weights = [weight.detach().reshape(-1) for weight in self.model.parameters() if weight.numel()]
        numbers = json.dumps([float(weight[len(weight) // 2]) for weight in weights])
        digest = hashlib.sha256(numbers.encode()).hexdigest()[:16]
        return f"{get_config_model_id(self.model.config)} {digest} label {self.head} pairs {self.pairs}"

    def texts(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[tuple[str, str | None]]:
        """
        The texts that the classifier scores: one per completion, or two for a classifier of pairs.

        Its chat template gets what the columns `chat_template_kwargs` and `tools` have, as that of the policy does.

        Raises:
            `ValueError`: The prompts are conversational and the tokenizer has no chat template.
        """
        texts = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            kwargs = template_kwargs({name: values[i] for name, values in columns.items() if name in TEMPLATE_COLUMNS})
            texts.append(self._text(prompt, completion, kwargs))
        return texts

    def _text(self, prompt: Any, completion: Any, kwargs: dict[str, Any]) -> tuple[str, str | None]:
        if isinstance(prompt, str):
            return (prompt, completion) if self.pairs else (prompt + completion, None)
        self.check_conversation(prompt, completion)
        if self._reads_messages:
            return prompt[0]["content"], completion[0]["content"]
        text = render(self.tokenizer, [*prompt, *completion], **kwargs)
        lost = "" if self.warned_of_template else left_out(completion, text)
        if lost:
            self.warned_of_template = True
            logger.warning(
                "The reward model's chat template leaves a part of completions out, which is not scored: %r. If it is "
                "to be scored, set another template (`chat_template` of the reward model's tokenizer).",
                shortened(lost),
            )
        return text, None

    @property
    def _reads_messages(self) -> bool:
        """Whether a question and its answer are two texts, without a chat template."""
        return self.is_encoder and (self.pairs or self.tokenizer.chat_template is None)

    def check_conversation(self, prompt: list[dict[str, Any]], completion: list[dict[str, Any]]) -> None:
        """
        Check that the model can read a conversation.

        Raises:
            `ValueError`: It cannot; the message says what it would need.
        """
        if self._reads_messages and len(prompt) == len(completion) == 1:
            return
        remedy = (
            "set `tokenizer.chat_template` (or put a file `chat_template.jinja` beside the model), or use a reward "
            "model that was trained on conversations."
        )
        if self._reads_messages:
            raise ValueError(
                "a prompt has several messages, but the reward model reads a question and its answer, and its "
                f"tokenizer has no chat template for more: {remedy}"
            )
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"the prompts are conversational, but the reward model's tokenizer has no chat template: {remedy}"
            )

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Logit of each completion."""
        logits = [logits[self.head] for logits in self.label_logits(prompts, completions, **columns)]
        if not all(map(math.isfinite, logits)):
            bad = next(i for i, logit in enumerate(logits) if not math.isfinite(logit))
            raise ValueError(f"the reward model's logit for completion {bad} is {logits[bad]}.")
        return logits

    @torch.no_grad()
    def label_logits(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[list[float]]:
        """Logits of all labels for each completion."""
        rows = self._rows(self.texts(prompts, completions, **columns), rendered=not isinstance(prompts[0], str))
        if [] in (ids := [row["input_ids"] for row in rows]):
            raise ValueError(f"completion {ids.index([])} and its prompt are empty: there is nothing to score.")
        # Equal texts are read once: in two batches, padding could make their rewards differ in the last bits.
        keys = [tuple(tuple(values) for values in row.values()) for row in rows]
        distinct = dict(zip(keys, rows, strict=True))
        device = next(self.model.parameters()).device.type
        # ZeRO-3 shards every model that is loaded. Autocast is that of whoever asks, such as a trainer in bf16.
        with gathered_parameters(self.model), torch.autocast(device, enabled=False):
            found = self._logits(sorted(distinct, key=lambda key: len(key[0])), distinct)
        return [found[key] for key in keys]

    def _logits(self, keys: list[Any], rows: dict[Any, dict[str, list[int]]]) -> dict[Any, list[float]]:
        """The logits of each row by its key, in batches of the given order."""
        device, size = next(self.model.parameters()).device, self.batch_size or len(keys)
        found: dict[Any, list[float]] = {}
        for start in range(0, len(keys), size):
            chosen = keys[start : start + size]
            batch = {name: [rows[key][name] for key in chosen] for name in rows[chosen[0]]}
            inputs = self.tokenizer.pad(batch, padding_side="right", return_attention_mask=True, return_tensors="pt")
            values = self.model(**inputs.to(device)).logits.float().tolist()
            found |= dict(zip(chosen, values, strict=True))
        return found

    def _rows(self, texts: list[tuple[str, str | None]], rendered: bool) -> list[dict[str, list[int]]]:
        """Token ids of each text or pair, and its token types if the model takes them."""
        first, second = [text[0] for text in texts], [text[1] or "" for text in texts]
        pairs = texts[0][1] is not None
        # A chat template has put all special tokens into the text that it rendered.
        special = self.is_encoder and (pairs or not rendered)
        found: Any = self.tokenizer(first, second if pairs else None, add_special_tokens=special, verbose=False)
        names = ["input_ids"]
        if self.is_encoder and "token_type_ids" in found and accepts_argument(self.model, "token_type_ids"):
            names.append("token_type_ids")
        rows = [{name: list(found[name][i]) for name in names} for i in range(len(texts))]
        for i, row in enumerate(rows):
            if not first[i] and not second[i]:
                row["input_ids"] = []
            elif self.max_length and len(row["input_ids"]) > self.max_length:
                self._warn()
                rows[i] = self._truncated(texts[i], special, names)
        return rows

    def _truncated(self, text: tuple[str, str | None], special: bool, names: list[str]) -> dict[str, list[int]]:
        """One row without the beginning of its text, but with all its special tokens."""
        with _truncating_at_the_start(self.tokenizer):
            found: Any = self.tokenizer(
                *text,
                add_special_tokens=special,
                truncation=self._truncation(text[1]),
                max_length=self.max_length,
            )
        return {name: list(found[name]) for name in names}

    def _truncation(self, second: str | None) -> str:
        """Which of two texts is cut: the prompt alone, unless the completion fills the context by itself."""
        if second is None:
            return "longest_first"
        own = len(self.tokenizer(second, add_special_tokens=False)["input_ids"])
        fits = own + self.tokenizer.num_special_tokens_to_add(pair=True) < self.max_length
        return "only_first" if fits else "longest_first"

    def _warn(self) -> None:
        if not self.warned:
            logger.warning(
                "Texts longer than the reward model's %d tokens are truncated at the start.", self.max_length
            )
            self.warned = True


def label_index(config: Any, head: str, who: str = "reward model", setting: str = "reward_head") -> int:
    """
    Index of the label that `head` names; 0 for a model with one label.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Config of the classifier.
        head (`str`): Name or number of the label; `""` for the only one.
        who (`str`, *optional*, defaults to `"reward model"`), setting (`str`, *optional*, defaults to
            `"reward_head"`): What the classifier is, and the setting that names the label, for messages.

    Raises:
        `ValueError`: There is no such label, or several and no name.
    """
    labels = {int(index): str(name) for index, name in (getattr(config, "id2label", None) or {0: "LABEL_0"}).items()}
    if head in labels.values():
        return next(index for index, name in labels.items() if name == head)
    if head.isdigit() and int(head) in labels:
        return int(head)
    name = get_config_model_id(config)
    listed = ", ".join(f"{index} ({label})" for index, label in sorted(labels.items()))
    if head:
        raise ValueError(f"The {who} '{name}' has no label {head!r} (`{setting}`); its labels are {listed}.")
    if len(labels) != 1:
        raise ValueError(
            f"The {who} '{name}' has {len(labels)} labels, but its score is one number: set `{setting}` to "
            f"one of them, {listed}, or use a model that was trained with num_labels=1."
        )
    return 0


def load_classifier(name: str, options: dict[str, Any], device: Any) -> tuple[Any, Any]:
    """
    A sequence classifier, by default in the dtype of its checkpoint, and the device to move it to (`None`: leave it).

    Args:
        name (`str`): Directory or Hub id.
        options (`dict[str, Any]`): As `reward_model_init_kwargs`; changed.
        device (`torch.device` or `str`, *optional*): Device, unless the options name one. By default the accelerator.
    """
    device = options.pop("device", device)
    device = default_device() if device is None else torch.device(device)
    quantization = _quantization(options)
    if quantization is not None:
        options |= {"quantization_config": quantization}
        options.setdefault("device_map", {"": device})
    else:
        options.setdefault("dtype", "auto")
    placed = options.setdefault("device_map", None) is not None  # "auto" would spread it over all devices
    try:
        model = load_model(name, head="sequence_classification", device=device, **options)
    except RuntimeError as error:
        if "mismatched_sizes" not in str(error):
            raise
        # The config says nothing about labels, for which transformers has two.
        model = load_model(name, head="sequence_classification", num_labels=1, device=device, **options)
    return model, None if placed else device


def _quantization(options: dict[str, Any]) -> BitsAndBytesConfig | None:
    """Takes the settings of 4-bit or 8-bit loading out of `options`. The score head is not quantized."""
    given = options.pop("quantization_config", None)
    wanted = {name: options.pop(name, False) for name in ("load_in_4bit", "load_in_8bit")}
    config = BitsAndBytesConfig(**given) if isinstance(given, dict) else given
    config = config or quantization_config_from(ModelConfig(**wanted))
    if config is not None and not config.llm_int8_skip_modules:
        config.llm_int8_skip_modules = ["score", "classifier", "classification_head"]
    return config  # type: ignore[no-any-return]


@contextmanager
def _truncating_at_the_start(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    try:
        yield
    finally:
        tokenizer.truncation_side = side
