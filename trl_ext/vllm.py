# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""What vLLM is given by name: `--logits-processors trl_ext.vllm:ValueGuide`, or `ProxyGuide`."""

from .serving.vllm.proxy_guide import ProxyGuide as ProxyGuide
from .serving.vllm.value_guide import ValueGuide as ValueGuide
