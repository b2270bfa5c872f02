"""Arrays of a device that one thread hands to another: what may be done to them there while their owner goes on.

The owner may delete or donate an array at any moment, and jaxlib (0.10.2) crashes the process if an array is deleted
in one thread while it is read in another, or if a deleted one is asked whether it is ready. Another array object of the
same buffer is safe: when the buffer is gone it raises.
"""

from __future__ import annotations

import sys
from operator import call
from typing import Any

from usp._errors import FieldError


def is_device_array(value: Any) -> bool:
    """Whether value is an array of jax; False without importing jax where nobody did.

    Raises FieldError for a traced value: inside jit there is no array to be had.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return False
    if isinstance(value, jax.core.Tracer):
        raise FieldError(
            "a traced value: emit was called inside jit, scan or another transformation; "
            "call emit_traced(step, values) there, or return pack(values) from it and emit that"
        )
    return isinstance(value, jax.Array)


def hold(array: Any, what: str) -> tuple[Any, bool, bool]:
    """Begins the copy to the host, where the device is not the host: on a CPU it costs and brings nothing.

    Returns the array to hand on, whether it is another object than that of the caller (not if the array is in parts on
    several devices: its owner may donate it, but not call delete), and whether there is a copy to make.
    Raises FieldError, naming what, for an array that is gone, or of which other processes have parts.
    """
    sharding = array.sharding
    whole = bool(sharding.is_fully_replicated)
    if array.is_deleted():
        raise FieldError(f"{what}: its buffer was donated or deleted: emit an output that the next step does not take")
    if not (whole or sharding.is_fully_addressable):
        raise FieldError(f"{what}: parts of it are in other processes: reduce it, or replicate it, before emit")
    copy = any(d.platform != "cpu" for d in sharding.addressable_devices)
    held = array.addressable_data(0) if whole else array
    if copy:
        held.copy_to_host_async()
    return held, whole, copy


def hold_again(array: Any, copy: bool) -> Any:
    """The quick way for an array like one that `hold` found whole. Returns None if the array is gone."""
    try:
        held = array.addressable_data(0)
        if copy:
            held.copy_to_host_async()
    except RuntimeError:
        return None
    return held


def ready(array: Any) -> bool:
    """Whether reading the array would not wait; it does not if the array is gone, which reading it will tell.

    Both questions are asked from C, with no bytecode between them at which another thread could get the interpreter's
    lock; any() stops at the first yes.
    """
    try:
        return any(map(call, (array.is_deleted, array.is_ready)))
    except RuntimeError:  # of jax: it was donated
        return True
