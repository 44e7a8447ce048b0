# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that a run resumes from if one of them is incomplete, overwritten, or met a full disk."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainers import METHODS, make_trainer

from trl_ext.atomic_files import replacing, write_tensors, write_text
from trl_ext.training.checkpoints import begin, check_resumable, is_complete, last_checkpoint


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

    def test_a_broken_one_that_is_named(self, tmp_path: Path) -> None:
        complete, broken = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, "")
        check_resumable(complete)
        with pytest.raises(ValueError, match=r"checkpoint-4' is incomplete.* is .*checkpoint-2\.$"):
            check_resumable(broken)
        with pytest.raises(ValueError, match=r"nowhere/checkpoint-1' does not exist.*There is no usable one"):
            check_resumable(tmp_path / "nowhere" / "checkpoint-1")

    def test_one_without_the_optimizer_is_another_run(self, tmp_path: Path) -> None:
        complete, bare = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
        (bare / "optimizer.pt").unlink()
        assert last_checkpoint(tmp_path) == str(complete)
        with pytest.raises(ValueError, match=r"checkpoint-4' was saved with `save_only_model`.*checkpoint-2\.$"):
            check_resumable(bare)
        (bare / "global_step4").mkdir()  # DeepSpeed's
        check_resumable(bare)

    def test_the_trainer_refuses_it(self, tmp_path: Path) -> None:
        broken = checkpoint(tmp_path, 4, "")
        with pytest.raises(ValueError, match="is incomplete"):
            make_trainer("rrhf", tmp_path, max_steps=1).train(resume_from_checkpoint=broken)


class TestWholeFiles:
    def test_the_old_file_stays_if_the_new_one_fails(self, tmp_path: Path) -> None:
        path = tmp_path / "folder" / "file.json"
        write_text(path, "old")
        with pytest.raises(RuntimeError), replacing(path) as part:
            part.write_text("half")
            raise RuntimeError
        assert path.read_text() == "old"
        assert [p.name for p in path.parent.iterdir()] == ["file.json"]

    def test_what_a_killed_process_left_is_written_over(self, tmp_path: Path) -> None:
        (tmp_path / "file.json.part").write_text("a much longer text than the new one")
        write_text(tmp_path / "file.json", "new")
        assert (tmp_path / "file.json").read_text() == "new"
        assert [p.name for p in tmp_path.iterdir()] == ["file.json"]

    def test_tensors(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        write_tensors(tmp_path / "x.safetensors", {"x": torch.arange(6).view(2, 3).T})
        assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], torch.arange(6).view(2, 3).T)

    @pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
    def test_a_full_disk(self, tmp_path: Path) -> None:
        (tmp_path / "file.json.part").symlink_to(FULL)
        with pytest.raises(OSError, match="No space left"):
            write_text(tmp_path / "file.json", "new")
        assert not list(tmp_path.iterdir())


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
    method: str, file: str, tmp_path: Path, undisturbed: Any
) -> None:
    broken = tmp_path / "checkpoint-3"
    broken.mkdir()
    (broken / file).symlink_to(FULL)
    with pytest.raises(Exception) as caught:
        train(method, tmp_path)
    (note,) = caught.value.__notes__
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
