"""Which function does what a verb asks."""

from __future__ import annotations

from dataclasses import replace

from envs.targets import schedule_for
from placement.cli import verbs

# What is not `list` is imported when it is asked for: the lists should come at once.


def run(verb: verbs.Verb) -> int:
    """Do what a verb asks and return the exit code.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: Nothing fits; one sentence.
    """
    if isinstance(verb, verbs.List):
        from placement.cli.listing import show_list

        return show_list(verb)
    if isinstance(verb, verbs.Train):
        from placement.cli import pipeline

        pipeline.check(verb)
        if verb.target == "torch_pipeline":
            from placement.cli.train import train_stages

            return train_stages(verb)
    if isinstance(verb, verbs.Train | verbs.Place | verbs.Compare | verbs.Simulate) and verb.target != "engine":
        given = None if verb.schedule == verbs.DEFAULT_SCHEDULE else verb.schedule
        schedule_for(verb.target, given)
        verb = replace(verb, schedule="sequential")
    if isinstance(verb, verbs.Train):
        from placement.cli.train import train

        return train(verb)
    if isinstance(verb, verbs.Place):
        from placement.cli.place import place

        return place(verb)
    if isinstance(verb, verbs.Pretrain):
        from placement.cli.pretrain import pretrain

        return pretrain(verb)
    if isinstance(verb, verbs.Compare):
        from placement.cli.compare import compare

        return compare(verb)
    if isinstance(verb, verbs.WhatIf):
        from placement.cli.what_if import what_if

        return what_if(verb)
    if isinstance(verb, verbs.Simulate):
        from placement.cli.simulate import simulate

        return simulate(verb)
    if isinstance(verb, verbs.Explain):
        from placement.cli.explain import explain

        return explain(verb)
    if isinstance(verb, verbs.Machine):
        from placement.cli.machine import machine

        return machine(verb)
    if isinstance(verb, verbs.Import):
        from placement.cli.files import import_graph

        return import_graph(verb)
    if isinstance(verb, verbs.Export):
        from placement.cli.files import export

        return export(verb)
    from placement.cli import measured

    return measured.run(verb) if isinstance(verb, verbs.Run) else measured.profile(verb)
