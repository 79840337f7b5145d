"""Draws mutants: the same number and seed give the same one."""

from __future__ import annotations

import random
from collections.abc import Sequence

import onnx

from tests.mutations.bases import Base, fix_inputs
from tests.mutations.edits import MUTATIONS


def mutate(bases: Sequence[Base], seed: int, index: int) -> tuple[bytes, str]:
    """A model's bytes, and what it was made of and by."""
    draw = random.Random(f"{seed}-{index}")
    base, feeds = draw.choice(bases)
    proto = onnx.ModelProto()
    proto.CopyFrom(base)
    fix_inputs(proto, feeds, draw)
    data, names = proto.SerializeToString(), [base.graph.name]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        mutation = draw.choice(MUTATIONS)
        try:
            proto = onnx.ModelProto.FromString(data)
            data = mutation(proto, draw)
        except Exception:  # broken already: no model any more, or one that cannot be written
            break
        names.append(mutation.__name__)
    return data, " ".join(names)
