/* Reader: records of device values, as they are queued and as they are taken from the queue (usp._device). It knows the
 * way of almost every record: arrays of jax like the last ones, whose memory the host can read. What goes another way
 * it leaves to Python, untouched, and so it never raises for a value. */
#define _POSIX_C_SOURCE 200809L

#include "module.h"

#include <string.h>
#include <time.h>

#include "values.h"

typedef struct {
    PyObject_HEAD usp_fields fields;
    PyObject **known; /* of each field, then of the packed record, the type, aval and sharding of an array that fits;
                       * NULL before there is one */
    usp_WriterObject *writer;
    PyObject *entries, *lock; /* the queue and what guards it; NULL before there is one */
    Py_ssize_t capacity;
    uint64_t queued, written;
    char open, ending, given_up;
} Reader;

enum { TYPE, AVAL, SHARDING, KNOWN };

/* What an entry of the queue is; usp._device._Entry. */
enum { STEPS, TIMES, LEAVES, PACKED, MANY, WATCH, ENTRY };

enum state {
    HERE,
    WAITS,   /* not ready */
    ANOTHER, /* for Python */
};

#define GROUP 8            /* records written before others may have the interpreter's lock */
#define PAUSE 3000000      /* ns before the second look at the queue */
#define PAUSE_MAX 16000000 /* ns between looks, less where a quarter of the queue gets ready in it */
#define BREATH 20000       /* ns, the least pause: after none the lock would be taken again before anyone woke */

static PyObject *is_deleted, *is_ready, *aval, *sharding, *append, *popleft, *locked, *deferred; /* names */
static PyTypeObject *reader_type;

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *writer, *fields;
    static char *names[] = {"writer", "fields", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!", names, usp_Writer, &writer, &PyTuple_Type, &fields))
        return NULL;
    Reader *r = (Reader *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (r == NULL)
        return NULL;
    Py_INCREF(writer);
    r->writer = (usp_WriterObject *)writer;
    if (usp_fields_set(&r->fields, fields) < 0) {
        Py_DECREF(r);
        return NULL;
    }
    r->known = PyMem_Calloc((size_t)(r->fields.count + 1) * KNOWN, sizeof(PyObject *));
    if (r->known == NULL) {
        Py_DECREF(r);
        return PyErr_NoMemory();
    }
    return (PyObject *)r;
}

static void reader_dealloc(PyObject *self) {
    Reader *r = (Reader *)self;
    PyTypeObject *type = Py_TYPE(self);
    for (Py_ssize_t i = 0; r->known != NULL && i < (r->fields.count + 1) * KNOWN; i++)
        Py_CLEAR(r->known[i]);
    PyMem_Free(r->known);
    usp_fields_clear(&r->fields);
    Py_CLEAR(r->writer);
    Py_CLEAR(r->entries);
    Py_CLEAR(r->lock);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Asks an array a question: 1 yes, 0 no, -1 it cannot say; then an exception is set. */
static int ask(PyObject *array, PyObject *question) {
    PyObject *answer = PyObject_CallMethodObjArgs(array, question, NULL);
    int yes = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return yes;
}

static int same(PyObject *array, PyObject *name, PyObject *const *known) {
    PyObject *found = PyObject_GetAttr(array, name);
    int yes = found != NULL && found == *known;
    Py_XDECREF(found);
    return yes;
}

static PyObject *reader_learn(PyObject *self, PyObject *args) {
    Reader *r = (Reader *)self;
    Py_ssize_t i;
    PyObject *array;
    if (!PyArg_ParseTuple(args, "nO", &i, &array))
        return NULL;
    if (i < 0 || i > r->fields.count)
        return PyErr_Format(PyExc_IndexError, "field %zd of %zd", i, r->fields.count);
    PyObject *const names[KNOWN] = {NULL, aval, sharding};
    for (int k = 0; k < KNOWN; k++) {
        PyObject *old = r->known[i * KNOWN + k], *found = (PyObject *)Py_TYPE(array);
        if (k == TYPE)
            Py_INCREF(found);
        else if ((found = PyObject_GetAttr(array, names[k])) == NULL)
            PyErr_Clear(); /* an array without it is never alike */
        r->known[i * KNOWN + k] = found;
        Py_XDECREF(old);
    }
    Py_RETURN_NONE;
}

/* Whether an array is there, and of the shape, dtype and place of the one that was learned. */
static int alike(PyObject *const known[KNOWN], PyObject *v) {
    return (PyObject *)Py_TYPE(v) == known[TYPE] && same(v, aval, &known[AVAL]) &&
           same(v, sharding, &known[SHARDING]) && ask(v, is_deleted) == 0;
}

/* The values in the order of the fields, in a new list; NULL, perhaps with an exception set, if one is not alike. */
static PyObject *named(Reader *r, PyObject *values) {
    if (PyDict_Size(values) != r->fields.count)
        return NULL;
    PyObject *leaves = PyList_New(r->fields.count);
    for (Py_ssize_t i = 0; leaves != NULL && i < r->fields.count; i++) {
        PyObject *v = PyDict_GetItemWithError(values, r->fields.at[i].name);
        Py_XINCREF(v);
        if (v == NULL || PyList_SetItem(leaves, i, v) < 0 || !alike(&r->known[i * KNOWN], v))
            Py_CLEAR(leaves);
    }
    return leaves;
}

/* The same of a packed record. */
static PyObject *single(Reader *r, PyObject *value) {
    PyObject *leaves = alike(&r->known[r->fields.count * KNOWN], value) ? PyList_New(1) : NULL;
    Py_INCREF(value);
    if (leaves == NULL || PyList_SetItem(leaves, 0, value) < 0) {
        if (leaves == NULL)
            Py_DECREF(value);
        Py_CLEAR(leaves);
    }
    return leaves;
}

static PyObject *reader_leaves(PyObject *self, PyObject *values) {
    PyObject *leaves = PyDict_Check(values) ? named((Reader *)self, values) : NULL;
    if (leaves != NULL)
        return leaves;
    PyErr_Clear();
    Py_RETURN_NONE;
}

static PyObject *entry_of(PyObject *step, PyObject *time, PyObject *leaves, int packed) {
    PyObject *now = time, *entry;
    if (time == Py_None) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        if ((now = PyLong_FromLongLong((long long)t.tv_sec * 1000000000 + t.tv_nsec)) == NULL)
            return NULL;
    } else {
        Py_INCREF(now);
    }
    entry = PyTuple_Pack(ENTRY, step, now, leaves, packed ? Py_True : Py_False, Py_None, leaves);
    Py_DECREF(now);
    return entry;
}

int usp_is_reader(PyObject *object) { return Py_TYPE(object) == reader_type; }

int usp_reader_put(PyObject *self, PyObject *step, PyObject *values, PyObject *time) {
    Reader *r = (Reader *)self;
    if (!r->open || !PyLong_CheckExact(step) || (time != Py_None && !PyLong_CheckExact(time)))
        return 0;
    uint64_t number = PyLong_AsUnsignedLongLong(step);
    int packed = !PyDict_Check(values), put = 0;
    PyObject *leaves = PyErr_Occurred() ? NULL : packed ? single(r, values) : named(r, values);
    PyObject *entry = leaves == NULL ? NULL : entry_of(step, time, leaves, packed);
    /* From here on nothing lets go of the interpreter's lock: memory was taken, at which garbage may have been collected
     * and other threads have run. */
    if (entry != NULL && r->open && PyObject_Size(r->entries) < r->capacity && ask(r->lock, locked) == 0 &&
        usp_writer_advance(r->writer->handle, number, number) == USP_OK) {
        PyObject *done = PyObject_CallMethodObjArgs(r->entries, append, entry, NULL);
        put = done == NULL ? -1 : 1;
        r->queued += done != NULL;
        Py_XDECREF(done);
    }
    Py_XDECREF(entry);
    Py_XDECREF(leaves);
    if (put == 0)
        PyErr_Clear();
    return put;
}

static PyObject *reader_attach(PyObject *self, PyObject *args) {
    Reader *r = (Reader *)self;
    PyObject *entries, *lock;
    if (r->entries != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the reader has a queue");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OnO", &entries, &r->capacity, &lock))
        return NULL;
    Py_INCREF(entries);
    Py_INCREF(lock);
    r->entries = entries;
    r->lock = lock;
    Py_RETURN_NONE;
}

static PyObject *get_open(PyObject *self, void *closure) {
    (void)closure;
    return PyBool_FromLong(((Reader *)self)->open);
}

static int set_open(PyObject *self, PyObject *value, void *closure) {
    (void)closure;
    Reader *r = (Reader *)self;
    r->open = value == Py_True && r->entries != NULL && !r->ending;
    return 0;
}

/* Whether all arrays can be read without a wait. One that is deleted must not be asked whether it is ready. */
static enum state state_of(PyObject *watch) {
    for (Py_ssize_t i = 0, n = PyList_Size(watch); i < n; i++) {
        PyObject *v = PyList_GetItem(watch, i);
        if (v == NULL || ask(v, is_deleted) != 0)
            return ANOTHER;
        int ready = ask(v, is_ready);
        if (ready != 1)
            return ready == 0 ? WAITS : ANOTHER;
    }
    return HERE;
}

/* Elements of a device as words. Returns 0, or -1 if Python has to do it. */
static int device_words(const usp_field *f, const Py_buffer *b, uint64_t *words) {
    int swapped;
    enum usp_kind kind = usp_kind_of(b->format, &swapped);
    size_t size = (size_t)b->itemsize, n = (size_t)f->len;
    const unsigned char *p = b->buf;
    if (swapped || !usp_convertible(kind, size, f->type) || (size_t)b->len != n * size)
        return -1;
    if (kind != USP_FLOAT || size == 8)
        return usp_convert(words, p, b->itemsize, n, kind, size, 0, f->type) ? -1 : 0;
    for (size_t i = 0; i < n; i++, p += size) {
        uint32_t bits = 0; /* the bytes are the other way round on no machine that jax runs on */
        memcpy(&bits, p, size);
        words[i] = usp_widen(bits, size);
    }
    return 0;
}

/* The words of a field, or of all if they are packed; of the host they are words already. */
static int leaf_words(const usp_field *f, PyObject *leaf, size_t n, uint64_t *words) {
    Py_buffer b;
    if (PyObject_GetBuffer(leaf, &b, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) < 0)
        return -1; /* of another device, in several parts, gone, or of a type without a format */
    int status = 0;
    if (f != NULL && !usp_is_ndarray(leaf))
        status = device_words(f, &b, words);
    else if ((size_t)b.len == 8 * n)
        memcpy(words, b.buf, 8 * n);
    else
        status = -1;
    PyBuffer_Release(&b);
    return status;
}

static enum state entry_words(const usp_fields *fields, PyObject *entry, uint64_t *words) {
    PyObject *part[ENTRY];
    if (!PyTuple_Check(entry) || PyTuple_Size(entry) != ENTRY)
        return ANOTHER;
    for (int k = 0; k < ENTRY; k++)
        part[k] = PyTuple_GetItem(entry, k);
    int packed = part[PACKED] == Py_True;
    if (part[MANY] != Py_None || !PyLong_Check(part[STEPS]) || !PyLong_Check(part[TIMES]) ||
        PyList_Size(part[LEAVES]) != (packed ? 1 : fields->count))
        return ANOTHER;
    enum state state = state_of(part[WATCH]);
    if (state != HERE)
        return state;
    words[0] = PyLong_AsUnsignedLongLongMask(part[STEPS]);
    words[1] = PyLong_AsUnsignedLongLongMask(part[TIMES]);
    if (packed)
        return leaf_words(NULL, PyList_GetItem(part[LEAVES], 0), fields->words - 2, words + 2) ? ANOTHER : HERE;
    for (Py_ssize_t i = 0; i < fields->count; i++) {
        const usp_field *f = &fields->at[i];
        if (leaf_words(f, PyList_GetItem(part[LEAVES], i), (size_t)f->len, words + f->offset))
            return ANOTHER;
    }
    return HERE;
}

/* Makes the payloads of the first entries that are ready, at most GROUP; returns how many. *state is that of the next. */
static Py_ssize_t group_words(const usp_fields *fields, PyObject *entries, uint64_t *rows, enum state *state) {
    Py_ssize_t n = 0;
    *state = WAITS;
    for (; n < GROUP; n++) {
        PyObject *entry = PySequence_GetItem(entries, n);
        if (entry == NULL)
            break; /* no more, or the queue has ended meanwhile */
        *state = entry_words(fields, entry, rows + fields->words * (size_t)n);
        Py_DECREF(entry);
        if (*state != HERE)
            break;
    }
    PyErr_Clear();
    return n;
}

/* Takes n entries off the queue. Nobody holds the lock of the queue: then nobody is about to append to it either. */
static void take_off(Py_ssize_t n, PyObject *entries, PyObject *lock, PyObject *emitter) {
    while (n-- > 0) {
        PyObject *entry = PyObject_CallMethodObjArgs(entries, popleft, NULL);
        if (entry == NULL)
            break; /* the queue was given up meanwhile, and cleared */
        Py_DECREF(entry);
    }
    if (emitter != Py_None && PyObject_Size(entries) == 0 && ask(lock, locked) == 0)
        PyObject_SetAttr(emitter, deferred, Py_False);
    PyErr_Clear();
}

/* Nanoseconds to sleep after a look that found so many entries. */
static long next_pause(long pause, Py_ssize_t found, Py_ssize_t capacity) {
    pause = found > 0 && found >= capacity / 4 ? pause / 2 : 2 * pause;
    return pause < BREATH ? BREATH : pause < PAUSE_MAX ? pause : PAUSE_MAX;
}

static void doze(long ns) {
    struct timespec t = {0, ns};
    Py_BEGIN_ALLOW_THREADS;
    nanosleep(&t, NULL);
    Py_END_ALLOW_THREADS;
}

/* The loop of the queue's thread. Between a look at given_up and the count of what was written, the interpreter's lock
 * is not let go of. */
static PyObject *reader_run(PyObject *self, PyObject *emitter) {
    Reader *r = (Reader *)self;
    Py_ssize_t n;
    uint64_t first;
    enum state state = WAITS;
    if (r->entries == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the reader has no queue");
        return NULL;
    }
    long pause = PyObject_Size(r->entries) > GROUP ? BREATH : PAUSE;
    Py_ssize_t found = 0; /* at this look */
    uint64_t *rows = PyMem_Malloc(8 * r->fields.words * GROUP);
    if (rows == NULL)
        return PyErr_NoMemory();
    while (!r->given_up) {
        if (!r->ending)
            doze(found ? BREATH : pause);
        n = group_words(&r->fields, r->entries, rows, &state);
        if (n > 0 && !r->given_up) {
            if (usp_writer_put_block(r->writer->handle, rows, r->fields.words, (size_t)n, &first) != USP_OK) {
                state = ANOTHER; /* the ring is gone: Python says so */
                break;
            }
            r->written += (uint64_t)n;
            take_off(n, r->entries, r->lock, emitter);
        }
        if (state == ANOTHER)
            break;
        found += n;
        if (n == GROUP)
            continue;
        if (found == 0 && PyObject_Size(r->entries) <= 0 && (r->ending || pause == PAUSE_MAX))
            break;
        if (n == 0 && r->ending)
            doze(PAUSE);
        pause = next_pause(pause, found, r->capacity);
        found = 0;
    }
    PyMem_Free(rows);
    return PyBool_FromLong(state != ANOTHER);
}

static PyObject *reader_end(PyObject *self, PyObject *given_up) {
    Reader *r = (Reader *)self;
    r->ending = 1;
    r->open = 0;
    r->given_up = (char)(given_up == Py_True);
    Py_RETURN_NONE;
}

static PyObject *get_queued(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLongLong(((Reader *)self)->queued);
}

static PyObject *get_written(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLongLong(((Reader *)self)->written);
}

static PyMethodDef methods[] = {
    {"attach", reader_attach, METH_VARARGS,
     "attach(entries, capacity, lock)\n\nSays what the queue is. Once."},
    {"learn", reader_learn, METH_VARARGS,
     "learn(field, array)\n\nTakes an array that fits as what the next are like; of the packed record, after the last "
     "field."},
    {"leaves", reader_leaves, METH_O,
     "leaves(values) -> list | None\n\nThe values in the order of the fields, if each is an array like the one learned."},
    {"run", reader_run, METH_O,
     "run(emitter) -> bool\n\nWrites entries as they get ready. True if there were none for "
     "long, or after end; False if the first is not for here."},
    {"end", reader_end, METH_O, "end(given_up)\n\nMakes run write what is ready and return; nothing, if given up."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getset[] = {
    {"open", get_open, set_open,
     "Whether an emitter may put records on the queue by itself: the queue's thread is awake, and there is nothing to "
     "tell the caller.", NULL},
    {"queued", get_queued, NULL, "Records that an emitter has put on the queue.", NULL},
    {"written", get_written, NULL, "Records written.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {Py_tp_doc, "Reader(writer, fields)\n\nfields: tuple of (name, type, length), in the order of the record."},
    {0, NULL},
};

static PyType_Spec spec = {"usp._native.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, slots};

int usp_add_reader(PyObject *module) {
    static const struct {
        PyObject **name;
        const char *text;
    } names[] = {{&is_deleted, "is_deleted"}, {&is_ready, "is_ready"}, {&aval, "aval"}, {&sharding, "sharding"},
                 {&append, "append"}, {&popleft, "popleft"}, {&locked, "locked"}, {&deferred, "deferred"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((*names[i].name = PyUnicode_InternFromString(names[i].text)) == NULL)
            return -1;
    PyObject *type = PyType_FromSpec(&spec);
    if (type == NULL || PyModule_AddObjectRef(module, "Reader", type) < 0) {
        Py_XDECREF(type);
        return -1;
    }
    reader_type = (PyTypeObject *)type;
    return 0;
}
