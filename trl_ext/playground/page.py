# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The page of the playground, in gradio: its parts, and what happens when a visitor uses them.

Everything is loaded from the page's own server: gradio's statistics are off, and the fonts are the reader's own.
"""

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from secrets import compare_digest
from typing import TYPE_CHECKING, Any

from trl_ext.generation_settings import GenerationSettings
from trl_ext.packages import GRADIO, is_installed

from .answers import Answer, Comparison, quantities
from .columns import Column, default_column, first_columns, weights_of
from .history import History, export
from .markup import answer_html, legend_html
from .run import Run
from .sources import Ask, SourceModel


if TYPE_CHECKING or is_installed(GRADIO):  # without the extra, the module can be imported but not used
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr


MOST_ANSWERS = 3
AUTO = "automatic"  # what colours show: the first that there is
MESSAGE, TEXT = "a message to answer", "a text to continue"
SANS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

ABOUT = (
    "Answers of models and settings side by side. Each token is coloured by its value, as the guide sees it, or by "
    "its log-probability where there is no guide; a pointer on it, a tap or the Tab key shows the candidates."
)


class Page:
    """
    What the page does.

    Args:
        models (`Sequence[SourceModel]`): The models that visitors choose from.
        folder (`Path`): Where exports are written.
        max_weight (`float`, *optional*, defaults to `10.0`): Sliders of weights go from minus this to this, and
            further if a model begins with more.
    """

    def __init__(self, models: Sequence[SourceModel], folder: Path, max_weight: float = 10.0) -> None:
        self.models = {model.label: model for model in models}
        self.folder = folder
        # gradio refuses a value outside the range of its slider.
        begin = [default_column(model, 2.0) for model in models]
        self.max_weight = max([max_weight, *(abs(weight) for each in begin for weight in (each.beta, *each.weights))])
        self.min_beta = -self.max_weight if any(len(model.weights or {}) == 1 for model in models) else 0.0
        self.heads = max((len(model.weights or {}) for model in models), default=0)
        self.sliders = self.heads if self.heads > 1 else 0  # with one head, beta is its weight
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()

    # --------------------------------------------------------------------------------------------------- answers

    def compare(
        self,
        request: "gr.Request",
        prompt: str,
        send_as: str,
        system: str,
        count: int,
        temperature: float,
        top_p: float,
        top_k: float,
        max_tokens: float,
        seed: float,
        candidates: float,
        colour_by: str,
        history: History,
        *columns: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Ask the models, and show their answers while they grow."""
        prompt, system = prompt or "", system or ""
        if not prompt.strip():
            raise gr.Error("The prompt is empty: type what the models are to answer or to continue.", duration=8)
        if system.strip() and send_as == TEXT:
            raise gr.Error("A text to continue has no system message: empty it, or send the prompt as a message.")
        numbers = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens, "seed": seed}
        sampling = _sampling_fields(numbers)
        chosen = self._columns(columns)[: int(count)]
        asked = [(self._model(column.model), column) for column in chosen]
        ask = Ask(prompt, send_as == MESSAGE, system.strip(), sampling, int(candidates))
        try:
            run = Run(ask, [(model, weights_of(model, column)) for model, column in asked])
        except ValueError as error:
            raise gr.Error(str(error)) from error
        session = str(request.session_hash)
        with self._lock:
            if session in self._runs:  # of a window that was opened twice, or of a client that did not wait
                self._runs[session].stop()
            self._runs[session] = run
        try:
            run.start()
            for answers in run.updates():
                yield *self._shown(answers, colour_by, details=False), gr.skip(), gr.skip(), history
            settings = {"send_as": send_as, "system": system, **sampling, "candidates": int(candidates)}
            settings["columns"] = [column.as_dict() for column in chosen]
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            history.add(Comparison(prompt, settings, run.answers, now))
            yield *self._shown(run.answers, colour_by), *self._choices(history, colour_by), history
        finally:  # also when the visitor closes the page
            run.stop()
            with self._lock:
                if self._runs.get(session) is run:
                    del self._runs[session]

    def stop(self, request: "gr.Request") -> None:
        """End the visitor's answers as they are."""
        with self._lock:
            run = self._runs.get(str(request.session_hash))
        if run is not None:
            run.stop()

    def _model(self, label: str) -> SourceModel:
        if label not in self.models:
            raise gr.Error(f"There is no model {label!r}. There are: {', '.join(self.models)}.")
        return self.models[label]

    def _columns(self, values: Sequence[Any]) -> list[Column]:
        """The settings of each answer, from the values of its parts."""
        size = 2 + self.sliders
        rows = [values[start : start + size] for start in range(0, len(values), size)]
        return [Column(str(row[0]), float(row[1] or 0), [float(weight or 0) for weight in row[2:]]) for row in rows]

    # --------------------------------------------------------------------------------------------------- showing

    def _shown(self, answers: Sequence[Answer], colour_by: str, details: bool = True) -> list[str]:
        """The HTML of each answer, and of the legend."""
        known = quantities(answers)
        name = colour_by if colour_by in known else ""
        found = [answer_html(answer, name, together=answers, details=details) for answer in answers]
        return [*found, *[""] * (MOST_ANSWERS - len(found)), legend_html(answers, name)]

    def _choices(self, history: History, colour_by: str) -> tuple[Any, Any]:
        """What the colours may show, and the history, with the latest comparison chosen."""
        labels = history.labels
        names = [AUTO, *quantities(history.comparisons[-1].answers)]
        return (
            gr.update(choices=names, value=colour_by if colour_by in names else AUTO),
            gr.update(choices=labels, value=labels[0]),
        )

    def _chosen(self, label: str | None, history: History) -> Comparison:
        if not label:
            raise gr.Error("There is no comparison yet: type a prompt and press Compare.")
        try:
            return history.labelled(label)
        except ValueError as error:
            raise gr.Error(str(error)) from error

    def recolour(self, label: str | None, colour_by: str, history: History) -> tuple[Any, ...]:
        """Show the chosen comparison with other colours."""
        if not label:
            return (gr.skip(),) * (MOST_ANSWERS + 1)
        return tuple(self._shown(self._chosen(label, history).answers, colour_by))

    def select(self, label: str | None, colour_by: str, history: History) -> tuple[Any, ...]:
        """Show a comparison of the history."""
        comparison = self._chosen(label, history)
        names = [AUTO, *quantities(comparison.answers)]
        colour = colour_by if colour_by in names else AUTO
        return *self._shown(comparison.answers, colour), gr.update(choices=names, value=colour)

    def restore(self, label: str | None, history: History) -> tuple[Any, ...]:
        """Set all parts to the settings of a comparison of the history."""
        comparison = self._chosen(label, history)
        own = comparison.settings
        columns = [Column(**column) for column in own["columns"]]
        parts: list[Any] = []
        for number in range(MOST_ANSWERS):
            column = columns[number] if number < len(columns) else None
            parts += [gr.skip()] * (2 + self.sliders) if column is None else self._parts(column)
        common = [own[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "seed", "candidates")]
        return (comparison.prompt, own["send_as"], own["system"], len(columns), *common, *parts)

    def _parts(self, column: Column) -> list[Any]:
        """Updates of the parts of an answer's settings."""
        model = self._model(column.model)
        heads, about = model.weights or {}, model.about
        several = len(heads) > 1
        label = next(iter(heads)) if len(heads) == 1 else ""
        names = list(heads) if several else []
        found = [
            gr.update(value=column.model),
            gr.update(
                value=column.beta,
                visible=bool(heads),
                label=f"beta ({label})" if label else "beta",
                info=about.get(label, "") if len(heads) == 1 else "",
            ),
        ]
        for i in range(self.sliders):
            shown = i < len(names)
            value = column.weights[i] if shown and i < len(column.weights) else 0.0
            label, info = (f"weight of {names[i]}", about.get(names[i], "")) if shown else ("", "")
            found.append(gr.update(value=value, visible=shown, label=label, info=info))
        return found

    def choose_model(self, label: str) -> list[Any]:
        """Updates of the sliders for another model."""
        return self._parts(default_column(self._model(label)))[1:]

    def export(self, label: str | None, colour_by: str, history: History) -> Any:
        """Write the chosen comparison to files."""
        comparison = self._chosen(label, history)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        colour = colour_by if colour_by in quantities(comparison.answers) else ""
        found = [str(export(comparison, folder, kind, colour)) for kind in ("json", "png")]
        return gr.update(value=found, visible=True)


def _sampling_fields(numbers: Mapping[str, float | None]) -> dict[str, Any]:
    """Fields of requests, from the parts of the page; one that a visitor has emptied is an error."""
    for name, number in numbers.items():
        if number is None:
            raise gr.Error(f"The number for {name.replace('_', ' ')} is missing: type one.")
    whole = ("top_k", "max_tokens", "seed")
    return {name: int(number or 0) if name in whole else number for name, number in numbers.items()}


def build(
    models: Sequence[SourceModel],
    defaults: GenerationSettings,
    *,
    seed: int = 42,
    max_weight: float = 10.0,
    folder: Path,
) -> "gr.Blocks":
    """
    The page.

    Args:
        models (`Sequence[SourceModel]`): The models, with different labels.
        defaults ([`~trl_ext.generation_settings.GenerationSettings`]), seed, max_weight: As for
            [`~trl_ext.playground.running.launch`].
        folder (`Path`): Where exports are written.
    """
    page = Page(models, folder, max_weight)
    columns = first_columns(models, MOST_ANSWERS)
    settings: dict[str, Any] = {"analytics_enabled": False, "delete_cache": (3600, 86400), "fill_width": True}
    with gr.Blocks(title="trl-ext playground", **settings) as blocks:
        gr.Markdown(f"## trl-ext playground\n{ABOUT}")
        history = gr.State(History())
        prompt = gr.Textbox(label="Prompt", lines=3, max_lines=12, autofocus=True)
        with gr.Row():
            compare = gr.Button("Compare", variant="primary", min_width=120)
            stop = gr.Button("Stop", min_width=120)
        with gr.Accordion("Sampling", open=False):
            common = _sampling(defaults, seed, all(model.chat for model in models))
        with gr.Row(equal_height=False):
            made = [_column(page, column, number) for number, column in enumerate(columns)]
        legend = gr.HTML()
        with gr.Row():
            colour = gr.Dropdown([AUTO], value=AUTO, label="Colours show", min_width=160)
            past = gr.Dropdown([], label="History", min_width=160, scale=2)
        with gr.Row():
            again = gr.Button("Use its settings", min_width=120)
            save = gr.Button("Export", min_width=120)
        exported = gr.Files(label="Exported", visible=False, interactive=False)

        inputs = [prompt, *common]
        controls = {"compare": compare, "stop": stop, "again": again, "save": save}
        _connect(page, inputs, controls, made, [legend, colour, past, history, exported])
    return blocks


def _connect(
    page: Page, inputs: list[Any], controls: dict[str, Any], made: list[dict[str, Any]], shared: list[Any]
) -> None:
    """What happens when a visitor uses the parts."""
    legend, colour, past, history, exported = shared
    texts = [parts["answer"] for parts in made]
    settings = [part for parts in made for part in parts["settings"]]
    prompt, _, _, count, *_ = inputs
    run: dict[str, Any] = {
        "fn": page.compare,
        "inputs": [*inputs, colour, history, *settings],
        "outputs": [*texts, legend, colour, past, history],
        "concurrency_limit": None,  # the servers of the models have a queue
        "show_progress": "hidden",
    }
    controls["compare"].click(**run, api_name="compare")
    prompt.submit(**run, api_name=False)
    controls["stop"].click(page.stop, None, None, api_name="stop", concurrency_limit=None, show_progress="hidden")
    quiet: dict[str, Any] = {"show_progress": "hidden"}
    colour.input(page.recolour, [past, colour, history], [*texts, legend], api_name="colour", **quiet)
    past.input(page.select, [past, colour, history], [*texts, legend, colour], api_name="select", **quiet)
    controls["again"].click(page.restore, [past, history], [*inputs, *settings], api_name="restore", **quiet)
    controls["save"].click(page.export, [past, colour, history], exported, api_name="export", concurrency_limit=4)
    boxes = [parts["box"] for parts in made]
    count.change(
        lambda n: [gr.update(visible=i < int(n)) for i in range(MOST_ANSWERS)], count, boxes, api_name=False,
        show_progress="hidden",
    )  # fmt: skip
    for parts in made:
        model, *sliders = parts["settings"]
        model.input(page.choose_model, model, sliders, api_name=False, show_progress="hidden")


def _sampling(defaults: GenerationSettings, seed: int, chat: bool) -> list[Any]:
    """The parts for what all answers share, in the order of `Page.compare`."""
    with gr.Row():
        send_as = gr.Radio([MESSAGE, TEXT], value=MESSAGE if chat else TEXT, label="The prompt is", min_width=220)
        count = gr.Radio([2, 3], value=2, label="Answers", min_width=120)
        length = defaults.max_completion_length
        max_tokens = _slider(1, 4096, length, 1, label="Maximum length, in tokens", min_width=220)
    system = gr.Textbox(label="System message", lines=1, max_lines=6)
    with gr.Row():
        temperature = _slider(0, 2, defaults.temperature, 0.05, label="Temperature", min_width=180)
        top_p = _slider(0.01, 1, defaults.top_p, 0.01, label="Top-p", min_width=180)
        top_k = _slider(0, 200, defaults.top_k, 1, label="Top-k (0: off)", min_width=180)
        seed_part = gr.Number(value=seed, precision=0, label="Seed, of all answers", min_width=120)
        candidates = gr.Slider(0, 20, value=8, step=1, label="Candidates to show", min_width=180)
    return [send_as, system, count, temperature, top_p, top_k, max_tokens, seed_part, candidates]


def _slider(low: float, high: float, value: float, step: float, **settings: Any) -> "gr.Slider":
    """A slider whose range has the value that it begins with: gradio refuses others."""
    return gr.Slider(min(low, value), max(high, value), value=value, step=step, **settings)


def _column(page: Page, column: Column, number: int) -> dict[str, Any]:
    """The parts of an answer: its settings, in the order of `Page.compare`, and its text."""
    updates = page._parts(column)
    with gr.Column(min_width=300, visible=number < 2, variant="panel") as box:
        model = gr.Dropdown(list(page.models), value=column.model, label=f"Model {'ABC'[number]}")
        sliders = []
        for i, update in enumerate(updates[1:]):
            low = -page.max_weight if i else page.min_beta
            own = {name: update[name] for name in ("label", "visible", "info")}
            sliders.append(gr.Slider(low, page.max_weight, value=update["value"], step=0.1, **own))
        answer = gr.HTML(elem_classes=["tx-column"])
    return {"box": box, "settings": [model, *sliders], "answer": answer}


def start(page: "gr.Blocks", *, host: str, port: int, password: str, **settings: Any) -> str:
    """
    Start the page's server.

    Args:
        page (`gradio.Blocks`): The page.
        host, port, password, settings: As for [`~trl_ext.playground.running.launch`].

    Returns:
        `str`: Its address.

    Raises:
        `OSError`: The port is taken.
    """
    theme = gr.themes.Default(font=SANS, font_mono=MONO)
    texts = {name: files(__package__).joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}

    def may_enter(name: str, given: str) -> bool:
        return compare_digest(given.encode(), password.encode())

    _, url, _ = page.queue(default_concurrency_limit=8).launch(
        **{
            "server_name": host,
            "server_port": port or None,  # gradio takes the first free one from 7860
            "auth": may_enter if password else None,
            "auth_message": "Any name, and the password." if password else None,
            "theme": theme,
            "css": texts["css"],
            "js": texts["js"],
            "footer_links": ["api"],
            "ssr_mode": False,
            "share": False,
            "prevent_thread_lock": True,
            "quiet": True,
            **settings,
        }
    )
    return str(url)
