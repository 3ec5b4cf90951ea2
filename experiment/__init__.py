"""One job is a class, a seed and a backbone: this floor runs jobs, here or on workers, and records their results."""

from experiment.config import (
    DatasetConfig,
    DetectorConfig,
    ExportConfig,
    PredictConfig,
    ReportConfig,
    RunConfig,
    parse_backbones,
)
from experiment.run import run

__all__ = [
    "DatasetConfig",
    "DetectorConfig",
    "ExportConfig",
    "PredictConfig",
    "ReportConfig",
    "RunConfig",
    "parse_backbones",
    "run",
]
