"""One job is a class, a seed and a backbone: this floor runs jobs, here or on workers, and records their results.

Its commands are run.run, report.report, predict.predict and export.export: each is imported when it is given.
"""

from experiment.config import (
    DatasetConfig,
    DetectorConfig,
    ExportConfig,
    PredictConfig,
    ReportConfig,
    RunConfig,
    parse_backbones,
)

__all__ = [
    "DatasetConfig",
    "DetectorConfig",
    "ExportConfig",
    "PredictConfig",
    "ReportConfig",
    "RunConfig",
    "parse_backbones",
]
