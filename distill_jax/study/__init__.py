"""Whether distillation helped: arms, equal operations, paired documents, uncertainty, the verdict.

No model runs here: numbers come in as arrays or as a table, from any framework. May import types
and data/score_columns.py alone. Start with `verdict.py`, whose table of labels says what can come
out; `paired.py` says what may be compared, `uncertainty.py` how sure an effect is, `slice_harm.py`
what broke, `arms.py` which ways to train are compared.
"""
