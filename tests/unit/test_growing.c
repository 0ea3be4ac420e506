/* core/store/growing: the older part of a file that is being written is moved to disk, and what
 * fails meanwhile costs nothing. */
#include "tests/unit/growing_fixture.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

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
        cmocka_unit_test(a_failing_disk_leaves_everything_in_memory),
        cmocka_unit_test(short_writes_and_a_disk_without_direct_io_are_handled),
        cmocka_unit_test(a_note_that_fails_costs_nothing),
        cmocka_unit_test(a_full_disk_refuses_and_goes_on_when_it_has_room),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
