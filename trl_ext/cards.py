# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Cards of models and datasets: the `README.md` that the Hub shows, with code that loads what it describes."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CardData

from .settings_file import RunSettings, versions


_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ABSOLUTE = re.compile(r"(?<![\w:/.])/(?:[^\s/'\"]+/)*([^\s/'\":,;]+)")
_CITE_TRL = """\
@software{vonwerra2020trl,
  title   = {{TRL: Transformers Reinforcement Learning}},
  author  = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and \
Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin},
  license = {Apache-2.0},
  url     = {https://github.com/huggingface/trl},
  year    = {2020}
}"""


@dataclass
class Card:
    """
    A card.

    Args:
        title (`str`): Its heading.
        metadata ([`~huggingface_hub.CardData`]): What the Hub reads.
        parts (`list[str]`, *optional*): Paragraphs, headings and code blocks below the heading, in Markdown.
    """

    title: str
    metadata: CardData
    parts: list[str] = field(default_factory=list)

    def add(self, heading: str, *parts: str) -> None:
        """Add a section, unless all of its parts are empty."""
        if any(parts):
            self.parts += [f"## {heading}", *filter(None, parts)]

    def text(self) -> str:
        """The card in Markdown."""
        return "\n\n".join([f"---\n{self.metadata.to_yaml()}\n---", f"# {self.title}", *self.parts]) + "\n"


def code(text: str, language: str = "python") -> str:
    """A code block."""
    return f"```{language}\n{text.strip()}\n```"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; empty if it has no rows."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) if rows else ""


def settings_parts(settings: RunSettings) -> list[str]:
    """The settings that a card publishes, without output folders and the environment, and what they do not express."""
    private = ("output_dir", "output_file", "env")
    kept = RunSettings({name: published(value) for name, value in settings.values.items() if name not in private})
    notes = "\n".join(f"- {published(note)}" for note in settings.notes)
    return [code(kept.yaml(), "yaml"), *(["Beside these settings:", notes] if notes else [])]


def versions_list() -> str:
    """The versions of the packages that a run depends on."""
    return "\n".join(f"- {name}: {number}" for name, number in versions().items())


def citations(name: str = "", citation: str = "") -> list[str]:
    """How to cite a method, if its paper is known, and TRL."""
    method = [f"Cite {name} as:", code(citation, "bibtex")] if citation else []
    return [*method, "Cite TRL as:", code(_CITE_TRL, "bibtex")]


def on_hub(name: str | None) -> bool:
    """Whether a model's name is one on the Hub, rather than a directory."""
    return bool(name) and not os.path.isdir(str(name)) and _HUB_ID.fullmatch(str(name)) is not None


def is_hub_dataset(name: str | None) -> bool:
    """Whether a dataset's name is one on the Hub, rather than a file or a directory."""
    return on_hub(name) and not Path(str(name)).exists()


def quoted(name: str, *, published: bool) -> str:
    """A model's name as a Python string. The path of a directory is not published."""
    return repr(f"path/to/{Path(name).name or 'model'}" if not name or (published and not on_hub(name)) else name)


def link(name: str | None) -> str:
    """A model's name as text of a card, with a link if it is on the Hub."""
    if not name:
        return "a language model"
    return f"[{name}](https://huggingface.co/{name})" if on_hub(name) else f"the model `{Path(name).name}`"


def dataset_link(name: str | None) -> str:
    """The same for a dataset."""
    if not name:
        return "rows that were passed in Python"
    if is_hub_dataset(name):
        return f"[{name}](https://huggingface.co/datasets/{name})"
    return f"the file `{Path(name).name}`"


def published(value: Any) -> Any:
    """A value without the paths of this machine: only their last part is kept."""
    if isinstance(value, list):
        return [published(item) for item in value]
    if isinstance(value, dict):
        return {name: published(item) for name, item in value.items()}
    return _ABSOLUTE.sub(r"path/to/\1", value) if isinstance(value, str) else value
