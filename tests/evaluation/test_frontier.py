# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The reward-KL frontier: its points, its plot, and its errors."""

import json

import pytest

from trl_ext.evaluation.frontier import check_frontier, frontier, plot_frontier, write_frontier


def row(model, kl, reward, **more):
    return {
        "model": model, "reward/r": reward, "reward/r_se": 0.1, "kl": kl, "kl_se": None if kl is None else 0.05,
        "perplexity": 3.0, "notes": {}, **more,
    }  # fmt: skip


ROWS = [
    row("m/base", 0.0, 0.5),
    row("m/tuned", 2.0, 1.5),
    row("m/base best of 16", None, 2.0, kl_bound=1.8, series="best-of-n", extras={"n": 16}),
    row("m/base best of 4", None, 1.0, kl_bound=0.6, series="best-of-n", extras={"n": 4}),
    row("m/base b=2", 3.0, 2.5, series="m/base guided", extras={"beta": 2.0, "k": 20}),
    row("m/base b=1", 1.0, 1.2, series="m/base guided", extras={"beta": 1.0, "k": 20}),
    {"model": "m/torn", "error": "OSError: torn"},
    row("m/foreign", None, 1.0),
]


def test_points():
    data = frontier(ROWS, "m/base")
    assert data["rewards"] == ["r"]
    assert data["x"] == {"name": "KL to the base model", "unit": "nats per response"}
    series = {entry["name"]: entry["points"] for entry in data["series"]}
    assert list(series) == ["base", "tuned", "best-of-n", "base guided"]
    assert [(point["kl"], point["bound"], point["kl_se"]) for point in series["best-of-n"]] == [
        (0.6, True, None),
        (1.8, True, None),
    ]
    assert [(point["extras"]["beta"], point["rewards"]["r"]["value"]) for point in series["base guided"]] == [
        (1.0, 1.2),
        (2.0, 2.5),
    ]
    assert not series["base guided"][0]["bound"]
    assert json.loads(json.dumps(data)) == data


def test_the_labels_of_the_plot(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    saved = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (saved.append(self), save(self, *args, **kw)))
    write_frontier(frontier(ROWS, "m/base"), str(tmp_path / "out.svg"))
    [figure] = saved
    [axes] = figure.axes
    assert axes.get_xlabel() == "KL to the base model (nats per response)"
    assert axes.get_ylabel() == "r (mean reward, ± 1 s.e.)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "base",
        "tuned",
        "best-of-n (KL: upper bound, not measured)",
        "base guided",
    ]
    # labels have the settings that differ between points, not those that are equal (k 20)
    assert [text.get_text() for text in axes.texts] == ["n 4", "n 16", "beta 1", "beta 2"]
    dashed = [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [[0.0, 0.6, 1.8]]  # starts at the base
    assert json.loads((tmp_path / "out.points.json").read_text()) == frontier(ROWS, "m/base")


def test_png_has_an_opaque_background(tmp_path):
    from matplotlib.image import imread

    plot_frontier(frontier(ROWS, "m/base"), str(tmp_path / "out.png"), title="A title")
    pixels = imread(tmp_path / "out.png")
    assert min(pixels.shape[:2]) > 400
    assert (pixels[..., 3] == 1).all()
    assert pixels[0, 0, :3].tolist() == [1, 1, 1]


def test_points_without_errors_are_plotted_and_those_without_a_value_left_out(tmp_path):
    rows = [row("b", 0.0, 0.5), row("x", 1.0, None), row("y", 2.0, 1.0)]
    rows[2]["kl_se"] = rows[2]["reward/r_se"] = None
    plot_frontier(frontier(rows, "b"), str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_no_points_to_plot(tmp_path):
    with pytest.raises(ValueError, match="no model has both a KL and a reward"):
        write_frontier(frontier([ROWS[-1]], None), str(tmp_path / "out.png"))


def test_errors_before_the_evaluation_starts(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .png, .svg or .pdf, got 'out.jpeg'"):
        check_frontier("out.jpeg")
    with pytest.raises(ValueError, match="folder of --frontier_file does not exist"):
        check_frontier(str(tmp_path / "no" / "out.png"))
    check_frontier(str(tmp_path / "out.png"))
