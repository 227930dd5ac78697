"""One file per job: train, plan, evaluate, generate, export, cache, study, diagnose, verdict.

A job decides the order of the work and prints what happens; setup makes what it needs, the rooms
below compute. May import every room but main. Start with `run.py`, which chooses the job, then
`train.py`; `study.py` is many trainings and one verdict, written down by `study_report.py`.
"""
