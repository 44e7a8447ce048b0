# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The model that generates: the one that is trained, or a copy of it in bfloat16."""

from typing import Any

import torch

from trl_ext.devices import computes_fast
from trl_ext.models.copies import independent_copy
from trl_ext.models.load import freeze

from .config import ExtConfig


def sampling_copy(model: Any, args: ExtConfig) -> Any:
    """
    The model to generate with: a bfloat16 copy if `cast_for_generation` asks for one, otherwise `model` itself.

    On a CPU that is slow in bfloat16 a copy is no faster than autocast.
    """
    wanted = args.cast_for_generation and args.bf16 and computes_fast(torch.bfloat16, args.device)
    if wanted and next(model.parameters()).dtype == torch.float32:
        return freeze(independent_copy(model).to(torch.bfloat16))
    return model
