"""From a config to live objects: models, data, teachers, student, loss, inputs, provenance.

Nothing here runs a job or prints. May import every room but jobs and main; beside jobs it is the
only one that sees a ConfigDict. Start with `inputs.py` (what a training run reads) and `loss.py`
(from config.terms to the terms of the loss); `training.py` joins them to a Run for the loop.
"""
