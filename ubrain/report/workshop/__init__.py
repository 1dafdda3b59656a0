"""The workshop: exercises that are checked, hinted at and solved on demand, from one source.

In a notebook::

    from ubrain.report import workshop

    workshop.check("E1", voxel_r, predicted, measured)  # right, or what is wrong in one sentence
    workshop.hint("E1")  # the first hint; again: the next
    workshop.show("E1")  # the solution
"""

from ubrain.report.workshop.checks import check, passed
from ubrain.report.workshop.classroom import FAULTS, pool, result_line, sabotage
from ubrain.report.workshop.sources import build, hint, show

__all__ = ["FAULTS", "build", "check", "hint", "passed", "pool", "result_line", "sabotage", "show"]
