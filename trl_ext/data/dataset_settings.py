# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Help and choices of the settings of how rows are read, for the dataclasses of trainers and commands."""

from typing import Any

from .formats.registry import FORMAT_NAMES


COLUMNS: dict[str, Any] = {
    "help": "The dataset's columns for names of the row schema: `prompt=question,chosen=better`, or JSON such as "
    '`{"prompt": "question"}`.'
}
DATASET_FORMAT: dict[str, Any] = {
    "help": "Form of the dataset's rows. `auto` recognises it by the columns.",
    "choices": FORMAT_NAMES,
}
