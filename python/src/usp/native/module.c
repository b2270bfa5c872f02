/* The extension usp._native: type Writer over a mapped ring, types Emitter (emitter.c) and Reader (reader.c), and
 * the few loads and stores that need an order. Stable ABI of Python 3.11. */
#include "module.h"

#include <stdatomic.h>
#include <string.h>

#include "crc.h"
#include "xla.h"

PyTypeObject *usp_Writer;
PyObject *usp_FieldError, *usp_StepError, *usp_ClosedError, *usp_ForkedError, *usp_RingError;

PyObject *usp_raise(usp_WriterObject *w, int status, uint64_t step) {
    uint64_t next, last = 0;
    int64_t has;
    switch (status) {
    case USP_BACKWARD:
        if (usp_writer_position(w->handle, &next, &has, &last) != USP_OK)
            last = w->last_step;
        return PyErr_Format(usp_StepError, "step %llu is not above %llu, the one before it", (unsigned long long)step,
                            (unsigned long long)last);
    case USP_FORKED:
        PyErr_SetString(usp_ForkedError, "the ring belongs to the process that this one was forked from");
        return NULL;
    case USP_LENGTH:
        PyErr_SetString(usp_FieldError, "a record of another length than the ring's");
        return NULL;
    default:
        PyErr_SetString(usp_ClosedError, "the ring is closed");
        return NULL;
    }
}

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *mapping;
    unsigned long long header_len, slot_size, slots, payload_len;
    static char *names[] = {"mapping", "header_len", "slot_size", "slots", "payload_len", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OKKKK", names, &mapping, &header_len, &slot_size, &slots,
                                     &payload_len))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    usp_WriterObject *w = (usp_WriterObject *)alloc(type, 0);
    if (w == NULL)
        return NULL;
    if (PyObject_GetBuffer(mapping, &w->buffer, PyBUF_WRITABLE) < 0) {
        w->buffer.buf = NULL;
        Py_DECREF(w);
        return NULL;
    }
    if (header_len < 4096 || slot_size % 64 || payload_len < 8 || payload_len % 8 || slot_size < payload_len + 16 ||
        slots < 2 || slots & (slots - 1) || slots > 1u << 24 || slot_size > 1u << 21 || header_len > 1u << 20 ||
        header_len + slots * slot_size > (unsigned long long)w->buffer.len || (uintptr_t)w->buffer.buf % 64) {
        PyErr_SetString(PyExc_ValueError, "these slots do not lie in that mapping");
        Py_DECREF(w);
        return NULL;
    }
    w->handle = usp_writer_open(w->buffer.buf, header_len, slot_size, slots, payload_len);
    if (w->handle == 0) {
        PyErr_Format(usp_RingError, "more than %d rings are open in this process: close some", USP_WRITERS);
        Py_DECREF(w);
        return NULL;
    }
    return (PyObject *)w;
}

static void release(usp_WriterObject *w) {
    usp_writer_close(w->handle, &w->next, &w->has_step, &w->last_step);
    if (w->buffer.buf != NULL) {
        PyBuffer_Release(&w->buffer);
        w->buffer.buf = NULL;
    }
}

static void writer_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    release((usp_WriterObject *)self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject *writer_close(PyObject *self, PyObject *none) {
    (void)none;
    release((usp_WriterObject *)self);
    Py_RETURN_NONE;
}

/* The C side knows of the fork by itself. The mapping is not there any more, and whoever made it must not unmap what
 * lies at its place: the buffer stays taken. */
static PyObject *writer_forked(PyObject *self, PyObject *none) {
    (void)none;
    ((usp_WriterObject *)self)->buffer.buf = NULL;
    Py_RETURN_NONE;
}

static PyObject *writer_emit(PyObject *self, PyObject *payload) {
    usp_WriterObject *w = (usp_WriterObject *)self;
    Py_buffer b;
    uint64_t seq = 0;
    if (PyObject_GetBuffer(payload, &b, PyBUF_SIMPLE) < 0)
        return NULL;
    int status = b.len % 8 ? USP_LENGTH : usp_writer_put(w->handle, b.buf, (size_t)b.len / 8, 0, &seq);
    PyBuffer_Release(&b);
    return status == USP_OK ? PyLong_FromUnsignedLongLong(seq) : usp_raise(w, status, 0);
}

static PyObject *writer_emit_block(PyObject *self, PyObject *args) {
    usp_WriterObject *w = (usp_WriterObject *)self;
    Py_buffer b;
    unsigned long long size;
    uint64_t first = 0;
    int status;
    if (!PyArg_ParseTuple(args, "y*K", &b, &size))
        return NULL;
    if (size == 0 || size % 8 || b.len == 0 || (unsigned long long)b.len % size) {
        Py_ssize_t length = b.len;
        PyBuffer_Release(&b);
        return PyErr_Format(usp_FieldError, "%zd bytes of records: want a multiple of %llu", length, size);
    }
    if (b.len > 1 << 16) {
        Py_BEGIN_ALLOW_THREADS;
        status = usp_writer_put_block(w->handle, b.buf, size / 8, (size_t)b.len / size, &first);
        Py_END_ALLOW_THREADS;
    } else {
        status = usp_writer_put_block(w->handle, b.buf, size / 8, (size_t)b.len / size, &first);
    }
    PyBuffer_Release(&b);
    return status == USP_OK ? PyLong_FromUnsignedLongLong(first) : usp_raise(w, status, 0);
}

static PyObject *writer_advance(PyObject *self, PyObject *args) {
    usp_WriterObject *w = (usp_WriterObject *)self;
    unsigned long long first, last;
    if (!PyArg_ParseTuple(args, "KK", &first, &last))
        return NULL;
    int status = usp_writer_advance(w->handle, first, last);
    if (status != USP_OK)
        return usp_raise(w, status, first);
    Py_RETURN_NONE;
}

static void now(usp_WriterObject *w) {
    uint64_t next, last;
    int64_t has;
    if (usp_writer_position(w->handle, &next, &has, &last) == USP_OK)
        w->next = next, w->has_step = has, w->last_step = last;
}

static PyObject *writer_position(PyObject *self, void *closure) {
    (void)closure;
    now((usp_WriterObject *)self);
    return PyLong_FromUnsignedLongLong(((usp_WriterObject *)self)->next);
}

static PyObject *writer_last_step(PyObject *self, void *closure) {
    (void)closure;
    usp_WriterObject *w = (usp_WriterObject *)self;
    now(w);
    return w->has_step ? PyLong_FromUnsignedLongLong(w->last_step) : PyLong_FromLong(-1);
}

static PyObject *writer_handle(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromLong(((usp_WriterObject *)self)->handle);
}

static PyMethodDef writer_methods[] = {
    {"emit", writer_emit, METH_O, "emit(payload) -> int\n\nWrites one record and returns its number."},
    {"emit_block", writer_emit_block, METH_VARARGS,
     "emit_block(payloads, payload_len) -> int\n\nWrites records that lie one after the other."},
    {"advance", writer_advance, METH_VARARGS, "advance(first, last)\n\nTakes first to last as the last steps."},
    {"close", writer_close, METH_NOARGS, "close()\n\nLets go of the mapping."},
    {"forked", writer_forked, METH_NOARGS, "forked()\n\nIn a child of a fork."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef writer_getset[] = {
    {"position", writer_position, NULL, "Number of records written.", NULL},
    {"last_step", writer_last_step, NULL, "The last step, -1 before the first.", NULL},
    {"handle", writer_handle, NULL, "By which compiled code finds the writer.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_new, writer_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_methods, writer_methods},
    {Py_tp_getset, writer_getset},
    {Py_tp_doc, "Writer(mapping, header_len, slot_size, slots, payload_len)\n\nWrites the slots of a mapped ring."},
    {0, NULL},
};

static PyType_Spec writer_spec = {"usp._native.Writer", sizeof(usp_WriterObject), 0, Py_TPFLAGS_DEFAULT, writer_slots};

/* Finds an aligned word of a buffer. */
static _Atomic(uint64_t) *word_at(Py_buffer *b, unsigned long long offset) {
    if (offset % 8 || b->len < 8 || offset > (unsigned long long)b->len - 8 || ((uintptr_t)b->buf + offset) % 8) {
        PyErr_SetString(PyExc_ValueError, "no aligned word there");
        return NULL;
    }
    return (_Atomic(uint64_t) *)((unsigned char *)b->buf + offset);
}

static PyObject *native_load(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer b;
    unsigned long long offset;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "w*K", &b, &offset))
        return NULL;
    _Atomic(uint64_t) *p = word_at(&b, offset);
    if (p != NULL)
        result = PyLong_FromUnsignedLongLong(atomic_load_explicit(p, memory_order_acquire));
    PyBuffer_Release(&b);
    return result;
}

static PyObject *native_store(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer b;
    unsigned long long offset, value;
    if (!PyArg_ParseTuple(args, "w*KK", &b, &offset, &value))
        return NULL;
    _Atomic(uint64_t) *p = word_at(&b, offset);
    if (p != NULL) {
        atomic_store_explicit(p, value, memory_order_release);
        atomic_thread_fence(memory_order_seq_cst); /* "filling" is seen before what is filled in */
    }
    PyBuffer_Release(&b);
    if (p == NULL)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *native_crc(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer b;
    unsigned long long done;
    int by_table;
    if (!PyArg_ParseTuple(args, "Ky*p", &done, &b, &by_table))
        return NULL;
    usp_crc_init();
    uint32_t crc = by_table ? usp_record_crc_table(done, b.buf, (size_t)b.len / 8)
                            : usp_record_crc(done, b.buf, (size_t)b.len / 8);
    PyBuffer_Release(&b);
    return PyLong_FromUnsignedLong(crc);
}

static PyObject *native_dropped(PyObject *self, PyObject *none) {
    (void)self, (void)none;
    return PyLong_FromUnsignedLongLong(usp_writer_dropped());
}

static PyObject *native_emit_by_handle(PyObject *self, PyObject *args) {
    (void)self;
    int handle, status;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "iy*", &handle, &b))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = usp_writer_emit(handle, b.buf, (size_t)b.len / 8);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&b);
    return PyLong_FromLong(status);
}

static PyMethodDef functions[] = {
    {"load", native_load, METH_VARARGS, "load(buffer, offset) -> int\n\nLoads a word (acquire)."},
    {"store", native_store, METH_VARARGS,
     "store(buffer, offset, value)\n\nStores a word, after all stores before it and before all after it."},
    {"record_crc", native_crc, METH_VARARGS, "record_crc(done, payload, by_table) -> int\n\nThe sum over a record."},
    {"dropped", native_dropped, METH_NOARGS,
     "dropped() -> int\n\nRecords dropped by emit_by_handle and by compiled programs."},
    {"emit_by_handle", native_emit_by_handle, METH_VARARGS,
     "emit_by_handle(handle, payload) -> int\n\nWhat compiled programs do, without the interpreter's lock: 0, or else "
     "the record was dropped."},
    {NULL, NULL, 0, NULL},
};

static int import_errors(void) {
    PyObject *errors = PyImport_ImportModule("usp._errors");
    if (errors == NULL)
        return -1;
    usp_FieldError = PyObject_GetAttrString(errors, "FieldError");
    usp_StepError = PyObject_GetAttrString(errors, "StepError");
    usp_ClosedError = PyObject_GetAttrString(errors, "ClosedError");
    usp_ForkedError = PyObject_GetAttrString(errors, "ForkedError");
    usp_RingError = PyObject_GetAttrString(errors, "RingError");
    Py_DECREF(errors);
    return usp_FieldError && usp_StepError && usp_ClosedError && usp_ForkedError && usp_RingError ? 0 : -1;
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "Writes records into a ring.", -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    usp_crc_init();
    usp_Writer = (PyTypeObject *)PyType_FromSpec(&writer_spec);
    if (usp_Writer == NULL || import_errors() < 0 ||
        PyModule_AddObjectRef(module, "Writer", (PyObject *)usp_Writer) < 0 ||
        PyModule_AddIntConstant(module, "clmul", usp_crc_has_clmul()) < 0 || usp_add_emitter(module) < 0 ||
        usp_add_reader(module) < 0 || usp_xla_add(module) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
