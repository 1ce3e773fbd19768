"""One HTML file that shows a run: `build_report(run_folder)`."""

from gspo.report.page import build_report

__all__ = ["build_report"]
