# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""
The forms in which datasets are published, and their conversion to the row schema.

`dataset_format` is what a format is; the other modules have the formats of one kind each, and `registry` all of them
in the order in which they are tried. Imports only `schema`, `messages` and `pair_prompts` of `data`.
"""
