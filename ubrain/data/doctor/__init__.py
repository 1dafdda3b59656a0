"""The data doctor: what is wrong with a crowd file, how bad it is, and what to do about it."""

from ubrain.data.doctor.check import as_json, check, exit_code, report, table
from ubrain.data.doctor.findings import LEVELS, TO_DO, Finding

__all__ = ["LEVELS", "TO_DO", "Finding", "as_json", "check", "exit_code", "report", "table"]
