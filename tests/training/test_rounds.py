# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The rollout schedule: the completions that each step gets, and that a resumed run gets the same."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from trl_ext.training.rollouts import Rollout, load_rollouts
from trl_ext.training.rounds import RolloutSchedule


DATASET = [{"row_index": i, "name": i} for i in range(6)]
ONE_PROCESS = SimpleNamespace(process_index=0, num_processes=1)


class Sampler:
    """Counts the rounds; the completion of the row with name i in round n is [n, i]."""

    def __init__(self):
        self.rounds = []

    def __call__(self, rows):
        self.rounds.append([row["name"] for row in rows])
        n = len(self.rounds)
        return {row["row_index"]: Rollout([[n, row["name"]]], [float(n)]) for row in rows}


def epoch_loader(size=1):
    """Micro-batches of `size` prompts, in the order of the dataset."""
    for start in range(0, len(DATASET), size):
        rows = DATASET[start : start + size]
        yield {"row_index": torch.tensor([row["row_index"] for row in rows]), "rows": rows}


def train(rounds, epochs, num_batches=1, start=0, size=1):
    """Completions of every step, as a training loop would ask for them; `start` steps of the first epoch are over."""
    steps = []
    for epoch in epochs:
        loader = epoch_loader(size)
        for _ in range(start * num_batches):
            next(loader)
        start = 0
        while batches := rounds.batches(loader, num_batches, epoch, DATASET):
            steps.append([ids for batch in batches for (ids,) in batch["completion_ids"]])
    return steps


@pytest.fixture
def sampler():
    return Sampler()


def test_once_before_the_first_epoch(sampler):
    steps = train(RolloutSchedule(sampler, ONE_PROCESS), range(3))
    assert sampler.rounds == [[0, 1, 2, 3, 4, 5]]
    assert steps == [[[1, i]] for _ in range(3) for i in range(6)]


def test_every_two_epochs(sampler):
    steps = train(RolloutSchedule(sampler, ONE_PROCESS, every_epochs=2), range(5))
    assert len(sampler.rounds) == 3
    assert [step[0][0] for step in steps] == [1] * 12 + [2] * 12 + [3] * 6


def test_every_two_steps(sampler):
    steps = train(RolloutSchedule(sampler, ONE_PROCESS, every_steps=2), range(2))
    assert sampler.rounds == [[0, 1], [2, 3], [4, 5]] * 2  # the prompts of the next steps, and no others
    assert steps == [[[n, i]] for n, i in zip([1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6], [*range(6)] * 2, strict=True)]


def test_a_round_by_steps_ends_with_the_epoch(sampler):
    steps = train(RolloutSchedule(sampler, ONE_PROCESS, every_steps=4), range(2))
    assert sampler.rounds == [[0, 1, 2, 3], [4, 5]] * 2
    assert len(steps) == 12


def test_micro_batches_of_a_step_share_its_round(sampler):
    steps = train(RolloutSchedule(sampler, ONE_PROCESS, every_steps=1), [0], num_batches=3)
    assert sampler.rounds == [[0, 1, 2], [3, 4, 5]]
    assert steps == [[[1, 0], [1, 1], [1, 2]], [[2, 3], [2, 4], [2, 5]]]
    steps = train(RolloutSchedule(Sampler(), ONE_PROCESS, every_steps=1), [0], num_batches=4, size=2)
    assert [len(step) for step in steps] == [6]  # three micro-batches of two: fewer than a step takes


def test_batches_keep_their_own_columns_and_get_scores(sampler):
    (batch,) = RolloutSchedule(sampler, ONE_PROCESS, every_steps=1).batches(epoch_loader(2), 1, 0, DATASET)
    assert [row["name"] for row in batch["rows"]] == [0, 1]
    assert batch["completion_ids"] == [[[1, 0]], [[1, 1]]]
    assert batch["scores"] == [[1.0], [1.0]]


@pytest.mark.parametrize("done", [1, 2, 3])
@pytest.mark.parametrize("schedule", [{"every_steps": 2}, {"every_epochs": 1}, {}], ids=["steps", "epochs", "once"])
def test_a_resumed_run_trains_on_what_the_first_had_sampled(tmp_path, schedule, done):
    whole = train(RolloutSchedule(Sampler(), ONE_PROCESS, **schedule), [0, 1])
    first, sampler = RolloutSchedule(Sampler(), ONE_PROCESS, **schedule), Sampler()
    loader = epoch_loader()
    for _ in range(done):
        first.batches(loader, 1, 0, DATASET)
    first.save(tmp_path)
    sampler.rounds = list(first.sample.rounds)  # the same model would go on with the next numbers
    resumed = RolloutSchedule(sampler, ONE_PROCESS, **schedule)
    resumed.restore(tmp_path)
    assert train(resumed, [0, 1], start=done) == whole[done:]


def test_without_a_file_a_run_starts_afresh(tmp_path, sampler):
    rounds = RolloutSchedule(sampler, ONE_PROCESS)
    train(rounds, [0])
    for folder in (None, tmp_path):
        rounds.restore(folder)
        train(rounds, [0])
    assert len(sampler.rounds) == 3


def test_checkpoints_of_a_round_share_a_file(tmp_path, sampler):
    """A round by epochs is written once: later checkpoints take no space for it, and each can be deleted."""
    rounds = RolloutSchedule(sampler, ONE_PROCESS, every_epochs=1)
    folders = [tmp_path / f"checkpoint-{n}" for n in range(4)]
    train(rounds, [0])
    for folder in folders[:2]:
        rounds.save(folder)
        rounds.save(folder)  # again, as after a failure
    train(rounds, [1])
    for folder in folders[2:]:
        rounds.save(folder)
    files = [folder / "rollouts_0.json" for folder in folders]
    assert [file.stat().st_nlink for file in files] == [2, 2, 2, 2]
    assert files[0].samefile(files[1]) and files[2].samefile(files[3]) and not files[1].samefile(files[2])
    assert [sorted(path.name for path in folder.iterdir()) for folder in folders] == [["rollouts_0.json"]] * 4
    shutil.rmtree(folders[2])
    resumed = RolloutSchedule(sampler, ONE_PROCESS, every_epochs=1)
    resumed.restore(folders[3])
    assert train(resumed, [1]) == [[[2, i]] for i in range(6)] and len(sampler.rounds) == 2


def test_without_second_names_of_files_a_round_is_written_again(tmp_path, sampler, monkeypatch):
    """Some file systems have none; and a checkpoint may have been deleted by hand."""
    rounds = RolloutSchedule(sampler, ONE_PROCESS)
    train(rounds, [0])
    rounds.save(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr("os.link", lambda *_: (_ for _ in ()).throw(PermissionError("no links")))
        rounds.save(tmp_path / "b")
    shutil.rmtree(tmp_path / "b")
    rounds.save(tmp_path / "c")
    texts = {(tmp_path / name / "rollouts_0.json").read_text() for name in "ac"}
    assert len(texts) == 1 and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("readers", [1, 2, 3, 5])
def test_a_round_of_three_processes_is_read_by_any_number(tmp_path, monkeypatch, caplog, readers):
    """Each process has written a third; each file is read once; a file that is missing is a warning."""
    for process in range(3):
        other = {i: Rollout([[1, i]], [1.0]) for i in range(6) if i % 3 != process}
        monkeypatch.setattr("trl_ext.training.rounds.gather_object", lambda mine, other=other: [*mine, other])
        rounds = RolloutSchedule(Sampler(), SimpleNamespace(process_index=process, num_processes=3))
        train(rounds, [0])
        rounds.save(tmp_path)
        stored, _ = load_rollouts(tmp_path / f"rollouts_{process}.json")
        assert sorted(stored) == [process, process + 3]
    read = []
    load = load_rollouts
    monkeypatch.setattr("trl_ext.training.rounds.load_rollouts", lambda path: (read.append(path.name), load(path))[1])

    def restored():
        """The schedules of all processes: what each has read is gathered."""
        parts = []
        monkeypatch.setattr("trl_ext.training.rounds.gather_object", lambda mine: parts.extend(mine) or mine)
        made = [SimpleNamespace(process_index=n, num_processes=readers) for n in range(readers)]
        for accelerator in made:
            RolloutSchedule(Sampler(), accelerator).restore(tmp_path)
        monkeypatch.setattr("trl_ext.training.rounds.gather_object", lambda mine: sorted(parts, key=lambda p: p[0]))
        schedules = [RolloutSchedule(Sampler(), accelerator) for accelerator in made]
        read.clear()
        for schedule in schedules:
            schedule.restore(tmp_path)
        return schedules

    if readers > 1:
        schedules = restored()
        assert sorted(read) == [f"rollouts_{n}.json" for n in range(3)]
    else:
        schedules = [RolloutSchedule(Sampler(), ONE_PROCESS)]
        schedules[0].restore(tmp_path)
    for schedule in schedules:
        assert train(schedule, [0]) == [[[1, i]] for i in range(6)] and not schedule.sample.rounds
    assert sorted(row for schedule in schedules for row in schedule._own) == list(range(6))
    (tmp_path / "rollouts_1.json").unlink()
    schedule = restored()[0] if readers > 1 else RolloutSchedule(Sampler(), ONE_PROCESS)
    schedule.restore(tmp_path)
    assert schedule._epoch == -1 and "rollouts_1.json does not exist: completions are generated" in caplog.text


def test_only_what_is_left_is_stored(tmp_path, sampler):
    rounds = RolloutSchedule(sampler, ONE_PROCESS, every_steps=3)
    rounds.batches(epoch_loader(), 1, 0, DATASET)
    rounds.save(tmp_path)
    rollouts, _ = load_rollouts(tmp_path / "rollouts_0.json")
    assert [rollout.completion_ids for rollout in rollouts.values()] == [[[1, 1]], [[1, 2]]]


def test_rows_of_a_stream_may_share_their_numbers(sampler):
    """Several workers that read a stream each count from 0."""
    rows = [{"row_index": 0, "name": name} for name in range(4)]
    loader = iter([{"row_index": torch.tensor([0, 0]), "rows": rows[i : i + 2]} for i in (0, 2)])
    first, second = RolloutSchedule(sampler, ONE_PROCESS, every_steps=2).batches(loader, 2, 0, DATASET)
    assert first["completion_ids"] + second["completion_ids"] == [[[1, name]] for name in range(4)]


def test_two_processes_sample_half_each_and_share(monkeypatch):
    """The next epoch distributes the rows in another way, so each process needs the rollouts of both."""
    samplers = [Sampler(), Sampler()]
    others = {0: [1, 3, 5], 1: [0, 2, 4]}
    for process, sampler in enumerate(samplers):
        other = {i: Rollout([[1, i]], [1.0]) for i in others[process]}
        monkeypatch.setattr("trl_ext.training.rounds.gather_object", lambda mine, other=other: [*mine, other])
        accelerator = SimpleNamespace(process_index=process, num_processes=2)
        steps = train(RolloutSchedule(sampler, accelerator), [0])
        assert sampler.rounds == [[i for i in range(6) if i % 2 == process]]
        assert steps == [[[1, i]] for i in range(6)]
