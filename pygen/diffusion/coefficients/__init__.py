"""Coefficients of samplers: one pure function of Python floats for each kind of step, which returns a `Step`.

They know nothing of schedules, plans and tensors, so that our own loop and the drop-ins for other libraries share them.
A function takes the levels of noise, `now` and `then` (and those before), and what the network predicts at `now`.
A step between equal levels is the identity.
"""
