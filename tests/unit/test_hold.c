/* core/store/hold: writers of a file wait, and nothing of it changes. */
#include "tests/unit/growing_fixture.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "core/store/hold.h"

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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hold_stops_writers_and_lets_them_go_on),
        cmocka_unit_test(a_hold_changes_no_byte_and_no_hole),
        cmocka_unit_test(a_punch_waits_for_the_end_of_a_hold),
        cmocka_unit_test(holds_are_counted_and_bounded),
        cmocka_unit_test(writers_go_on_when_the_holder_is_killed),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
