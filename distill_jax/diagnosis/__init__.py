"""Where a student differs from its teacher, why, and what to try next.

May import: types, config, losses, evals, study and what they import; never report, setup or jobs.
Start with where.py (the part `diagnose` of report.json), then causes.py (why a token diverges);
advice.py reads the numbers of triggers.py and offers the config changes of overrides.py.
"""
