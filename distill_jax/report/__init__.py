"""Numbers in, pages out: report.json, report.html, SVG charts and the tables of a terminal.

May import: evals, study, diagnosis and what they import; never setup or jobs, and no config.
Start with run.py and study.py (report.json, as report.schema.json describes it), then page.py
(report.html by templates/), charts.py and learning_curves.py (which numbers a chart draws) and
svg.py (how).
"""
