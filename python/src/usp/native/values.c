/* See values.h. Only types that are surely in host memory are read: an array of JAX has a buffer and a __float__ too,
 * and both would wait for the device. */
#include "module.h"

#include <string.h>

#include "values.h"

static PyTypeObject *array_type;

/* Types of numpy, once a program has it. They are borrowed from a module that stays. */
static struct {
    PyTypeObject *ndarray, *generic, *number, *integer, *complexfloating, *boolean;
} numpy;

static int subtype(PyTypeObject *t, PyTypeObject *of) { return of != NULL && (t == of || PyType_IsSubtype(t, of)); }

static PyTypeObject *type_of(PyObject *module, const char *name) {
    PyObject *t = PyObject_GetAttrString(module, name);
    if (t == NULL || !PyType_Check(t)) {
        PyErr_Clear(); /* in the middle of its import */
        Py_XDECREF(t);
        return NULL;
    }
    return (PyTypeObject *)t;
}

static void look_for_numpy(void) {
    if (numpy.ndarray != NULL)
        return;
    PyObject *name = PyUnicode_FromString("numpy");
    PyObject *module = name ? PyImport_GetModule(name) : NULL;
    Py_XDECREF(name);
    if (module == NULL) {
        PyErr_Clear();
        return;
    }
    PyTypeObject *found[] = {type_of(module, "generic"),         type_of(module, "number"), type_of(module, "integer"),
                             type_of(module, "complexfloating"), type_of(module, "bool_"),  type_of(module, "ndarray")};
    Py_DECREF(module);
    for (int i = 0; i < 6; i++)
        if (found[i] == NULL)
            return;
    numpy.generic = found[0], numpy.number = found[1], numpy.integer = found[2];
    numpy.complexfloating = found[3], numpy.boolean = found[4], numpy.ndarray = found[5];
}

int usp_values_init(void) {
    PyObject *module = PyImport_ImportModule("array");
    if (module == NULL)
        return -1;
    array_type = (PyTypeObject *)PyObject_GetAttrString(module, "array");
    Py_DECREF(module);
    return array_type == NULL ? -1 : 0;
}

void usp_fields_clear(usp_fields *fields) {
    for (Py_ssize_t i = 0; i < fields->count; i++)
        Py_CLEAR(fields->at[i].name);
    PyMem_Free(fields->at);
    fields->at = NULL;
    fields->count = 0;
}

int usp_fields_set(usp_fields *fields, PyObject *tuple) {
    Py_ssize_t n = PyTuple_Size(tuple);
    if (n < 1)
        return PyErr_Occurred() ? -1 : (PyErr_SetString(PyExc_ValueError, "no fields"), -1);
    fields->at = PyMem_Calloc((size_t)n, sizeof(usp_field));
    if (fields->at == NULL)
        return PyErr_NoMemory(), -1;
    fields->words = 2;
    for (Py_ssize_t i = 0; i < n; i++) {
        usp_field *f = &fields->at[i];
        PyObject *name;
        int type;
        if (!PyArg_ParseTuple(PyTuple_GetItem(tuple, i), "Uin", &name, &type, &f->len))
            return -1;
        if (type < USP_F64 || type > USP_U64 || f->len < 1 || f->len > 1 << 20)
            return PyErr_SetString(PyExc_ValueError, "a field of no known type or length"), -1;
        Py_INCREF(name);
        PyUnicode_InternInPlace(&name);
        f->name = name;
        f->type = (enum usp_type)type;
        f->offset = fields->words;
        fields->words += (size_t)f->len;
        fields->count = i + 1;
    }
    return 0;
}

int usp_is_ndarray(PyObject *v) {
    look_for_numpy();
    return numpy.ndarray != NULL && Py_TYPE(v) == numpy.ndarray;
}

static const char *const type_names[] = {"f64", "f32", "i64", "u64"};

/* Raises a FieldError that says what was given and what was declared. Takes over what. */
static enum usp_found refuse(const usp_field *f, PyObject *what) {
    if (what != NULL) {
        PyErr_Format(usp_FieldError, "field %R: %U; declared %s, %zd element%s", f->name, what, type_names[f->type],
                     f->len, f->len == 1 ? "" : "s");
        Py_DECREF(what);
    }
    return USP_ERROR;
}

static PyObject *type_name(PyObject *v) {
    PyObject *name = PyObject_GetAttrString((PyObject *)Py_TYPE(v), "__name__");
    if (name == NULL) {
        PyErr_Clear();
        name = PyUnicode_FromString("object");
    }
    return name;
}

static enum usp_found refuse_type(const usp_field *f, PyObject *v, const char *format) {
    PyObject *name = type_name(v), *what = name ? PyUnicode_FromFormat(format, name) : NULL;
    Py_XDECREF(name);
    return refuse(f, what);
}

/* A number that is one, but too large. */
static enum usp_found unfit(const usp_field *f, PyObject *v) {
    PyErr_Clear();
    PyErr_Format(usp_FieldError, "field %R: %R does not fit %s", f->name, v, type_names[f->type]);
    return USP_ERROR;
}

static enum usp_found integer_word(const usp_field *f, PyObject *v, uint64_t *word) {
    unsigned long long w = f->type == USP_I64 ? (unsigned long long)PyLong_AsLongLong(v) : PyLong_AsUnsignedLongLong(v);
    if (w == (unsigned long long)-1 && PyErr_Occurred())
        return unfit(f, v);
    *word = w;
    return USP_TAKEN;
}

/* One number that is_scalar has found to be one. */
static enum usp_found scalar_word(const usp_field *f, PyObject *v, uint64_t *word) {
    PyTypeObject *t = Py_TYPE(v);
    int real = f->type == USP_F64 || f->type == USP_F32;
    int is_long = PyLong_Check(v);
    if (real) {
        double x = is_long ? PyLong_AsDouble(v) : PyFloat_AsDouble(v);
        if (x == -1.0 && PyErr_Occurred())
            return unfit(f, v);
        *word = usp_float_word(x, f->type);
        return USP_TAKEN;
    }
    if (is_long)
        return integer_word(f, v, word);
    if (subtype(t, numpy.boolean)) {
        int truth = PyObject_IsTrue(v);
        if (truth < 0)
            return USP_ERROR;
        *word = (uint64_t)truth;
        return USP_TAKEN;
    }
    if (subtype(t, numpy.integer)) {
        PyObject *i = PyNumber_Index(v);
        if (i == NULL)
            return unfit(f, v);
        enum usp_found found = integer_word(f, i, word);
        Py_DECREF(i);
        return found;
    }
    return refuse_type(f, v, "one %U");
}

/* Whether v is a number in host memory. */
static int is_scalar(PyObject *v) {
    PyTypeObject *t = Py_TYPE(v);
    if (PyFloat_Check(v) || PyLong_Check(v))
        return 1;
    return numpy.generic != NULL && subtype(t, numpy.generic) &&
           (subtype(t, numpy.number) || subtype(t, numpy.boolean));
}

/* Whether v can be told to be no real number without asking it. */
static int is_no_number(PyObject *v) {
    return v == Py_None || PyUnicode_Check(v) || PyBytes_Check(v) || PyByteArray_Check(v) ||
           subtype(Py_TYPE(v), &PyComplex_Type);
}

static enum usp_found sequence_words(const usp_field *f, PyObject *v, uint64_t *words) {
    int list = PyList_Check(v);
    Py_ssize_t n = list ? PyList_Size(v) : PyTuple_Size(v);
    if (n != f->len) {
        PyObject *name = type_name(v), *what = name ? PyUnicode_FromFormat("%U of %zd", name, n) : NULL;
        Py_XDECREF(name);
        return refuse(f, what);
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *x = list ? PyList_GetItem(v, i) : PyTuple_GetItem(v, i);
        if (x == NULL) { /* it became shorter meanwhile */
            PyErr_Clear();
            return refuse(f, PyUnicode_FromString("a list that changes"));
        }
        if (PyFloat_CheckExact(x) && f->type == USP_F64) {
            words[i] = usp_float_word(PyFloat_AsDouble(x), USP_F64);
            continue;
        }
        Py_INCREF(x);
        enum usp_found found = USP_ELSEWHERE;
        if (is_scalar(x))
            found =
                subtype(Py_TYPE(x), numpy.complexfloating) ? refuse_type(f, x, "one %U") : scalar_word(f, x, &words[i]);
        else if (PyList_Check(x) || PyTuple_Check(x) || is_no_number(x))
            found = refuse_type(f, x, list ? "list with a %U in it" : "tuple with a %U in it");
        Py_DECREF(x);
        if (found != USP_TAKEN)
            return found;
    }
    return USP_TAKEN;
}

enum usp_kind usp_kind_of(const char *format, int *swapped) {
    *swapped = 0;
    if (format == NULL)
        return USP_UNSIGNED;
    if (*format == '>' || *format == '!')
        *swapped = 1, format++;
    else if (*format == '@' || *format == '=' || *format == '<' || *format == '^')
        format++;
    if (format[0] == 0 || format[1] != 0)
        return USP_NO_KIND;
    if (strchr("efd", *format))
        return USP_FLOAT;
    if (strchr("bhilqn", *format))
        return USP_SIGNED;
    return strchr("?BHILQN", *format) ? USP_UNSIGNED : USP_NO_KIND;
}

static PyObject *shape_text(const Py_buffer *b) {
    PyObject *shape = PyTuple_New(b->ndim);
    for (int i = 0; shape != NULL && i < b->ndim; i++) {
        PyObject *n = PyLong_FromSsize_t(b->shape[i]);
        if (n == NULL || PyTuple_SetItem(shape, i, n) < 0)
            Py_CLEAR(shape);
    }
    PyObject *text = shape ? PyUnicode_FromFormat("array of shape %R", shape) : NULL;
    Py_XDECREF(shape);
    return text;
}

static int convert_strided(const usp_field *f, const Py_buffer *b, enum usp_kind kind, int swapped, uint64_t *words) {
    size_t size = (size_t)b->itemsize;
    if (b->ndim == 0 || b->strides == NULL)
        return usp_convert(words, b->buf, b->itemsize, (size_t)f->len, kind, size, swapped, f->type);
    /* Rows along the last axis; the others count up like the digits of a number. */
    Py_ssize_t at[64] = {0}, last = b->ndim - 1, row = b->shape[last];
    const char *p = b->buf;
    for (;;) {
        if (usp_convert(words, p, b->strides[last], (size_t)row, kind, size, swapped, f->type))
            return 1;
        words += row;
        Py_ssize_t axis = last - 1;
        for (; axis >= 0; axis--) {
            p += b->strides[axis];
            if (++at[axis] < b->shape[axis])
                break;
            p -= b->strides[axis] * b->shape[axis];
            at[axis] = 0;
        }
        if (axis < 0)
            return 0;
    }
}

static enum usp_found buffer_words(const usp_field *f, PyObject *v, uint64_t *words) {
    Py_buffer b;
    int swapped;
    if (PyObject_GetBuffer(v, &b, PyBUF_FORMAT | PyBUF_STRIDES) < 0) {
        PyErr_Clear(); /* such as a float type that numpy does not know itself */
        return USP_ELSEWHERE;
    }
    enum usp_kind kind = usp_kind_of(b.format, &swapped);
    enum usp_found found = USP_TAKEN;
    Py_ssize_t n = 1;
    for (int i = 0; i < b.ndim; i++)
        n *= b.shape[i];
    if (b.ndim > 64 || !usp_convertible(kind, (size_t)b.itemsize, f->type)) {
        PyObject *name = NULL, *dtype = PyObject_GetAttrString(v, "dtype");
        if (dtype == NULL) {
            PyErr_Clear();
            name = PyUnicode_FromFormat("buffer of format '%s'", b.format ? b.format : "B");
        } else {
            name = PyUnicode_FromFormat("array of %S", dtype);
            Py_DECREF(dtype);
        }
        found = refuse(f, name);
    } else if (n != f->len) {
        found = refuse(f, shape_text(&b));
    } else if (convert_strided(f, &b, kind, swapped, words)) {
        PyErr_Format(usp_FieldError, "field %R: an element does not fit %s", f->name, type_names[f->type]);
        found = USP_ERROR;
    }
    PyBuffer_Release(&b);
    return found;
}

enum usp_found usp_value_words(const usp_field *f, PyObject *v, uint64_t *words) {
    PyTypeObject *t = Py_TYPE(v);
    if (PyFloat_CheckExact(v) && f->len == 1 && f->type == USP_F64) {
        *words = usp_float_word(PyFloat_AsDouble(v), USP_F64);
        return USP_TAKEN;
    }
    if (!PyFloat_Check(v) && !PyLong_Check(v))
        look_for_numpy();
    if (is_scalar(v)) {
        if (f->len != 1 || subtype(t, numpy.complexfloating))
            return refuse_type(f, v, "one %U");
        return scalar_word(f, v, words);
    }
    if (PyList_Check(v) || PyTuple_Check(v))
        return sequence_words(f, v, words);
    if (subtype(t, numpy.ndarray) || t == array_type || t == &PyMemoryView_Type)
        return buffer_words(f, v, words);
    if (is_no_number(v))
        return refuse_type(f, v, "%U is no real number");
    return USP_ELSEWHERE;
}

enum usp_found usp_step_word(PyObject *step, uint64_t *word) {
    PyObject *index = NULL;
    if (!PyLong_Check(step)) {
        look_for_numpy();
        if (!subtype(Py_TYPE(step), numpy.integer))
            return USP_ELSEWHERE;
        if ((index = PyNumber_Index(step)) == NULL)
            return USP_ERROR;
        step = index;
    }
    unsigned long long w = PyLong_AsUnsignedLongLong(step);
    enum usp_found found = USP_TAKEN;
    if (w == (unsigned long long)-1 && PyErr_Occurred()) {
        PyErr_Clear();
        PyErr_Format(usp_StepError, "step %R: want 0 to 2^64-1", step);
        found = USP_ERROR;
    }
    *word = w;
    Py_XDECREF(index);
    return found;
}

enum usp_found usp_time_word(PyObject *time, uint64_t *word) {
    PyObject *index = NULL;
    long long t = -1;
    if (PyLong_Check(time))
        t = PyLong_AsLongLong(time);
    else if ((look_for_numpy(), subtype(Py_TYPE(time), numpy.integer)) && (index = PyNumber_Index(time)) != NULL)
        t = PyLong_AsLongLong(index);
    else
        PyErr_SetNone(PyExc_TypeError);
    Py_XDECREF(index);
    if (t == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        PyErr_Format(usp_FieldError, "time %R: want Unix nanoseconds, a signed integer of 64 bits", time);
        return USP_ERROR;
    }
    *word = (uint64_t)t;
    return USP_TAKEN;
}
