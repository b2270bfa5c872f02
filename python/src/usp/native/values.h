/* From Python objects in host memory to the words of a record. */
#ifndef USP_VALUES_H
#define USP_VALUES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "convert.h"

typedef struct {
    PyObject *name; /* interned */
    enum usp_type type;
    Py_ssize_t len;
    size_t offset; /* word of the record */
} usp_field;

enum usp_found {
    USP_TAKEN,
    USP_ELSEWHERE, /* may be on a device: for slow to read */
    USP_ERROR,     /* an exception is set */
};

int usp_values_init(void);
enum usp_found usp_value_words(const usp_field *field, PyObject *value, uint64_t *words);
enum usp_found usp_step_word(PyObject *step, uint64_t *word);
enum usp_found usp_time_word(PyObject *time, uint64_t *word);

#endif
