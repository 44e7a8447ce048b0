# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Alignment methods that TRL does not have, as trainers that behave like TRL's.

A name is imported when it is first used: `import trl_ext` takes milliseconds and does not import torch. The classes of
the methods (`<Method>Trainer`, `<Method>Config` and further exports) are those that installed packages declare (see
[`trl_ext.method`]). Editors and type checkers read `__init__.pyi` instead of this file.
"""

import importlib
from pathlib import Path
from typing import Any


# Public names that belong to no method -> the module that defines them.
_SHARED = {
    "ClassifierGuide": "guides.classifier_guide",
    "ColumnJudge": "judging.scores",
    "DataError": "data.schema",
    "Decoding": "inference.policy",
    "Discovery": "method",
    "Endpoint": "endpoint.client",
    "EndpointJudge": "judging.endpoint",
    "ExtConfig": "training.config",
    "FunctionJudge": "judging.functions",
    "GenerationSettings": "generation_settings",
    "Guide": "decoding.guide",
    "GuideContext": "decoding.guide",
    "GuideSettings": "guides.guide_file",
    "GuidedLogitsProcessor": "guides.logits_processor",
    "JudgeResult": "judging.judge",
    "LanguageModelGuide": "guides.language_model_guide",
    "Method": "method",
    "Policy": "inference.policy",
    "RewardError": "rewards.functions",
    "RewardJudge": "judging.scores",
    "RewardSettings": "rewards.settings",
    "best_of_n": "inference.best_of_n",
    "discover": "method",
    "evaluate_model": "evaluation.evaluate",
    "judge": "judging.judge",
    "load_dataset": "data.load",
    "policy_with_guides": "inference.guide_decoding",
    "from_scored_rows": "data.exports",
    "to_scored_rows": "data.scored_rows",
    "load_rewards": "rewards.functions",
}

# Without the classes of the methods, which depend on the installed packages.
__all__ = sorted(_SHARED)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _SHARED:
        value = getattr(importlib.import_module(f"{__name__}.{_SHARED[name]}"), name)
    elif name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    elif _is_submodule(name):
        return importlib.import_module(f"{__name__}.{name}")
    else:
        value = _method_class(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from .method import discover

    classes = {name for found in discover().methods.values() for name in found.method.class_names}
    return sorted({*__all__, "__version__", *classes})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("trl-ext")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "unknown"


def _is_submodule(name: str) -> bool:
    here = Path(__file__).parent
    return (here / f"{name}.py").is_file() or (here / name / "__init__.py").is_file()


def _method_class(name: str) -> type:
    from .method import discover, import_class

    discovery = discover()
    for found in discovery.methods.values():
        reference = found.method.class_names.get(name)
        if reference is not None:
            return import_class(reference)
    message = f"module {__name__!r} has no attribute {name!r}"
    if discovery.broken:
        broken = "; ".join(f"{b.name} of {b.source}: {b.error}" for b in discovery.broken)
        message += f" (methods that could not be loaded: {broken})"
    raise AttributeError(message)
