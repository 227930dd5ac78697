"""One file a job: train, evaluate, generate, export, cache, study, diagnose, verdict.

A job owns the order of things and says what happens; what it needs is made in setup and computed
in the rooms below. May import every room but main. Start with `run.py`, which chooses the job, then
`train.py`; `study.py` is many trainings and one verdict, written down by `study_report.py`.
"""
