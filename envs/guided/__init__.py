"""Environments that guide: they show the partial schedule and what heuristics would do, and reward each step.

A problem is looked at in *parts*: a group's forward ops, its backward ops, its update (`envs.task_graph.of_groups`). In
one fixed order, most urgent first, parts are started where they stand as soon as their inputs are there; what passes
between devices waits for the sender's and the receiver's port. That takes microseconds, so an observation can afford to
try a group on every device. It is called the *outlook*: a rough step time, against the simulator's true one.

A partial placement is completed by the *reference*: the best, by the simulator, of the placements that heuristics
vote for. So what a decision is worth can be said at once: how the step time changes if the rest stays at the reference.

`kernel` has the compiled loops, `guide` what is known of a problem, `fields` the layout of an observation.

Letters: ``B`` copies of an environment, ``G`` groups, ``D`` devices, ``H`` placements voted for, ``K`` parts, ``R``
tensors between parts.
"""
