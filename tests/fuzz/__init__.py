"""Fuzzers: hostile files of every kind that the product reads, made from valid ones by a seed.

    python -m tests.fuzz recipe                        # a batch in a process of its own
    python -m tests.fuzz recipe --seed 7 --inputs 500
    python -m tests.fuzz recipe --seed 7 --only 123    # one input, here, with its traceback
    python -m tests.fuzz recipe --file saved.yaml      # a saved input

A module a kind of input (`recipes`, `pictures`, ...), each with its KIND: how inputs are made, the call under test, and
the errors that it may answer with. `kind` is the record, `sandbox` watches what a call does, `batch` runs them.
"""
