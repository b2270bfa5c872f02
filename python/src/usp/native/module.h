/* What the files of the extension share. */
#ifndef USP_MODULE_H
#define USP_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "writer.h"

typedef struct {
    PyObject_HEAD int handle;
    Py_buffer buffer; /* of the mapping, held until close; buf is NULL without */
    uint64_t next;    /* as they were at close */
    int64_t has_step;
    uint64_t last_step;
} usp_WriterObject;

extern PyTypeObject *usp_Writer;
extern PyObject *usp_FieldError, *usp_StepError, *usp_ClosedError, *usp_ForkedError, *usp_RingError;

/* Raises the exception for a status that is not USP_OK; step is for USP_BACKWARD. Returns NULL. */
PyObject *usp_raise(usp_WriterObject *writer, int status, uint64_t step);

/* Puts a record of device values, as the last ones were, on the queue of a Reader. Returns 1 if it is there. With 0
 * nothing has happened, and usp._device.DeviceQueue.put has to look at it; with -1 an exception is set. */
int usp_reader_put(PyObject *reader, PyObject *step, PyObject *values, PyObject *time);
int usp_is_reader(PyObject *object);

int usp_add_emitter(PyObject *module);
int usp_add_reader(PyObject *module);

#endif
