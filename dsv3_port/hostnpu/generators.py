"""Random numbers of device npu: each generator's own sequence, a function of its seed and offset.

As on the device, a draw reads (seed, offset) of the npu generator and moves the offset, so that
manual_seed, get_rng_state and set_rng_state do what they say, cards are independent of each other,
and the CPU's generator is left alone. The numbers are the CPU's for a seed made of the two: not the
device's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

STEP = 12  # a draw's stride in the offset; the device's depends on the operator and the size
_MIX = 0x9E3779B97F4A7C15  # odd, so that no two offsets of one seed meet
_default = threading.Lock()


def draws(op: Any, kinds: Sequence[str]) -> bool:
    """Whether an operator uses a random generator, named in its schema or not. kinds: the types of its
    arguments."""
    named = any("Generator" in kind for kind in kinds)
    return named or torch.Tag.nondeterministic_seeded in op.tags


def generator_position(op: Any) -> int:
    """Where the schema has its generator, -1 where it has none."""
    kinds = ["Generator" in str(a.type) for a in op._schema.arguments]
    return kinds.index(True) if True in kinds else -1


def of(device: torch.device) -> Any:
    """The default generator of an npu device."""
    import torch_npu

    generators = torch_npu.npu.default_generators
    return generators[torch.npu.current_device() if device.index is None else device.index]


def next_seed(generator: Any) -> int:
    """A seed for one draw, and the generator moved on behind it. The first draw after manual_seed
    has the seed itself."""
    seed, offset = generator.initial_seed(), generator.get_offset()
    generator.set_offset(offset + STEP)
    return int((seed + offset * _MIX) % 2**63)


class Draw:
    """An operator and the npu generator that it draws from: called with host arguments, now or at
    every replay of a captured graph."""

    def __init__(self, op: Any, fn: Callable[..., Any], generator: Any) -> None:
        self.op, self.fn, self.generator = op, fn, generator
        self.__name__ = op._schema.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        seed = next_seed(self.generator)
        if generator_position(self.op) >= 0:
            return self.fn(*args, **kwargs, generator=torch.Generator().manual_seed(seed))
        with _default, torch.random.fork_rng(devices=[]):  # it knows the default generator only
            torch.default_generator.manual_seed(seed)
            return self.fn(*args, **kwargs)


def bound(
    op: Any, fn: Callable[..., Any], where: torch.device, args: list[Any], kwargs: dict[str, Any]
) -> Draw:
    """fn with the generator that the call names, or the device's. Takes it out of args and kwargs,
    which are changed."""
    position, generator = generator_position(op), kwargs.pop("generator", None)
    if 0 <= position < len(args):  # positional, and last but for nothing
        generator = args.pop(position)
    if generator is not None and generator.device.type != "npu":
        raise RuntimeError(
            f"Expected a 'npu' device type for generator but found '{generator.device.type}' "
            f"({op._schema.name})"
        )
    return Draw(op, fn, of(where) if generator is None else generator)
