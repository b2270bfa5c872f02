/* The handler by which a program compiled by XLA for the CPU writes records: no Python, no interpreter lock. */
#ifndef USP_XLA_H
#define USP_XLA_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Adds to the module: xla_handler, a capsule for jax.ffi.register_ffi_target; xla_counts(handle) and xla_version(). */
int usp_xla_add(PyObject *module);

#endif
