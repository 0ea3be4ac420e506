/* core/store/growing with a key: what is on disk is never in plaintext, and is exact whatever is
 * written, cut or punched, and wherever the server is killed or the disk is full. */
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

static void step(void)
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
static bool mount_private(void)
{
    const char *options = "size=256m";
    return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("mobula-test", fast_dir, "tmpfs", MS_NOSUID | MS_NODEV, options) == 0 &&
           mount("mobula-test", memory_dir, "tmpfs", MS_NOSUID | MS_NODEV, options) == 0;
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info, (void)type, (void)walk;
    return remove(path);
}

static int open_in(const char *dir, const char *name, int flags)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, flags | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

static int set_up(void **state)
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
    cleanup_fd int fd = open_in(place, "key", O_WRONLY | O_CREAT);
    snprintf(path, sizeof path, "%s/key", place);
    died_in_write = &file.shared->in_write;
    return mob_write_full(fd, bytes, sizeof bytes) || cipher_key_load(path, &key, &err) ? -1 : 0;
}

static int tear_down(void **state)
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

static errint_t note(void *argument, const struct growing_state *state)
{
    struct shared *shared = argument;
    step();
    if (++shared->notes == shared->note_fails_at)
        return -ENOSPC;
    shared->state = *state;
    return 0;
}

static void attach(const struct growing_state *state)
{
    struct growing_disk disk = {.fd = file.disk_fd, .key = key, .file = FILE_NUMBER};
    assert_int_equal(growing_mover_open(&file.mover, NULL), 0);
    assert_int_equal(
        growing_init(&file.growing, file.memory_fd, &disk, true, state, note, file.shared), 0);
}

static void detach(void)
{
    growing_destroy(&file.growing);
    growing_mover_close(&file.mover);
}

static void open_file(void)
{
    file.size = 0;
    memset(file.shared, 0, sizeof *file.shared + LIMIT);
    file.memory_fd = open_in(memory_dir, "file", O_RDWR | O_CREAT | O_TRUNC);
    file.disk_fd = open_in(disk_dir, "disk", O_RDWR | O_CREAT | O_TRUNC);
    attach(NULL);
}

static void close_file(void)
{
    detach();
    close(file.memory_fd);
    close(file.disk_fd);
    steps = kill_at = disk_writes = full_from = full_until = cut_quarters = 0;
    no_direct = false;
}

static void resume(void)
{
    errint_t error = growing_resume(&file.growing, &file.mover, &file.err);
    if (error)
        fail_msg("growing_resume: %s", file.err.message);
}

/* A server dies, the next one finds the files and what was noted. */
static void succeed(void)
{
    detach();
    struct growing_state state = file.shared->state;
    attach(&state);
}

static const char marker[] = "NEVER_ON_DISK_16";

/* No two writes have the same bytes, and all of them have the marker. */
static void make_bytes(unsigned char *out, size_t bytes)
{
    static uint64_t writes;
    writes++;
    for (size_t i = 0; i < bytes; i += 32) {
        uint64_t cell[4] = {0, 0, writes, i | 1};
        memcpy(cell, marker, 16);
        memcpy(out + i, cell, bytes - i < sizeof cell ? bytes - i : sizeof cell);
    }
}

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

static void assert_secret(void)
{
    size_t bytes;
    unsigned char *buffer = disk_bytes(&bytes);
    assert_null(memmem(buffer, bytes, marker, sizeof marker - 1));
    free(buffer);
}

static uint64_t size_in_memory(void)
{
    struct stat info;
    assert_int_equal(fstat(file.memory_fd, &info), 0);
    return (uint64_t)info.st_size;
}

static unsigned char *read_everything(void)
{
    assert_int_equal(size_in_memory(), file.size);
    unsigned char *buffer = malloc((size_t)file.size + 1);
    assert_non_null(buffer);
    memset(buffer, 0xee, (size_t)file.size);
    assert_int_equal(growing_read(&file.growing, buffer, (size_t)file.size + 1, 0), file.size);
    return buffer;
}

/* Outside of [begin, end) it is the model; inside each byte is that or `other`'s. */
static void assert_reads_or(uint64_t begin, uint64_t end, const unsigned char *other)
{
    const unsigned char *model = file.shared->model;
    unsigned char *got = read_everything();
    for (uint64_t i = 0; i < file.size; i++)
        if (got[i] != model[i] && (i < begin || i >= end || got[i] != other[i]))
            fail_msg("byte %llu of %llu is %d, not %d", (unsigned long long)i,
                     (unsigned long long)file.size, got[i], model[i]);
    free(got);
}

static void assert_reads(void)
{
    unsigned char *got = read_everything();
    bool same = memcmp(got, file.shared->model, (size_t)file.size) == 0;
    free(got);
    if (!same)
        assert_reads_or(0, 0, NULL);
}

/* The disk file alone is the content: every block is there, with as much as it should have. */
static void assert_object(void)
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

static void assemble(void)
{
    struct stat info;
    errint_t error = growing_assemble(&file.growing, &file.mover, &file.err);
    if (error)
        fail_msg("growing_assemble: %s", file.err.message);
    assert_object();
    assert_int_equal(fstat(file.memory_fd, &info), 0);
    assert_int_equal(info.st_blocks, 0);
}

static void move_to(uint64_t until)
{
    errint_t error = growing_move(&file.growing, &file.mover, until, &file.err);
    if (error)
        fail_msg("growing_move: %s", file.err.message);
}

static void put(const void *bytes, size_t count, uint64_t offset)
{
    assert_int_equal(growing_write(&file.growing, bytes, count, offset), 0);
    memcpy(file.shared->model + offset, bytes, count);
    if (offset + count > file.size)
        file.size = offset + count;
}

static void put_new(size_t count, uint64_t offset)
{
    unsigned char *bytes = malloc(count);
    assert_non_null(bytes);
    make_bytes(bytes, count);
    put(bytes, count, offset);
    free(bytes);
}

static void cut(uint64_t size)
{
    assert_int_equal(growing_truncate(&file.growing, size), 0);
    if (size < file.size)
        memset(file.shared->model + size, 0, (size_t)(file.size - size));
    file.size = size;
}

static void punch(uint64_t offset, uint64_t bytes)
{
    assert_int_equal(growing_punch(&file.growing, offset, bytes), 0);
    if (offset < file.size)
        memset(file.shared->model + offset, 0,
               (size_t)(bytes < file.size - offset ? bytes : file.size - offset));
}

/* --- without faults --- */

static void an_encrypted_file_is_what_the_store_reads(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {0,           1,    PAGE,     BLOCK - 1,    BLOCK,
                                     BLOCK + 1,   UNIT, UNIT + 1, 3 * UNIT - 1, 5 * UNIT,
                                     5 * UNIT + 9};
    for (size_t i = 0; i < 2 * MOB_ARRAY_LENGTH(sizes); i++) {
        uint64_t size = sizes[i / 2];
        open_file();
        no_direct = i % 2;
        if (size)
            put_new((size_t)size, 0);
        move_to(size);
        assert_reads();
        assert_secret();
        assemble();
        assert_reads();
        succeed();
        resume();
        assert_reads();
        close_file();
    }
}

static void holes_become_blocks_of_zeros(void **state)
{
    (void)state;
    open_file();
    put_new(100, 3 * UNIT + 5);
    move_to(3 * UNIT);
    assert_int_equal(growing_moved(&file.growing), 3 * UNIT);
    assert_reads();
    cut(4 * UNIT + BLOCK + 7);
    assert_reads();
    assemble();
    /* Made longer where the moved part still is, and past that. */
    cut(5 * UNIT - 3);
    assert_reads();
    put_new(10, 5 * UNIT + 50);
    assert_reads();
    succeed();
    resume();
    assert_reads();
    assemble();
    close_file();
}

static uint64_t below(unsigned *seed, uint64_t limit)
{
    return ((uint64_t)rand_r(seed) << 31 | (uint64_t)rand_r(seed)) % limit;
}

static uint64_t pick_offset(unsigned *seed)
{
    uint64_t offset = below(seed, 5 * UNIT);
    switch (rand_r(seed) % 4) {
    case 0:
        return file.size < 5 * UNIT ? file.size : offset;
    case 1:
        return offset - offset % BLOCK;
    default:
        return offset;
    }
}

static void random_operation(unsigned *seed)
{
    static const uint64_t counts[] = {64, 5000, 128 << 10, 1 << 20};
    uint64_t count = below(seed, counts[rand_r(seed) % 4]) + 1;
    switch (rand_r(seed) % 16) {
    case 0:
        cut(pick_offset(seed));
        break;
    case 1:
        punch(pick_offset(seed), rand_r(seed) % 3 ? count : 2 * BLOCK);
        break;
    case 2:
    case 3:
        move_to(below(seed, LIMIT));
        break;
    case 4:
        assemble();
        break;
    case 5:
        succeed();
        resume();
        break;
    default:
        put_new((size_t)(rand_r(seed) % 8 ? count : BLOCK), pick_offset(seed));
    }
}

static void random_operations_are_exact(void **state)
{
    (void)state;
    const char *given = getenv("MOBULA_TEST_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    print_message("MOBULA_TEST_SEED=%u\n", seed);
    for (int round = 0; round < 4; round++) {
        open_file();
        no_direct = round % 2;
        for (int i = 0; i < 120; i++) {
            random_operation(&seed);
            uint64_t begin = below(&seed, LIMIT), count = below(&seed, 3 * BLOCK);
            unsigned char *got = malloc((size_t)count + 1);
            ssize_t is = growing_read(&file.growing, got, (size_t)count, begin);
            uint64_t left = begin < file.size ? file.size - begin : 0;
            assert_int_equal(is, count < left ? count : left);
            assert_memory_equal(got, file.shared->model + begin, (size_t)is);
            free(got);
            if (i % 4 == 0)
                assert_reads();
            if (i % 10 == 0)
                assert_secret();
        }
        assert_reads();
        assemble();
        close_file();
    }
}

/* --- what is refused --- */

static void states_and_modes_that_can_not_be_are_refused(void **state)
{
    (void)state;
    open_file();
    put_new(3 * UNIT, 0);
    move_to(UNIT);
    struct growing_disk disk = {.fd = file.disk_fd, .key = key, .file = FILE_NUMBER};
    struct growing_disk plain = {.fd = file.disk_fd};
    struct growing_state good = file.shared->state;
    const struct growing_state bad[] = {
        {.moved = UNIT},                                     /* of a plain file */
        {.moved = UNIT, .filled = UNIT + 1},                 /* more than was moved */
        {.moved = 2 * UNIT, .filled = UNIT},                 /* a unit without anything */
        {.moved = UNIT, .filled = UNIT, .redo = 3},          /* past the end */
        {.moved = UNIT, .filled = UNIT, .redo = UINT64_MAX}, /* nonsense */
        {.moved = UNIT, .filled = UNIT, .torn = true},
        {.moved = UINT64_MAX, .filled = UINT64_MAX},
    };
    struct growing it;
    assert_int_equal(growing_init(&it, file.memory_fd, &disk, false, NULL, note, NULL), -EINVAL);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(bad); i++)
        assert_int_equal(growing_init(&it, file.memory_fd, &disk, true, &bad[i], note, NULL),
                         -EINVAL);
    assert_int_equal(growing_init(&it, file.memory_fd, &plain, true, &good, note, NULL), -EINVAL);
    assert_int_equal(growing_init(&it, file.memory_fd, &disk, true, &good, note, NULL), 0);
    growing_destroy(&it);
    close_file();
}

static void flip(uint64_t at)
{
    unsigned char byte;
    assert_int_equal(pread(file.disk_fd, &byte, 1, (off_t)at), 1);
    byte ^= 1;
    assert_int_equal(__real_pwrite64(file.disk_fd, &byte, 1, (off_t)at), 1);
}

static void assert_block_is_bad(uint64_t block)
{
    static unsigned char buffer[CIPHER_BLOCK_BYTES];
    memset(buffer, 0xee, sizeof buffer);
    assert_int_equal(growing_read(&file.growing, buffer, sizeof buffer, block * BLOCK), -EIO);
    for (size_t i = 0; i < sizeof buffer; i++)
        assert_int_equal(buffer[i], 0);
    assert_int_equal(growing_write(&file.growing, "x", 1, block * BLOCK + 900000), -EIO);
    assert_int_equal(growing_punch(&file.growing, block * BLOCK + 900000, 5), -EIO);
    assert_int_equal(growing_read(&file.growing, buffer, sizeof buffer, (block ^ 1) * BLOCK),
                     sizeof buffer);
}

static void a_wrong_byte_on_disk_is_an_error(void **state)
{
    (void)state;
    static const uint64_t places[] = {
        0, 9, 13, 17, 25, 33, 73, 327, CIPHER_HEAD_BYTES, CIPHER_HEAD_BYTES + 700000};
    static const char zeros[CIPHER_HEAD_BYTES];
    static unsigned char raw[2][CIPHER_STRIDE_BYTES];
    open_file();
    put_new(3 * UNIT + TAIL, 0);
    move_to(3 * UNIT);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(places); i++) {
        flip(cipher_block_offset(2) + places[i]);
        assert_block_is_bad(2);
        flip(cipher_block_offset(2) + places[i]);
        assert_reads();
    }
    /* A head that was wiped, two blocks that changed places, a file that was cut. */
    for (int i = 0; i < 2; i++)
        assert_int_equal(mob_pread_full(file.disk_fd, raw[i], sizeof raw[i],
                                        (off_t)cipher_block_offset(2 + 3 * (uint64_t)i)),
                         sizeof raw[i]);
    assert_int_equal(__real_pwrite64(file.disk_fd, zeros, sizeof zeros, cipher_block_offset(2)),
                     sizeof zeros);
    assert_block_is_bad(2);
    assert_int_equal(__real_pwrite64(file.disk_fd, raw[1], sizeof raw[1], cipher_block_offset(2)),
                     sizeof raw[1]);
    assert_block_is_bad(2);
    assert_int_equal(__real_pwrite64(file.disk_fd, raw[0], sizeof raw[0], cipher_block_offset(2)),
                     sizeof raw[0]);
    assert_int_equal(__real_ftruncate64(file.disk_fd, cipher_block_offset(5)), 0);
    assert_block_is_bad(5);
    /* What is written as a whole is good again. */
    put_new(BLOCK, 5 * BLOCK);
    assert_reads();
    assemble();
    close_file();
}

/* --- kills --- */

enum kind { WRITE, PUNCH, CUT, MOVE, ASSEMBLE };
enum before { MOVED, ASSEMBLED, LENGTHENED };

/* One operation on a file of SMALL bytes, of which the first unit is on disk, or all. */
static const struct scene {
    const char *name;
    enum before before;
    enum kind kind;
    uint64_t offset, bytes;
} scenes[] = {
    {"a few bytes", MOVED, WRITE, 100, 50},
    {"over the border of two blocks", MOVED, WRITE, (1 << 20) - 5000, 10000},
    {"a whole block", MOVED, WRITE, 1 << 20, 1 << 20},
    {"from disk to memory", MOVED, WRITE, (2 << 20) - 4096, 8192},
    {"an append", ASSEMBLED, WRITE, UNIT + TAIL, 70000},
    {"an append of blocks", ASSEMBLED, WRITE, UNIT + TAIL, 3 << 20},
    {"behind the end", ASSEMBLED, WRITE, UNIT + (1 << 20) + 500, 70000},
    {"behind a longer end", LENGTHENED, WRITE, 2 * UNIT + 5, 1000},
    {"a punch", MOVED, PUNCH, (1 << 20) - 5000, 10000},
    {"a punch at the end", ASSEMBLED, PUNCH, UNIT + 5, 1 << 20},
    {"to the middle of a block", MOVED, CUT, (1 << 20) + 77, 0},
    {"to the middle of a block of another unit", ASSEMBLED, CUT, (1 << 20) + 77, 0},
    {"to the end of a block", ASSEMBLED, CUT, 1 << 20, 0},
    {"to a unit", ASSEMBLED, CUT, UNIT, 0},
    {"to less of the last block", ASSEMBLED, CUT, UNIT + 5, 0},
    {"to nothing", ASSEMBLED, CUT, 0, 0},
    {"a move after it was made longer", LENGTHENED, MOVE, 0, 0},
    {"assembling", MOVED, ASSEMBLE, 0, 0},
    {"assembling what was made longer", LENGTHENED, ASSEMBLE, 0, 0},
};

static unsigned char *scene_bytes, *scene_model; /* what is written, and the model afterwards */

static void begin_scene(const struct scene *scene)
{
    disk_dir = fast_dir;
    open_file();
    put_new(SMALL, 0);
    move_to(UNIT);
    if (scene->before != MOVED)
        assemble();
    if (scene->before == LENGTHENED) {
        cut(4 * UNIT);
        put_new(500, 3 * UNIT + 7);
    }
    make_bytes(scene_bytes, (size_t)scene->bytes);
    memcpy(scene_model, file.shared->model, SCENE_LIMIT);
    if (scene->kind == WRITE)
        memcpy(scene_model + scene->offset, scene_bytes, (size_t)scene->bytes);
    if (scene->kind == PUNCH)
        memset(scene_model + scene->offset, 0, (size_t)scene->bytes);
    if (scene->kind == CUT)
        memset(scene_model + scene->offset, 0, (size_t)(SCENE_LIMIT - scene->offset));
    steps = disk_writes = file.shared->notes = 0;
}

static errint_t play(const struct scene *scene)
{
    switch (scene->kind) {
    case WRITE:
        return growing_write(&file.growing, scene_bytes, (size_t)scene->bytes, scene->offset);
    case PUNCH:
        return growing_punch(&file.growing, scene->offset, scene->bytes);
    case CUT:
        return growing_truncate(&file.growing, scene->offset);
    case MOVE:
        return growing_move(&file.growing, &file.mover, UINT64_MAX, &file.err);
    default:
        return growing_assemble(&file.growing, &file.mover, &file.err);
    }
}

static bool die(const struct scene *scene, int at, int quarters)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(60);
        steps = 0;
        kill_at = at;
        cut_quarters = quarters;
        _exit((scene ? play(scene) : growing_resume(&file.growing, &file.mover, &file.err)) != 0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

/* Whatever was done of it, the rest is as it was. */
static void assert_scene_reads(const struct scene *scene)
{
    uint64_t size = size_in_memory(), before = file.size;
    uint64_t end = scene->offset + (scene->kind == CUT ? 0 : scene->bytes);
    assert_true(size == before || size == end ||
                (scene->kind == WRITE && size > before && size < end));
    file.size = size;
    if (scene->kind == CUT || scene->kind == MOVE || scene->kind == ASSEMBLE)
        assert_reads();
    else
        assert_reads_or(scene->offset, end, scene_model);
    assert_secret();
    file.size = before;
}

/* What there is can be gone on with: by another server, as an object, and when it is made longer.
 */
static void assert_scene_is_sound(void)
{
    uint64_t before = file.size;
    file.size = size_in_memory();
    unsigned char *got = read_everything();
    memset(file.shared->model, 0, (size_t)SCENE_LIMIT);
    memcpy(file.shared->model, got, (size_t)file.size);
    free(got);
    succeed();
    resume();
    assert_reads();
    assemble();
    if (file.size < before)
        put_new(3, before);
    assert_reads();
}

/* The request comes again; and all is well. */
static void end_scene(const struct scene *scene)
{
    assert_int_equal(play(scene), 0);
    memcpy(file.shared->model, scene_model, SCENE_LIMIT);
    file.size = size_in_memory();
    if (scene->kind == CUT)
        assert_int_equal(file.size, scene->offset);
    assert_reads();
    cut(file.size + 3 * PAGE); /* nothing is behind the end */
    assert_reads();
    assemble();
}

static void a_kill_at_any_step_loses_nothing(void **state)
{
    (void)state;
    int kills = 0;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(scenes); i++) {
        bool killed = true;
        for (int at = 1; killed; at++)
            for (int quarters = 0; quarters < 4; quarters++) {
                begin_scene(&scenes[i]);
                killed = die(&scenes[i], at, quarters);
                bool in_write = killed && file.shared->in_write;
                kills += killed;
                succeed();
                resume();
                assert_scene_reads(&scenes[i]);
                if (quarters % 2)
                    assert_scene_is_sound();
                else
                    end_scene(&scenes[i]);
                close_file();
                if (quarters && !in_write)
                    break; /* the other quarters are the same */
            }
    }
    print_message("%d kills\n", kills);
}

static void a_kill_of_the_successor_loses_nothing_either(void **state)
{
    (void)state;
    int kills = 0;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(scenes); i++) {
        bool killed = true;
        for (int at = 1; killed; at++) {
            bool again = true;
            for (int then = 1; again; then++) {
                begin_scene(&scenes[i]);
                killed = die(&scenes[i], at, 2);
                succeed();
                again = die(NULL, then, 1);
                kills += again;
                succeed();
                resume();
                assert_scene_reads(&scenes[i]);
                if (then % 2)
                    assert_scene_is_sound();
                else
                    end_scene(&scenes[i]);
                close_file();
            }
        }
    }
    print_message("%d kills\n", kills);
}

/* --- faults --- */

static void a_full_disk_loses_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(scenes); i++)
        for (int lasting = 0; lasting < 2; lasting++)
            for (int at = 1;; at++) {
                begin_scene(&scenes[i]);
                full_from = at;
                full_until = lasting ? INT32_MAX : at + 1;
                cut_quarters = 2;
                errint_t error = play(&scenes[i]);
                bool was_full = disk_writes >= at;
                assert_int_equal(error, was_full ? -ENOSPC : 0);
                if (was_full && at == 1)
                    assert_reads(); /* nothing has changed */
                assert_scene_reads(&scenes[i]);
                full_from = full_until = 0;
                if (at % 2) {
                    succeed();
                    resume();
                    assert_scene_reads(&scenes[i]);
                }
                end_scene(&scenes[i]);
                close_file();
                if (!was_full)
                    break;
            }
}

/* Then it goes on (0), or dies (1), or dies while it goes on. */
static bool fail_a_note(const struct scene *scene, int at, int then)
{
    begin_scene(scene);
    file.shared->note_fails_at = at;
    errint_t error = play(scene);
    bool failed = file.shared->notes >= at, killed = false;
    assert_int_equal(error, failed ? -ENOSPC : 0);
    file.shared->note_fails_at = 0;
    assert_scene_reads(scene);
    if (then > 1)
        killed = die(NULL, then - 1, 2);
    if (then > 0)
        succeed();
    resume();
    assert_scene_reads(scene);
    end_scene(scene);
    close_file();
    return failed && (then < 2 || killed);
}

static void a_note_that_fails_loses_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(scenes); i++) {
        bool failed = true;
        for (int at = 1; failed; at++) {
            failed = fail_a_note(&scenes[i], at, 0);
            for (int then = 1; failed && fail_a_note(&scenes[i], at, then);)
                then++;
        }
    }
}

static void a_write_waits_for_the_note_that_failed(void **state)
{
    (void)state;
    open_file();
    put_new(2 * UNIT, 0);
    move_to(UNIT);
    assemble();
    file.shared->notes = 0;
    file.shared->note_fails_at = 2; /* the file was cut, and nothing says so */
    assert_int_equal(growing_truncate(&file.growing, UNIT + 5), -ENOSPC);
    file.shared->note_fails_at = 3;
    assert_int_equal(growing_write(&file.growing, "x", 1, UNIT + 100), -ENOSPC);
    memset(file.shared->model + UNIT + 5, 0, UNIT - 5);
    file.size = UNIT + 5;
    assert_reads();
    put_new(1000, UNIT + 100);
    succeed();
    resume();
    assert_reads();
    close_file();
}

/* --- readers --- */

static atomic_bool reader_ends;
static atomic_int reads, bad_reads;

static void *read_along(void *argument)
{
    unsigned char *buffer = malloc(CIPHER_BLOCK_BYTES);
    (void)argument;
    while (!reader_ends) {
        ssize_t got = growing_read(&file.growing, buffer, CIPHER_BLOCK_BYTES, BLOCK);
        bool whole =
            got == CIPHER_BLOCK_BYTES && memcmp(buffer, buffer + 1, CIPHER_BLOCK_BYTES - 1) == 0;
        bad_reads += !whole;
        reads++;
    }
    free(buffer);
    return NULL;
}

static void a_reader_never_sees_a_part_of_a_block(void **state)
{
    (void)state;
    static unsigned char bytes[CIPHER_BLOCK_BYTES];
    pthread_t threads[2];
    uint64_t until_ns = mob_monotonic_ns() + UINT64_C(500000000);
    open_file();
    put_new(SMALL, 0);
    put(bytes, sizeof bytes, BLOCK);
    move_to(UNIT);
    reader_ends = false;
    reads = bad_reads = 0;
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_along, NULL), 0);
    for (int i = 0; mob_monotonic_ns() < until_ns; i++) {
        memset(bytes, i, sizeof bytes);
        put(bytes, sizeof bytes, BLOCK);
    }
    reader_ends = true;
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_true(reads > 0);
    assert_int_equal(bad_reads, 0);
    assert_reads();
    close_file();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_encrypted_file_is_what_the_store_reads),
        cmocka_unit_test(holes_become_blocks_of_zeros),
        cmocka_unit_test(random_operations_are_exact),
        cmocka_unit_test(states_and_modes_that_can_not_be_are_refused),
        cmocka_unit_test(a_wrong_byte_on_disk_is_an_error),
        cmocka_unit_test(a_kill_at_any_step_loses_nothing),
        cmocka_unit_test(a_kill_of_the_successor_loses_nothing_either),
        cmocka_unit_test(a_full_disk_loses_nothing),
        cmocka_unit_test(a_note_that_fails_loses_nothing),
        cmocka_unit_test(a_write_waits_for_the_note_that_failed),
        cmocka_unit_test(a_reader_never_sees_a_part_of_a_block),
    };
    scene_bytes = malloc(SCENE_LIMIT);
    scene_model = malloc(SCENE_LIMIT);
    int failed = scene_bytes && scene_model ? cmocka_run_group_tests(tests, set_up, tear_down) : 1;
    free(scene_bytes);
    free(scene_model);
    return failed;
}
