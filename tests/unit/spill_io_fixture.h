/* Failures to inject into the copying engine, files with known content, and engines: for the unit
 * tests of core/store/spill_io. Included once. */
#ifndef MOBULA_TESTS_SPILL_IO_FIXTURE_H
#define MOBULA_TESTS_SPILL_IO_FIXTURE_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/util.h"
#include "core/store/spill_io_internal.h"
#include "tests/unit/unit.h"

enum { MIB = 1 << 20 };

/* Not each of the tests needs all of it. */
#define FIXTURE static __attribute__((unused))

/* --- injected failures --- */

/* What the next requests come to. Both engines' requests pass through bend(): pread and pwrite
 * before they are made, the ring's when they have ended. */
static struct {
    bool armed;         /* it is to happen while run() runs */
    bool writes;        /* the kind */
    int fd;             /* only of this file, or -1 */
    off_t offset;       /* only where the request begins here, or -1 */
    int error;          /* an errno, or 0 */
    size_t at_most;     /* or so many bytes only; 0: as many as there are */
    int times;          /* so often; -1: always */
    unsigned bent;      /* so often it was */
    void (*hook)(void); /* or this is called */
} injected;

static bool running;

static bool is_bent(bool writes, int fd, off_t offset)
{
    if (!running || !injected.armed || injected.writes != writes || injected.times == 0 ||
        (injected.fd >= 0 && injected.fd != fd) ||
        (injected.offset >= 0 && injected.offset != offset))
        return false;
    if (injected.times > 0)
        injected.times--;
    injected.bent++;
    return true;
}

typedef ssize_t reader(int, void *, size_t, off_t);
typedef ssize_t writer(int, const void *, size_t, off_t);
/* Their names with and without large files. */
reader __real_pread, __real_pread64, __wrap_pread, __wrap_pread64;
writer __real_pwrite, __real_pwrite64, __wrap_pwrite, __wrap_pwrite64;

static size_t bend_bytes(size_t bytes)
{
    return injected.at_most && injected.at_most < bytes ? injected.at_most : bytes;
}

static ssize_t read_bent(reader *real, int fd, void *data, size_t bytes, off_t offset)
{
    if (!is_bent(false, fd, offset))
        return real(fd, data, bytes, offset);
    if (injected.hook)
        injected.hook();
    if (injected.error) {
        errno = injected.error;
        return -1;
    }
    /* O_DIRECT wants whole blocks: all are read, and fewer reported. */
    ssize_t got = real(fd, data, bytes, offset);
    return got > 0 ? (ssize_t)bend_bytes((size_t)got) : got;
}

static ssize_t write_bent(writer *real, int fd, const void *data, size_t bytes, off_t offset)
{
    if (!is_bent(true, fd, offset))
        return real(fd, data, bytes, offset);
    if (injected.hook)
        injected.hook();
    if (injected.error) {
        errno = injected.error;
        return -1;
    }
    ssize_t put = real(fd, data, bytes, offset);
    return put > 0 ? (ssize_t)bend_bytes((size_t)put) : put;
}

ssize_t __wrap_pread(int fd, void *data, size_t bytes, off_t offset)
{
    return read_bent(__real_pread, fd, data, bytes, offset);
}
ssize_t __wrap_pread64(int fd, void *data, size_t bytes, off_t offset)
{
    return read_bent(__real_pread64, fd, data, bytes, offset);
}
ssize_t __wrap_pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
    return write_bent(__real_pwrite, fd, data, bytes, offset);
}
ssize_t __wrap_pwrite64(int fd, const void *data, size_t bytes, off_t offset)
{
    return write_bent(__real_pwrite64, fd, data, bytes, offset);
}

struct spill_block *__real_spill_ring_wait(struct spill_ring *ring, int *result);
struct spill_block *__wrap_spill_ring_wait(struct spill_ring *ring, int *result);
struct spill_block *__wrap_spill_ring_wait(struct spill_ring *ring, int *result)
{
    struct spill_block *block = __real_spill_ring_wait(ring, result);
    if (!is_bent(block->writes, block->fd, spill_block_offset(block)))
        return block;
    if (injected.hook)
        injected.hook();
    if (injected.error)
        *result = -injected.error;
    else if (*result > 0)
        *result = (int)bend_bytes((size_t)*result);
    return block;
}

/* liburing's calls: 0, or what they return instead. */
static int refuse_setup, refuse_buffers, refuse_submit;
static int submits_before, refusals; /* the first that go through, and how many then don't */

int __real_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
    return refuse_setup ? refuse_setup : __real_io_uring_queue_init(entries, ring, flags);
}

int __real_io_uring_register_buffers(struct io_uring *ring, const struct iovec *buffers,
                                     unsigned count);
int __wrap_io_uring_register_buffers(struct io_uring *ring, const struct iovec *buffers,
                                     unsigned count);
int __wrap_io_uring_register_buffers(struct io_uring *ring, const struct iovec *buffers,
                                     unsigned count)
{
    return refuse_buffers ? refuse_buffers : __real_io_uring_register_buffers(ring, buffers, count);
}

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring)
{
    if (refuse_submit && submits_before-- <= 0 && refusals-- > 0)
        return refuse_submit;
    return __real_io_uring_submit(ring);
}

typedef void *mapper(void *, size_t, int, int, int, off_t);
mapper __real_mmap, __real_mmap64, __wrap_mmap, __wrap_mmap64;
static bool no_memory;

static void *map_bent(mapper *real, void *where, size_t bytes, int protection, int flags, int fd,
                      off_t offset)
{
    if (!no_memory)
        return real(where, bytes, protection, flags, fd, offset);
    errno = ENOMEM;
    return MAP_FAILED;
}
void *__wrap_mmap(void *where, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return map_bent(__real_mmap, where, bytes, protection, flags, fd, offset);
}
void *__wrap_mmap64(void *where, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return map_bent(__real_mmap64, where, bytes, protection, flags, fd, offset);
}

typedef int allocator(int, int, off_t, off_t);
allocator __real_fallocate, __real_fallocate64, __wrap_fallocate, __wrap_fallocate64;
static unsigned fallocates;
static off_t fallocated; /* bytes, by the last */
static int fallocate_error, interrupted_fallocates;

static int allocate_bent(allocator *real, int fd, int mode, off_t offset, off_t bytes)
{
    fallocates++;
    fallocated = bytes;
    if (interrupted_fallocates-- > 0) {
        errno = EINTR;
        return -1;
    }
    /* As ext4 does it: some of the room is taken, and the file is that long. */
    if (fallocate_error) {
        (void)!ftruncate(fd, bytes / 2);
        errno = fallocate_error;
        return -1;
    }
    return real(fd, mode, offset, bytes);
}
int __wrap_fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    return allocate_bent(__real_fallocate, fd, mode, offset, bytes);
}
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes)
{
    return allocate_bent(__real_fallocate64, fd, mode, offset, bytes);
}

/* --- files and engines --- */

static char disk_dir[64];

static int setup(void **state)
{
    (void)state;
    snprintf(disk_dir, sizeof disk_dir, "/tmp/mobula-test-spill-XXXXXX");
    return mkdtemp(disk_dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(disk_dir);
}

static int disarm(void **state)
{
    (void)state;
    memset(&injected, 0, sizeof injected);
    refuse_setup = refuse_buffers = refuse_submit = 0;
    no_memory = false;
    fallocate_error = interrupted_fallocates = 0;
    return 0;
}

/* A file that has no name any more. `flags`: O_DIRECT or 0. */
static int disk_file(int flags)
{
    char path[96];
    snprintf(path, sizeof path, "%s/file", disk_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | flags, 0600);
    assert_true(fd >= 0);
    unlink(path);
    return fd;
}

static bool has_direct(void)
{
    char path[96];
    snprintf(path, sizeof path, "%s/direct", disk_dir);
    cleanup_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600);
    unlink(path);
    return fd >= 0;
}

static int memory_file(void)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static uint64_t pattern(uint64_t seed, uint64_t word)
{
    uint64_t mixed = (seed * 0x100000001b3u + word + 1) * 0x9e3779b97f4a7c15u;
    return mixed ^ mixed >> 29;
}

/* Bytes that differ by file and place. */
static uint8_t *content_of(uint64_t seed, size_t bytes)
{
    uint64_t *content = malloc(bytes + sizeof *content);
    assert_non_null(content);
    for (size_t word = 0; word <= bytes / sizeof *content; word++)
        content[word] = pattern(seed, word);
    return (uint8_t *)content;
}

static int filled_file(int fd, uint64_t seed, size_t bytes)
{
    cleanup_free uint8_t *content = content_of(seed, bytes);
    /* With O_DIRECT these would have to be aligned. */
    int flags = fcntl(fd, F_GETFL);
    assert_int_equal(fcntl(fd, F_SETFL, flags & ~O_DIRECT), 0);
    assert_int_equal(mob_pwrite_full(fd, content, bytes, 0), 0);
    assert_int_equal(fcntl(fd, F_SETFL, flags), 0);
    return fd;
}

static void assert_holds(int fd, uint64_t seed, size_t bytes)
{
    cleanup_free uint8_t *content = content_of(seed, bytes), *found = malloc(bytes + 1);
    struct stat info;
    assert_int_equal(fstat(fd, &info), 0);
    assert_int_equal(info.st_size, bytes);
    int flags = fcntl(fd, F_GETFL);
    assert_int_equal(fcntl(fd, F_SETFL, flags & ~O_DIRECT), 0);
    assert_int_equal(mob_pread_full(fd, found, bytes + 1, 0), bytes);
    assert_memory_equal(found, content, bytes);
    assert_int_equal(fcntl(fd, F_SETFL, flags), 0);
}

FIXTURE void assert_sums(const struct spill_sum *sums, uint64_t seed, size_t bytes)
{
    cleanup_free uint8_t *content = content_of(seed, bytes);
    for (size_t at = 0; at < bytes; at += MIB, sums++) {
        XXH128_canonical_t sum;
        size_t length = bytes - at < MIB ? bytes - at : MIB;
        XXH128_canonicalFromHash(&sum, XXH3_128bits(content + at, length));
        assert_memory_equal(sums->bytes, sum.digest, 16);
    }
}

static void run(struct spill_io *io, struct spill_copy *copies, size_t count)
{
    running = true;
    spill_io_run(io, copies, count);
    running = false;
}

static struct spill_io *engine(bool plain)
{
    struct spill_io *io = NULL;
    struct mob_error err = {0};
    struct spill_io_options options = {.depth = 4, .plain = plain};
    assert_int_equal(spill_io_open(&options, &io, &err), 0);
    return io;
}

static void close_engine(struct spill_io **io)
{
    spill_io_close(*io);
}
#define cleanup_engine MOB_CLEANUP(close_engine)

static bool ring_works(void)
{
    cleanup_engine struct spill_io *io = engine(false);
    return !strncmp(spill_io_describe(io), "io_uring", 8);
}

FIXTURE unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

/* Runs a test with io_uring, if there is one, and without. */
static void with_both(void (*test)(struct spill_io *))
{
    for (int plain = 0; plain < 2; plain++) {
        if (!plain && !ring_works())
            continue;
        cleanup_engine struct spill_io *io = engine(plain);
        test(io);
        disarm(NULL);
    }
}

#endif
