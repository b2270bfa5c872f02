"""Arrays of a device that one thread hands to another, while their owner goes on.

The owner may donate an array at any moment, and delete it before the other thread looks at it: that is seen, and the
record is a counted drop. What cannot be made safe here: jaxlib (0.10.2) crashes the process if `delete()` is called on
an array in one thread while another reads it, or asks a deleted one whether it is ready. So who emits an array must
not call its delete() by hand; dropping the last reference, and donating it, are fine. Another array object of the same
buffer would be safe, and costs more than all the rest of an emit.
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


def start(array: Any, what: str) -> bool:
    """Begins the copy to the host, where the device is not the host: on a CPU it costs and brings nothing.

    Returns whether there is a copy to make. Raises FieldError, naming what, for an array that is gone, or of which
    other processes have parts.
    """
    if array.is_deleted():
        raise FieldError(f"{what}: its buffer was donated or deleted: emit an output that the next step does not take")
    sharding = array.sharding
    if not (sharding.is_fully_addressable or sharding.is_fully_replicated):
        raise FieldError(f"{what}: parts of it are in other processes: reduce it, or replicate it, before emit")
    copy = any(d.platform != "cpu" for d in sharding.addressable_devices)
    if copy:
        array.copy_to_host_async()
    return copy


def ready(array: Any) -> bool:
    """Whether reading the array would not wait; it does not if the array is gone, which reading it will tell.

    Both questions are asked from C, with no bytecode between them at which another thread would get the interpreter's
    lock: a deleted array must not be asked whether it is ready. any() stops at the first yes.
    """
    try:
        return any(map(call, (array.is_deleted, array.is_ready)))
    except RuntimeError:  # of jax: it was donated
        return True
