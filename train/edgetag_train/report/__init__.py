"""One page on several runs: the paper's Table 4 side by side, classes, curves, confusion, provenance."""

from edgetag_train.report.content import write_report

__all__ = ["write_report"]
