"""What a training needs and how fast it will be, worked out from its recipe alone: no model is loaded, nothing runs.

    shapes       a model's sizes, from its config.json or the recipe's `init`
    workload     what one rank of a training holds and computes
    activations  what a forward pass keeps for the backward pass
    memory       bytes per rank, at each moment of a step
    traffic      bytes that a rank sends per step
    speed        seconds per step
    cluster      what the ranks run on
    choose       which parallelism, and why not the others
    plans        all of it for a recipe

Standard library and pydantic only: it runs where torch is not.
"""
