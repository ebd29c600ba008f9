"""Report each check cell as the exercise it checks (see course_utils/check/nbval_report.py)."""

from course_utils.check.nbval_report import (  # noqa: F401
    pytest_collection_modifyitems,
    pytest_collectstart,
    pytest_terminal_summary,
)
