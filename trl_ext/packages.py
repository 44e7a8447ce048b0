# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Optional packages that settings need: looked for before data and weights are loaded, not at their first use."""

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from .validation import SettingErrors


class Package(NamedTuple):
    """What is installed, and the modules of which one is enough (by default the same name)."""

    pip: str
    modules: tuple[str, ...] = ()


# By the names of `report_to`; a test compares them with those of transformers.
TRACKERS = {
    "azure_ml": Package("azureml-core", ("azureml",)),
    "clearml": Package("clearml"),
    "codecarbon": Package("codecarbon"),
    "comet_ml": Package("comet-ml"),
    "dagshub": Package("dagshub mlflow", ("dagshub",)),
    "dvclive": Package("dvclive"),
    "flyte": Package("flytekit"),
    "kubeflow": Package("kubeflow"),
    "mlflow": Package("mlflow"),
    "neptune": Package("neptune"),
    "swanlab": Package("swanlab"),
    "tensorboard": Package("tensorboard", ("tensorboard", "tensorboardX")),
    "trackio": Package("trackio"),
    "wandb": Package("wandb"),
}
# By the first letters of `optim`; transformers imports them after the model.
OPTIMIZERS = {
    "apollo": Package("apollo-torch"),
    "adalomo": Package("lomo-optim"),
    "adamw_torch_4bit": Package("torchao"),
    "adamw_torch_8bit": Package("torchao"),
    "galore": Package("galore-torch"),
    "grokadamw": Package("grokadamw"),
    "lomo": Package("lomo-optim"),
    "schedule_free": Package("schedulefree"),
    "stable_adamw": Package("torch-optimi", ("optimi",)),
}
VLLM = Package("'trl-ext[vllm]'", ("vllm",))
LIGER = Package("liger-kernel")
GRADIO = Package("'trl-ext[playground]'", ("gradio",))
UVICORN = Package("'trl-ext[serve]'", ("uvicorn",))
DEEPSPEED = Package("'trl-ext[deepspeed]'", ("deepspeed",))


def is_installed(package: Package) -> bool:
    """Whether one of the package's modules can be found."""
    modules = package.modules or (package.pip.replace("-", "_"),)
    return any(module in sys.modules or importlib.util.find_spec(module) for module in modules)


def check_packages(args: Any) -> None:
    """
    Look for the packages that a training config needs.

    Args:
        args ([`~trl_ext.training.config.ExtConfig`]): The config.

    Raises:
        `ValueError`: A tracker in `report_to` does not exist, or packages are not installed; the message has the
            command that installs them.
    """
    if len(args.report_to) > 1 and (alone := {"all", "none"} & set(args.report_to)):
        names = ", ".join(args.report_to)
        raise ValueError(f"`report_to` is {names}, but {' and '.join(sorted(alone))} cannot stand beside others.")
    unknown = [name for name in args.report_to if name not in TRACKERS]
    problems = [
        f"`report_to` has no {name!r}, only {', '.join(TRACKERS)}, or all or none"
        f"{': write several with spaces between them' if ',' in name else ''}"
        for name in unknown
    ]
    problems += [_advice(*needed) for needed in _needed(args) if not is_installed(needed[1])]
    if problems:
        raise SettingErrors(problems)


def require_package(setting: str, package: Package) -> None:
    """Raise an `ImportError` with the command that installs a package, if a setting needs it and it is not there."""
    if not is_installed(package):
        raise ImportError(_advice(setting, package))


def _advice(setting: str, package: Package) -> str:
    return f"`{setting}` needs a package that is not installed: pip install {package.pip}"


def _needed(args: Any) -> Iterator[tuple[str, Package]]:
    """The optional packages that the settings of a training config need."""
    for name in args.report_to:
        if name in TRACKERS:
            yield f"report_to: {name}", TRACKERS[name]
    optimizer = str(getattr(args.optim, "value", args.optim))
    for prefix, package in OPTIMIZERS.items():
        if optimizer.startswith(prefix):
            yield f"optim: {optimizer}", package
    if args.use_liger_kernel:
        yield "use_liger_kernel", LIGER
    if getattr(args, "use_vllm", False):
        yield "use_vllm", VLLM
