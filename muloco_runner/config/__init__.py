"""The vocabulary of one run: every choice that decides its result, checked, and every number that follows from them.

Standard library only, so that the trainer, the sweeps and a login node without torch speak the same language.
Each axis is a module of small dataclasses and the table of their names, as under `conf/`, where the values live:
`model`, `data`, `method` (composed of `outer_optimizer` and `compression`), `inner_optimizer`, `schedule`; `variants`
makes sure that each states all that the program needs of it. `run` composes them into `RunConfig`; `plain` writes and
reads it, `names` knows what changed its name. What must not change a result (device, micro-batch,
logging) is `execution` and is no part of a run's name.
"""

from muloco_runner.config.checks import ConfigError
from muloco_runner.config.compression import (
    COMPRESSIONS,
    Bits,
    CompressionConfig,
    Exchange,
    Granularity,
    LossyCompressionConfig,
    NoCompressionConfig,
    QuantisationConfig,
    TargetCompressionConfig,
    TopKConfig,
)
from muloco_runner.config.data import DATA, DataConfig, DataSource, TargetDataConfig
from muloco_runner.config.execution import AttentionKernel, ExecutionConfig, MuonBackend, Reduction, Sharding
from muloco_runner.config.inner_optimizer import (
    INNER_OPTIMIZERS,
    AdamWConfig,
    BuiltInConfig,
    Coefficients,
    InnerOptimizerConfig,
    LrScale,
    MomentumForm,
    MuonConfig,
    TargetConfig,
    WeightDecayForm,
    WeightDecayRule,
)
from muloco_runner.config.keep import Keep
from muloco_runner.config.method import (
    METHODS,
    DataParallelConfig,
    DiLoCoConfig,
    MethodConfig,
    PrimalAveragingConfig,
    StreamingConfig,
)
from muloco_runner.config.model import MODELS, AnyModelConfig, ModelConfig, Shape, TargetModelConfig
from muloco_runner.config.outer_optimizer import (
    OUTER_OPTIMIZERS,
    OuterAdamConfig,
    OuterMomentumConfig,
    OuterMuonConfig,
    OuterOptimizerConfig,
    OuterSgdConfig,
    TargetOuterConfig,
)
from muloco_runner.config.outside import FromOutside
from muloco_runner.config.run import Precision, RunConfig
from muloco_runner.config.schedule import (
    SCHEDULES,
    CosineConfig,
    DecayForm,
    LinearConfig,
    ScheduleConfig,
    TargetScheduleConfig,
    WarmupStableDecayConfig,
)

__all__ = [
    "COMPRESSIONS",
    "DATA",
    "INNER_OPTIMIZERS",
    "METHODS",
    "MODELS",
    "OUTER_OPTIMIZERS",
    "SCHEDULES",
    "AdamWConfig",
    "AnyModelConfig",
    "AttentionKernel",
    "Bits",
    "BuiltInConfig",
    "Coefficients",
    "CompressionConfig",
    "ConfigError",
    "CosineConfig",
    "DataConfig",
    "DataParallelConfig",
    "DataSource",
    "DecayForm",
    "DiLoCoConfig",
    "Exchange",
    "ExecutionConfig",
    "FromOutside",
    "Granularity",
    "InnerOptimizerConfig",
    "Keep",
    "LinearConfig",
    "LossyCompressionConfig",
    "LrScale",
    "MethodConfig",
    "ModelConfig",
    "MomentumForm",
    "MuonBackend",
    "MuonConfig",
    "NoCompressionConfig",
    "OuterAdamConfig",
    "OuterMomentumConfig",
    "OuterMuonConfig",
    "OuterOptimizerConfig",
    "OuterSgdConfig",
    "Precision",
    "PrimalAveragingConfig",
    "QuantisationConfig",
    "Reduction",
    "RunConfig",
    "ScheduleConfig",
    "Shape",
    "Sharding",
    "StreamingConfig",
    "TargetCompressionConfig",
    "TargetConfig",
    "TargetDataConfig",
    "TargetModelConfig",
    "TargetOuterConfig",
    "TargetScheduleConfig",
    "TopKConfig",
    "WarmupStableDecayConfig",
    "WeightDecayForm",
    "WeightDecayRule",
]
