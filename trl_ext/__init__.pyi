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

from .data.exports import from_scored_rows as from_scored_rows
from .data.load import load_dataset as load_dataset
from .data.schema import DataError as DataError
from .data.scored_rows import to_scored_rows as to_scored_rows
from .decoding.guide import Guide as Guide
from .decoding.guide import GuideContext as GuideContext
from .endpoint.client import Endpoint as Endpoint
from .evaluation.evaluate import evaluate_model as evaluate_model
from .generation_settings import GenerationSettings as GenerationSettings
from .guides.classifier_guide import ClassifierGuide as ClassifierGuide
from .guides.guide_file import GuideSettings as GuideSettings
from .guides.language_model_guide import LanguageModelGuide as LanguageModelGuide
from .guides.logits_processor import GuidedLogitsProcessor as GuidedLogitsProcessor
from .inference.best_of_n import best_of_n as best_of_n
from .inference.guide_decoding import policy_with_guides as policy_with_guides
from .inference.policy import Decoding as Decoding
from .inference.policy import Policy as Policy
from .judging.endpoint import EndpointJudge as EndpointJudge
from .judging.functions import FunctionJudge as FunctionJudge
from .judging.judge import JudgeResult as JudgeResult
from .judging.judge import judge as judge
from .judging.scores import ColumnJudge as ColumnJudge
from .judging.scores import RewardJudge as RewardJudge
from .method import Discovery as Discovery
from .method import Method as Method
from .method import discover as discover
from .methods.proxy_rlhf.config import ProxyRLHFConfig as ProxyRLHFConfig
from .methods.proxy_rlhf.model import ProxyConfig as ProxyConfig
from .methods.proxy_rlhf.model import ProxyModel as ProxyModel
from .methods.proxy_rlhf.trainer import ProxyRLHFTrainer as ProxyRLHFTrainer
from .methods.psle.config import PLEConfig as PLEConfig
from .methods.psle.config import PSLEConfig as PSLEConfig
from .methods.psle.trainer import PLETrainer as PLETrainer
from .methods.psle.trainer import PSLETrainer as PSLETrainer
from .methods.rrhf.config import RRHFConfig as RRHFConfig
from .methods.rrhf.ranking_registry import RankingLoss as RankingLoss
from .methods.rrhf.trainer import RRHFTrainer as RRHFTrainer
from .methods.vas.config import VASConfig as VASConfig
from .methods.vas.decoding.endpoint_guide import EndpointGuide as EndpointGuide
from .methods.vas.decoding.logits_processor import ValueAugmentedLogitsProcessor as ValueAugmentedLogitsProcessor
from .methods.vas.guided_generate import guided_generate as guided_generate
from .methods.vas.trainer import VASTrainer as VASTrainer
from .methods.vas.value_model.config import ValueConfig as ValueConfig
from .methods.vas.value_model.model import ValueModel as ValueModel
from .rewards.functions import RewardError as RewardError
from .rewards.functions import load_rewards as load_rewards
from .rewards.settings import RewardSettings as RewardSettings
from .training.config import ExtConfig as ExtConfig

__version__: str
