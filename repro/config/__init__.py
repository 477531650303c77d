"""A run's settings: the model, its profiles, and overrides."""

from repro.config.load import (
    changed_from_profile,
    config_from,
    flattened,
    load_config,
    load_yaml,
    profile_names,
    with_changes,
)
from repro.config.marks import Mark, shaping
from repro.config.schema import (
    MAX_SEED,
    ROW_LOSSES,
    Config,
    CuesConfig,
    InitConfig,
    LossConfig,
    ModelConfig,
    PredictConfig,
    Section,
    SolverConfig,
    Stage0Config,
    Stage1Config,
    Stage1Data,
    Stage2Config,
    Stage2Data,
)
from repro.config.validation import validated

__all__ = [
    "MAX_SEED",
    "ROW_LOSSES",
    "Config",
    "CuesConfig",
    "InitConfig",
    "LossConfig",
    "Mark",
    "ModelConfig",
    "PredictConfig",
    "Section",
    "SolverConfig",
    "Stage0Config",
    "Stage1Config",
    "Stage1Data",
    "Stage2Config",
    "Stage2Data",
    "changed_from_profile",
    "config_from",
    "flattened",
    "load_config",
    "load_yaml",
    "profile_names",
    "shaping",
    "validated",
    "with_changes",
]
