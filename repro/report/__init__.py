"""From the runs' JSON to results one can publish: tables beside the papers' numbers, figures, a page, a verdict."""

from repro.report.build import judge_runs, report_all, report_planned, report_runs, write_index

__all__ = ["judge_runs", "report_all", "report_planned", "report_runs", "write_index"]
