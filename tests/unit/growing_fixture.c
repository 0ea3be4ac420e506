/* The fixture of the unit tests of growing files. See growing_fixture.h. */
#include "growing_fixture.h"

#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

struct faults faults;
char place[] = "/tmp/mobula-growing-XXXXXX", memory_dir[64], fast_dir[64];
bool mounted;
const char *disk_dir = place;
struct growing_pipes pipes;
bool have_pipes;
struct cipher_key *key;
struct file file = {.memory_fd = -1, .writer_fd = -1, .disk_fd = -1};

/* --- what is injected --- */

static dev_t memory_device;

static void step(void)
{
    int now = ++faults.steps;
    if (now == faults.write_at)
        faults.write();
    if (now == faults.kill_at)
        raise(SIGKILL);
}

void fail_disk_writes(int from, int until, int error)
{
    faults.disk_writes = 0;
    faults.fail_from = from;
    faults.fail_until = until;
    faults.fail_error = error;
    faults.quarters = 2;
}

void mend_disk(void)
{
    faults.fail_until = 0;
}

ssize_t __wrap_pwrite64(int fd, const void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buffer, size_t bytes, off_t offset)
{
    struct stat info;
    size_t part = bytes * (size_t)faults.quarters / 4 / PAGE * PAGE;
    bool to_disk = fstat(fd, &info) == 0 && info.st_dev != memory_device;
    if (to_disk && faults.no_direct && fcntl(fd, F_GETFL) & O_DIRECT) {
        errno = EINVAL;
        return -1;
    }
    bool fails = to_disk && ++faults.disk_writes >= faults.fail_from &&
                 faults.disk_writes < faults.fail_until;
    bool dies_here = faults.steps + 1 == faults.kill_at;
    if ((fails || dies_here) && part)
        __real_pwrite64(fd, buffer, part, offset);
    if (fails) {
        errno = faults.fail_error;
        return -1;
    }
    if (file.shared)
        file.shared->in_write = dies_here;
    step();
    if (to_disk && faults.disk_write_at_most && bytes > faults.disk_write_at_most)
        bytes = faults.disk_write_at_most;
    return __real_pwrite64(fd, buffer, bytes, offset);
}

int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t bytes)
{
    step();
    return __real_fallocate64(fd, mode, offset, bytes);
}

int __wrap_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size)
{
    step();
    return __real_ftruncate64(fd, size);
}

ssize_t __real_splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t bytes,
                      unsigned flags);
ssize_t __wrap_splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t bytes,
                      unsigned flags);
ssize_t __wrap_splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t bytes,
                      unsigned flags)
{
    step();
    return __real_splice(in, in_offset, out, out_offset, bytes, flags);
}

ssize_t __real_tee(int in, int out, size_t bytes, unsigned flags);
ssize_t __wrap_tee(int in, int out, size_t bytes, unsigned flags);
ssize_t __wrap_tee(int in, int out, size_t bytes, unsigned flags)
{
    step();
    return __real_tee(in, out, bytes, flags);
}

int __real_madvise(void *address, size_t bytes, int advice);
int __wrap_madvise(void *address, size_t bytes, int advice);
int __wrap_madvise(void *address, size_t bytes, int advice)
{
    if (advice != 23 /* MADV_POPULATE_WRITE */)
        return __real_madvise(address, bytes, advice); /* the allocator's, or a sanitizer's */
    step();
    return __real_madvise(address, bytes, advice);
}

bool dies(int at, int quarters, errint_t (*call)(const void *), const void *argument)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(60);
        faults.steps = 0;
        faults.kill_at = at;
        faults.quarters = quarters;
        _exit(call(argument) != 0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

/* --- the place --- */

bool mount_private(const char *path, const char *options)
{
    static bool unshared;
    if (!unshared &&
        (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0))
        return false;
    unshared = true;
    return mount("mobula-test", path, "tmpfs", MS_NOSUID | MS_NODEV, options) == 0;
}

/* A mount that is in the way is one of ours. */
static int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info, (void)type, (void)walk;
    if (remove(path) < 0 && errno == EBUSY && umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
        return remove(path);
    return 0;
}

static void remove_place(void)
{
    nftw(memory_dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    nftw(place, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static bool make_memory(const char *options)
{
    struct stat info;
    snprintf(memory_dir, sizeof memory_dir, "%s/memory", place);
    if (mkdir(memory_dir, 0700) < 0)
        return false;
    mounted = mount_private(memory_dir, options);
    if (!mounted) {
        snprintf(memory_dir, sizeof memory_dir, "/dev/shm/mobula-growing-XXXXXX");
        if (!mkdtemp(memory_dir))
            return false;
    }
    if (stat(memory_dir, &info) < 0)
        return false;
    memory_device = info.st_dev;
    return true;
}

static bool make_key(void)
{
    struct mob_error err = {0};
    char path[64], bytes[32];
    memset(bytes, 'k', sizeof bytes);
    bytes[0] = 1; /* no text */
    snprintf(path, sizeof path, "%s/key", place);
    return mob_write_file(AT_FDCWD, path, bytes, sizeof bytes, 0600) == 0 &&
           cipher_key_load(path, &key, &err) == 0;
}

int set_up(void **state)
{
    (void)state;
    struct mob_error err = {0};
    alarm(300); /* a test that fails with a hold in force would stop the next one for ever */
    if (!mkdtemp(place))
        return -1;
    if (!make_memory("size=1g,huge=within_size")) {
        remove_place();
        return -1;
    }
    have_pipes = growing_pipes_open(&pipes, &err) == 0;
    if (!have_pipes)
        print_message("units can't be frozen here: %s\n", err.message);
    return 0;
}

int set_up_encrypted(void **state)
{
    (void)state;
    if (!mkdtemp(place))
        return -1;
    snprintf(fast_dir, sizeof fast_dir, "%s/fast", place);
    if (mkdir(fast_dir, 0700) < 0 || !make_memory("size=256m") || !make_key()) {
        remove_place();
        return -1;
    }
    if (mounted)
        mount_private(fast_dir, "size=256m"); /* else it is as fast as the disk */
    return 0;
}

int tear_down(void **state)
{
    (void)state;
    cipher_key_free(key);
    if (have_pipes)
        growing_pipes_close(&pipes);
    remove_place();
    return 0;
}

/* --- a file, and what it should be --- */

int open_in(const char *dir, const char *name, int flags)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, flags | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

static void remove_in(const char *dir, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

errint_t note(void *argument, const struct growing_state *state)
{
    struct shared *shared = argument;
    step();
    if (++shared->notes == shared->note_fails_at)
        return shared->note_error;
    shared->state = *state;
    return 0;
}

void attach(const struct growing_state *state)
{
    struct growing_disk disk = {.fd = file.disk_fd};
    if (file.encrypted) {
        disk.key = key;
        disk.file = FILE_NUMBER;
    }
    assert_int_equal(growing_mover_open(&file.mover, have_pipes ? &pipes : NULL), 0);
    assert_int_equal(growing_init(&file.growing, file.memory_fd, &disk, file.exclusive, state, note,
                                  file.shared),
                     0);
}

void detach(void)
{
    growing_destroy(&file.growing);
    growing_mover_close(&file.mover);
}

/* Zeros. A file as long as the one before gets the same pages again: new ones take longer. */
static struct shared *new_shared(size_t bytes)
{
    static struct shared *shared;
    static size_t shared_bytes;
    if (bytes == shared_bytes)
        return memset(shared, 0, bytes);
    if (shared)
        munmap(shared, shared_bytes);
    shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED);
    shared_bytes = bytes;
    return shared;
}

static void open_file(uint64_t limit, int memory_flags)
{
    file.shared = new_shared(sizeof *file.shared + (size_t)limit);
    file.shared->note_error = -ENOSPC;
    file.writer_fd = open_in(memory_dir, "file", O_WRONLY | O_CREAT | O_TRUNC);
    file.memory_fd = open_in(memory_dir, "file", memory_flags);
    file.disk_fd = open_in(disk_dir, "disk", O_RDWR | O_CREAT | O_TRUNC);
    attach(NULL);
}

void file_new(uint64_t limit, bool exclusive)
{
    file = (struct file){.exclusive = exclusive};
    open_file(limit, O_RDONLY);
}

void file_new_encrypted(uint64_t limit)
{
    file = (struct file){.exclusive = true, .encrypted = true};
    open_file(limit, O_RDWR);
}

void file_close(void)
{
    detach();
    file.shared = NULL;
    close(file.writer_fd);
    close(file.memory_fd);
    close(file.disk_fd);
    remove_in(memory_dir, "file");
    remove_in(disk_dir, "disk");
    faults = (struct faults){0};
}

void restart(void)
{
    struct growing_state state = file.shared->state;
    detach();
    attach(&state);
    faults.steps = faults.kill_at = faults.write_at = 0;
}

void resume(void)
{
    errint_t error = growing_resume(&file.growing, &file.mover, &file.err);
    if (error)
        fail_msg("growing_resume: %s", file.err.message);
}

void succeed(void)
{
    restart();
    resume();
}

static errint_t try_to_resume(const void *unused)
{
    (void)unused;
    return growing_resume(&file.growing, &file.mover, &file.err);
}

bool dies_resuming(int at, int quarters)
{
    return dies(at, quarters, try_to_resume, NULL);
}

/* --- changing it --- */

static void model_bytes(const void *bytes, size_t count, uint64_t offset)
{
    memcpy(file.shared->model + offset, bytes, count);
    if (offset + count > file.size)
        file.size = offset + count;
}

void put(const void *bytes, size_t count, uint64_t offset)
{
    assert_int_equal(__real_pwrite64(file.writer_fd, bytes, count, (off_t)offset), count);
    model_bytes(bytes, count, offset);
}

void make_pattern(unsigned char *out, uint64_t offset, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        uint64_t at = offset + i, word = (at >> 3) * UINT64_C(0x9e3779b97f4a7c15);
        word ^= word >> 29;
        out[i] = (unsigned char)(word >> (at & 7) * 8) | 1; /* never 0 */
    }
}

void put_pattern(uint64_t offset, uint64_t end)
{
    static unsigned char buffer[1 << 20];
    for (; offset < end; offset += sizeof buffer) {
        size_t piece = end - offset < sizeof buffer ? (size_t)(end - offset) : sizeof buffer;
        make_pattern(buffer, offset, piece);
        put(buffer, piece, offset);
    }
}

void put_through(const void *bytes, size_t count, uint64_t offset)
{
    assert_int_equal(growing_write(&file.growing, bytes, count, offset), 0);
    model_bytes(bytes, count, offset);
}

void cut(uint64_t size)
{
    assert_int_equal(growing_truncate(&file.growing, size), 0);
    if (size < file.size)
        memset(file.shared->model + size, 0, (size_t)(file.size - size));
    file.size = size;
}

void punch(uint64_t offset, uint64_t bytes)
{
    assert_int_equal(growing_punch(&file.growing, offset, bytes), 0);
    if (offset < file.size)
        memset(file.shared->model + offset, 0,
               (size_t)(bytes < file.size - offset ? bytes : file.size - offset));
}

void move_to(uint64_t until)
{
    errint_t error = growing_move(&file.growing, &file.mover, until, &file.err);
    if (error)
        fail_msg("growing_move: %s", file.err.message);
}

static const char marker[] = "NEVER_ON_DISK_16";

void make_bytes(unsigned char *out, size_t bytes)
{
    static uint64_t writes;
    writes++;
    for (size_t i = 0; i < bytes; i += 32) {
        uint64_t cell[4] = {0, 0, writes, i | 1};
        memcpy(cell, marker, 16);
        memcpy(out + i, cell, bytes - i < sizeof cell ? bytes - i : sizeof cell);
    }
}

void put_new(size_t count, uint64_t offset)
{
    unsigned char *bytes = malloc(count);
    assert_non_null(bytes);
    make_bytes(bytes, count);
    put_through(bytes, count, offset);
    free(bytes);
}

/* --- looking at it --- */

bool is_torn(void)
{
    bool torn;
    assert_int_equal(growing_is_torn(&file.growing, &torn), 0);
    return torn;
}

static struct stat memory_stat(void)
{
    struct stat info;
    assert_int_equal(fstat(file.memory_fd, &info), 0);
    return info;
}

uint64_t size_in_memory(void)
{
    return (uint64_t)memory_stat().st_size;
}

uint64_t memory_bytes(void)
{
    return (uint64_t)memory_stat().st_blocks * 512;
}

static void assert_model(const unsigned char *got)
{
    const unsigned char *model = file.shared->model;
    if (memcmp(got, model, (size_t)file.size) == 0)
        return;
    size_t i = 0;
    while (got[i] == model[i])
        i++;
    fail_msg("byte %zu of %llu is %d, not %d", i, (unsigned long long)file.size, got[i], model[i]);
}

unsigned char *read_everything(void)
{
    assert_int_equal(size_in_memory(), file.size);
    unsigned char *buffer = malloc((size_t)file.size + 1);
    assert_non_null(buffer);
    memset(buffer, 0xee, (size_t)file.size);
    assert_int_equal(growing_read(&file.growing, buffer, (size_t)file.size + 1, 0), file.size);
    return buffer;
}

/* What is on disk is not waited for. */
static void assert_reads_now(void)
{
    unsigned char got[5000];
    for (uint64_t at = 0; file.exclusive && at < file.size; at += UNIT) {
        size_t count = file.size - at < sizeof got ? (size_t)(file.size - at) : sizeof got;
        ssize_t now = growing_read_now(&file.growing, got, count, at);
        assert_int_equal(now, at < growing_moved(&file.growing) ? -EAGAIN : (ssize_t)count);
        if (now > 0)
            assert_memory_equal(got, file.shared->model + at, count);
    }
}

void assert_reads(void)
{
    unsigned char *got = read_everything();
    assert_model(got);
    free(got);
    assert_reads_now();
}

/* What is in the disk file. */
static unsigned char *disk_bytes(size_t *bytes)
{
    struct stat info;
    assert_int_equal(fstat(file.disk_fd, &info), 0);
    *bytes = (size_t)info.st_size;
    unsigned char *buffer = malloc(*bytes + 1);
    assert_non_null(buffer);
    assert_int_equal(mob_pread_full(file.disk_fd, buffer, *bytes, 0), *bytes);
    return buffer;
}

static void assert_no_marker(const unsigned char *raw, size_t bytes)
{
    assert_null(memmem(raw, bytes, marker, sizeof marker - 1));
}

void assert_secret(void)
{
    size_t bytes;
    unsigned char *raw = disk_bytes(&bytes);
    assert_no_marker(raw, bytes);
    free(raw);
}

/* Every block is there, with as much as it should have. */
static void assert_blocks(const unsigned char *raw)
{
    for (uint64_t i = 0; i * BLOCK < file.size; i++) {
        size_t has;
        uint64_t left = file.size - i * BLOCK;
        assert_int_equal(cipher_head_bytes(raw + cipher_block_offset(i), FILE_NUMBER, i, &has), 0);
        assert_int_equal(has, left < BLOCK ? left : BLOCK);
    }
}

static void assert_encrypted(const unsigned char *raw, size_t bytes)
{
    uint64_t bad;
    unsigned char *got = malloc((size_t)file.size + 1);
    assert_non_null(got);
    assert_int_equal(bytes, cipher_file_bytes(file.size));
    const struct cipher_file on_disk = {
        .fd = file.disk_fd, .number = FILE_NUMBER, .size = file.size};
    assert_int_equal(cipher_pread(key, &on_disk, got, (size_t)file.size + 1, 0, &bad), file.size);
    assert_model(got);
    assert_blocks(raw);
    assert_no_marker(raw, bytes);
    free(got);
}

void assert_disk(void)
{
    size_t bytes;
    unsigned char *raw = disk_bytes(&bytes);
    if (file.encrypted) {
        assert_encrypted(raw, bytes);
    } else {
        assert_int_equal(bytes, file.size);
        assert_model(raw);
    }
    free(raw);
}

void assemble(void)
{
    errint_t error = growing_assemble(&file.growing, &file.mover, &file.err);
    if (error)
        fail_msg("growing_assemble: %s", file.err.message);
    assert_disk();
    assert_int_equal(memory_bytes(), 0);
}

void assert_assembles(void)
{
    assemble();
    assert_reads();
    assert_int_equal(memory_bytes(), 0);
}

bool assert_exact_or_torn(bool whole)
{
    if (is_torn()) {
        assert_false(whole);
        unsigned char byte;
        assert_int_equal(growing_read(&file.growing, &byte, 1, UNIT), -EIO);
        assert_int_equal(growing_assemble(&file.growing, &file.mover, NULL), -EIO);
        return true;
    }
    assert_reads();
    assert_assembles();
    return false;
}
