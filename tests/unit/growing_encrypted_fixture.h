/* What the unit tests of growing files with a key share: a file, its model, and faults. The
 * programs wrap pwrite64, fallocate64 and ftruncate64. */
#ifndef MOBULA_TESTS_GROWING_ENCRYPTED_FIXTURE_H
#define MOBULA_TESTS_GROWING_ENCRYPTED_FIXTURE_H

#include "unit.h"

#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "core/base/util.h"
#include "core/store/growing.h"

#define UNIT ((uint64_t)GROWING_UNIT_BYTES)
#define BLOCK ((uint64_t)CIPHER_BLOCK_BYTES)
enum { PAGE = 4096, TAIL = 12345, FILE_NUMBER = 77 };
static const uint64_t SMALL = UNIT + TAIL, LIMIT = 6 * UNIT, SCENE_LIMIT = 5 * UNIT;

/* --- what is injected: -Wl,--wrap=... --- */

/* Each call is a step. Of the write that is the chosen one a part is done, as many quarters. */
static atomic_int steps, kill_at;
static int cut_quarters;
static int disk_writes, full_from, full_until; /* these writes to disk find it full */
static bool no_direct;
static dev_t memory_device;
static bool *died_in_write;

static inline void step(void)
{
    if (++steps == kill_at)
        raise(SIGKILL);
}

ssize_t __real_pwrite64(int fd, const void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buffer, size_t bytes, off_t offset)
{
    struct stat info;
    size_t part = bytes / 4 * (size_t)cut_quarters / PAGE * PAGE;
    bool to_disk = fstat(fd, &info) == 0 && info.st_dev != memory_device;
    if (to_disk && no_direct && fcntl(fd, F_GETFL) & O_DIRECT) {
        errno = EINVAL;
        return -1;
    }
    bool full = to_disk && ++disk_writes >= full_from && disk_writes < full_until;
    if ((full || steps + 1 == kill_at) && part)
        __real_pwrite64(fd, buffer, part, offset);
    *died_in_write = steps + 1 == kill_at;
    if (full) {
        errno = ENOSPC;
        return -1;
    }
    step();
    return __real_pwrite64(fd, buffer, bytes, offset);
}

int __real_fallocate64(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes)
{
    step();
    return __real_fallocate64(fd, mode, offset, bytes);
}

int __real_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size)
{
    step();
    return __real_ftruncate64(fd, size);
}

/* --- a file, and what it should be --- */

/* Shared with the processes that die. */
struct shared {
    struct growing_state state; /* as noted */
    int notes, note_fails_at;
    bool in_write; /* it died in one */
    unsigned char model[];
};

static struct {
    struct growing growing;
    struct growing_mover mover;
    struct mob_error err;
    struct shared *shared;
    uint64_t size;
    int memory_fd, disk_fd;
} file;

/* --- the place --- */

static char place[] = "/tmp/mobula-encrypted-XXXXXX", memory_dir[64], fast_dir[64];
static const char *disk_dir = place; /* or fast_dir, where the disk doesn't matter */
static bool mounted;
static struct cipher_key *key;

/* Two mounts of our own, which go with us. */
static inline bool mount_private(void)
{
    const char *options = "size=256m";
    return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("mobula-test", fast_dir, "tmpfs", MS_NOSUID | MS_NODEV, options) == 0 &&
           mount("mobula-test", memory_dir, "tmpfs", MS_NOSUID | MS_NODEV, options) == 0;
}

static inline int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info, (void)type, (void)walk;
    return remove(path);
}

static inline int open_in(const char *dir, const char *name, int flags)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, flags | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

static inline int set_up(void **state)
{
    (void)state;
    struct stat info;
    struct mob_error err = {0};
    char path[128], bytes[32];
    if (!mkdtemp(place))
        return -1;
    snprintf(memory_dir, sizeof memory_dir, "%s/memory", place);
    snprintf(fast_dir, sizeof fast_dir, "%s/fast", place);
    if (mkdir(memory_dir, 0700) < 0 || mkdir(fast_dir, 0700) < 0)
        return -1;
    mounted = mount_private();
    if (!mounted) {
        rmdir(memory_dir);
        snprintf(memory_dir, sizeof memory_dir, "/dev/shm/mobula-encrypted-XXXXXX");
        if (!mkdtemp(memory_dir))
            return -1;
    }
    if (stat(memory_dir, &info) < 0)
        return -1;
    memory_device = info.st_dev;
    file.shared = mmap(NULL, sizeof *file.shared + LIMIT, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (file.shared == MAP_FAILED)
        return -1;
    memset(bytes, 'k', sizeof bytes);
    bytes[0] = 1; /* no text */
    cleanup_fd int fd = open_in(place, "key", O_WRONLY | O_CREAT);
    snprintf(path, sizeof path, "%s/key", place);
    died_in_write = &file.shared->in_write;
    return mob_write_full(fd, bytes, sizeof bytes) || cipher_key_load(path, &key, &err) ? -1 : 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    cipher_key_free(key);
    if (mounted)
        umount2(memory_dir, MNT_DETACH);
    umount2(fast_dir, MNT_DETACH);
    nftw(memory_dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    nftw(place, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}

/* --- making it, and looking at it --- */

static inline errint_t note(void *argument, const struct growing_state *state)
{
    struct shared *shared = argument;
    step();
    if (++shared->notes == shared->note_fails_at)
        return -ENOSPC;
    shared->state = *state;
    return 0;
}

static inline void attach(const struct growing_state *state)
{
    struct growing_disk disk = {.fd = file.disk_fd, .key = key, .file = FILE_NUMBER};
    assert_int_equal(growing_mover_open(&file.mover, NULL), 0);
    assert_int_equal(
        growing_init(&file.growing, file.memory_fd, &disk, true, state, note, file.shared), 0);
}

static inline void detach(void)
{
    growing_destroy(&file.growing);
    growing_mover_close(&file.mover);
}

static inline void open_file(void)
{
    file.size = 0;
    memset(file.shared, 0, sizeof *file.shared + LIMIT);
    file.memory_fd = open_in(memory_dir, "file", O_RDWR | O_CREAT | O_TRUNC);
    file.disk_fd = open_in(disk_dir, "disk", O_RDWR | O_CREAT | O_TRUNC);
    attach(NULL);
}

static inline void close_file(void)
{
    detach();
    close(file.memory_fd);
    close(file.disk_fd);
    steps = kill_at = disk_writes = full_from = full_until = cut_quarters = 0;
    no_direct = false;
}

static inline void resume(void)
{
    errint_t error = growing_resume(&file.growing, &file.mover, &file.err);
    if (error)
        fail_msg("growing_resume: %s", file.err.message);
}

/* A server dies, the next one finds the files and what was noted. */
static inline void succeed(void)
{
    detach();
    struct growing_state state = file.shared->state;
    attach(&state);
}

static const char marker[] = "NEVER_ON_DISK_16";

/* No two writes have the same bytes, and all of them have the marker. */
static inline void make_bytes(unsigned char *out, size_t bytes)
{
    static uint64_t writes;
    writes++;
    for (size_t i = 0; i < bytes; i += 32) {
        uint64_t cell[4] = {0, 0, writes, i | 1};
        memcpy(cell, marker, 16);
        memcpy(out + i, cell, bytes - i < sizeof cell ? bytes - i : sizeof cell);
    }
}

static inline unsigned char *disk_bytes(size_t *bytes)
{
    struct stat info;
    assert_int_equal(fstat(file.disk_fd, &info), 0);
    *bytes = (size_t)info.st_size;
    unsigned char *buffer = malloc(*bytes + 1);
    assert_non_null(buffer);
    assert_int_equal(mob_pread_full(file.disk_fd, buffer, *bytes, 0), *bytes);
    return buffer;
}

static inline void assert_secret(void)
{
    size_t bytes;
    unsigned char *buffer = disk_bytes(&bytes);
    assert_null(memmem(buffer, bytes, marker, sizeof marker - 1));
    free(buffer);
}

static inline uint64_t size_in_memory(void)
{
    struct stat info;
    assert_int_equal(fstat(file.memory_fd, &info), 0);
    return (uint64_t)info.st_size;
}

static inline unsigned char *read_everything(void)
{
    assert_int_equal(size_in_memory(), file.size);
    unsigned char *buffer = malloc((size_t)file.size + 1);
    assert_non_null(buffer);
    memset(buffer, 0xee, (size_t)file.size);
    assert_int_equal(growing_read(&file.growing, buffer, (size_t)file.size + 1, 0), file.size);
    return buffer;
}

/* Outside of [begin, end) it is the model; inside each byte is that or `other`'s. */
static inline void assert_reads_or(uint64_t begin, uint64_t end, const unsigned char *other)
{
    const unsigned char *model = file.shared->model;
    unsigned char *got = read_everything();
    for (uint64_t i = 0; i < file.size; i++)
        if (got[i] != model[i] && (i < begin || i >= end || got[i] != other[i]))
            fail_msg("byte %llu of %llu is %d, not %d", (unsigned long long)i,
                     (unsigned long long)file.size, got[i], model[i]);
    free(got);
}

static inline void assert_reads(void)
{
    unsigned char *got = read_everything();
    bool same = memcmp(got, file.shared->model, (size_t)file.size) == 0;
    free(got);
    if (!same)
        assert_reads_or(0, 0, NULL);
}

/* The disk file alone is the content: every block is there, with as much as it should have. */
static inline void assert_object(void)
{
    size_t bytes;
    uint64_t bad;
    unsigned char *raw = disk_bytes(&bytes), *got = malloc((size_t)file.size + 1);
    assert_int_equal(bytes, cipher_file_bytes(file.size));
    assert_non_null(got);
    assert_int_equal(cipher_pread(key, file.disk_fd, FILE_NUMBER, file.size, got,
                                  (size_t)file.size + 1, 0, &bad),
                     file.size);
    assert_memory_equal(got, file.shared->model, (size_t)file.size);
    for (uint64_t i = 0; i * BLOCK < file.size; i++) {
        size_t has;
        uint64_t left = file.size - i * BLOCK;
        assert_int_equal(cipher_head_bytes(raw + cipher_block_offset(i), FILE_NUMBER, i, &has), 0);
        assert_int_equal(has, left < BLOCK ? left : BLOCK);
    }
    assert_null(memmem(raw, bytes, marker, sizeof marker - 1));
    free(got);
    free(raw);
}

static inline void assemble(void)
{
    struct stat info;
    errint_t error = growing_assemble(&file.growing, &file.mover, &file.err);
    if (error)
        fail_msg("growing_assemble: %s", file.err.message);
    assert_object();
    assert_int_equal(fstat(file.memory_fd, &info), 0);
    assert_int_equal(info.st_blocks, 0);
}

static inline void move_to(uint64_t until)
{
    errint_t error = growing_move(&file.growing, &file.mover, until, &file.err);
    if (error)
        fail_msg("growing_move: %s", file.err.message);
}

static inline void put(const void *bytes, size_t count, uint64_t offset)
{
    assert_int_equal(growing_write(&file.growing, bytes, count, offset), 0);
    memcpy(file.shared->model + offset, bytes, count);
    if (offset + count > file.size)
        file.size = offset + count;
}

static inline void put_new(size_t count, uint64_t offset)
{
    unsigned char *bytes = malloc(count);
    assert_non_null(bytes);
    make_bytes(bytes, count);
    put(bytes, count, offset);
    free(bytes);
}

static inline void cut(uint64_t size)
{
    assert_int_equal(growing_truncate(&file.growing, size), 0);
    if (size < file.size)
        memset(file.shared->model + size, 0, (size_t)(file.size - size));
    file.size = size;
}

static inline void punch(uint64_t offset, uint64_t bytes)
{
    assert_int_equal(growing_punch(&file.growing, offset, bytes), 0);
    if (offset < file.size)
        memset(file.shared->model + offset, 0,
               (size_t)(bytes < file.size - offset ? bytes : file.size - offset));
}

#endif
