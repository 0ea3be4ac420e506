/* core/store/spill_io: files copied between memory and disk, block by block, with sums. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/base/util.h"
#include "core/store/spill_io_internal.h"
#include "spill_io_fixture.h"

/* --- round trips --- */

static void go_round(struct spill_io *io, size_t bytes, int flags)
{
    struct spill_sum sums[8], zero = {{0}};
    memset(sums, 0, sizeof sums);
    cleanup_fd int memory = filled_file(memory_file(), bytes, bytes), disk = disk_file(flags),
                   back = memory_file();
    struct spill_copy copy = {
        .from = memory, .to = disk, .bytes = bytes, .sums = sums, .error = -EIO};
    run(io, &copy, 1);
    assert_int_equal(copy.error, 0);
    assert_holds(disk, bytes, bytes);
    assert_sums(sums, bytes, bytes);
    assert_memory_equal(&sums[spill_block_count(bytes)], &zero, sizeof zero);

    copy = (struct spill_copy){
        .from = disk, .to = back, .bytes = bytes, .sums = sums, .check = true, .error = -EIO};
    run(io, &copy, 1);
    assert_int_equal(copy.error, 0);
    assert_holds(back, bytes, bytes);

    copy = (struct spill_copy){.from = disk,
                               .to = -1,
                               .bytes = bytes,
                               .sums = sums,
                               .check = true,
                               .discard = true,
                               .error = -EIO};
    run(io, &copy, 1);
    assert_int_equal(copy.error, 0);
}

static const size_t sizes[] = {0,       1,   511,     4095,    4096,        4097, MIB - 4096,
                               MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB + 3, 5};

static void a_file_comes_back_as_it_went(struct spill_io *io)
{
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes); i++) {
        go_round(io, sizes[i], 0);
        if (has_direct())
            go_round(io, sizes[i], O_DIRECT);
    }
}

static void a_file_of_any_size_comes_back_as_it_went_by_either_engine(void **state)
{
    (void)state;
    with_both(a_file_comes_back_as_it_went);
}

static void disk_to_disk_and_memory_to_memory(struct spill_io *io)
{
    int flags = has_direct() ? O_DIRECT : 0;
    size_t bytes = 3 * MIB + 77;
    struct spill_sum sums[2][4];
    cleanup_fd int a = filled_file(disk_file(flags), 1, bytes), b = disk_file(flags),
                   c = filled_file(memory_file(), 1, bytes), d = memory_file();
    struct spill_copy copies[] = {{.from = a, .to = b, .bytes = bytes, .sums = sums[0]},
                                  {.from = c, .to = d, .bytes = bytes, .sums = sums[1]}};
    run(io, copies, 2);
    assert_int_equal(copies[0].error, 0);
    assert_int_equal(copies[1].error, 0);
    assert_holds(b, 1, bytes);
    assert_holds(d, 1, bytes);
    assert_memory_equal(sums[0], sums[1], sizeof sums[0]);
}

static void either_side_may_be_disk_or_memory(void **state)
{
    (void)state;
    with_both(disk_to_disk_and_memory_to_memory);
}

static void a_longer_target_and_a_longer_source(struct spill_io *io)
{
    struct spill_sum sums[2];
    for (int direct = 0; direct <= has_direct(); direct++) {
        cleanup_fd int memory = filled_file(memory_file(), 3, 4 * MIB),
                       disk = filled_file(disk_file(direct ? O_DIRECT : 0), 4, 3 * MIB),
                       back = filled_file(memory_file(), 5, 3 * MIB);
        struct spill_copy copy = {.from = memory, .to = disk, .bytes = MIB + 9, .sums = sums};
        run(io, &copy, 1);
        assert_int_equal(copy.error, 0);
        assert_holds(disk, 3, MIB + 9);
        assert_sums(sums, 3, MIB + 9);
        filled_file(disk, 3, 2 * MIB);
        copy = (struct spill_copy){
            .from = disk, .to = back, .bytes = MIB + 9, .sums = sums, .check = true};
        run(io, &copy, 1);
        assert_int_equal(copy.error, 0);
        assert_holds(back, 3, MIB + 9);
        copy = (struct spill_copy){.from = memory, .to = back};
        run(io, &copy, 1);
        assert_int_equal(copy.error, 0);
        assert_holds(back, 3, 0);
    }
}

static void only_the_bytes_asked_for_are_copied_and_the_target_is_cut(void **state)
{
    (void)state;
    with_both(a_longer_target_and_a_longer_source);
}

static void many_files(struct spill_io *io)
{
    enum { FILES = 60 };
    static struct spill_sum sums[FILES][4];
    struct spill_copy copies[FILES];
    for (int i = 0; i < FILES; i++) {
        size_t bytes = (size_t)i * 60000;
        copies[i] = (struct spill_copy){.from = filled_file(memory_file(), (uint64_t)i, bytes),
                                        .to = disk_file(has_direct() && i % 2 ? O_DIRECT : 0),
                                        .bytes = bytes,
                                        .sums = sums[i]};
    }
    run(io, copies, FILES);
    for (int i = 0; i < FILES; i++) {
        assert_int_equal(copies[i].error, 0);
        assert_holds(copies[i].to, (uint64_t)i, copies[i].bytes);
        assert_sums(sums[i], (uint64_t)i, copies[i].bytes);
        close(copies[i].from);
        close(copies[i].to);
    }
    run(io, NULL, 0);
}

static void many_files_are_copied_at_once(void **state)
{
    (void)state;
    with_both(many_files);
}

/* --- errors --- */

static void a_flipped_bit(struct spill_io *io)
{
    size_t bytes = 6 * MIB + 10;
    struct spill_sum sums[7];
    cleanup_fd int memory = filled_file(memory_file(), 7, bytes),
                   disk = disk_file(has_direct() ? O_DIRECT : 0);
    struct spill_copy copy = {.from = memory, .to = disk, .bytes = bytes, .sums = sums};
    run(io, &copy, 1);
    assert_int_equal(copy.error, 0);
    static const size_t places[] = {0, MIB - 1, 3 * MIB + 5, 6 * MIB + 9};
    for (size_t i = MOB_ARRAY_LENGTH(places); i-- > 0;) {
        uint8_t *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, disk, 0);
        assert_ptr_not_equal(page, MAP_FAILED);
        page[places[i]] ^= 0x10;
        munmap(page, bytes);
        cleanup_fd int back = memory_file();
        copy = (struct spill_copy){
            .from = disk, .to = back, .bytes = bytes, .sums = sums, .check = true};
        run(io, &copy, 1);
        assert_int_equal(copy.error, -EBADMSG);
        /* Those behind are damaged as well by now: the lowest is named. */
        assert_int_equal(copy.bad_block, places[i] / MIB);
        copy.discard = true;
        copy.to = -1;
        run(io, &copy, 1);
        assert_int_equal(copy.error, -EBADMSG);
        assert_int_equal(copy.bad_block, places[i] / MIB);
        /* Not one wrong byte was let through. */
        uint8_t byte = 0;
        cleanup_free uint8_t *content = content_of(7, bytes);
        if (pread(back, &byte, 1, (off_t)places[i]) == 1)
            assert_true(byte == content[places[i]] || byte == 0);
    }
    assert_sums(sums, 7, bytes);
}

static void a_flipped_bit_is_found_and_its_block_named(void **state)
{
    (void)state;
    with_both(a_flipped_bit);
}

static void short_requests_of(struct spill_io *io, bool writes, size_t at_most)
{
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes); i++)
        for (int direct = 0; direct <= has_direct(); direct++) {
            injected.armed = true;
            injected.writes = writes;
            injected.fd = injected.offset = -1;
            injected.at_most = at_most;
            injected.times = 20; /* three runs of up to six blocks */
            go_round(io, sizes[i], direct ? O_DIRECT : 0);
        }
    assert_true(injected.bent > 0);
}

static void short_requests(struct spill_io *io)
{
    static const size_t lengths[] = {5000, 4096, 100000, MIB - 1};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(lengths); i++) {
        short_requests_of(io, false, lengths[i]);
        short_requests_of(io, true, lengths[i]);
    }
}

static void short_reads_and_writes_are_continued(void **state)
{
    (void)state;
    with_both(short_requests);
}

/* Copies 5 MiB from memory to disk or back, while requests of one side fail. */
static struct spill_copy copy_bent(struct spill_io *io, bool to_disk, bool writes, int error,
                                   off_t offset, int times)
{
    static struct spill_sum sums[5];
    size_t bytes = 5 * MIB;
    cleanup_fd int disk = disk_file(has_direct() ? O_DIRECT : 0), memory = memory_file();
    filled_file(to_disk ? memory : disk, 9, bytes);
    struct spill_copy copy = {.from = to_disk ? memory : disk,
                              .to = to_disk ? disk : memory,
                              .bytes = bytes,
                              .sums = sums};
    injected.writes = writes;
    injected.fd = writes ? copy.to : copy.from;
    injected.offset = offset;
    injected.error = error;
    injected.times = times;
    injected.bent = 0;
    injected.armed = true;
    run(io, &copy, 1);
    assert_true(injected.bent > 0);
    if (!copy.error)
        assert_holds(copy.to, 9, bytes);
    return copy;
}

static void failing_requests(struct spill_io *io)
{
    for (int to_disk = 0; to_disk < 2; to_disk++)
        for (int writes = 0; writes < 2; writes++) {
            struct spill_copy copy = copy_bent(io, to_disk, writes, EIO, 3 * MIB, 1);
            assert_int_equal(copy.error, -EIO);
            assert_int_equal(copy.bad_block, 3);
            copy = copy_bent(io, to_disk, writes, ENOSPC, -1, -1);
            assert_int_equal(copy.error, -ENOSPC);
            assert_int_equal(copy.bad_block, 0);
            copy = copy_bent(io, to_disk, writes, EINTR, -1, 100);
            assert_int_equal(copy.error, 0);
            copy = copy_bent(io, to_disk, writes, EAGAIN, -1, 10);
            assert_int_equal(copy.error, 0);
            copy = copy_bent(io, to_disk, writes, EAGAIN, -1, -1);
            assert_int_equal(copy.error, -EAGAIN);
        }
}

static void a_read_or_write_error_ends_the_copy_and_eintr_and_eagain_do_not(void **state)
{
    (void)state;
    with_both(failing_requests);
}

static void a_write_that_gets_nowhere(struct spill_io *io)
{
    for (int direct = 0; direct <= has_direct(); direct++) {
        static struct spill_sum sums[2];
        cleanup_fd int memory = filled_file(memory_file(), 1, 2 * MIB),
                       disk = disk_file(direct ? O_DIRECT : 0);
        struct spill_copy copy = {.from = memory, .to = disk, .bytes = 2 * MIB, .sums = sums};
        injected.fd = disk;
        injected.offset = direct ? MIB : -1;
        injected.at_most = 100; /* O_DIRECT can't go on from there */
        injected.times = -1;
        injected.writes = injected.armed = direct;
        run(io, &copy, 1);
        assert_int_equal(copy.error, direct ? -EIO : 0);
        assert_int_equal(copy.bad_block, direct ? 1 : 0);
    }
}

static void a_write_that_gets_nowhere_gives_eio(void **state)
{
    (void)state;
    with_both(a_write_that_gets_nowhere);
}

static void a_full_target(struct spill_io *io)
{
    static struct spill_sum sums[8];
    cleanup_fd int memory = filled_file(memory_file(), 1, 8 * MIB),
                   full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    struct spill_copy copy = {.from = memory, .to = full, .bytes = 8 * MIB, .sums = sums};
    run(io, &copy, 1);
    assert_int_equal(copy.error, -ENOSPC);
    assert_int_equal(copy.bad_block, 0);
}

static void a_device_that_is_full_gives_enospc(void **state)
{
    (void)state;
    with_both(a_full_target);
}

static void room_that_is_not_there(struct spill_io *io)
{
    struct statfs info;
    struct stat left;
    cleanup_fd int memory = memory_file(), disk = disk_file(0);
    assert_int_equal(fstatfs(disk, &info), 0);
    if (info.f_type == TMPFS_MAGIC)
        skip();
    uint64_t bytes = (uint64_t)info.f_bfree * (uint64_t)info.f_bsize + (UINT64_C(16) << 30);
    /* Less than it says it has, and no real fallocate(): if this fails, no disk is filled by it. */
    assert_int_equal(ftruncate(memory, 3 * MIB), 0);
    fallocate_error = EOPNOTSUPP;
    size_t sums_bytes = spill_block_count(bytes) * sizeof(struct spill_sum);
    cleanup_free struct spill_sum *sums = malloc(sums_bytes);
    fallocates = 0;
    struct spill_copy copy = {.from = memory, .to = disk, .bytes = bytes, .sums = sums};
    run(io, &copy, 1);
    assert_int_equal(copy.error, -ENOSPC);
    assert_int_equal(fstat(disk, &left), 0);
    assert_int_equal(left.st_blocks, 0);
    assert_int_equal(fallocates, 0);

    copy.bytes = 3 * MIB;
    fallocate_error = ENOSPC;
    run(io, &copy, 1);
    assert_int_equal(copy.error, -ENOSPC);
    assert_int_equal(fstat(disk, &left), 0);
    assert_int_equal(left.st_size, 0);

    fallocate_error = EOPNOTSUPP; /* then without */
    interrupted_fallocates = 3;
    run(io, &copy, 1);
    assert_int_equal(copy.error, 0);
    assert_int_equal(fstat(disk, &left), 0);
    assert_int_equal(left.st_size, 3 * MIB);

    copy.bytes = UINT64_MAX;
    run(io, &copy, 1);
    assert_int_equal(copy.error, -EFBIG);
}

static void a_disk_without_room_is_noticed_before_anything_is_written(void **state)
{
    (void)state;
    with_both(room_that_is_not_there);
}

static void a_full_tmpfs(struct spill_io *io)
{
    static struct spill_sum sums[8];
    char dir[96], path[128];
    snprintf(dir, sizeof dir, "%s/tmpfs", disk_dir);
    snprintf(path, sizeof path, "%s/file", dir);
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(mount("none", dir, "tmpfs", 0, "size=3m"), 0);
    int to = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cleanup_fd int from = filled_file(disk_file(has_direct() ? O_DIRECT : 0), 1, 8 * MIB);
    struct spill_copy copy = {.from = from, .to = to, .bytes = 8 * MIB, .sums = sums};
    run(io, &copy, 1);
    close(to);
    umount(dir);
    rmdir(dir);
    assert_int_equal(copy.error, -ENOSPC);
}

static void memory_that_is_full_gives_enospc(void **state)
{
    (void)state;
    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        skip();
    with_both(a_full_tmpfs);
}

static void a_short_source(struct spill_io *io)
{
    static const size_t there[] = {0, 1, 4096, MIB, 2 * MIB + 7, 3 * MIB - 1};
    struct spill_sum sums[3];
    for (int kind = 0; kind < 2 + has_direct(); kind++)
        for (size_t i = 0; i < MOB_ARRAY_LENGTH(there); i++) {
            cleanup_fd int to = memory_file(), from = kind == 0   ? memory_file()
                                                      : kind == 1 ? disk_file(0)
                                                                  : disk_file(O_DIRECT);
            filled_file(from, 2, there[i]);
            struct spill_copy copy = {.from = from, .to = to, .bytes = 3 * MIB, .sums = sums};
            run(io, &copy, 1);
            assert_int_equal(copy.error, -ENODATA);
            assert_int_equal(copy.bad_block, there[i] / MIB);
        }
}

static void a_source_that_is_too_short_gives_enodata(void **state)
{
    (void)state;
    with_both(a_short_source);
}

static int shrinking;
static void shrink(void)
{
    assert_int_equal(ftruncate(shrinking, MIB + 1000), 0);
}

static void a_source_that_shrinks(struct spill_io *io)
{
    static struct spill_sum sums[20];
    for (int from_disk = 0; from_disk < 2; from_disk++) {
        cleanup_fd int from = filled_file(from_disk ? disk_file(0) : memory_file(), 5, 20 * MIB),
                       to = from_disk ? memory_file() : disk_file(0);
        struct spill_copy copy = {.from = from, .to = to, .bytes = 20 * MIB, .sums = sums};
        shrinking = from;
        injected.fd = from;
        injected.offset = 6 * MIB;
        injected.hook = shrink;
        injected.times = 1;
        injected.armed = true;
        run(io, &copy, 1);
        assert_int_equal(copy.error, -ENODATA);
        assert_true(copy.bad_block >= 6 && copy.bad_block <= 11);
    }
}

static void a_source_that_shrinks_meanwhile_gives_enodata(void **state)
{
    (void)state;
    with_both(a_source_that_shrinks);
}

static void some_of_many_fail(struct spill_io *io)
{
    enum { FILES = 40, BYTES = 2 * MIB + 100 };
    static struct spill_sum sums[FILES][3];
    struct spill_copy copies[FILES];
    for (int i = 0; i < FILES; i++) {
        size_t there = i % 4 == 1 ? MIB : BYTES;
        int to = i % 4 == 2 ? open("/dev/full", O_WRONLY | O_CLOEXEC) : disk_file(0);
        copies[i] = (struct spill_copy){.from = filled_file(memory_file(), (uint64_t)i, there),
                                        .to = to,
                                        .bytes = BYTES,
                                        .sums = sums[i]};
        if (i % 4 == 3) {
            close(copies[i].from);
            copies[i].from = -1;
        }
    }
    run(io, copies, FILES);
    static const int expected[] = {0, -ENODATA, -ENOSPC, -EBADF};
    for (int i = 0; i < FILES; i++) {
        assert_int_equal(copies[i].error, expected[i % 4]);
        if (i % 4 == 0) {
            assert_holds(copies[i].to, (uint64_t)i, BYTES);
            assert_sums(sums[i], (uint64_t)i, BYTES);
        }
        close(copies[i].to);
        if (copies[i].from >= 0)
            close(copies[i].from);
    }
}

static void one_copy_that_fails_does_not_touch_the_others(void **state)
{
    (void)state;
    with_both(some_of_many_fail);
}

/* --- cancelling --- */

static struct spill_io *cancelled_io;
static atomic_bool cancel_now;

static void *cancel_from_here(void *argument)
{
    (void)argument;
    while (!atomic_load(&cancel_now))
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    spill_io_cancel(cancelled_io, true);
    atomic_store(&cancel_now, false);
    return NULL;
}

/* In the middle: wakes the other thread, and waits until it has cancelled. */
static void let_it_be_cancelled(void)
{
    atomic_store(&cancel_now, true);
    while (atomic_load(&cancel_now))
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

static void cancel_in_the_middle(struct spill_io *io)
{
    enum { FILES = 6, BYTES = 5 * MIB };
    static struct spill_sum sums[FILES][5];
    struct spill_copy copies[FILES];
    pthread_t thread;
    for (int i = 0; i < FILES; i++)
        copies[i] = (struct spill_copy){.from = filled_file(memory_file(), (uint64_t)i, BYTES),
                                        .to = disk_file(has_direct() ? O_DIRECT : 0),
                                        .bytes = BYTES,
                                        .sums = sums[i],
                                        .error = -EIO};
    cancelled_io = io;
    assert_int_equal(pthread_create(&thread, NULL, cancel_from_here, NULL), 0);
    injected.writes = true;
    injected.fd = copies[2].to;
    injected.offset = -1;
    injected.hook = let_it_be_cancelled;
    injected.times = 1;
    injected.armed = true;
    run(io, copies, FILES);
    pthread_join(thread, NULL);
    for (int i = 0; i < FILES; i++)
        assert_int_equal(copies[i].error, i < 2 ? 0 : -ECANCELED);
    assert_holds(copies[0].to, 0, BYTES);
    assert_holds(copies[1].to, 1, BYTES);

    run(io, copies, FILES); /* it is still cancelled */
    for (int i = 0; i < FILES; i++)
        assert_int_equal(copies[i].error, -ECANCELED);
    spill_io_cancel(io, false);
    run(io, copies, FILES);
    for (int i = 0; i < FILES; i++) {
        assert_int_equal(copies[i].error, 0);
        assert_holds(copies[i].to, (uint64_t)i, BYTES);
        close(copies[i].from);
        close(copies[i].to);
    }
}

static void another_thread_cancels_in_the_middle_and_takes_it_back(void **state)
{
    (void)state;
    with_both(cancel_in_the_middle);
}

static void cancel_at_the_tenth(void)
{
    if (injected.bent == 10)
        spill_io_cancel(cancelled_io, true);
}

static void interrupted_without_end(struct spill_io *io)
{
    struct spill_sum sum;
    for (int writes = 0; writes < 2; writes++) {
        cleanup_fd int from = filled_file(memory_file(), 1, MIB), to = disk_file(0);
        struct spill_copy copy = {.from = from, .to = to, .bytes = MIB, .sums = &sum};
        cancelled_io = io;
        injected.fd = writes ? to : from;
        injected.offset = -1;
        injected.writes = writes;
        injected.error = EINTR;
        injected.times = 1000;
        injected.bent = 0;
        injected.hook = cancel_at_the_tenth;
        injected.armed = true;
        run(io, &copy, 1);
        spill_io_cancel(io, false);
        assert_int_equal(copy.error, -ECANCELED);
        assert_int_equal(injected.bent, 10);
    }
}

static void a_block_that_gets_nowhere_is_cancelled_too(void **state)
{
    (void)state;
    with_both(interrupted_without_end);
}

static void *cancel_at_random(void *argument)
{
    unsigned seed = 1;
    for (int i = 0; i < 200 && !atomic_load((atomic_bool *)argument); i++) {
        nanosleep(&(struct timespec){.tv_nsec = rand_r(&seed) % 1000000}, NULL);
        spill_io_cancel(cancelled_io, i % 2 == 0);
    }
    spill_io_cancel(cancelled_io, false);
    return NULL;
}

static void cancel_anywhere(struct spill_io *io)
{
    static struct spill_sum sums[4][3];
    size_t bytes = 2 * MIB + 1;
    struct spill_copy copies[4];
    atomic_bool stop = false;
    pthread_t thread;
    cancelled_io = io;
    for (int i = 0; i < 4; i++)
        copies[i] = (struct spill_copy){.from = filled_file(memory_file(), (uint64_t)i, bytes),
                                        .to = disk_file(0),
                                        .bytes = bytes,
                                        .sums = sums[i]};
    assert_int_equal(pthread_create(&thread, NULL, cancel_at_random, &stop), 0);
    for (int round = 0; round < 30; round++) {
        run(io, copies, 4);
        for (int i = 0; i < 4; i++) {
            assert_true(copies[i].error == 0 || copies[i].error == -ECANCELED);
            if (!copies[i].error)
                assert_holds(copies[i].to, (uint64_t)i, bytes);
        }
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    for (int i = 0; i < 4; i++) {
        close(copies[i].from);
        close(copies[i].to);
    }
}

static void what_is_not_cancelled_is_whole(void **state)
{
    (void)state;
    with_both(cancel_anywhere);
}

/* --- a ring that refuses --- */

static void assert_described(const char *expected)
{
    cleanup_engine struct spill_io *io = engine(false);
    assert_string_equal(spill_io_describe(io), expected);
    a_file_comes_back_as_it_went(io);
}

static void the_engine_says_how_it_works(void **state)
{
    (void)state;
    cleanup_engine struct spill_io *plain = engine(true), *standard = NULL;
    assert_string_equal(spill_io_describe(plain), "pread and pwrite");
    assert_int_equal(spill_io_open(NULL, &standard, NULL), 0);
    a_file_comes_back_as_it_went(standard);
    if (!ring_works())
        skip();
    /* An unprivileged user may not lock memory enough. */
    const char *described = spill_io_describe(standard);
    if (strcmp(described, "io_uring"))
        assert_string_equal(described, "io_uring (buffers not registered: Cannot allocate memory)");
}

static void without_io_uring_it_copies_by_pread_and_pwrite_and_says_why(void **state)
{
    (void)state;
    refuse_setup = -EPERM;
    assert_described("pread and pwrite (io_uring: Operation not permitted)");
    refuse_setup = -ENOSYS;
    assert_described("pread and pwrite (io_uring: Function not implemented)");
    refuse_setup = -ENOMEM;
    assert_described("pread and pwrite (io_uring: Cannot allocate memory)");
}

static void without_registered_buffers_the_ring_is_used_all_the_same(void **state)
{
    (void)state;
    if (!ring_works())
        skip();
    refuse_buffers = -ENOMEM;
    assert_described("io_uring (buffers not registered: Cannot allocate memory)");
}

static void a_ring_that_can_be_made_but_not_used_is_left(void **state)
{
    (void)state;
    if (!ring_works())
        skip();
    refuse_submit = -EPERM;
    submits_before = 0;
    refusals = INT_MAX;
    assert_described("pread and pwrite (io_uring: Operation not permitted)");
}

static void what_is_read_through_the_page_cache_does_not_go_through_the_ring(void **state)
{
    (void)state;
    if (!ring_works())
        skip();
    static struct spill_sum sums[40];
    cleanup_engine struct spill_io *io = engine(false);
    cleanup_fd int disk = filled_file(disk_file(0), 3, 39 * MIB + 5);
    struct spill_copy copy = {
        .from = disk, .to = -1, .bytes = 39 * MIB + 5, .sums = sums, .discard = true};
    refuse_submit = -EPERM;
    submits_before = 0;
    refusals = INT_MAX;
    run(io, &copy, 1);
    refuse_submit = 0;
    assert_int_equal(copy.error, 0);
    assert_memory_equal(spill_io_describe(io), "io_uring", 8);
    copy.check = true;
    run(io, &copy, 1);
    assert_int_equal(copy.error, 0);
}

static void a_ring_that_fails_in_the_middle_is_left_with_nothing_lost(void **state)
{
    (void)state;
    if (!ring_works())
        skip();
    static const struct {
        int error, refusals;
        const char *described;
    } cases[] = {
        {-EPERM, INT_MAX, "pread and pwrite (io_uring: Operation not permitted)"},
        {-EAGAIN, INT_MAX, "pread and pwrite (io_uring: Resource temporarily unavailable)"},
        {-EAGAIN, 5, "io_uring"},
        {-EINTR, 5, "io_uring"},
    };
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(cases); i++) {
        cleanup_engine struct spill_io *io = engine(false);
        refuse_submit = cases[i].error;
        refusals = cases[i].refusals;
        submits_before = 3;
        go_round(io, 5 * MIB + 3, 0);
        /* Its beginning: without privileges the buffers may not be registered. */
        assert_memory_equal(spill_io_describe(io), cases[i].described, strlen(cases[i].described));
        refuse_submit = 0;
        go_round(io, 5 * MIB + 3, 0);
    }
}

/* Exit status of a child in which io_uring_setup() is forbidden as containers do it. */
static int run_forbidden(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {MOB_ARRAY_LENGTH(filter), filter};
    struct spill_io *io;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        return 77;
    if (spill_io_open(NULL, &io, NULL))
        return 1;
    int status =
        strcmp(spill_io_describe(io), "pread and pwrite (io_uring: Operation not permitted)") != 0;
    spill_io_close(io);
    return status;
}

static void a_seccomp_profile_that_forbids_io_uring_is_no_obstacle(void **state)
{
    (void)state;
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(run_forbidden());
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void only_want_of_memory_keeps_it_from_opening(void **state)
{
    (void)state;
    struct spill_io *io = NULL;
    struct mob_error err = {0};
    no_memory = true;
    assert_int_equal(spill_io_open(NULL, &io, &err), -ENOMEM);
    assert_string_equal(err.message, "no memory for 16 blocks of 1 MiB to copy with");
    assert_null(io);
    spill_io_close(NULL);
}

/* --- what it costs --- */

static void disk_space_is_reserved_and_memory_is_not(void **state)
{
    (void)state;
    cleanup_engine struct spill_io *io = engine(false);
    struct spill_sum sums[2];
    cleanup_fd int memory = filled_file(memory_file(), 1, MIB + 1), disk = disk_file(0),
                   back = memory_file();
    fallocates = 0;
    struct spill_copy copy = {.from = memory, .to = disk, .bytes = MIB + 1, .sums = sums};
    run(io, &copy, 1);
    struct statfs info;
    assert_int_equal(fstatfs(disk, &info), 0);
    if (info.f_type == TMPFS_MAGIC)
        skip();
    assert_int_equal(fallocates, 1);
    assert_int_equal(fallocated, MIB + 1);
    copy = (struct spill_copy){.from = disk, .to = back, .bytes = MIB + 1, .sums = sums};
    run(io, &copy, 1);
    assert_int_equal(fallocates, 1);
}

static void no_descriptor_is_left_over(void **state)
{
    (void)state;
    unsigned before = open_descriptors();
    for (int i = 0; i < 3; i++) {
        with_both(some_of_many_fail);
        refuse_setup = -EPERM;
        spill_io_close(engine(false));
        refuse_setup = 0;
        refuse_submit = -EPERM;
        submits_before = 0;
        refusals = INT_MAX;
        spill_io_close(engine(false));
        refuse_submit = 0;
    }
    assert_int_equal(open_descriptors(), before);
}

#define TEST(name) cmocka_unit_test_teardown(name, disarm)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_file_of_any_size_comes_back_as_it_went_by_either_engine),
        TEST(either_side_may_be_disk_or_memory),
        TEST(only_the_bytes_asked_for_are_copied_and_the_target_is_cut),
        TEST(many_files_are_copied_at_once),
        TEST(a_flipped_bit_is_found_and_its_block_named),
        TEST(short_reads_and_writes_are_continued),
        TEST(a_read_or_write_error_ends_the_copy_and_eintr_and_eagain_do_not),
        TEST(a_device_that_is_full_gives_enospc),
        TEST(a_disk_without_room_is_noticed_before_anything_is_written),
        TEST(memory_that_is_full_gives_enospc),
        TEST(a_write_that_gets_nowhere_gives_eio),
        TEST(a_source_that_is_too_short_gives_enodata),
        TEST(a_source_that_shrinks_meanwhile_gives_enodata),
        TEST(one_copy_that_fails_does_not_touch_the_others),
        TEST(another_thread_cancels_in_the_middle_and_takes_it_back),
        TEST(a_block_that_gets_nowhere_is_cancelled_too),
        TEST(what_is_not_cancelled_is_whole),
        TEST(the_engine_says_how_it_works),
        TEST(without_io_uring_it_copies_by_pread_and_pwrite_and_says_why),
        TEST(without_registered_buffers_the_ring_is_used_all_the_same),
        TEST(a_ring_that_can_be_made_but_not_used_is_left),
        TEST(what_is_read_through_the_page_cache_does_not_go_through_the_ring),
        TEST(a_ring_that_fails_in_the_middle_is_left_with_nothing_lost),
        TEST(a_seccomp_profile_that_forbids_io_uring_is_no_obstacle),
        TEST(only_want_of_memory_keeps_it_from_opening),
        TEST(disk_space_is_reserved_and_memory_is_not),
        TEST(no_descriptor_is_left_over),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
