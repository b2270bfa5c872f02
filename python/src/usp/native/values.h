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

typedef struct {
    Py_ssize_t count;
    size_t words; /* of a record, step and time with it */
    usp_field *at;
} usp_fields;

enum usp_found {
    USP_TAKEN,
    USP_ELSEWHERE, /* may be on a device: for slow to read */
    USP_ERROR,     /* an exception is set */
};

int usp_values_init(void);

/* Fields from a tuple of (name, type, length), in the order of the record. Returns -1 with an exception set; what was
 * made until then, usp_fields_clear lets go. */
int usp_fields_set(usp_fields *fields, PyObject *tuple);
void usp_fields_clear(usp_fields *fields);

/* Whether v is an array of numpy, and of no class derived from it. */
int usp_is_ndarray(PyObject *v);

/* What elements a buffer's format says it has; *swapped: of the other byte order. */
enum usp_kind usp_kind_of(const char *format, int *swapped);

enum usp_found usp_value_words(const usp_field *field, PyObject *value, uint64_t *words);
enum usp_found usp_step_word(PyObject *step, uint64_t *word);
enum usp_found usp_time_word(PyObject *time, uint64_t *word);

#endif
