/* core/store/growing with real writers, and readers, while it moves. */
#include "tests/unit/growing_fixture.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "core/store/hold.h"

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
        got = growing_read_now(&file.growing, buffer, count, offset);
        if (got != -EAGAIN &&
            (got != (ssize_t)count || memcmp(buffer, file.shared->model + offset, count) != 0))
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

int main(void)
{
    if (UNDER_THREAD_SANITIZER)
        return 77; /* skipped */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_writer_at_full_speed_is_moved_behind),
        cmocka_unit_test(with_holds_a_fast_writer_is_moved_as_exactly),
        cmocka_unit_test(a_writer_that_comes_back_ends_exact_or_torn),
        cmocka_unit_test(moving_is_about_as_fast_as_the_disk),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
