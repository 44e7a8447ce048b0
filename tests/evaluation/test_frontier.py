# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The reward-KL frontier: its points, its plot, several evaluations in one, and its errors."""

import json
import subprocess
import sys
from itertools import combinations

import pytest
from conftest import HANGS

from trl_ext.cli.frontier import main
from trl_ext.evaluation.frontier import check_frontier, frontier, join, replaced_name, write_frontier
from trl_ext.evaluation.frontier_plot import plot_frontier


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


def test_only_a_series_of_the_base_is_named_after_it():
    """The path of another model may contain the base's, or begin with it."""
    names = ["run/base guided", "old/run/base-sft guided", "run/base2 guided"]
    rows = [row("run/base", 0.0, 0.0), *(row(f"{name} b=1", 1.0, 1.0, series=name) for name in names)]
    found = [series["name"] for series in frontier(rows, "run/base")["series"]]
    assert found == ["base", "base guided", *names[1:]]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (saved.append(self), save(self, *args, **kw)))
    return saved


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_labels_of_the_plot(tmp_path, figures):
    sampling = {"max_completion_length": 48, "top_k": 50, "temperature": 1.0, "top_p": 1.0}
    data = frontier(ROWS, "m/base", sampling)
    write_frontier(data, str(tmp_path / "out.svg"))
    [figure] = figures
    [axes] = figure.axes
    assert axes.get_xlabel() == "KL to the base model (nats per response)"
    assert axes.get_ylabel() == "r (mean ± 1 s.e.)"
    assert legend_of(figure) == ["base", "tuned", "best-of-n (by n, KL: upper bound)", "base guided (by beta)"]
    note = figure.legends[0].get_title().get_text().split("\n")
    assert note == ["KL: full vocabulary, temperature 1, at most 48 tokens.", "Rewards: sampled with top-k 50."]
    # beside the points are the settings in which they differ, not those that are equal (k 20)
    assert [text.get_text() for text in axes.texts] == ["4", "16", "1", "2"]
    dashed = [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [[0.0, 0.6, 1.8]]  # starts at the base
    assert json.loads((tmp_path / "out.points.json").read_text()) == data


def test_colours_are_those_of_methods_and_every_series_has_its_own_marker(tmp_path, figures):
    rows = [
        row("b", 0.0, 0.0),
        *(row(f"out/{name}", k, k, method=name[0]) for k, name in enumerate(("A1", "B1", "A2"), 1)),
    ]
    plot_frontier(frontier(rows, "b"), str(tmp_path / "out.png"))
    handles = {h.get_label(): h for h in figures[0].legends[0].legend_handles}
    assert handles["A1"].get_color() == handles["A2"].get_color() != handles["B1"].get_color()
    assert len({handle.get_marker() for handle in handles.values()}) == 4


def test_a_proxy_starts_at_the_untrained_one_and_the_legend_has_its_candidates(tmp_path, figures):
    """It can only take k candidates, so it is at some KL before training, which is no merit of it."""
    both = {"method": "P", "truncation": "top-k 20", "extras": {"top_k": 20}}
    rows = [
        row("m/base", 0.0, 0.0),
        row("m/base + untrained", 5.0, -1.0, series="m/base + untrained", **both),
        row("m/base + proxy", 9.0, 2.0, series="m/base + proxy", start="m/base + untrained", **both),
    ]
    plot_frontier(frontier(rows, "m/base"), str(tmp_path / "out.png"))
    assert legend_of(figures[0]) == ["base", "base + untrained (P, top-k 20)", "base + proxy (top-k 20)"]
    lines = [list(line.get_xdata()) for line in figures[0].axes[0].lines if line.get_linestyle() != "None"]
    assert lines == [[5.0, 9.0]]


def test_texts_beside_points_cover_neither_each_other_nor_points(tmp_path, figures):
    """Seven n, five betas and a model within a few nats of each other."""
    rows = [row("b", 0.0, -0.3), row("m", 2.2, 2.5)]
    for i in range(7):
        rows.append(row(f"n{i}", None, i * 0.7, kl_bound=0.2 + 0.6 * i, series="best-of-n", extras={"n": 2 << i}))
    for i in range(5):
        rows.append(row(f"v{i}", 0.2 + i * 0.9, i * 0.6, series="guided", extras={"beta": 2.0 ** (i - 1)}))
    plot_frontier(frontier(rows, "b"), str(tmp_path / "out.png"))
    [axes] = figures[0].axes
    figures[0].draw_without_rendering()  # saving measures in other pixels
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 12
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    places = [
        (line.get_xdata(), line.get_ydata()) for line in axes.lines if line.get_marker() not in ("None", "_", "|")
    ]
    points = [axes.transData.transform(xy) for xs, ys in places for xy in zip(xs, ys, strict=True)]
    assert len(points) == 14 and not [box for box in boxes for point in points if box.contains(*point)]


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


# ------------------------------------------------------------------------------------------------ several evaluations


def report(*rows, base="m/base", **changed):
    comparison = {
        "prompts": "3 rows, sha256 0a",
        "base_model": {"name": base, "weights": "w0"},
        "rewards": {"r": {"name": "rewards.r", "weights": None}},
        "sampling": {"max_completion_length": 48, "top_k": 50},
    }
    return {"settings": {}, "comparison": comparison | changed, "models": list(rows)}


def test_evaluations_are_joined_with_the_base_and_its_best_of_n_once():
    best = row("m/base best of 4", None, 1.0, kl_bound=0.6, series="best-of-n", extras={"n": 4})
    first = report(row("m/base", 0.0, 0.5), best, row("m/tuned", 2.0, 1.5))
    again = row("here/base", 0.0, 0.4)  # elsewhere, under another path: the weights are the same
    guided = row("here/base + value, beta 1", 1.0, 1.2, series="here/base + value")
    other = report(again, best | {"model": "here/base best of 4"}, guided, base="here/base")
    joined = join({"a.json": first, "b.json": other})
    assert [r["model"] for r in joined.rows] == ["m/base", "m/base best of 4", "m/tuned", "m/base + value, beta 1"]
    assert joined.rows[0]["reward/r"] == 0.5
    assert joined.notes == ["m/base: measured again in b.json with other results; those of a.json are shown"]
    names = [series["name"] for series in frontier(joined.rows, joined.base)["series"]]
    assert names == ["base", "best-of-n", "tuned", "base + value"]


def test_a_model_with_two_results_is_two_models():
    joined = join(
        {f"{n}.json": report(row("m/base", 0.0, 0.5), row("out", 2.0, n)) for n in (1, 2, 1)}
        | {"3.json": report(row("m/base", 0.0, 0.5), row("out", 2.0, 1))}
    )
    assert [(r["model"], r["reward/r"]) for r in joined.rows[1:]] == [("out (1)", 1), ("out (2)", 2)]


def test_a_model_that_is_named_like_the_base_keeps_its_name():
    other = report(row("here/base", 0.0, 0.5), row("here/base-dpo", 1.0, 1.0), base="here/base")
    joined = join({"a.json": report(row("m/base", 0.0, 0.5)), "b.json": other})
    assert [r["model"] for r in joined.rows] == ["m/base", "here/base-dpo"]
    for name, expected in (("out, beta 1", "X, beta 1"), ("out", "X"), ("outer", "outer"), ("out-2", "out-2")):
        assert replaced_name(name, "out", "X") == expected


def test_two_results_from_files_of_the_same_name_are_named_with_their_folders():
    guided = row("m/base + v, beta 1", 2.0, 1.0, series="m/base + v")
    joined = join(
        {
            f"runs/{name}/evaluation.json": report(row("m/base", 0.0, 0.5), row("out", 1.0, kl), guided | {"kl": kl})
            for name, kl in (("dpo", 1.0), ("grpo", 2.0))
        }
    )
    own = ("dpo/evaluation", "grpo/evaluation")
    names = [f"{model} ({file})" for model in ("out", "m/base + v, beta 1") for file in own]
    assert [r["model"] for r in joined.rows[1:]] == names
    assert [r["series"] for r in joined.rows[3:]] == [f"m/base + v ({file})" for file in own]
    assert len(frontier(joined.rows, joined.base)["series"]) == 5


def test_what_differs_is_named():
    def message(**changed):
        with pytest.raises(ValueError, match="cannot be compared") as error:
            join({"a.json": report(), "b.json": report(**changed)})
        return str(error.value)

    assert "prompts: 3 rows, sha256 0a and 4 rows" in message(prompts="4 rows")
    assert "base model: m/base (weights w0) and m/base (weights w1)" in message(
        base_model={"name": "m/base", "weights": "w1"}
    )
    both = message(sampling={"max_completion_length": 64, "top_k": 0})
    assert "max_completion_length: 48 and 64" in both and "top_k: 50 and 0" in both
    assert "reward 'r': rewards.r and mine.r" in message(rewards={"r": {"name": "mine.r", "weights": None}})
    edited = {"r": {"name": "rewards.r", "weights": None, "source": "s1"}}
    with pytest.raises(ValueError, match=r"reward 'r': rewards.r \(source s0\) and rewards.r \(source s1\)"):
        join({"a.json": report(rewards={"r": edited["r"] | {"source": "s0"}}), "b.json": report(rewards=edited)})
    moved = {"r": edited["r"] | {"name": "folder/rewards.py:r"}}
    join({"a.json": report(rewards=moved), "b.json": report(rewards=edited)})
    join({"a.json": report(rewards=edited), "b.json": report()})  # its source is not known
    assert "reward functions: r and s" in message(rewards={"s": {"name": "rewards.s", "weights": None}})
    with pytest.raises(ValueError, match="has no base model"):
        join({"a.json": report(base_model=None)})
    with pytest.raises(ValueError, match="earlier version"):
        join({"a.json": {"settings": {}, "models": []}})


def test_rewards_that_not_all_have_are_left_out():
    two = {"r": {"name": "rewards.r", "weights": None}, "s": {"name": "s", "weights": None}}
    more = row("m/base", 0.0, 0.5) | {"reward/s": 1.0, "reward/s_se": 0.1, "difference/s": 1.0}
    joined = join({"a.json": report(more, rewards=two), "b.json": report(row("m/tuned", 1.0, 1.0))})
    assert "reward s of a.json" in joined.notes[0]
    assert not [key for r in joined.rows for key in r if key.endswith("/s")]


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name, tuned in (("a", row("out/one", 2.0, 1.5)), ("b", row("out/two", 3.0, 2.5))):
        (tmp_path / f"{name}.json").write_text(json.dumps(report(row("m/base", 0.0, 0.5), tuned)))
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main([*files, "-o", str(tmp_path / "f.svg"), "--label", "two=Second"]) == 0
    out = capsys.readouterr().out
    assert "base (base)" in out and "Second" in out and "one" in out and "1.50" in out
    points = json.loads((tmp_path / "f.points.json").read_text())
    assert [series["name"] for series in points["series"]] == ["base", "one", "Second"]
    with pytest.raises(ValueError, match="no series 'three'; there are 'base', 'one', 'two'"):
        main([*files, "--label", "three=x"])
    with pytest.raises(ValueError, match="SERIES=TEXT"):
        main([*files, "--label", "three"])
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(ValueError, match="was not written by trl-ext evaluate"):
        main([str(tmp_path / "c.json")])
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.json"):
        main([str(tmp_path / "none.json")])


def test_the_command_imports_no_torch():
    code = "import sys, trl_ext.cli.frontier, trl_ext.evaluation.frontier_plot; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=HANGS).returncode == 0
