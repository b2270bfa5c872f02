/* Emitter: from a dict of host values to a record, in one call. The words are made in a buffer of its own first, so
 * that a value that does not fit leaves the ring as it was. It does what usp._encode does in Python. */
#define _POSIX_C_SOURCE 200809L

#include "module.h"

#include <string.h>
#include <time.h>

#include "values.h"

#define ON_STACK 128 /* words; longer records take memory for each call */

typedef struct {
    PyObject_HEAD usp_WriterObject *writer;
    PyObject *slow;
    PyObject *reader; /* of the queue of device values; NULL before there is one */
    char deferred;
    uint64_t calls;
    usp_fields fields;
} Emitter;

static PyObject *emitter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *writer, *fields, *slow;
    static char *names[] = {"writer", "fields", "slow", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O", names, usp_Writer, &writer, &PyTuple_Type, &fields, &slow))
        return NULL;
    Emitter *e = (Emitter *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (e == NULL)
        return NULL;
    Py_INCREF(writer);
    e->writer = (usp_WriterObject *)writer;
    Py_INCREF(slow);
    e->slow = slow;
    if (usp_fields_set(&e->fields, fields) < 0) {
        Py_DECREF(e);
        return NULL;
    }
    return (PyObject *)e;
}

static int emitter_traverse(PyObject *self, visitproc visit, void *arg) {
    Emitter *e = (Emitter *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(e->writer);
    Py_VISIT(e->slow);
    Py_VISIT(e->reader);
    return 0;
}

static int emitter_clear(PyObject *self) {
    Emitter *e = (Emitter *)self;
    Py_CLEAR(e->slow);
    Py_CLEAR(e->reader);
    return 0;
}

static void emitter_dealloc(PyObject *self) {
    Emitter *e = (Emitter *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    emitter_clear(self);
    Py_CLEAR(e->writer);
    usp_fields_clear(&e->fields);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Finds step, values and time, by place or by name. */
static int arguments(PyObject *const *args, Py_ssize_t given, PyObject *names, PyObject *out[3]) {
    static const char *const known[] = {"step", "values", "time"};
    out[0] = out[1] = out[2] = NULL;
    if (given > 3)
        return PyErr_Format(PyExc_TypeError, "emit() takes at most 3 arguments (%zd given)", given), -1;
    for (Py_ssize_t i = 0; i < given; i++)
        out[i] = args[i];
    for (Py_ssize_t i = 0, n = names ? PyTuple_Size(names) : 0; i < n; i++) {
        PyObject *name = PyTuple_GetItem(names, i);
        int k = 0;
        while (k < 3 && PyUnicode_CompareWithASCIIString(name, known[k]) != 0)
            k++;
        if (k == 3 || out[k] != NULL)
            return PyErr_Format(PyExc_TypeError, "emit() got an unexpected or repeated argument %R", name), -1;
        out[k] = args[given + i];
    }
    if (out[0] == NULL || out[1] == NULL)
        return PyErr_SetString(PyExc_TypeError, "emit() needs step and values"), -1;
    if (out[2] == NULL)
        out[2] = Py_None;
    return 0;
}

/* Says which names are wrong. */
static void misnamed(Emitter *e, PyObject *values) {
    PyObject *schema = PyImport_ImportModule("usp._schema");
    PyObject *names = PyTuple_New(e->fields.count);
    for (Py_ssize_t i = 0; names && i < e->fields.count; i++) {
        Py_INCREF(e->fields.at[i].name);
        PyTuple_SetItem(names, i, e->fields.at[i].name);
    }
    if (schema && names) {
        PyObject *r = PyObject_CallMethod(schema, "misnamed", "OO", names, values);
        if (r != NULL) {
            Py_DECREF(r);
            PyErr_SetString(usp_FieldError, "the fields changed while they were read");
        }
    }
    Py_XDECREF(schema);
    Py_XDECREF(names);
}

static enum usp_found encode(Emitter *e, PyObject *const arg[3], uint64_t *words) {
    PyObject *values = arg[1];
    int slow = 0;
    if (PyDict_Size(values) != e->fields.count)
        return misnamed(e, values), USP_ERROR;
    for (Py_ssize_t i = 0; i < e->fields.count; i++) {
        usp_field *f = &e->fields.at[i];
        PyObject *v = PyDict_GetItemWithError(values, f->name);
        if (v == NULL) {
            if (!PyErr_Occurred())
                misnamed(e, values);
            return USP_ERROR;
        }
        if (slow)
            continue; /* but the names are checked */
        Py_INCREF(v); /* converting may run code that changes the dict */
        enum usp_found found = usp_value_words(f, v, words + f->offset);
        Py_DECREF(v);
        if (found == USP_ERROR)
            return found;
        slow = found == USP_ELSEWHERE;
    }
    if (slow)
        return USP_ELSEWHERE;
    enum usp_found found = usp_step_word(arg[0], words);
    if (found != USP_TAKEN)
        return found;
    if (arg[2] == Py_None) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        words[1] = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
        return USP_TAKEN;
    }
    return usp_time_word(arg[2], words + 1);
}

/* What is not for the ring at once: a record of device values, most of which the queue takes as they are. */
static PyObject *pass_on(Emitter *e, PyObject *const arg[3]) {
    switch (e->reader == NULL ? 0 : usp_reader_put(e->reader, arg[0], arg[1], arg[2])) {
    case 0:
        return PyObject_CallFunctionObjArgs(e->slow, arg[0], arg[1], arg[2], NULL);
    case 1:
        e->deferred = 1; /* before anybody else has the interpreter's lock */
        Py_INCREF(Py_None);
        return Py_None;
    }
    return NULL;
}

static PyObject *hand_over(Emitter *e, PyObject *const arg[3]) {
    PyObject *result = NULL;
    uint64_t stack[ON_STACK], *words = stack;
    if (e->deferred || !PyDict_Check(arg[1]))
        return pass_on(e, arg);
    if (e->fields.words > ON_STACK && (words = PyMem_Malloc(8 * e->fields.words)) == NULL)
        return PyErr_NoMemory();
    switch (encode(e, arg, words)) {
    case USP_TAKEN: {
        int status = usp_writer_put(e->writer->handle, words, e->fields.words, 1, NULL);
        if (status == USP_OK) {
            Py_INCREF(Py_None);
            result = Py_None;
        } else {
            usp_raise(e->writer, status, words[0]);
        }
        break;
    }
    case USP_ELSEWHERE:
        result = pass_on(e, arg);
        break;
    case USP_ERROR:
        break;
    }
    if (words != stack)
        PyMem_Free(words);
    return result;
}

static PyObject *emitter_emit(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names) {
    Emitter *e = (Emitter *)self;
    PyObject *arg[3];
    if (arguments(args, given, names, arg) < 0)
        return NULL;
    if (!usp_timed(e->calls++))
        return hand_over(e, arg);
    uint64_t began = usp_clock();
    PyObject *result = hand_over(e, arg);
    if (result != NULL)
        usp_writer_took(e->writer->handle, usp_clock() - began);
    return result;
}

static PyObject *get_deferred(PyObject *self, void *closure) {
    (void)closure;
    return PyBool_FromLong(((Emitter *)self)->deferred);
}

static int set_deferred(PyObject *self, PyObject *value, void *closure) {
    (void)closure;
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth < 0)
        return -1;
    ((Emitter *)self)->deferred = (char)truth;
    return 0;
}

static PyObject *get_reader(PyObject *self, void *closure) {
    (void)closure;
    PyObject *reader = ((Emitter *)self)->reader;
    reader = reader == NULL ? Py_None : reader;
    Py_INCREF(reader);
    return reader;
}

static int set_reader(PyObject *self, PyObject *value, void *closure) {
    (void)closure;
    if (value == NULL || !usp_is_reader(value)) {
        PyErr_SetString(PyExc_TypeError, "want a Reader");
        return -1;
    }
    Emitter *e = (Emitter *)self;
    PyObject *old = e->reader;
    Py_INCREF(value);
    e->reader = value;
    Py_XDECREF(old);
    return 0;
}

static PyMethodDef methods[] = {
    {"emit", (PyCFunction)(void (*)(void))emitter_emit, METH_FASTCALL | METH_KEYWORDS,
     "emit($self, step, values, time=None)\n--\n\nEmits one record; see usp._encode.Emitter."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getset[] = {
    {"deferred", get_deferred, set_deferred, "While true, every record goes to the queue: to reader, or to slow.", NULL},
    {"reader", get_reader, set_reader, "What takes records of device values before slow does.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, emitter_new},
    {Py_tp_dealloc, emitter_dealloc},
    {Py_tp_traverse, emitter_traverse},
    {Py_tp_clear, emitter_clear},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {Py_tp_doc, "Emitter(writer, fields, slow)\n\nfields: tuple of (name, type, length), in the order of the record."},
    {0, NULL},
};

static PyType_Spec spec = {"usp._native.Emitter", sizeof(Emitter), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};

int usp_add_emitter(PyObject *module) {
    PyObject *type = PyType_FromSpec(&spec);
    if (type == NULL || usp_values_init() < 0 || PyModule_AddObjectRef(module, "Emitter", type) < 0) {
        Py_XDECREF(type);
        return -1;
    }
    Py_DECREF(type);
    return 0;
}
