# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Loads and freezes models and adapters, in 4 or 8 bits too, and refuses what is of another kind than is asked for."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import find_adapter_config_file, logging

from trl_ext.devices import computes_fast, fast_dtype, process_device, slow_reason, warn_if_slow
from trl_ext.progress import library_progress
from trl_ext.upstream import create_model_from_path

from .adapters import load_adapter


if TYPE_CHECKING:
    from peft import PeftModel
    from trl import ModelConfig


logger = logging.get_logger(__name__)


def quantization_config_from(model_args: "ModelConfig") -> BitsAndBytesConfig | None:
    """
    The bitsandbytes config that the command line asks for, or `None`.

    The compute dtype is bfloat16 for any `--dtype`, or float32 on a CPU that is slow in bfloat16. TRL takes it from
    `--dtype`, whose default is float32, so that 4-bit runs of its command line compute in float32.

    Args:
        model_args ([`~trl.ModelConfig`]): The flags.

    Raises:
        `ValueError`: Both 4-bit and 8-bit were asked for.
    """
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return None
    if model_args.load_in_4bit and model_args.load_in_8bit:
        raise ValueError("`load_in_4bit` and `load_in_8bit` exclude each other; set one of them.")
    if model_args.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=True,  # QLoRA's setting (arXiv 2305.14314, section 3)
        bnb_4bit_compute_dtype=fast_dtype(torch.bfloat16, process_device()),
        bnb_4bit_quant_storage=model_args.bnb_4bit_quant_storage,
    )


def refuse_pickled(folder: str) -> None:
    """Raises an `OSError` if a directory holds pickled weights and no safetensors."""
    names = {path.name for path in Path(folder).glob("*") if path.name.startswith(("pytorch_model", "adapter_model"))}
    pickled = sorted(name for name in names if name.endswith(".bin"))
    if pickled and not any(Path(folder).glob("*.safetensors")):
        raise OSError(
            f"{folder!r} has pickled weights ({pickled[0]}), which may run code; only safetensors are loaded. Convert "
            "them (load with transformers, `save_pretrained`), or pass `use_safetensors=False` in `model_init_kwargs`."
        )


def refuse_empty(folder: str) -> None:
    """Raises an `OSError` if a directory holds no model."""
    names = ("config.json", "adapter_config.json")
    if Path(folder).is_dir() and not any((Path(folder) / name).is_file() for name in names):
        raise OSError(f"There is no model in {folder!r}: it holds neither {' nor '.join(names)}.")


def refuse_other_kinds(name: str, config: dict[str, Any], head: str) -> None:
    """
    Raises a `ValueError` if a model is of another kind than is asked for.

    Args:
        name (`str`): Name of the model, as the user passed it.
        config (`dict`): Its `model_type` and `architectures`, as they were saved.
        head (`str`): As for [`load_model`].
    """
    kind, classes = str(config.get("model_type")), config.get("architectures") or []
    if kind.startswith("trl_ext_"):
        raise ValueError(
            f"{name!r} holds a model of type {kind!r}, which guides a language model and is not one: pass the "
            "language model here, and this one by its own setting (`trl-ext generate --help`)."
        )
    if head == "causal_lm" and classes and all(one.endswith("ForSequenceClassification") for one in classes):
        raise ValueError(
            f"{name!r} holds a sequence classifier ({classes[0]}), which scores texts and does not generate: pass a "
            "language model here, and this one as a reward (`reward_funcs`)."
        )
    if head == "sequence_classification" and classes and all(_lacks_score_head(one) for one in classes):
        raise ValueError(
            f"{name!r} holds a language model ({classes[0]}), which has no score head: a new one would return random "
            "scores. Pass a sequence classifier with one label as the reward."
        )


def _lacks_score_head(architecture: str) -> bool:
    """Whether an architecture is a language model, or one of transformers' own that is no sequence classifier."""
    if architecture.endswith(("CausalLM", "LMHeadModel")):
        return True
    return hasattr(transformers, architecture) and not architecture.endswith("ForSequenceClassification")


def loading_error(what: str, name: str, error: Exception) -> OSError:
    """The error to raise where a model or tokenizer cannot be loaded. It states the name and the kind (`what`)."""
    where = "" if Path(name).expanduser().is_dir() else ", which is no local directory"
    return OSError(f"Cannot load the {what} {name!r}{where}: {error}")


# Arguments of `from_pretrained` that say where a model is: the first two belong to one model, the others to the user.
_PLACE = ("revision", "subfolder")
_ACCESS = ("token", "cache_dir", "local_files_only", "force_download", "proxies")


def hub_arguments(kwargs: dict[str, Any], *, place: bool = True) -> dict[str, Any]:
    """
    The arguments of `from_pretrained` among `kwargs` that say where a model is and how to get it from the Hub.

    Args:
        kwargs (`dict[str, Any]`): Arguments of `from_pretrained`.
        place (`bool`, *optional*, defaults to `True`): Whether to include `revision` and `subfolder`. They belong to
            one model, so not to the base of an adapter.
    """
    names = _PLACE + _ACCESS if place else _ACCESS
    return {name: kwargs[name] for name in names if kwargs.get(name) is not None}


def locate(name: str, subfolder: str | None = None) -> tuple[str, dict[str, str]]:
    """
    Where a model is: its directory, or its id on the Hub and `{"subfolder": ...}`, which `from_pretrained` takes.

    Raises:
        `OSError`: It is written like a path and is no directory, or has no such folder.
    """
    path = resolve_model_path(name)
    if not subfolder:
        return path, {}
    if not Path(path).is_dir():
        return path, {"subfolder": subfolder}
    if not (Path(path) / subfolder).is_dir():
        raise OSError(f"There is no folder {subfolder!r} in {path!r}.")
    return str(Path(path) / subfolder), {}


def from_folders_above(name: str, folder: str) -> str:
    """
    Name of a base model, as a model that was made of it has saved it.

    A relative path is from where that model was trained: the working directory, or a folder above the one that it is
    in. Any other name is returned as it is.
    """
    if Path(name).expanduser().is_dir() or not Path(folder).is_dir():
        return name
    start = Path(folder).resolve()
    found = [each / name for each in (start, *start.parents) if (each / name / "config.json").is_file()]
    return str(found[0].resolve()) if found else name


def same_source(name: str, other: str | None) -> bool:
    """Whether two names mean one model: equal names, or two paths to one directory."""
    if other is None or name == other:
        return name == other
    return os.path.isdir(name) and os.path.realpath(name) == os.path.realpath(other)


def saved_config(
    what: str, name: str, kind: type[PreTrainedConfig] | None = None, remedy: str = "", **hub: Any
) -> PreTrainedConfig:
    """
    The config of a saved model, without its weights. Code of a model of another kind than `kind` is not run.

    Args:
        what (`str`): What the model is, for errors.
        name (`str`): Directory or Hub id.
        kind (`type`, *optional*): Class of the config. By default any is taken.
        remedy (`str`, *optional*): What to do if it is the config of another kind of model.
        hub: `revision`, `subfolder`, `token`, `cache_dir` and the like.

    Raises:
        `OSError`: There is no such model.
        `ValueError`: It is another kind of model.
    """
    trust_remote_code = hub.pop("trust_remote_code", False)
    try:
        path, inside = locate(name, hub.pop("subfolder", None))
        refuse_empty(path)
        hub |= inside
        if kind is None:
            return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **hub)
        saved, _ = PreTrainedConfig.get_config_dict(path, **hub)
        if saved.get("model_type") == kind.model_type:
            return kind.from_pretrained(path, **hub)
    except OSError as error:
        raise loading_error(what, name, error) from error
    raise ValueError(f"{name!r} is a model of type {saved.get('model_type')!r}, not a {what}. {remedy}")


def adapter_base(path: str, **hub: Any) -> str | None:
    """
    Directory or Hub id of the base model of a saved LoRA adapter, or `None` if there is no adapter.

    Args:
        path (`str`): Directory or Hub id.
        hub: As from [`hub_arguments`].

    Raises:
        `OSError`: The base model is not there, or its name was not saved.
    """
    config = adapter_config(path, **hub)
    return None if config is None else _base_of_adapter(path, config)


def adapter_config(path: str, **hub: Any) -> dict[str, Any] | None:
    """
    The saved config of an adapter, or `None` if there is no adapter.

    Args:
        path (`str`): Directory or Hub id.
        hub: As from [`hub_arguments`].
    """
    try:
        file = find_adapter_config_file(path, **hub)
    except (OSError, ValueError):  # no directory and no name on the Hub: it is reported where it is loaded
        return None
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def _base_of_adapter(name: str, config: dict[str, Any]) -> str:
    """The base model of an adapter with this config."""
    base = config.get("base_model_name_or_path")
    remedy = (
        "Write where it is now into `base_model_name_or_path` in the adapter's adapter_config.json, or load it "
        "yourself and put the adapter on it (`PeftModel.from_pretrained(base, ...)`)."
    )
    if not base:
        raise OSError(f"The adapter {name!r} was saved without the name of its base model. {remedy}")
    try:
        return resolve_model_path(from_folders_above(base, name))
    except OSError as error:
        raise OSError(
            f"The adapter {name!r} was trained on the model at {base!r}, which is not there. {remedy}"
        ) from error


_AUTO_CLASSES: dict[str, Any] = {
    "none": AutoModel,
    "causal_lm": None,  # the class that the config names, see `_architecture`
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
}


def load_model(
    name_or_path: str,
    *,
    quantization_config: BitsAndBytesConfig | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    head: str = "causal_lm",
    num_labels: int = 0,
    is_trainable: bool = False,
    device: torch.device | None = None,
    **init_kwargs: Any,
) -> "PreTrainedModel | PeftModel":
    """
    Loads a model, or a LoRA adapter with its base model.

    Args:
        name_or_path (`str`): Hub id or directory. The directory of a LoRA adapter gives a [`~peft.PeftModel`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): 4-bit or 8-bit loading.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run code from the Hub.
        head (`str`, *optional*, defaults to `"causal_lm"`): `"causal_lm"`, `"sequence_classification"`,
            `"token_classification"`, or `"none"` for the layers below the head.
        num_labels (`int`, *optional*, defaults to `0`): Labels of a sequence classification head. `0`: as saved, one
            under an adapter, whose base may be a language model without labels.
        is_trainable (`bool`, *optional*, defaults to `False`): Whether a loaded adapter is trained further.
        device (`torch.device`, *optional*): Where the model is going to compute, which decides about its dtype. By
            default the device of this process.
        init_kwargs: Passed to `from_pretrained`, `subfolder`, `token` and `cache_dir` among others. `dtype` defaults
            to float32, and in 4 or 8 bits to the compute dtype (also if it is `"auto"`). With `"auto"` a checkpoint in
            half precision becomes float32 on a CPU that is slow in its dtype. `device_map` defaults to `"auto"` on an
            accelerator and to none on the CPU, `use_safetensors` to `True`.

    Raises:
        `OSError`: There is no such model, or its weights are pickled.
        `ValueError`: The directory or the repository on the Hub holds another kind of model than is asked for.
    """
    device = device or process_device()
    name_or_path, inside = locate(name_or_path, init_kwargs.pop("subfolder", None))
    where = hub_arguments({**init_kwargs, **inside, "revision": revision})
    adapter = adapter_config(name_or_path, **where)
    source = name_or_path if adapter is None else _base_of_adapter(name_or_path, adapter)
    if adapter is None:
        init_kwargs |= inside
    else:
        revision = adapter.get("revision")  # that of the base
    refuse_empty(source)
    if quantization_config is not None:
        init_kwargs["quantization_config"] = quantization_config
        # Modules that are not quantized (norms, embeddings, head) have the compute dtype unless another is passed.
        if init_kwargs.get("dtype") in (None, "auto"):
            in_4bit = getattr(quantization_config, "load_in_4bit", False)  # in 8 bits the field has no meaning
            compute_dtype = quantization_config.bnb_4bit_compute_dtype
            init_kwargs["dtype"] = compute_dtype if in_4bit else fast_dtype(torch.bfloat16, device)
    _warn_if_slow(init_kwargs.get("dtype"), device)
    init_kwargs.update(trust_remote_code=trust_remote_code)
    if init_kwargs.setdefault("use_safetensors", True):
        for folder in {source, name_or_path}:
            refuse_pickled(folder)
    saved = Path(source) / "config.json"
    scored = adapter is not None and head == "sequence_classification"  # the adapter of a reward has its score head
    if saved.is_file() and not scored:
        refuse_other_kinds(source, json.loads(saved.read_text(encoding="utf-8")), head)
    if revision is not None:
        init_kwargs["revision"] = revision
    if head not in _AUTO_CLASSES:
        raise ValueError(f"`head` must be one of {', '.join(map(repr, _AUTO_CLASSES))}, got {head!r}.")
    if head == "none" and adapter is not None:
        raise ValueError(f"{name_or_path!r} is an adapter for a model with a head. Merge it into the model first.")
    if head == "sequence_classification":
        num_labels = num_labels or int(adapter is not None)
        init_kwargs |= {"num_labels": num_labels} if num_labels else {}
    model = _create(source, _AUTO_CLASSES[head] or _architecture(source, init_kwargs), init_kwargs)
    if not (saved.is_file() or scored):  # from the Hub
        refuse_other_kinds(source, {"architectures": model.config.architectures}, head)
    if init_kwargs.get("dtype") == "auto":
        model = in_fast_dtype(model, device)
    use_exact_4bit_on_cpu(model)
    if adapter is not None:
        model = load_adapter(model, name_or_path, is_trainable=is_trainable, **where)
    return model


def _create(source: str, architecture: Any, init_kwargs: dict[str, Any]) -> PreTrainedModel:
    with library_progress(f"loading {source if source.count('/') == 1 else Path(source).name}"):
        return create_model_from_path(source, architecture, **init_kwargs)


def in_fast_dtype(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """
    A model that was loaded in the dtype of its checkpoint, in float32 if the device is slow in that dtype.

    A checkpoint of quantized weights stays as it is: transformers refuses to change its dtype.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model; its weights are replaced one by one.
        device (`torch.device`): Where it is going to compute.
    """
    if computes_fast(model.dtype, device) or getattr(model, "is_quantized", False):  # quantized weights stay
        return model
    logger.warning_once(
        f"Models are loaded in float32, not in the dtype of their weights: {slow_reason(model.dtype)}. Set `dtype` to "
        "choose yourself."
    )
    return model.float()


def _warn_if_slow(dtype: Any, device: torch.device) -> None:
    """Logs once that the user asks for a dtype in which the device is slow."""
    name = str(dtype).removeprefix("torch.")
    if name in ("bfloat16", "float16"):
        warn_if_slow(f"dtype: {name}", getattr(torch, name), device, "`dtype: auto` chooses float32 here.")


def _architecture(source: str, kwargs: dict[str, Any]) -> Any:
    """
    The class of a language model, which TRL finds only for a model of the main branch that needs no token.

    `None` leaves it to TRL.
    """
    hub = hub_arguments(kwargs)
    if not hub:
        return None
    config = AutoConfig.from_pretrained(source, trust_remote_code=kwargs["trust_remote_code"], **hub)
    return getattr(transformers, (config.architectures or [""])[0], AutoModelForCausalLM)


def resolve_model_path(name_or_path: str) -> str:
    """
    The path of a model's directory, or its id on the Hub.

    Raises:
        `OSError`: It is written like a path and is no directory. The error of the Hub would be misleading.
    """
    path = Path(name_or_path).expanduser()
    looks_like_path = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if looks_like_path and not path.is_dir():
        raise OSError(f"There is no model at {name_or_path!r}: the directory does not exist.")
    return str(path) if path.is_dir() else name_or_path


def use_exact_4bit_on_cpu(model: torch.nn.Module) -> None:
    """
    Keeps 4-bit layers differentiable on the CPU. Has to be called before any forward pass.

    On CPUs with AVX512-BF16, bitsandbytes repacks every 4-bit layer in the first forward pass in evaluation mode, for
    a kernel without autograd: gradients of later training steps are then silently wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Switches gradients off and evaluation mode on. A 4-bit base would keep trainable norms and embeddings."""
    return model.requires_grad_(False).eval()


@contextlib.contextmanager
def adapter_disabled(model: torch.nn.Module) -> Iterator[None]:
    """Inside this context a [`~peft.PeftModel`] computes the output of its base model."""
    with model.disable_adapter():  # type: ignore[operator]
        yield
