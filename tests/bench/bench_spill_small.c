/* Small objects beside the disk: gets while large ones are spilled, and very many that are read
 * from the database after a new start. See bench.h. */
#include "tests/bench/bench_spill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/bench/bench.h"
#include "tests/model/support.h"

enum {
    SMALL_DIRECTORY = 1000,
    SMALL_RUNS = 2, /* one takes a minute */
    GETS = 200000,  /* whose times are kept, at most */
};

/* --- a small get while it spills --- */

static int compare_doubles(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return left < right ? -1 : left > right;
}

static double percentile(double *times, size_t count, unsigned percent)
{
    qsort(times, count, sizeof(*times), compare_doubles);
    return count ? times[count - 1 - count * (100 - percent) / 100] : 0;
}

/* What the machine itself needs for a get: three messages to another process and their answers. */
struct echo {
    pid_t pid;
    int to, from;
};

static void echo_start(struct echo *echo)
{
    int there[2], back[2];
    char byte;

    if (pipe2(there, O_CLOEXEC) < 0 || pipe2(back, O_CLOEXEC) < 0)
        bench_fail("pipe", "");
    fflush(NULL);
    echo->pid = fork();
    if (echo->pid < 0)
        bench_fail("fork", "");
    if (!echo->pid) {
        close(there[1]);
        close(back[0]);
        while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1) {
        }
        _exit(0);
    }
    close(there[0]);
    close(back[1]);
    echo->to = there[1];
    echo->from = back[0];
}

static void echo_end(struct echo *echo)
{
    close(echo->to);
    close(echo->from);
    waitpid(echo->pid, NULL, 0);
}

static double echo_time(const struct echo *echo)
{
    double began = bench_seconds();
    char byte = 'e';

    for (unsigned i = 0; i < 3; i++)
        if (write(echo->to, &byte, 1) != 1 || read(echo->from, &byte, 1) != 1)
            bench_fail("echo", "");
    return (bench_seconds() - began) * 1e6;
}

struct latency {
    struct figure middle, most, echo_middle, echo_most; /* of 100: 50, 99 */
};

/* Gets small objects for so long as `writer` runs, or so many seconds. False: the writer failed. */
static bool measure_latency(struct latency *latency, unsigned objects, double seconds, pid_t writer)
{
    double *times = calloc(2 * GETS, sizeof(*times)), *echoes = times + GETS;
    double began = bench_seconds(), at;
    char data[2 * SPILL_SMALL_BYTES];
    struct echo echo;
    size_t count = 0;
    int status = 0;

    if (!times)
        bench_fail("memory", "");
    echo_start(&echo);
    while (count < GETS &&
           (writer ? waitpid(writer, &status, WNOHANG) == 0 : bench_seconds() - began < seconds)) {
        unsigned number = (unsigned)(count % objects);

        at = bench_seconds();
        if (bench_get(bench_path("staging/bench/get/%u", number), data, sizeof(data)) == 0)
            bench_fail("short read", "");
        times[count] = (bench_seconds() - at) * 1e6;
        usleep(100); /* a client that asks now and then, not one that fills a core */
        echoes[count++] = echo_time(&echo);
        usleep(100);
    }
    if (writer && count == GETS)
        waitpid(writer, &status, 0);
    echo_end(&echo);
    figure_add(&latency->middle, percentile(times, count, 50));
    figure_add(&latency->most, percentile(times, count, 99));
    figure_add(&latency->echo_middle, percentile(echoes, count, 50));
    figure_add(&latency->echo_most, percentile(echoes, count, 99));
    free(times);
    return !writer || status == 0;
}

static void report_latency(struct latency *latency)
{
    figure_report(&latency->middle);
    figure_report(&latency->most);
    figure_report(&latency->echo_middle);
    figure_report(&latency->echo_most);
}

static pid_t start_writer(unsigned count)
{
    pid_t pid;

    fflush(NULL);
    pid = fork();
    if (pid < 0)
        bench_fail("fork", "");
    if (pid == 0) {
        for (unsigned i = 0; i < count; i++)
            spill_put_object(i);
        _exit(0);
    }
    return pid;
}

static void measure_gets(void)
{
    struct latency rest = {.middle = {.key = "spill_get_rest_50", .unit = "us"},
                           .most = {.key = "spill_get_rest", .unit = "us"},
                           .echo_middle = {.key = "spill_echo_rest_50", .unit = "us"},
                           .echo_most = {.key = "spill_echo_rest", .unit = "us"}};
    struct latency spilling = {.middle = {.key = "spill_get_spilling_50", .unit = "us"},
                               .most = {.key = "spill_get_spilling", .unit = "us"},
                               .echo_middle = {.key = "spill_echo_spilling_50", .unit = "us"},
                               .echo_most = {.key = "spill_echo_spilling", .unit = "us"}};
    unsigned objects = 1000, full = spill_object_count() / 3, count = spill_object_count();

    if (mkdir(bench_path("staging/bench/get"), 0755) < 0)
        bench_fail("mkdir", "staging/bench/get");
    for (unsigned i = 0; i < objects; i++)
        bench_put(bench_path("staging/bench/get/%u", i), spill_block, 1024);
    for (unsigned run = 0; run < bench_options.runs; run++) {
        measure_latency(&rest, objects, bench_scaled(3, 1), 0);
        for (unsigned i = 0; i < full; i++) /* memory is full when it begins */
            spill_put_object(count + i);
        if (!measure_latency(&spilling, objects, 0, start_writer(count)))
            bench_fail("a writer failed", "");
        spill_free_objects(0, count + full);
        spill_wait_for("memory", "disk_used_bytes", 0);
    }
    for (unsigned i = 0; i < objects; i++)
        if (unlink(bench_path("staging/bench/get/%u", i)) < 0)
            bench_fail("unlink", "staging/bench/get");
    if (rmdir(bench_path("staging/bench/get")) < 0)
        bench_fail("rmdir", "staging/bench/get");
    report_latency(&rest);
    report_latency(&spilling);
}

/* --- many small ones --- */

static const char *small_name(unsigned number)
{
    return bench_path("staging/bench/s%u/%u", number / SMALL_DIRECTORY, number % SMALL_DIRECTORY);
}

static double small_rate(unsigned count, double began)
{
    return (double)count * SPILL_SMALL_BYTES / (bench_seconds() - began) / 1e9;
}

static double put_small(unsigned count)
{
    double began = bench_seconds();

    for (unsigned i = 0; i < count; i++) {
        if (i % SMALL_DIRECTORY == 0 &&
            mkdir(bench_path("staging/bench/s%u", i / SMALL_DIRECTORY), 0755) < 0)
            bench_fail("mkdir", "staging/bench/sN");
        memcpy(spill_block, &i, sizeof(i));
        bench_put(small_name(i), spill_block, SPILL_SMALL_BYTES);
    }
    return small_rate(count, began);
}

static double get_small(unsigned count)
{
    double began = bench_seconds();

    for (unsigned i = 0; i < count; i++) {
        unsigned is = ~i;
        size_t bytes = bench_get(small_name(i), spill_block, SPILL_BLOCK);

        memcpy(&is, spill_block, sizeof(is));
        if (bytes != SPILL_SMALL_BYTES || is != i)
            bench_fail("other content:", small_name(i));
    }
    return small_rate(count, began);
}

static void free_small(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (unlink(small_name(i)) < 0)
            bench_fail("unlink", small_name(i));
        if ((i + 1) % SMALL_DIRECTORY == 0 || i + 1 == count)
            if (rmdir(bench_path("staging/bench/s%u", i / SMALL_DIRECTORY)) < 0)
                bench_fail("rmdir", "staging/bench/sN");
    }
}

static void start_anew(void)
{
    char command[3 * PATH_MAX];

    if (system(bench_options.down) != 0)
        bench_fail("down failed:", bench_options.down);
    snprintf(command, sizeof(command),
             "sync -f '%s' && for f in '%s'/meta/*; do "
             "dd if=\"$f\" iflag=nocache count=0 status=none; done",
             fio_state, fio_state);
    if (system(command) != 0)
        bench_fail("failed:", command);
    if (system(bench_options.up) != 0)
        bench_fail("up failed:", bench_options.up);
    if (!mount_open(bench_options.dir))
        bench_fail("not a mount of mobula:", bench_options.dir);
}

static void measure_small(bool fio)
{
    unsigned count = bench_scaled(100000, 2000);
    struct figure put = {.key = "spill_small_put", .unit = "GB/s"};
    struct figure get = {.key = "spill_small_get", .unit = "GB/s"};
    struct figure fio_write = {.key = "fio_small_write", .unit = "GB/s"};
    struct figure fio_read = {.key = "fio_small_read", .unit = "GB/s"};
    struct figure file_write = {.key = "files_small_write", .unit = "GB/s"};
    struct figure file_read = {.key = "files_small_read", .unit = "GB/s"};
    uint64_t bytes = ((uint64_t)count * SPILL_SMALL_BYTES / SPILL_BLOCK + 1) * SPILL_BLOCK;

    for (unsigned run = 0; run < bench_options.runs && run < SMALL_RUNS; run++) {
        if (fio)
            fio_writes(&fio_write, bytes);
        figure_add(&put, put_small(count));
        if (bench_options.up) {
            start_anew();
            figure_add(&get, get_small(count));
        }
        if (fio)
            fio_reads(&fio_read, bytes);
        free_small(count);
        if (fio && run == 0)
            fio_reads_and_writes_files(&file_write, &file_read, count);
    }
    figure_report(&put);
    figure_report(&get);
    figure_report(&fio_write);
    figure_report(&fio_read);
    figure_report(&file_write);
    figure_report(&file_read);
}

void bench_spill_gets(void)
{
    (void)spill_prepare();
    measure_gets();
    spill_end();
}

void bench_spill_small(void)
{
    measure_small(spill_prepare());
    spill_end();
}
