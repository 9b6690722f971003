"""Why a step takes as long as it does, and why each group is where it is: everything from traces and simulations.

`step_parts` divides the time of a step, `moving` evaluates every group elsewhere, `limits` finds what holds the whole
back, `remedies` simulates what would help, `differences` compares two placements, `explain` puts them together in an
`Explanation`, and `sentences` says them.
"""
