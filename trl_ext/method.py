# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The plug-in system: the declaration of a method, and the discovery of the methods of all installed packages.

A package, this one included, adds a method with an entry point that names a [`Method`]:

```toml
[project.entry-points."trl_ext.methods"]
my_method = "my_package:METHOD"
```

Nothing here imports torch: a method names its classes as strings, and they are imported when they are used.
"""

import dataclasses
import importlib
import re
from dataclasses import dataclass

from .commands import COMMANDS, Required
from .plugins import Broken, FromPackage, canonical, load_plugins


GROUP = "trl_ext.methods"

# Commands of `trl-ext`: a method with such a name could not be called.
RESERVED = (*COMMANDS, "help")

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Method:
    """
    An alignment method, as the command line and the package see it.

    Args:
        name (`str`):
            Name on the command line: lower case letters, digits and underscores.
        paper (`str`):
            arXiv identifier of the paper, or `""`.
        summary (`str`):
            One line for `trl-ext methods`.
        config (`str`):
            `"package.module:Class"` of the config, a dataclass that extends [`~transformers.TrainingArguments`].
        trainer (`str`):
            `"package.module:Class"` of the trainer.
        columns (`tuple[str, ...]`, *optional*, defaults to `()`):
            Columns that its dataset must have.
        decoding (`str`, *optional*, defaults to `""`):
            `"package.module:Class"` of its [`~trl_ext.inference.policy.Decoding`]: how the model that it trains guides
            a frozen model while that generates. Empty if the method trains an ordinary language model.
        guide (`str`, *optional*, defaults to `""`):
            `"package.module:Class"` of its [`~trl_ext.guides.kinds.GuideKind`]: a kind of guide in guide files
            (`trl-ext generate --guide`), for a model that it trains. Empty if there is none.
        engine (`str`, *optional*, defaults to `""`):
            `"package.module:Class"` of its [`~trl_ext.inference.engine_decoding.EngineDecoding`]: how the model that
            it trains chooses tokens inside vLLM, if it does so in another way than a guide. Empty if it does not.
        memory (`str`, *optional*, defaults to `""`):
            `"package.module:function"` that returns the [`~trl_ext.memory.needs.Needs`] of a config, for `trl-ext
            plan` and the summary before training. Empty if the method trains the language model on `num_generations`
            completions of a prompt.
        exports (`tuple[str, ...]`, *optional*, defaults to `()`):
            `"package.module:Name"` of further public names, which `from trl_ext import Name` finds too.
        required (`tuple[Required, ...]`, *optional*, defaults to `()`):
            Settings that its training cannot do without, beside the model and the dataset: said before anything is
            imported (see [`~trl_ext.commands.Required`]).
        server_settings (`tuple[str, ...]`, *optional*, defaults to `()`):
            Settings of its decoding that name a server, whose model then takes the place of `model_name_or_path`.

    Raises:
        `ValueError`: The name is malformed or reserved, a reference is not `"package.module:Name"`, or a tuple has
            other elements.
    """

    name: str
    paper: str
    summary: str
    config: str
    trainer: str
    columns: tuple[str, ...] = ()
    decoding: str = ""
    guide: str = ""
    engine: str = ""
    memory: str = ""
    exports: tuple[str, ...] = ()
    required: tuple[Required, ...] = ()
    server_settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r} cannot name a method: use lower case letters, digits and underscores, a letter first."
            )
        if self.name in RESERVED:
            raise ValueError(f"{self.name!r} is a command of trl-ext and cannot be the name of a method.")
        optional = [name for name in ("decoding", "guide", "engine", "memory") if getattr(self, name) != ""]
        for field in ("config", "trainer", *optional):
            reference = getattr(self, field)
            if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
                raise ValueError(
                    f"`{field}` of method {self.name!r} must be a string 'package.module:Name', got {reference!r}."
                )
        for reference in self.exports:
            if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
                raise ValueError(
                    f"`exports` of method {self.name!r} must be strings 'package.module:Name', got {reference!r}."
                )
        for field, kind in (("columns", str), ("required", Required), ("server_settings", str)):
            value = getattr(self, field)
            if not isinstance(value, tuple | list) or not all(isinstance(each, kind) for each in value):
                raise ValueError(
                    f"`{field}` of method {self.name!r} must be a tuple of {kind.__name__}, got {value!r}."
                )

    @property
    def class_names(self) -> dict[str, str]:
        """The references to the method's public classes, by class name."""
        return {reference.rpartition(":")[2]: reference for reference in (self.config, self.trainer, *self.exports)}

    def config_class(self) -> type:
        """Import and return the config class."""
        return import_class(self.config)

    def trainer_class(self) -> type:
        """Import and return the trainer class."""
        return import_class(self.trainer)

    def decoding_class(self) -> type | None:
        """Import and return the class of its decoding; `None` if it has none."""
        return import_class(self.decoding) if self.decoding else None


@dataclass(frozen=True)
class Found(FromPackage):
    """A usable method and the package that declares it."""

    method: Method
    package: str
    version: str


@dataclass(frozen=True)
class Discovery:
    """
    Result of [`discover`].

    Attributes:
        methods (`dict[str, Found]`):
            Usable methods by name: those of this package first, then by package and name.
        broken (`list[Broken]`):
            Entry points that cannot be used. The other methods are not affected.
    """

    methods: dict[str, Found] = dataclasses.field(default_factory=dict)
    broken: list[Broken] = dataclasses.field(default_factory=list)

    def find(self, word: str) -> Found | None:
        """The method with this name, written with hyphens or underscores."""
        return self.methods.get(canonical(word))

    def of_class(self, cls: type) -> Method | None:
        """The method whose config or trainer a class is, or is derived from; of several, that of the nearest base."""
        by_class = {
            reference: found.method
            for found in reversed(self.methods.values())
            for reference in (found.method.config, found.method.trainer)
        }
        bases = (f"{base.__module__}:{base.__qualname__}" for base in cls.__mro__)
        return next((by_class[base] for base in bases if base in by_class), None)


def discover() -> Discovery:
    """
    Find the methods of every installed package.

    A package that fails to import, or whose entry point is not a usable [`Method`], is listed under `broken`. If two
    packages declare the same name, this package's method is kept, or else that of the first package in alphabetical
    order. The other is listed under `broken`.
    """
    plugins, broken = load_plugins(GROUP, Method, "method")
    methods = {name: Found(each.value, each.package, each.version) for name, each in plugins.items()}
    return Discovery(methods, broken)


def import_class(reference: str) -> type:
    """
    Import the class that `"package.module:Class"` names.

    Raises:
        `ImportError`: The module cannot be imported, or has no such class.
    """
    module_name, _, class_name = reference.rpartition(":")
    module = importlib.import_module(module_name)
    try:
        return getattr(module, class_name)  # type: ignore[no-any-return]
    except AttributeError:
        raise ImportError(f"module {module_name!r} has no class {class_name!r}") from None
