/* core/store/growing and hold: a file that is moved to disk while it is written, by real writers,
 * with kills at every step. */
#include "tests/unit/growing_fixture.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "core/store/hold.h"

/* --- moving --- */

static void the_older_part_moves_and_the_head_stays(void **state)
{
    (void)state;
    NEED_PIPES;
    file_new(SMALL, false);
    put_pattern(0, SMALL);
    move_to(UINT64_MAX);
    assert_int_equal(growing_moved(&file.growing), 3 * UNIT);
    assert_true(memory_bytes() <= UNIT + (mounted ? UNIT : 4 * PAGE));
    assert_reads();
    put("header", 6, 10);
    assert_false(is_torn());
    assert_reads();
    assert_assembles();
    assert_int_equal(file.shared->state.moved, 4 * UNIT);
    assert_int_equal(file.shared->state.intent, 0);
    assert_true(file.shared->state.head_moved);
    assert_assembles();
    put("late", 4, SMALL);
    assert_true(is_torn());
    assert_int_equal(growing_assemble(&file.growing, &file.mover, &file.err), -EIO);
    file_close();
}

static void files_of_every_small_size_assemble(void **state)
{
    (void)state;
    NEED_PIPES;
    static const uint64_t sizes[] = {0,       1,       PAGE,    65537,  2097151,
                                     2097152, 2097153, 4194304, 4198401};
    for (int exclusive = 0; exclusive < 2; exclusive++)
        for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes); i++) {
            file_new(sizes[i] + 1, exclusive);
            put_pattern(0, sizes[i]);
            move_to(UINT64_MAX);
            assert_reads();
            assert_assembles();
            file_close();
        }
}

static void holes_are_zeros_and_take_no_room_on_disk(void **state)
{
    (void)state;
    NEED_PIPES;
    for (int exclusive = 0; exclusive < 2; exclusive++) {
        struct stat info;
        file_new(20 * UNIT, exclusive);
        put("a", 1, 5);
        put_pattern(3 * UNIT + 4096, 3 * UNIT + 8192);
        put_pattern(9 * UNIT + 999, 11 * UNIT);
        put("z", 1, 15 * UNIT + 77);
        move_to(12 * UNIT);
        assert_int_equal(growing_moved(&file.growing), 12 * UNIT);
        assert_reads();
        assert_assembles();
        assert_int_equal(fstat(file.disk_fd, &info), 0);
        assert_true((uint64_t)info.st_blocks * 512 < 3 * UNIT + UNIT / 2);
        file_close();
    }
}

static void what_is_stale_on_disk_does_not_show_in_holes(void **state)
{
    (void)state;
    NEED_PIPES;
    file_new(4 * UNIT, false);
    static unsigned char junk[1 << 20];
    memset(junk, 0x55, sizeof junk);
    for (uint64_t at = 0; at < 4 * UNIT; at += sizeof junk)
        assert_int_equal(__real_pwrite64(file.disk_fd, junk, sizeof junk, (off_t)at), sizeof junk);
    put("x", 1, UNIT + 70000);
    put("y", 1, 3 * UNIT + 100);
    assert_assembles();
    cut(4 * UNIT);
    assert_reads();
    file_close();
}

static void the_part_that_the_writer_is_at_does_not_move(void **state)
{
    (void)state;
    NEED_PIPES;
    file_new(8 * UNIT, false);
    assert_int_equal(ftruncate(file.writer_fd, (off_t)(8 * UNIT)), 0);
    file.size = 8 * UNIT;
    put_pattern(0, 3 * UNIT + 5000);
    move_to(UINT64_MAX);
    assert_int_equal(growing_moved(&file.growing), 3 * UNIT);
    put_pattern(3 * UNIT + 5000, 6 * UNIT);
    move_to(UINT64_MAX);
    assert_int_equal(growing_moved(&file.growing), 5 * UNIT);
    assert_assembles();
    file_close();
}

static void moving_can_be_cancelled(void **state)
{
    (void)state;
    NEED_PIPES;
    file_new(SMALL, false);
    put_pattern(0, SMALL);
    atomic_store(&file.mover.cancelled, true);
    assert_int_equal(growing_move(&file.growing, &file.mover, SMALL, NULL), -ECANCELED);
    assert_int_equal(growing_assemble(&file.growing, &file.mover, NULL), -ECANCELED);
    atomic_store(&file.mover.cancelled, false);
    assert_assembles();
    file_close();
}

static void a_read_lease_is_possible_between_the_calls(void **state)
{
    (void)state;
    NEED_PIPES;
    file_new(SMALL, false);
    put_pattern(0, SMALL);
    close(file.writer_fd);
    move_to(UINT64_MAX);
    assert_int_equal(fcntl(file.memory_fd, F_SETLEASE, F_RDLCK), 0);
    assert_int_equal(fcntl(file.memory_fd, F_SETLEASE, F_UNLCK), 0);
    file.writer_fd = open_in(memory_dir, "file", O_WRONLY);
    file_close();
}

static void small_pipes_are_refused_with_a_sentence(void **state)
{
    (void)state;
    struct growing_pipes few;
    struct mob_error err = {0};
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        /* Past pipe-user-pages-soft an unprivileged user gets two pages a pipe. */
        int ends[2];
        if (setgid(65534) < 0 || setuid(65534) < 0)
            _exit(77);
        for (int i = 0; i < 400 && pipe(ends) == 0; i++)
            fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
        errint_t error = growing_pipes_open(&few, &err);
        _exit(error == -EOPNOTSUPP && strstr(err.message, "pipe-max-size") ? 0
              : error == -EMFILE                                           ? 77
                                                                           : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* --- kills, and writes at the worst moment --- */

enum shape { DENSE, SPARSE, ALLOCATED, SHAPES };
enum after { NOTHING, SOME_BYTES, EVERY_PAGE, EVERY_BYTE, AFTERS };

static void make_shape(enum shape shape)
{
    file_new(SMALL, false);
    if (shape == DENSE) {
        put_pattern(0, SMALL);
        return;
    }
    if (shape == ALLOCATED)
        assert_int_equal(__real_fallocate64(file.writer_fd, 0, 0, (off_t)SMALL), 0);
    put_pattern(0, UNIT);
    if (shape == SPARSE)
        put_pattern(UNIT + 3 * PAGE, UNIT + 5 * PAGE);
    put_pattern(2 * UNIT, SMALL);
}

/* Into the unit that is moved first, partly into a page that is there and partly not. */
static void write_old_part(void)
{
    put("new bytes, written late", 23, UNIT + 5 * PAGE - 10);
}

static void write_after(enum after after)
{
    static unsigned char bytes[2 << 20];
    memset(bytes, 0xa5, sizeof bytes);
    if (after == SOME_BYTES)
        put(bytes, 100, UNIT + UNIT / 2 + 1);
    if (after == EVERY_PAGE)
        for (uint64_t at = UNIT; at < 2 * UNIT; at += PAGE)
            put(bytes, 1, at + 7);
    if (after == EVERY_BYTE)
        put(bytes, sizeof bytes, UNIT);
}

static errint_t move_a_unit(const void *unused)
{
    (void)unused;
    return growing_move(&file.growing, &file.mover, 2 * UNIT, NULL);
}

static void a_kill_at_any_step_loses_nothing(void **state)
{
    (void)state;
    NEED_PIPES;
    int cases = 0, torn = 0;
    for (int shape = 0; shape < SHAPES; shape++)
        for (int after = 0; after < AFTERS; after++) {
            bool killed = true;
            for (int at = 1; killed; at++) {
                make_shape((enum shape)shape);
                killed = dies(at, 2, move_a_unit, NULL);
                write_after((enum after)after);
                succeed();
                torn += assert_exact_or_torn(after == NOTHING);
                cases++;
                file_close();
            }
        }
    print_message("%d kills, %d of them ended torn\n", cases, torn);
    assert_true(cases > 12 * 10);
    assert_true(torn > 0 && torn < cases);
}

static void a_kill_of_the_successor_loses_nothing_either(void **state)
{
    (void)state;
    NEED_PIPES;
    int cases = 0;
    bool first = true;
    for (int at = 1; first; at++) {
        bool second = true;
        for (int again = 1; second; again++) {
            make_shape(SPARSE);
            first = dies(at, 2, move_a_unit, NULL);
            restart();
            second = dies_resuming(again, 2);
            restart();
            if (second)
                dies_resuming(again + 1, 2);
            succeed();
            assert_exact_or_torn(true);
            cases++;
            file_close();
        }
    }
    print_message("%d pairs of kills\n", cases);
}

static void a_write_at_any_step_ends_exact_or_torn(void **state)
{
    (void)state;
    NEED_PIPES;
    for (int shape = 0; shape < SHAPES; shape++) {
        int exact = 0, torn = 0;
        bool reached = true;
        for (int at = 1; reached; at++) {
            make_shape((enum shape)shape);
            faults.write = write_old_part;
            faults.steps = 0;
            faults.write_at = at;
            move_to(2 * UNIT);
            reached = faults.steps >= at;
            faults.write_at = 0;
            bool is = assert_exact_or_torn(!reached);
            torn += is;
            exact += !is;
            /* Once past the punch, always past it. */
            if (torn && reached)
                assert_true(is);
            file_close();
        }
        print_message("shape %d: %d steps exact, %d torn\n", shape, exact, torn);
        assert_true(exact > 1);
        assert_true(torn > 0);
    }
}

static void a_write_and_then_a_kill_end_exact_or_torn(void **state)
{
    (void)state;
    NEED_PIPES;
    int cases = 0;
    bool killed = true;
    for (int at = 2; killed; at++)
        for (int before = 1; before <= 3 && before < at; before++) {
            make_shape(SPARSE);
            faults.write = write_old_part;
            faults.write_at = at - before;
            killed = dies(at, 2, move_a_unit, NULL);
            /* The child wrote into the shared model, but its size is the same. */
            succeed();
            assert_exact_or_torn(false);
            cases++;
            file_close();
        }
    assert_true(cases > 20);
}

static void append_late(void)
{
    put("tail", 4, SMALL);
}

/* An append while the last unit, which isn't whole, is moved. */
static void a_late_end_of_file_is_noticed(void **state)
{
    (void)state;
    NEED_PIPES;
    int torn = 0;
    bool reached = true;
    for (int at = 1; reached; at++) {
        file_new(SMALL + 100, false);
        put_pattern(0, SMALL);
        faults.steps = 0;
        faults.write_at = at;
        faults.write = append_late;
        errint_t error = growing_assemble(&file.growing, &file.mover, &file.err);
        reached = faults.steps >= at;
        assert_true(error == 0 || error == -EIO);
        if (!error)
            assert_disk();
        else
            assert_true(is_torn());
        torn += error != 0;
        /* A successor knows it, too. */
        succeed();
        assert_int_equal(is_torn(), error != 0);
        file_close();
    }
    assert_true(torn > 0);
}

static void pipes_that_were_lost_make_the_file_torn(void **state)
{
    (void)state;
    NEED_PIPES;
    bool found = false;
    for (int at = 1; !found; at++) {
        make_shape(DENSE);
        assert_true(dies(at, 2, move_a_unit, NULL));
        found = file.shared->state.intent != 0;
        if (!found)
            file_close();
    }
    growing_pipes_close(&pipes);
    assert_int_equal(growing_pipes_open(&pipes, NULL), 0);
    restart();
    assert_int_equal(growing_resume(&file.growing, &file.mover, &file.err), -EIO);
    assert_true(file.err.message[0]);
    assert_true(is_torn());
    cut(0);
    assert_false(is_torn());
    assert_assembles();
    file_close();
}

/* --- failures --- */

static void a_failing_disk_leaves_everything_in_memory(void **state)
{
    (void)state;
    NEED_PIPES;
    static const int errors[] = {ENOSPC, EIO};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(errors); i++)
        for (int exclusive = 0; exclusive < 2; exclusive++) {
            file_new(SMALL, exclusive);
            put_pattern(0, SMALL);
            uint64_t before = memory_bytes();
            fail_disk_writes(1, FOR_EVER, errors[i]);
            assert_int_equal(growing_move(&file.growing, &file.mover, SMALL, &file.err),
                             -errors[i]);
            assert_int_equal(growing_assemble(&file.growing, &file.mover, &file.err), -errors[i]);
            mend_disk();
            assert_int_equal(memory_bytes(), before);
            assert_int_equal(growing_moved(&file.growing), 0);
            assert_int_equal(file.shared->notes, 0);
            assert_reads();
            assert_assembles();
            file_close();
        }
}

static void short_writes_and_a_disk_without_direct_io_are_handled(void **state)
{
    (void)state;
    NEED_PIPES;
    file_new(SMALL, false);
    put_pattern(0, SMALL);
    faults.disk_write_at_most = 100001;
    assert_assembles();
    file_close();
    faults.disk_write_at_most = 0;
    faults.no_direct = true;
    file_new(SMALL, false);
    put_pattern(0, SMALL);
    assert_assembles();
    faults.no_direct = false;
    file_close();
}

static void fail_disk(void)
{
    write_old_part();
    fail_disk_writes(1, FOR_EVER, EIO);
}

static void a_disk_that_fails_after_the_punch_costs_nothing(void **state)
{
    (void)state;
    NEED_PIPES;
    int pending = 0;
    bool reached = true;
    for (int at = 1; reached; at++) {
        make_shape(DENSE);
        faults.steps = 0;
        faults.write_at = at;
        faults.write = fail_disk;
        errint_t error = growing_move(&file.growing, &file.mover, 2 * UNIT, &file.err);
        reached = faults.steps >= at;
        faults.write_at = 0;
        if (error && file.shared->state.intent) {
            unsigned char byte;
            pending++;
            assert_int_equal(growing_read(&file.growing, &byte, 1, UNIT), -EIO);
            assert_int_equal(growing_read(&file.growing, &byte, 1, 2 * UNIT), 1);
            assert_int_equal(growing_move(&file.growing, &file.mover, SMALL, NULL), -EBUSY);
            assert_int_equal(growing_truncate(&file.growing, 0), -EBUSY);
            assert_int_equal(growing_punch(&file.growing, 0, 1), -EBUSY);
            assert_int_equal(growing_resume(&file.growing, &file.mover, NULL), -EIO);
            mend_disk();
            resume();
        }
        mend_disk();
        assert_exact_or_torn(false);
        file_close();
    }
    assert_true(pending > 0);
}

static void a_note_that_fails_costs_nothing(void **state)
{
    (void)state;
    NEED_PIPES;
    for (int exclusive = 0; exclusive < 2; exclusive++)
        for (int restarts = 0; restarts < 2; restarts++)
            for (int at = 1; at <= (exclusive ? 1 : 2); at++) {
                file_new(SMALL, exclusive);
                put_pattern(0, SMALL);
                file.shared->note_fails_at = at;
                file.shared->note_error = -ENOMEM;
                assert_int_equal(growing_move(&file.growing, &file.mover, SMALL, NULL), -ENOMEM);
                assert_reads();
                if (restarts)
                    succeed();
                else
                    resume();
                assert_exact_or_torn(true);
                file_close();
            }
}

static void a_full_disk_refuses_and_goes_on_when_it_has_room(void **state)
{
    (void)state;
    NEED_PIPES;
    char path[128];
    snprintf(path, sizeof path, "%s/full", place);
    assert_int_equal(mkdir(path, 0700), 0);
    if (!mounted || !mount_private(path, "size=5m"))
        skip();
    file_new(5 * UNIT, false);
    detach();
    close(file.disk_fd);
    file.disk_fd = open_in(path, "disk", O_RDWR | O_CREAT);
    attach(NULL);
    put_pattern(0, 5 * UNIT);
    errint_t error = growing_move(&file.growing, &file.mover, UINT64_MAX, &file.err);
    assert_int_equal(error, -ENOSPC);
    assert_reads();
    assert_int_equal(mount("none", path, "tmpfs", MS_REMOUNT, "size=20m"), 0);
    assert_assembles();
    file_close();
    assert_int_equal(umount2(path, MNT_DETACH), 0);
}

/* --- changes through us --- */

static void truncating_is_exact_everywhere(void **state)
{
    (void)state;
    NEED_PIPES;
    static const uint64_t sizes[] = {0,
                                     1,
                                     1 << 20,
                                     2 << 20,
                                     (2 << 20) + 1,
                                     3 << 20,
                                     4 << 20,
                                     (4 << 20) + 5,
                                     (6 << 20) + 100,
                                     (8 << 20) - 1,
                                     8 << 20,
                                     (8 << 20) + 3};
    for (int exclusive = 0; exclusive < 2; exclusive++)
        for (int assembled = 0; assembled < 2; assembled++)
            for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes); i++) {
                file_new(5 * UNIT, exclusive);
                put_pattern(0, SMALL);
                move_to(SMALL);
                if (assembled)
                    assert_assembles();
                cut(sizes[i]);
                assert_true(growing_moved(&file.growing) <= sizes[i] || sizes[i] >= SMALL);
                assert_false(is_torn());
                assert_reads();
                /* And longer again: there are zeros. */
                cut(4 * UNIT + 9);
                assert_reads();
                if (!exclusive) {
                    put_pattern(4 * UNIT, 5 * UNIT);
                    move_to(UINT64_MAX);
                }
                assert_reads();
                assert_assembles();
                file_close();
            }
}

static errint_t truncate_it(const void *size)
{
    return growing_truncate(&file.growing, *(const uint64_t *)size);
}

static void a_kill_while_truncating_loses_nothing(void **state)
{
    (void)state;
    NEED_PIPES;
    static const uint64_t sizes[] = {5000, (4 << 20), (5 << 20) + 5};
    for (int assembled = 0; assembled < 2; assembled++)
        for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes); i++) {
            bool killed = true;
            for (int at = 1; killed; at++) {
                file_new(SMALL, false);
                put_pattern(0, SMALL);
                move_to(SMALL);
                if (assembled)
                    assert_assembles();
                killed = dies(at, 2, truncate_it, &sizes[i]);
                succeed();
                file.size = size_in_memory();
                assert_true(file.size == SMALL || file.size == sizes[i]);
                assert_reads();
                /* The request comes again; the model is still that of before. */
                file.size = SMALL;
                cut(sizes[i]);
                assert_reads();
                cut(SMALL);
                assert_reads();
                assert_assembles();
                file_close();
            }
        }
}

static void truncating_a_torn_file(void **state)
{
    (void)state;
    NEED_PIPES;
    file_new(SMALL, false);
    put_pattern(0, SMALL);
    move_to(SMALL);
    put("tear", 4, 2 * UNIT + UNIT / 2);
    assert_true(is_torn());
    assert_int_equal(growing_truncate(&file.growing, 3 * UNIT), -EIO);
    assert_int_equal(growing_punch(&file.growing, 0, UNIT), -EIO);
    /* What is cut off does no harm. */
    cut(UNIT + 10);
    assert_false(is_torn());
    assert_assembles();
    file_close();
}

static void punching_is_exact_everywhere(void **state)
{
    (void)state;
    NEED_PIPES;
    for (int exclusive = 0; exclusive < 2; exclusive++) {
        file_new(SMALL, exclusive);
        put_pattern(0, SMALL);
        move_to(SMALL);
        static const uint64_t ranges[][2] = {
            {100, 50}, {(2 << 20) - 5, 10}, {(3 << 20) + 17, 99999}, {(6 << 20) - 4096, 8192}};
        for (size_t i = 0; i < MOB_ARRAY_LENGTH(ranges); i++) {
            punch(ranges[i][0], ranges[i][1]);
            assert_reads();
        }
        assert_false(is_torn());
        assert_assembles();
        file_close();
    }
}

static void writes_through_us_go_where_the_bytes_are(void **state)
{
    (void)state;
    file_new(6 * UNIT, true);
    static unsigned char bytes[1 << 20];
    unsigned seed = (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    for (int i = 0; i < 300; i++) {
        uint64_t offset = (uint64_t)rand_r(&seed) % (5 * UNIT);
        size_t count = (size_t)rand_r(&seed) % sizeof bytes + 1;
        memset(bytes, rand_r(&seed), count);
        put_through(bytes, count, offset);
        if (i % 10 == 3)
            move_to((uint64_t)rand_r(&seed) % (6 * UNIT));
        if (i % 50 == 40)
            succeed();
        if (i % 70 == 60)
            assert_assembles();
        if (i % 30 == 20)
            cut((uint64_t)rand_r(&seed) % (6 * UNIT));
        if (i % 5 == 0)
            assert_reads();
    }
    assert_assembles();
    file_close();
    file_new(10, false);
    assert_int_equal(growing_write(&file.growing, "x", 1, 0), -EPERM);
    file_close();
}

/* --- real writers --- */

static pid_t start_appending(uint64_t bytes)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child)
        return child;
    alarm(120);
    for (uint64_t done = 0; done < bytes;) {
        size_t piece = 1 << 20;
        if (piece > bytes - done)
            piece = (size_t)(bytes - done);
        ssize_t put_bytes =
            __real_pwrite64(file.writer_fd, file.shared->model + done, piece, (off_t)done);
        if (put_bytes <= 0)
            _exit(1);
        done += (uint64_t)put_bytes;
    }
    _exit(0);
}

struct reader {
    pthread_t thread;
    atomic_bool stop;
    uint64_t reads, wrong;
};

/* Random places, while they move: always what was written there. */
static void *read_along(void *argument)
{
    struct reader *reader = argument;
    static unsigned char buffer[100000];
    unsigned seed = 7;
    while (!atomic_load(&reader->stop)) {
        struct stat info;
        if (fstat(file.memory_fd, &info) < 0 || info.st_size == 0)
            continue;
        uint64_t size = (uint64_t)info.st_size;
        uint64_t offset = (uint64_t)rand_r(&seed) * 977 % size;
        size_t count = sizeof buffer < size - offset ? sizeof buffer : (size_t)(size - offset);
        ssize_t got = growing_read(&file.growing, buffer, count, offset);
        reader->reads++;
        if (got != (ssize_t)count || memcmp(buffer, file.shared->model + offset, count) != 0)
            reader->wrong++;
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    return NULL;
}

static void append_and_move(uint64_t bytes, struct hold *hold)
{
    uint64_t most = 0;
    struct reader reader = {.reads = 0};
    make_pattern(file.shared->model, 0, (size_t)bytes);
    file.size = bytes;
    file.mover.hold = hold;
    uint64_t begin = mob_monotonic_ns();
    pid_t writer = start_appending(bytes);
    assert_int_equal(pthread_create(&reader.thread, NULL, read_along, &reader), 0);
    int status = -1;
    while (waitpid(writer, &status, WNOHANG) == 0) {
        uint64_t moved = growing_moved(&file.growing);
        /* A batch at a time, to see how much there is. */
        move_to((moved ? moved : UNIT) + GROWING_BATCH_BYTES);
        uint64_t now = memory_bytes();
        if (now > most)
            most = now;
    }
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    uint64_t moved = growing_moved(&file.growing), ns = mob_monotonic_ns() - begin;
    print_message("%s: writer done after %.0f ms, %.0f MB/s; %llu MiB moved by then, at most %llu "
                  "MiB in memory\n",
                  hold ? "with holds" : "without", (double)ns / 1e6,
                  (double)bytes * 1e3 / (double)ns, (unsigned long long)moved >> 20,
                  (unsigned long long)most >> 20);
    file.mover.hold = NULL;
    move_to(UINT64_MAX);
    atomic_store(&reader.stop, true);
    pthread_join(reader.thread, NULL);
    assert_int_equal(reader.wrong, 0);
    assert_true(reader.reads > 0);
    assert_assembles();
}

static void a_writer_at_full_speed_is_moved_behind(void **state)
{
    (void)state;
    NEED_PIPES;
    file_new(128 << 20, false);
    append_and_move(128 << 20, NULL);
    file_close();
}

static void with_holds_a_fast_writer_is_moved_as_exactly(void **state)
{
    (void)state;
    NEED_PIPES;
    struct hold *hold;
    struct mob_error err = {0};
    if (hold_open(&hold, 1, &err)) {
        print_message("%s\n", err.message);
        skip();
    }
    file_new(384 << 20, false);
    /* How much is in memory at the most depends on how busy the machine is: not asserted. */
    append_and_move(384 << 20, hold);
    file_close();
    hold_close(hold);
}

/* Random writes into what was written, until told to stop. The model is the writer's. */
static pid_t start_rewriting(unsigned seed, uint64_t size)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child)
        return child;
    alarm(60);
    static unsigned char bytes[20000];
    /* Some write once or twice, some all the time, at random moments. */
    unsigned left = (unsigned)rand_r(&seed) % 4 ? (unsigned)rand_r(&seed) % 3 + 1 : 1000000;
    while (left-- && !atomic_load(&file.shared->stop)) {
        usleep((unsigned)rand_r(&seed) % 3000);
        size_t count = (size_t)rand_r(&seed) % sizeof bytes + 1;
        uint64_t offset = UNIT / 2 + (uint64_t)rand_r(&seed) % (size - count - UNIT / 2);
        memset(bytes, rand_r(&seed), count);
        if (__real_pwrite64(file.writer_fd, bytes, count, (off_t)offset) != (ssize_t)count)
            _exit(1);
        memcpy(file.shared->model + offset, bytes, count);
    }
    _exit(0);
}

static void a_writer_that_comes_back_ends_exact_or_torn(void **state)
{
    (void)state;
    NEED_PIPES;
    enum { ROUNDS = 60 };
    int torn = 0;
    unsigned first = (unsigned)time(NULL) * 1000;
    print_message("seed %u\n", first);
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint64_t size = 4 * UNIT + TAIL;
        int status;
        file_new(size, false);
        if (round % 3 == 0) {
            put("a", 1, 0);
            put_pattern(UNIT + UNIT / 2, UNIT * 2 + 4000);
            put("z", 1, size - 1);
        } else {
            put_pattern(0, size);
        }
        pid_t writer = start_rewriting(first + round, size);
        errint_t error = growing_move(&file.growing, &file.mover, UINT64_MAX, &file.err);
        assert_true(error == 0 || error == -EIO);
        atomic_store(&file.shared->stop, true);
        assert_int_equal(waitpid(writer, &status, 0), writer);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        torn += assert_exact_or_torn(false);
        file_close();
    }
    print_message("%d of %d torn\n", torn, ROUNDS);
}

static void moving_is_about_as_fast_as_the_disk(void **state)
{
    (void)state;
    NEED_PIPES;
    static const uint64_t bytes = 256 << 20;
    file_new(bytes, false);
    put_pattern(0, bytes);
    int direct = open_in(place, "direct", O_WRONLY | O_CREAT | O_DIRECT);
    unsigned char *unit = aligned_alloc(PAGE, UNIT);
    assert_non_null(unit);
    memcpy(unit, file.shared->model, UNIT);
    uint64_t begin = mob_monotonic_ns();
    for (uint64_t at = 0; at < bytes; at += UNIT)
        if (__real_pwrite64(direct, unit, UNIT, (off_t)at) != (ssize_t)UNIT)
            break;
    uint64_t middle = mob_monotonic_ns();
    move_to(bytes);
    uint64_t end = mob_monotonic_ns();
    assert_int_equal(growing_moved(&file.growing), bytes - UNIT);
    print_message("direct writes of 2 MiB %.0f MB/s, moving %.0f MB/s\n",
                  (double)bytes * 1e3 / (double)(middle - begin),
                  (double)bytes * 1e3 / (double)(end - middle));
    free(unit);
    close(direct);
    assert_assembles();
    file_close();
}

/* --- holding --- */

struct counter {
    pthread_t thread;
    int fd;
    atomic_bool stop;
    atomic_long writes;
};

static const char written_line[64] = "written";

static void *write_on(void *argument)
{
    struct counter *counter = argument;
    while (!atomic_load(&counter->stop)) {
        if (__real_pwrite64(counter->fd, written_line, sizeof written_line, 0) !=
            sizeof written_line)
            break;
        atomic_fetch_add(&counter->writes, 1);
    }
    return NULL;
}

static void *punch_it(void *argument)
{
    struct counter *counter = argument;
    __real_fallocate64(counter->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)UNIT,
                       (off_t)UNIT);
    atomic_fetch_add(&counter->writes, 1);
    return NULL;
}

static struct hold *open_hold(size_t limit)
{
    struct hold *hold = NULL;
    struct mob_error err = {0};
    errint_t error = hold_open(&hold, limit, &err);
    if (error) {
        assert_true(error == -EPERM || error == -EOPNOTSUPP);
        assert_true(err.message[0]);
        print_message("%s\n", err.message);
        skip();
    }
    return hold;
}

enum { SECOND_NS = 1000000000 };

static void a_hold_stops_writers_and_lets_them_go_on(void **state)
{
    (void)state;
    struct hold *hold = open_hold(2);
    file_new(UNIT, false);
    put_pattern(0, 100);
    struct counter counter = {.fd = file.writer_fd};
    assert_int_equal(pthread_create(&counter.thread, NULL, write_on, &counter), 0);
    for (int i = 0; i < 30; i++) {
        struct hold_token *token;
        usleep(3000);
        assert_int_equal(hold_begin(hold, file.memory_fd, HOLD_ANYWHERE, SECOND_NS, &token), 0);
        long before = atomic_load(&counter.writes) + 1; /* one that is done may not be counted */
        usleep(10000);
        long after = atomic_load(&counter.writes);
        hold_end(token);
        assert_true(after <= before);
        uint64_t end = mob_monotonic_ns() + SECOND_NS;
        while (atomic_load(&counter.writes) <= before)
            assert_true(mob_monotonic_ns() < end);
    }
    atomic_store(&counter.stop, true);
    pthread_join(counter.thread, NULL);
    /* Nothing of ours was written, nothing of ours is left open. */
    unsigned char got[64];
    assert_int_equal(mob_pread_full(file.memory_fd, got, 64, 0), 64);
    assert_memory_equal(got, written_line, sizeof got);
    close(file.writer_fd);
    assert_int_equal(fcntl(file.memory_fd, F_SETLEASE, F_RDLCK), 0);
    assert_int_equal(fcntl(file.memory_fd, F_SETLEASE, F_UNLCK), 0);
    file.writer_fd = open_in(memory_dir, "file", O_WRONLY);
    file_close();
    hold_close(hold);
}

static void a_hold_changes_no_byte_and_no_hole(void **state)
{
    (void)state;
    struct hold *hold = open_hold(1);
    struct hold_token *token;
    struct stat before, after;
    file_new(3 * UNIT, false);
    assert_int_equal(hold_begin(hold, file.memory_fd, HOLD_ANYWHERE, SECOND_NS, &token), -ENODATA);
    put("x", 1, UNIT + 5);
    assert_int_equal(fstat(file.memory_fd, &before), 0);
    assert_int_equal(hold_begin(hold, file.memory_fd, HOLD_ANYWHERE, SECOND_NS, &token), 0);
    hold_end(token);
    assert_int_equal(fstat(file.memory_fd, &after), 0);
    assert_int_equal(before.st_blocks, after.st_blocks);
    assert_int_equal(before.st_size, after.st_size);
    assert_int_equal(lseek(file.memory_fd, 0, SEEK_DATA) / (off_t)UNIT, 1);
    assert_reads();
    file_close();
    hold_close(hold);
}

static void a_punch_waits_for_the_end_of_a_hold(void **state)
{
    (void)state;
    struct hold *hold = open_hold(1);
    struct hold_token *token;
    file_new(3 * UNIT, false);
    put_pattern(0, 3 * UNIT);
    struct counter counter = {.fd = file.writer_fd};
    assert_int_equal(hold_begin(hold, file.memory_fd, HOLD_ANYWHERE, SECOND_NS, &token), 0);
    assert_int_equal(pthread_create(&counter.thread, NULL, punch_it, &counter), 0);
    usleep(50000);
    assert_int_equal(atomic_load(&counter.writes), 0);
    assert_reads(); /* reading goes on */
    hold_end(token);
    pthread_join(counter.thread, NULL);
    assert_int_equal(atomic_load(&counter.writes), 1);
    file_close();
    hold_close(hold);
}

static void holds_are_counted_and_bounded(void **state)
{
    (void)state;
    struct hold *hold = open_hold(2);
    struct hold_token *first, *second, *third;
    file_new(UNIT, false);
    put("x", 1, 0);
    int other = open_in(memory_dir, "other", O_RDWR | O_CREAT);
    assert_int_equal(__real_pwrite64(other, "y", 1, 0), 1);
    assert_int_equal(hold_begin(hold, file.memory_fd, HOLD_ANYWHERE, SECOND_NS, &first), 0);
    /* The file's lock is had: a second hold of it can't get it in time, and isn't left behind. */
    assert_int_equal(hold_begin(hold, file.memory_fd, HOLD_ANYWHERE, 20000000, &second),
                     -ETIMEDOUT);
    assert_int_equal(hold_begin(hold, other, HOLD_ANYWHERE, SECOND_NS, &second), -EBUSY);
    hold_end(first);
    errint_t error;
    uint64_t end = mob_monotonic_ns() + SECOND_NS;
    assert_int_equal(hold_begin(hold, other, HOLD_ANYWHERE, SECOND_NS, &second), 0);
    while ((error = hold_begin(hold, file.memory_fd, HOLD_ANYWHERE, SECOND_NS, &first)) == -EBUSY)
        assert_true(mob_monotonic_ns() < end); /* until the one that timed out is back */
    assert_int_equal(error, 0);
    assert_int_equal(hold_begin(hold, other, HOLD_ANYWHERE, SECOND_NS, &third), -EBUSY);
    hold_end(second);
    hold_end(first);
    put("more", 4, 100);
    assert_int_equal(hold_begin(hold, -1, HOLD_ANYWHERE, SECOND_NS, &first), -ENOENT);
    close(other);
    file_close();
    hold_close(hold);
}

static void writers_go_on_when_the_holder_is_killed(void **state)
{
    (void)state;
    hold_close(open_hold(1));
    int ready[2];
    char byte;
    file_new(UNIT, false);
    put("x", 1, 0);
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct hold *hold;
        struct hold_token *token;
        alarm(60);
        if (hold_open(&hold, 1, NULL) ||
            hold_begin(hold, file.memory_fd, HOLD_ANYWHERE, SECOND_NS, &token) ||
            write(ready[1], "r", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    struct counter counter = {.fd = file.writer_fd};
    assert_int_equal(pthread_create(&counter.thread, NULL, write_on, &counter), 0);
    usleep(30000);
    assert_int_equal(atomic_load(&counter.writes), 0);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    uint64_t end = mob_monotonic_ns() + SECOND_NS;
    while (!atomic_load(&counter.writes))
        assert_true(mob_monotonic_ns() < end);
    atomic_store(&counter.stop, true);
    pthread_join(counter.thread, NULL);
    close(ready[0]);
    file_close();
}

int main(void)
{
    if (UNDER_THREAD_SANITIZER)
        return 77; /* skipped */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_older_part_moves_and_the_head_stays),
        cmocka_unit_test(files_of_every_small_size_assemble),
        cmocka_unit_test(holes_are_zeros_and_take_no_room_on_disk),
        cmocka_unit_test(what_is_stale_on_disk_does_not_show_in_holes),
        cmocka_unit_test(the_part_that_the_writer_is_at_does_not_move),
        cmocka_unit_test(moving_can_be_cancelled),
        cmocka_unit_test(a_read_lease_is_possible_between_the_calls),
        cmocka_unit_test(small_pipes_are_refused_with_a_sentence),
        cmocka_unit_test(a_kill_at_any_step_loses_nothing),
        cmocka_unit_test(a_kill_of_the_successor_loses_nothing_either),
        cmocka_unit_test(a_write_at_any_step_ends_exact_or_torn),
        cmocka_unit_test(a_write_and_then_a_kill_end_exact_or_torn),
        cmocka_unit_test(a_late_end_of_file_is_noticed),
        cmocka_unit_test(pipes_that_were_lost_make_the_file_torn),
        cmocka_unit_test(a_failing_disk_leaves_everything_in_memory),
        cmocka_unit_test(short_writes_and_a_disk_without_direct_io_are_handled),
        cmocka_unit_test(a_disk_that_fails_after_the_punch_costs_nothing),
        cmocka_unit_test(a_note_that_fails_costs_nothing),
        cmocka_unit_test(a_full_disk_refuses_and_goes_on_when_it_has_room),
        cmocka_unit_test(truncating_is_exact_everywhere),
        cmocka_unit_test(a_kill_while_truncating_loses_nothing),
        cmocka_unit_test(truncating_a_torn_file),
        cmocka_unit_test(punching_is_exact_everywhere),
        cmocka_unit_test(writes_through_us_go_where_the_bytes_are),
        cmocka_unit_test(a_writer_at_full_speed_is_moved_behind),
        cmocka_unit_test(with_holds_a_fast_writer_is_moved_as_exactly),
        cmocka_unit_test(a_writer_that_comes_back_ends_exact_or_torn),
        cmocka_unit_test(moving_is_about_as_fast_as_the_disk),
        cmocka_unit_test(a_hold_stops_writers_and_lets_them_go_on),
        cmocka_unit_test(a_hold_changes_no_byte_and_no_hole),
        cmocka_unit_test(a_punch_waits_for_the_end_of_a_hold),
        cmocka_unit_test(holds_are_counted_and_bounded),
        cmocka_unit_test(writers_go_on_when_the_holder_is_killed),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
