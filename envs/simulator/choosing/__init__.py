"""The compiled step simulator for the schedules that choose among ready ops, ``priority`` and ``fifo``.

`envs.simulator` states the rules, `envs.simulator.plain` is the plain version, `envs.simulator.in_order` has the third
schedule. Here `step` runs a step with what `ready`, `events`, `transfers` and `alone` say of its parts, `resumed` goes
on from a checkpoint of one, and `work` lays out what all of them read and change.

Why it is fast:

- **No heap of events.** A device runs at most one op, and transfers that come in over the same link direction end in
  the order in which they were reserved. So the next event is the least of a few slots: one for each device and one for
  each incoming direction, in blocks of which each knows its least (`events.next_event`).
- **A device runs on alone.** While nothing else is due and its ops send nothing, one ends and the next starts in a loop
  that asks nobody else (`alone.run_alone`).
- **No heap of ready ops.** Under ``fifo`` ops that become ready are sorted, a handful at a time, and join a linked
  list. Under ``priority``, and where an instant of ``fifo`` has several rounds or very many ops, they are bits in a
  64-ary tree of words by rank (`ready.insert`, `ready.pop_least`), of which the best stands apart.
- **Laid out as they run.** Under ``priority`` the ops are numbered by rank (`SimulatorInput.by_priority`), so that a
  device's next op lies beside its last one; on graphs of 100,000 ops that took less than half of the time.
- **No events for transfer starts.** A transfer that waits starts exactly when the transfer before it on its busiest
  direction arrives, so it is hooked to that one.
- **Small records, few guesses.** What is read together lies together, in records of 8 to 32 bytes. Counters are updated
  without branches, which the processor could not guess. Indices are unsigned, which spares numba's check for negative
  ones.
- **Moves resume.** A placement that differs little from one that was simulated is simulated on from a copy of the state
  before the difference (`resumed.resume_many`, which `envs.simulator.checkpoints` calls).
- **Nothing is allocated** while simulating: `work.Work` holds all that changes, one for each thread.

The functions are compiled when first called and kept on disk (`envs.compiling`), all that one calls as part of it. They
take arrays one by one: that is quickest where these are many and used over and over.

Letters: ``B`` placements in a batch, ``N`` ops, ``E`` edges, ``T`` tensors, ``D`` devices.
"""
