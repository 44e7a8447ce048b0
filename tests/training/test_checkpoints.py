# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that a run resumes from if one of them is incomplete, overwritten, or met a full disk."""

import errno
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainers import METHODS, make_trainer

from trl_ext.training.checkpoints import (
    begin,
    check_resumable,
    has_optimizer,
    is_complete,
    last_checkpoint,
    resume_note,
    saving,
    training_in,
)


FULL = Path("/dev/full")  # every write to it fails, as on a full disk


def checkpoint(folder: Path, number: int, state: str = "{}") -> Path:
    path = folder / f"checkpoint-{number}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(state)
    (path / "optimizer.pt").touch()
    return path


class TestLastCheckpoint:
    def test_the_latest_complete_one(self, tmp_path: Path) -> None:
        assert last_checkpoint(tmp_path) is None
        for number in (2, 10):
            checkpoint(tmp_path, number)
        (tmp_path / "checkpoint-best").mkdir()
        (tmp_path / "checkpoint-12").mkdir()
        checkpoint(tmp_path, 14, '{"global_step": 1')  # killed while it was written
        checkpoint(tmp_path, 16, "")
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")

    def test_one_that_is_overwritten_is_incomplete(self, tmp_path: Path) -> None:
        path = checkpoint(tmp_path, 2)
        assert is_complete(path)
        begin(path)
        assert not is_complete(path) and last_checkpoint(tmp_path) is None
        begin(tmp_path / "not" / "yet" / "there")
        assert (tmp_path / "not" / "yet" / "there").is_dir()

    def test_two_nodes_may_begin_one_at_the_same_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The other one has removed what this one has just listed."""
        path = checkpoint(tmp_path, 2)
        (path / "adapter").mkdir()
        (path / "optimizer.pt").unlink()
        monkeypatch.setattr(Path, "iterdir", lambda folder: iter([folder / "optimizer.pt", folder / "adapter"]))
        begin(path)
        assert not (path / "adapter").exists()

    def test_what_an_earlier_run_left_in_it_is_removed(self, tmp_path: Path) -> None:
        """That run had two processes, and its completions would be read as those of this run."""
        path = tmp_path / "checkpoint-2"
        (path / "adapter").mkdir(parents=True)
        left = {"rollouts": {"0": {"ids": [[5]], "scores": [9.0]}}, "epoch": 0, "processes": 2}
        for name in ("rollouts_1.json", "adapter/weights", "trainer_state.json"):
            (path / name).write_text(json.dumps(left))
        settings: dict[str, Any] = {"resample_steps": 0, "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
        trainer = make_trainer("rrhf", tmp_path, **settings)
        trainer.train()
        assert is_complete(path) and sorted(path.glob("rollouts_*")) == [path / "rollouts_0.json"]
        assert not (path / "adapter").exists()
        sampled = dict(trainer._rounds._rollouts)
        trainer._rounds.restore(path)
        assert trainer._rounds._rollouts == sampled

    def test_a_broken_one_that_is_named(self, tmp_path: Path) -> None:
        complete, broken = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, "")
        check_resumable(complete)
        with pytest.raises(ValueError, match=r"checkpoint-4' is incomplete.* is .*checkpoint-2\.$"):
            check_resumable(broken)
        with pytest.raises(
            ValueError, match=r"nowhere/checkpoint-1' does not exist.*\. There is no usable one beside it\.$"
        ):
            check_resumable(tmp_path / "nowhere" / "checkpoint-1")

    def test_one_without_the_optimizer_is_another_run(self, tmp_path: Path) -> None:
        complete, bare = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
        (bare / "optimizer.pt").unlink()
        assert last_checkpoint(tmp_path) == str(complete)
        with pytest.raises(ValueError, match=r"checkpoint-4' was saved with `save_only_model`.*checkpoint-2\.$"):
            check_resumable(bare)
        assert not has_optimizer(tmp_path / "nowhere")
        (bare / "global_step4").mkdir()  # DeepSpeed's
        check_resumable(bare)

    def test_the_trainer_refuses_it(self, tmp_path: Path) -> None:
        broken = checkpoint(tmp_path, 4, "")
        with pytest.raises(ValueError, match="is incomplete"):
            make_trainer("rrhf", tmp_path, max_steps=1).train(resume_from_checkpoint=broken)


class TestErrors:
    """What a run that cannot write says: which file, and how to go on."""

    def test_where_to_resume(self, tmp_path: Path) -> None:
        assert resume_note(tmp_path) == f"There is no complete checkpoint in {tmp_path}: start the run again."
        path = checkpoint(tmp_path, 4)
        assert resume_note(tmp_path) == f"The run can be resumed from {path}."

    def test_what_was_being_saved(self, tmp_path: Path) -> None:
        path = checkpoint(tmp_path, 4)
        for error, what in (
            (OSError(errno.EACCES, "denied"), "make its folder writable"),
            (RuntimeError("PytorchStreamWriter failed"), "is the disk full?"),
        ):
            with pytest.raises(type(error)) as caught, saving("The model in", tmp_path / "x", tmp_path):
                raise error
            assert caught.value.__notes__ == [
                f"The model in {tmp_path / 'x'} is incomplete ({what}). The run can be resumed from {path}."
            ]
        with pytest.raises(KeyboardInterrupt) as stopped, saving("The model in", tmp_path / "x", tmp_path):
            raise KeyboardInterrupt
        assert not hasattr(stopped.value, "__notes__")

    def test_what_fails_after_a_checkpoint_is_complete(self, tmp_path: Path) -> None:
        """Its upload, or the removal of an older one."""
        path = checkpoint(tmp_path, 4)
        with pytest.raises(ConnectionError) as caught, saving("The checkpoint", path, tmp_path):
            raise ConnectionError
        assert caught.value.__notes__ == [f"The run can be resumed from {path}."]

    def test_a_training_says_once_how_to_go_on(self, tmp_path: Path) -> None:
        note = resume_note(tmp_path)
        with pytest.raises(OSError) as caught, training_in(tmp_path):
            raise OSError(errno.EIO, "broken")
        assert caught.value.__notes__ == [note]
        with pytest.raises(OSError) as caught, training_in(tmp_path), saving("The checkpoint", "x", tmp_path):
            raise OSError(errno.EIO, "broken")
        assert caught.value.__notes__ == [f"The checkpoint x is incomplete (check the disk). {note}"]
        with pytest.raises(ValueError) as other, training_in(tmp_path):
            raise ValueError
        assert not hasattr(other.value, "__notes__")

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match=r"^`output_dir` '.*out' cannot be created \(Not a directory\): set another"):
            make_trainer("rrhf", tmp_path / "file" / "out", max_steps=1)

    def test_the_trained_model(self, tmp_path: Path) -> None:
        trainer = make_trainer("rrhf", tmp_path / "out", max_steps=1, save_strategy="steps", save_steps=1)
        trainer.train()
        (tmp_path / "out" / "model.safetensors").mkdir()
        with pytest.raises(Exception) as caught:
            trainer.save_model()
        (note,) = caught.value.__notes__
        assert note.startswith(f"The model in {tmp_path / 'out'} is incomplete (")
        assert note.endswith(f"The run can be resumed from {tmp_path / 'out' / 'checkpoint-1'}.")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_ended_trains_no_further_step(method: str, tmp_path: Path) -> None:
    """Its last checkpoint is within an epoch, where transformers' loop goes on."""
    settings: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    settings["lr_scheduler_type"] = "constant"
    settings |= {"resample_steps": 0, "num_epochs_per_batch": 2} if method == "vas" else {}
    first = make_trainer(method, tmp_path, **settings)
    first.train()
    trainer = make_trainer(method, tmp_path, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3 and last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


# Saved after step 3 of 4: within a round of Proxy-RLHF, between two updates of VAS, between two rounds of RRHF.
_SETTINGS: dict[str, dict[str, Any]] = {
    "rrhf": {"resample_steps": 2},
    "vas": {"resample_steps": 0, "num_epochs_per_batch": 2, "normalize_rewards": True},
    "psle": {},
    "proxy_rlhf": {"num_ppo_epochs": 2},
}


def train(method: str, folder: Path, resume: bool = False) -> dict[str, torch.Tensor]:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2, **_SETTINGS[method]}
    trainer = make_trainer(method, folder, **settings)
    trainer.train(resume_from_checkpoint=resume or None)
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For a method, the folder of an uninterrupted run of four steps, and its weights."""

    def run(method: str) -> tuple[Path, dict[str, torch.Tensor]]:
        folder = tmp_path_factory.mktemp("undisturbed")
        return folder, train(method, folder)

    return cache(run)


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("method", "file"),
    [
        ("rrhf", "rollouts_0.json.part"),
        ("rrhf", "optimizer.pt"),
        ("vas", "normalization.json.part"),
        ("psle", "iterations_0.json.part"),
        ("proxy_rlhf", "decisions_0.json.part"),
    ],
)
def test_a_full_disk_costs_the_checkpoint_that_was_being_saved(
    method: str, file: str, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "checkpoint-3"

    def begin_full(folder: Path) -> None:
        begin(folder)
        if folder == broken:
            (broken / file).symlink_to(FULL)

    monkeypatch.setattr("trl_ext.training.trainer.begin", begin_full)
    with pytest.raises(Exception) as caught:
        train(method, tmp_path)
    monkeypatch.undo()
    note = caught.value.__notes__[-1]
    assert f"{broken} is incomplete" in note and f"resumed from {tmp_path / 'checkpoint-2'}." in note
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    (broken / file).unlink(missing_ok=True)  # the disk has space again
    for name, value in train(method, tmp_path, resume=True).items():
        assert torch.equal(value, undisturbed(method)[1][name]), name
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


TEXT = {".json", ".jsonl", ".yaml", ".md", ".jinja"}


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_nothing_pickled_of_ours(method: str, undisturbed: Any) -> None:
    """Weights are safetensors, state is JSON or safetensors; the files of transformers' training loop are its own."""
    folder, _ = undisturbed(method)
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    transformers_own = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}
    assert transformers_own <= names
    others = names - transformers_own
    if method == "vas":
        others.remove("generate.py")  # for `generate` of transformers, which runs it if it is trusted
    assert {Path(name).suffix for name in others} <= TEXT | {".safetensors", ".parquet"}, others
    states = {
        "rrhf": {"rollouts_0.json"},
        "vas": {"targets_0.safetensors", "normalization.json"},
        "psle": {"iterations_0.json"},
        "proxy_rlhf": {"decisions_0.safetensors", "decisions_0.json"},
    }
    assert states[method] <= names
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
