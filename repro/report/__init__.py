"""From the runs' JSON to tables beside the papers' numbers."""

from repro.report.tables import write_all_tables, write_tables

__all__ = ["write_all_tables", "write_tables"]
