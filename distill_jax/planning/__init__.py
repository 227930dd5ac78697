"""Whether a run will fit, how long it takes and what it costs, before it is started.

chips.py has the limits of chips with their sources; traced.py reads from the traced programs what
they compute and keep; owners.py gives the bytes of a chip by owner, roofline.py the time of a step,
search.py the changes of a layout that fit. All of it is arithmetic: nothing is compiled or placed
here. May import study and the rooms above it. Start with layout.py.
"""
