# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

# The public names, for editors and type checkers, which cannot follow the lazy imports of `__init__.py`. They read
# this file instead of that one; Python reads only that one.
#
# A stub rather than imports under TYPE_CHECKING in `__init__.py`: the package's import graph stays what it is at run
# time, so that rules about imports need no exception, and `__getattr__`, which would make every misspelt name valid,
# stays out of sight. The price is that mypy does not check the code in `__init__.py`.
#
# Classes of other packages' methods are not here: in typed code, import them from the package that defines them.
# `tests/test_typing.py` compares this file with the names that `trl_ext` has at run time.

from .best_of import best_of_n as best_of_n
from .config import ExtConfig as ExtConfig
from .data import DataError as DataError
from .endpoint import Endpoint as Endpoint
from .evaluation import evaluate_model as evaluate_model
from .loading import load_dataset as load_dataset
from .method import Discovery as Discovery
from .method import Method as Method
from .method import discover as discover
from .policy import Decoding as Decoding
from .policy import Policy as Policy
from .proxy_rlhf.config import ProxyRLHFConfig as ProxyRLHFConfig
from .proxy_rlhf.model import ProxyConfig as ProxyConfig
from .proxy_rlhf.model import ProxyModel as ProxyModel
from .proxy_rlhf.trainer import ProxyRLHFTrainer as ProxyRLHFTrainer
from .psle.config import PLEConfig as PLEConfig
from .psle.config import PSLEConfig as PSLEConfig
from .psle.trainer import PLETrainer as PLETrainer
from .psle.trainer import PSLETrainer as PSLETrainer
from .rewards import RewardError as RewardError
from .rewards import load_rewards as load_rewards
from .rrhf.config import RRHFConfig as RRHFConfig
from .rrhf.trainer import RRHFTrainer as RRHFTrainer
from .sampling import GenerationSettings as GenerationSettings
from .vas.api import EndpointGuide as EndpointGuide
from .vas.config import ValueConfig as ValueConfig
from .vas.config import VASConfig as VASConfig
from .vas.generation import ValueAugmentedLogitsProcessor as ValueAugmentedLogitsProcessor
from .vas.model import ValueModel as ValueModel
from .vas.trainer import VASTrainer as VASTrainer

__version__: str
