/* A filesystem of a few lines for tests/unit/test_transport.c and tests/bench/transport.c.
 *
 * Its state is in session memory, so that it outlives servers. Files:
 *   small      1 KiB, cached for ever        zero       1 KiB, never cached
 *   wait-N     open parks until somebody writes to release-N, or for ever
 *   fN         can be created, written (the size is kept, and the last byte), read, unlinked
 *   pass-X     passed through to X in options.backing_dir, opened or created */
#ifndef MOBULA_TESTS_TRANSPORT_TESTFS_H
#define MOBULA_TESTS_TRANSPORT_TESTFS_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/fuse_abi.h"
#include "fs/session.h"
#include "fs/transport.h"

enum {
    TESTFS_FILES = 1 << 20,
    TESTFS_SEEN = 1 << 20,
    TESTFS_PARKED = 20000,
    TESTFS_SMALL = 2,
    TESTFS_ZERO = 3,
    TESTFS_WAIT = 1000,
    TESTFS_RELEASE = 40000,
    TESTFS_FILE = 1 << 20,
    TESTFS_PASS = 1 << 22,
    TESTFS_DATA = 1024,
};

struct testfs_file {
    _Atomic int exists;
    _Atomic unsigned size;
    _Atomic unsigned char last;
};

/* In session memory. */
struct testfs_shared {
    struct testfs_file files[TESTFS_FILES];
    _Atomic uint64_t answered[TESTFS_SEEN]; /* uniques whose reply had returned */
    _Atomic unsigned answered_twice;
    _Atomic unsigned resent;
    _Atomic unsigned releases;
    _Atomic unsigned released[TESTFS_PARKED];
    _Atomic unsigned interrupted;
    _Atomic unsigned parked;
};

struct testfs {
    struct testfs_shared *shared;
    struct transport *transport;
    const char *backing_dir;
    double file_timeout; /* of attributes and names of fN */
    pthread_mutex_t lock;
    fuse_req_t waiting[TESTFS_PARKED];
    uint64_t waiting_unique[TESTFS_PARKED];
};

static inline struct testfs *testfs_of(fuse_req_t request)
{
    return fuse_req_userdata(request);
}

/* A request whose reply was complete must not come again. */
static inline void testfs_begin(fuse_req_t request)
{
    struct testfs_shared *shared = testfs_of(request)->shared;
    uint64_t unique = transport_current_unique();
    if (atomic_load(&shared->answered[unique / 2 % TESTFS_SEEN]) == unique)
        atomic_fetch_add(&shared->answered_twice, 1);
    if (transport_current_is_resent())
        atomic_fetch_add(&shared->resent, 1);
}

static inline void testfs_end(struct testfs *fs, uint64_t unique)
{
    atomic_store(&fs->shared->answered[unique / 2 % TESTFS_SEEN], unique);
}

static inline bool testfs_attributes(struct testfs *fs, fuse_ino_t ino, struct stat *st)
{
    memset(st, 0, sizeof(*st));
    st->st_ino = ino;
    st->st_mode = S_IFREG | 0666;
    st->st_nlink = 1;
    if (ino == FUSE_ROOT_ID) {
        st->st_mode = S_IFDIR | 0777;
    } else if (ino >= TESTFS_PASS) {
        char path[300];
        snprintf(path, sizeof(path), "%s/%lu", fs->backing_dir, (unsigned long)ino - TESTFS_PASS);
        struct stat backing;
        if (stat(path, &backing) < 0)
            return false;
        st->st_size = backing.st_size;
    } else if (ino >= TESTFS_FILE) {
        struct testfs_file *file = &fs->shared->files[ino - TESTFS_FILE];
        st->st_size = atomic_load(&file->size);
        return atomic_load(&file->exists);
    } else {
        st->st_size = TESTFS_DATA;
    }
    return true;
}

/* 0: no such name can be. */
static inline fuse_ino_t testfs_number(const char *name)
{
    static const struct {
        const char *prefix;
        unsigned base;
        unsigned count;
    } kinds[] = {{"wait-", TESTFS_WAIT, TESTFS_PARKED},
                 {"release-", TESTFS_RELEASE, TESTFS_PARKED},
                 {"pass-", TESTFS_PASS, 1000},
                 {"f", TESTFS_FILE, TESTFS_FILES}};
    if (!strcmp(name, "small"))
        return TESTFS_SMALL;
    if (!strcmp(name, "zero"))
        return TESTFS_ZERO;
    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        size_t length = strlen(kinds[i].prefix);
        if (strncmp(name, kinds[i].prefix, length))
            continue;
        char *end;
        unsigned long number = strtoul(name + length, &end, 10);
        return *end || number >= kinds[i].count ? 0 : kinds[i].base + number;
    }
    return 0;
}

static inline double testfs_timeout(const struct testfs *fs, fuse_ino_t ino)
{
    if (ino >= TESTFS_FILE)
        return fs->file_timeout;
    return ino == TESTFS_ZERO ? 0 : 1e6;
}

static inline bool testfs_entry(struct testfs *fs, fuse_ino_t ino, struct fuse_entry_param *entry)
{
    memset(entry, 0, sizeof(*entry));
    entry->ino = ino;
    entry->attr_timeout = entry->entry_timeout = testfs_timeout(fs, ino);
    return ino && testfs_attributes(fs, ino, &entry->attr);
}

static void testfs_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct testfs *fs = testfs_of(request);
    struct fuse_entry_param entry;
    uint64_t unique = transport_current_unique();
    (void)parent;
    testfs_begin(request);
    if (testfs_entry(fs, testfs_number(name), &entry))
        fuse_reply_entry(request, &entry);
    else
        fuse_reply_err(request, ENOENT);
    testfs_end(fs, unique);
}

static void testfs_getattr(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
    struct testfs *fs = testfs_of(request);
    struct stat st;
    uint64_t unique = transport_current_unique();
    (void)info;
    testfs_begin(request);
    if (testfs_attributes(fs, ino, &st) || ino >= TESTFS_FILE)
        fuse_reply_attr(request, &st, testfs_timeout(fs, ino));
    else
        fuse_reply_err(request, ENOENT);
    testfs_end(fs, unique);
}

static void testfs_setattr(fuse_req_t request, fuse_ino_t ino, struct stat *attr, int to_set,
                           struct fuse_file_info *info)
{
    struct testfs *fs = testfs_of(request);
    if (ino >= TESTFS_FILE && ino < TESTFS_PASS && (to_set & FUSE_SET_ATTR_SIZE))
        atomic_store(&fs->shared->files[ino - TESTFS_FILE].size, (unsigned)attr->st_size);
    testfs_getattr(request, ino, info);
}

static int testfs_backing(struct testfs *fs, fuse_ino_t ino, int flags)
{
    char path[300];
    snprintf(path, sizeof(path), "%s/%lu", fs->backing_dir, (unsigned long)ino - TESTFS_PASS);
    int fd = open(path, flags | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    int backing_id = transport_backing_open(fs->transport, fd);
    close(fd);
    return backing_id;
}

static void testfs_create(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode,
                          struct fuse_file_info *info)
{
    struct testfs *fs = testfs_of(request);
    struct fuse_entry_param entry;
    uint64_t unique = transport_current_unique();
    fuse_ino_t ino = testfs_number(name);
    (void)parent;
    (void)mode;
    (void)info;
    testfs_begin(request);
    if (ino >= TESTFS_PASS) {
        int backing_id = testfs_backing(fs, ino, O_CREAT | O_TRUNC);
        testfs_entry(fs, ino, &entry);
        if (backing_id < 0)
            fuse_reply_err(request, -backing_id);
        else
            transport_reply_create(request, &entry, (uint64_t)backing_id, 0, backing_id);
    } else if (ino < TESTFS_FILE) {
        fuse_reply_err(request, EPERM);
    } else {
        struct testfs_file *file = &fs->shared->files[ino - TESTFS_FILE];
        atomic_store(&file->exists, 1);
        atomic_store(&file->size, 0);
        testfs_entry(fs, ino, &entry);
        transport_reply_create(request, &entry, ino, FOPEN_NOFLUSH, 0);
    }
    testfs_end(fs, unique);
}

/* Answers all waiters of `number` with `error`, on the thread that calls it. */
static inline void testfs_wake(struct testfs *fs, unsigned number, int error)
{
    pthread_mutex_lock(&fs->lock);
    fuse_req_t request = fs->waiting[number];
    uint64_t unique = fs->waiting_unique[number];
    fs->waiting[number] = NULL;
    pthread_mutex_unlock(&fs->lock);
    if (!request)
        return;
    fuse_req_interrupt_func(request, NULL, NULL);
    atomic_fetch_sub(&fs->shared->parked, 1);
    if (error)
        fuse_reply_err(request, error);
    else
        transport_reply_open(request, TESTFS_WAIT + number, FOPEN_KEEP_CACHE | FOPEN_NOFLUSH, 0);
    testfs_end(fs, unique);
}

static void testfs_interrupted(fuse_req_t request, void *argument)
{
    (void)argument;
    struct testfs *fs = testfs_of(request);
    atomic_fetch_add(&fs->shared->interrupted, 1);
    pthread_mutex_lock(&fs->lock);
    unsigned number = TESTFS_PARKED;
    for (unsigned i = 0; i < TESTFS_PARKED; i++)
        if (fs->waiting[i] == request) {
            number = i;
            fs->waiting[i] = NULL;
            atomic_fetch_sub(&fs->shared->parked, 1);
            break;
        }
    pthread_mutex_unlock(&fs->lock);
    if (number < TESTFS_PARKED)
        fuse_reply_err(request, EINTR);
}

static void testfs_park(struct testfs *fs, fuse_req_t request, unsigned number)
{
    pthread_mutex_lock(&fs->lock);
    fs->waiting[number] = request;
    fs->waiting_unique[number] = transport_current_unique();
    pthread_mutex_unlock(&fs->lock);
    atomic_fetch_add(&fs->shared->parked, 1);
    /* Called at once if it was interrupted before; outside the lock, as it takes it. */
    fuse_req_interrupt_func(request, testfs_interrupted, NULL);
}

static void testfs_open(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
    struct testfs *fs = testfs_of(request);
    uint64_t unique = transport_current_unique();
    testfs_begin(request);
    if ((info->flags & O_TRUNC) && ino >= TESTFS_FILE && ino < TESTFS_PASS)
        atomic_store(&fs->shared->files[ino - TESTFS_FILE].size, 0);
    if (ino >= TESTFS_WAIT && ino < TESTFS_RELEASE &&
        !atomic_load(&fs->shared->released[ino - TESTFS_WAIT])) {
        testfs_park(fs, request, (unsigned)ino - TESTFS_WAIT);
        return;
    }
    if (ino >= TESTFS_PASS) {
        int backing_id = testfs_backing(fs, ino, 0);
        if (backing_id < 0)
            fuse_reply_err(request, -backing_id);
        else
            transport_reply_open(request, (uint64_t)backing_id, 0, backing_id);
    } else {
        transport_reply_open(request, ino,
                             (ino < TESTFS_FILE ? FOPEN_KEEP_CACHE : 0) | FOPEN_NOFLUSH, 0);
    }
    testfs_end(fs, unique);
}

static void *testfs_answer_thread(void *argument)
{
    struct {
        struct testfs *fs;
        unsigned number;
    } *answer = argument;
    testfs_wake(answer->fs, answer->number, 0);
    free(answer);
    return NULL;
}

static void testfs_write(fuse_req_t request, fuse_ino_t ino, const char *bytes, size_t size,
                         off_t offset, struct fuse_file_info *info)
{
    struct testfs *fs = testfs_of(request);
    uint64_t unique = transport_current_unique();
    (void)info;
    testfs_begin(request);
    if (ino >= TESTFS_FILE) {
        struct testfs_file *file = &fs->shared->files[ino - TESTFS_FILE];
        atomic_store(&file->last, size ? (unsigned char)bytes[size - 1] : 0);
        if (offset + size > atomic_load(&file->size))
            atomic_store(&file->size, (unsigned)(offset + size));
    } else if (ino >= TESTFS_RELEASE) {
        /* From a thread that has nothing to do with FUSE. */
        struct {
            struct testfs *fs;
            unsigned number;
        } *answer = malloc(sizeof(*answer));
        answer->fs = fs;
        answer->number = (unsigned)ino - TESTFS_RELEASE;
        atomic_store(&fs->shared->released[answer->number], 1);
        pthread_t thread;
        if (pthread_create(&thread, NULL, testfs_answer_thread, answer) == 0)
            pthread_detach(thread);
    }
    fuse_reply_write(request, size);
    testfs_end(fs, unique);
}

static void testfs_read(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset,
                        struct fuse_file_info *info)
{
    struct testfs *fs = testfs_of(request);
    uint64_t unique = transport_current_unique();
    struct stat st;
    (void)info;
    testfs_begin(request);
    testfs_attributes(fs, ino, &st);
    size_t rest = offset < st.st_size ? (size_t)(st.st_size - offset) : 0;
    if (size > rest)
        size = rest;
    char *bytes = calloc(1, size + 1);
    if (ino >= TESTFS_FILE && ino < TESTFS_PASS && size == rest && size > 0)
        bytes[size - 1] = (char)atomic_load(&fs->shared->files[ino - TESTFS_FILE].last);
    else
        memset(bytes, 'd', size);
    fuse_reply_buf(request, bytes, size);
    free(bytes);
    testfs_end(fs, unique);
}

static void testfs_unlink(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct testfs *fs = testfs_of(request);
    uint64_t unique = transport_current_unique();
    fuse_ino_t ino = testfs_number(name);
    (void)parent;
    testfs_begin(request);
    int error = ENOENT;
    if (ino >= TESTFS_FILE && ino < TESTFS_PASS) {
        int existed = atomic_exchange(&fs->shared->files[ino - TESTFS_FILE].exists, 0);
        /* A resent one may have been carried out. */
        error = existed || transport_current_is_resent() ? 0 : ENOENT;
    }
    fuse_reply_err(request, error);
    testfs_end(fs, unique);
}

static void testfs_release(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
    struct testfs *fs = testfs_of(request);
    uint64_t unique = transport_current_unique();
    testfs_begin(request);
    atomic_fetch_add(&fs->shared->releases, 1);
    if (ino >= TESTFS_PASS)
        transport_backing_close(fs->transport, (int)info->fh);
    fuse_reply_err(request, 0);
    testfs_end(fs, unique);
}

static const struct fuse_lowlevel_ops testfs_ops = {
    .lookup = testfs_lookup,
    .getattr = testfs_getattr,
    .setattr = testfs_setattr,
    .create = testfs_create,
    .open = testfs_open,
    .read = testfs_read,
    .write = testfs_write,
    .unlink = testfs_unlink,
    .release = testfs_release,
};

#endif
