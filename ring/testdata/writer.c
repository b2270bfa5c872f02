/* Writes records through the writer of the Python package, without Python, for the tests of package ring:
 * PATH HOW COUNT SLOTS [paced]. HOW is emit, block, or threads: three of them, whose record i of thread k is the words k,
 * i, k * 0x9e3779b97f4a7c15 ^ i. COUNT is of all threads together; 0 goes on for ever. The ring is made here too. */
#define _GNU_SOURCE

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include "writer.h"

#define GOLDEN 0x9e3779b97f4a7c15u
#define HEADER 4096
#define SLOT 64
#define PAYLOAD 24

static unsigned char *base;
static uint64_t slots, count;
static int handle, paced;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static uint32_t crc(const unsigned char *p, size_t n) {
    uint32_t c = ~0u;
    for (; n > 0; n--) {
        c ^= *p++;
        for (int bit = 0; bit < 8; bit++)
            c = c >> 1 ^ (0xedb88320u & -(c & 1));
    }
    return ~c;
}

static void put32(size_t at, uint32_t v) { memcpy(base + at, &v, 4); }
static void put64(size_t at, uint64_t v) { memcpy(base + at, &v, 8); }

static void make(const char *path) {
    static const unsigned char empty[32] = {0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4,
                                            0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b,
                                            0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55};
    char *slash = strrchr(path, '/'), temp[4096];
    size_t size = HEADER + slots * SLOT;
    snprintf(temp, sizeof temp, "%.*s/.%s.tmp", (int)(slash - path), path, slash + 1);
    int fd = open(temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) || posix_fallocate(fd, 0, (off_t)size))
        fail(temp);
    base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        fail("mmap");
    memcpy(base, "USPRING1", 8);
    put32(8, 1), put32(12, 0x01020304);
    put64(16, HEADER), put64(24, SLOT), put64(32, slots), put64(40, PAYLOAD);
    put32(48, 2048), put32(56, 2048);
    memcpy(base + 64, empty, 32);
    memcpy(base + 96, "c", 1);
    put32(160, (uint32_t)getpid());
    put32(252, crc(base, 252));
    put64(1280, 1);
    if (link(temp, path) || unlink(temp))
        fail(path);
}

static void wait_for_reader(uint64_t n) {
    while (paced && n > atomic_load((_Atomic(uint64_t) *)(base + 1544)) + slots / 2)
        usleep(50);
}

static void fill(uint64_t *w, uint64_t n) {
    for (uint64_t i = 0; i < 3; i++)
        w[i] = (n + 1) * GOLDEN ^ i << 32;
}

static void *thread(void *arg) {
    uint64_t k = (uint64_t)(uintptr_t)arg;
    for (uint64_t i = 0; i < count / 3 || count == 0; i++) {
        uint64_t w[3] = {k, i, k * GOLDEN ^ i};
        if (i % 64 == 0)
            wait_for_reader(3 * i);
        if (usp_writer_emit(handle, w, 3) != USP_OK)
            abort();
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 5)
        return 2;
    count = strtoull(argv[3], NULL, 10), slots = strtoull(argv[4], NULL, 10), paced = argc > 5;
    make(argv[1]);
    handle = usp_writer_open(base, HEADER, SLOT, slots, PAYLOAD);
    puts("ready");
    fflush(stdout);
    if (strcmp(argv[2], "threads") == 0) {
        pthread_t t[3];
        for (uintptr_t k = 0; k < 3; k++)
            if (pthread_create(&t[k], NULL, thread, (void *)k))
                abort();
        for (int k = 0; k < 3; k++)
            pthread_join(t[k], NULL);
    }
    uint64_t block[16 * 3], first, per = strcmp(argv[2], "block") == 0 ? 16 : 1;
    for (uint64_t n = 0; strcmp(argv[2], "threads") && (n < count || count == 0); n += per) {
        if (n % 64 == 0)
            wait_for_reader(n);
        if (count != 0 && per > count - n)
            per = count - n;
        for (uint64_t i = 0; i < per; i++)
            fill(block + 3 * i, n + i);
        int status = per == 1 ? usp_writer_emit(handle, block, 3) : usp_writer_put_block(handle, block, 3, per, &first);
        if (status != USP_OK)
            abort();
    }
    usp_writer_close(handle, NULL, NULL, NULL);
    if (usp_writer_emit(handle, block, 3) != USP_CLOSED || usp_writer_dropped() != 1)
        abort();
    put64(1280, 2);
    return 0;
}
