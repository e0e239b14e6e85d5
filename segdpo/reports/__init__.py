"""Tables, figures and HTML pages about runs, sweeps, searches and data sets."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.reports.collect import collect_frontier as collect_frontier
    from segdpo.reports.collect import collect_sweep as collect_sweep
    from segdpo.reports.curves import draw_attack as draw_attack
    from segdpo.reports.curves import draw_curves as draw_curves
    from segdpo.reports.frontier import Frontier as Frontier
    from segdpo.reports.frontier import read_frontier as read_frontier
    from segdpo.reports.html.contact_sheet import ContactSheet as ContactSheet
    from segdpo.reports.html.page import html_report as html_report
    from segdpo.reports.panels import draw_panel as draw_panel
    from segdpo.reports.panels import draw_strip as draw_strip
    from segdpo.reports.run_files import read_series as read_series
    from segdpo.reports.runs import student_interval as student_interval
    from segdpo.reports.sweep import Sweep as Sweep
    from segdpo.reports.sweep import read_sweep as read_sweep
    from segdpo.reports.tables import comparison_table as comparison_table
    from segdpo.reports.tables import evaluation_table as evaluation_table
    from segdpo.reports.tables import sources_table as sources_table
    from segdpo.reports.trials import trials_png as trials_png
    from segdpo.reports.trials import trials_table as trials_table

__getattr__, __dir__ = attach(__name__)
