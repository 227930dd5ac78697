"""Numbers in, pages out: report.json, report.html, SVG charts and the tables of a terminal.

May import: evals, study, diagnosis and what they import; never setup or jobs, and no config.
Start with run.py and study.py (report.json, as report.schema.json describes it) and headline.py
(its answer in a line), then page.py (report.html by templates/) and shown.py (how it shows a part
of the report), charts.py and learning_curves.py (which numbers a chart draws) and svg.py (how).
"""
