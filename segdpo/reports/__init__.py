"""Tables, figures and the HTML report."""

from typing import TYPE_CHECKING

from segdpo.lazy import attach

if TYPE_CHECKING:
    from segdpo.reports.contact_sheet import ContactSheet as ContactSheet
    from segdpo.reports.curves import draw_attack as draw_attack
    from segdpo.reports.curves import draw_curves as draw_curves
    from segdpo.reports.frontier import frontier_csv as frontier_csv
    from segdpo.reports.frontier import frontier_markdown as frontier_markdown
    from segdpo.reports.frontier import frontier_picture as frontier_picture
    from segdpo.reports.frontier import read_frontier as read_frontier
    from segdpo.reports.html.page import report as report
    from segdpo.reports.panels import draw_panel as draw_panel
    from segdpo.reports.panels import draw_strip as draw_strip
    from segdpo.reports.sweep import contrasts as contrasts
    from segdpo.reports.sweep import explanations as explanations
    from segdpo.reports.sweep import read_sweep as read_sweep
    from segdpo.reports.sweep import sweep_csv as sweep_csv
    from segdpo.reports.sweep import sweep_markdown as sweep_markdown
    from segdpo.reports.sweep import sweep_picture as sweep_picture
    from segdpo.reports.sweep import terminal_table as terminal_table
    from segdpo.reports.sweep import unfinished_text as unfinished_text
    from segdpo.reports.tables import comparison_table as comparison_table
    from segdpo.reports.tables import evaluation_table as evaluation_table
    from segdpo.reports.tables import sources_table as sources_table
    from segdpo.reports.trials import history_picture as history_picture
    from segdpo.reports.trials import trials_table as trials_table

__getattr__, __dir__ = attach(__name__)
