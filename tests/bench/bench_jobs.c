/* Jobs, and waiting for many results at once. See bench.h. */
#include "tests/bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/id.h"
#include "tests/model/support.h"

enum { WAIT_COUNT = 1000 };

static void drop(const char *name, const char *spec, size_t bytes, struct mob_id *job)
{
    char path[PATH_MAX], id[41];

    snprintf(path, sizeof(path), "%s", bench_path("run/%s", name));
    bench_put(path, spec, bytes);
    bench_link_id(path, id);
    if (!mob_id_parse(id, 40, job))
        bench_fail("not a job", path);
}

static void forget(const char *name)
{
    if (unlink(bench_path("run/%s", name)) < 0)
        bench_fail("unlink", name);
}

static void output_path(const struct mob_id *job, unsigned number, char out[PATH_MAX])
{
    struct mob_id output = mob_id_with_index(job, number);
    char id[41];

    snprintf(out, PATH_MAX, "%s", mount_object_path(mob_id_format(&output, id)));
}

/* --- one at a time, and all at once --- */

static const char trivial[] = "{\"command\": [\"true\"]}";

static double sync_rate(unsigned count)
{
    double began = bench_seconds(), took;
    char name[32], path[PATH_MAX], data[16];
    struct mob_id job;

    for (unsigned i = 0; i < count; i++) {
        snprintf(name, sizeof(name), "bench-%u", i);
        drop(name, trivial, sizeof(trivial) - 1, &job);
        output_path(&job, 1, path);
        bench_get(path, data, sizeof(data)); /* opening waits */
    }
    took = bench_seconds() - began;
    for (unsigned i = 0; i < count; i++) {
        snprintf(name, sizeof(name), "bench-%u", i);
        forget(name);
    }
    return count / took;
}

static double async_rate(unsigned count)
{
    struct mob_id *jobs = calloc(count, sizeof(*jobs));
    double began = bench_seconds(), took;
    char name[32], path[PATH_MAX], data[16];

    if (!jobs)
        bench_fail("memory", "");
    for (unsigned i = 0; i < count; i++) {
        snprintf(name, sizeof(name), "bench-%u", i);
        drop(name, trivial, sizeof(trivial) - 1, &jobs[i]);
    }
    for (unsigned i = 0; i < count; i++) {
        output_path(&jobs[i], 1, path);
        bench_get(path, data, sizeof(data));
    }
    took = bench_seconds() - began;
    for (unsigned i = 0; i < count; i++) {
        snprintf(name, sizeof(name), "bench-%u", i);
        forget(name);
    }
    free(jobs);
    return count / took;
}

/* --- waiting --- */

static void open_pending(const char *path, struct pollfd *slot)
{
    slot->fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    slot->events = POLLIN;
    if (slot->fd < 0)
        bench_fail("open with O_NONBLOCK", path);
}

/* Polls until each has been seen ready once, reading a byte of it. */
static void poll_all(struct pollfd *waiting, unsigned count)
{
    unsigned left = count;

    while (left > 0) {
        int ready = poll(waiting, count, 60000);

        if (ready <= 0)
            bench_fail("poll", "of pending objects");
        for (unsigned i = 0; i < count; i++) {
            char byte;

            if (waiting[i].fd < 0 || !waiting[i].revents)
                continue;
            if (read(waiting[i].fd, &byte, 1) < 0)
                bench_fail("read", "of an object that poll calls ready");
            close(waiting[i].fd);
            waiting[i].fd = -1;
            left--;
        }
    }
}

/* A job that waits at a gate and then writes `count` outputs. */
static void drop_outputs(unsigned count, const char *gate, struct mob_id *job)
{
    size_t room = 1000 + (size_t)count * 32;
    char *spec = malloc(room);
    size_t length;

    if (!spec)
        bench_fail("memory", "");
    length = (size_t)snprintf(spec, room,
                              "{\"command\": [\"sh\", \"-c\", \"read line <%s; for f; do echo 1 "
                              ">\\\"$f\\\"; done\", \"sh\"",
                              gate);
    for (unsigned i = 0; i < count; i++)
        length += (size_t)snprintf(spec + length, room - length, ", {\"output\": \"o%u\"}", i);
    length += (size_t)snprintf(spec + length, room - length, "]}");
    drop("bench-wait", spec, length, job);
    free(spec);
}

/* Seconds from the first open until all are ready. `*parked`: until all are open and polled once.
 */
static double wait_outputs(unsigned count, const char *gate, double *parked)
{
    struct pollfd *waiting = calloc(count, sizeof(*waiting));
    char path[PATH_MAX];
    struct mob_id job;
    double began, took;
    int fd;

    if (!waiting)
        bench_fail("memory", "");
    drop_outputs(count, gate, &job);
    fd = open(gate, O_WRONLY | O_CLOEXEC); /* waits until the job runs */
    if (fd < 0)
        bench_fail("open", gate);
    began = bench_seconds();
    for (unsigned i = 0; i < count; i++) {
        output_path(&job, 1 + i, path);
        open_pending(path, &waiting[i]);
    }
    if (poll(waiting, count, 0) != 0)
        bench_fail("pending objects are ready before their job ends", "");
    *parked = bench_seconds() - began;
    if (write(fd, "go\n", 3) != 3)
        bench_fail("write", gate);
    close(fd);
    poll_all(waiting, count);
    took = bench_seconds() - began;
    forget("bench-wait");
    free(waiting);
    return took;
}

/* As Ray's microbenchmark has it: tasks submitted, then all waited for. */
static double wait_jobs(unsigned count)
{
    struct pollfd *waiting = calloc(count, sizeof(*waiting));
    double began = bench_seconds(), took;
    char name[32], path[PATH_MAX];
    struct mob_id job;

    if (!waiting)
        bench_fail("memory", "");
    for (unsigned i = 0; i < count; i++) {
        snprintf(name, sizeof(name), "bench-%u", i);
        drop(name, trivial, sizeof(trivial) - 1, &job);
        output_path(&job, 1, path);
        open_pending(path, &waiting[i]);
    }
    poll_all(waiting, count);
    took = bench_seconds() - began;
    for (unsigned i = 0; i < count; i++) {
        snprintf(name, sizeof(name), "bench-%u", i);
        forget(name);
    }
    free(waiting);
    return took;
}

static void measure_waits(void)
{
    struct figure wait_figure = {.key = "wait_1k", .unit = "1/s"};
    struct figure parked_figure = {.key = "wait_1k_parked", .unit = "ms"};
    struct figure jobs_figure = {.key = "wait_1k_jobs", .unit = "1/s"};
    unsigned count = bench_scaled(WAIT_COUNT, 100);
    char directory[] = "/tmp/mobula-bench-XXXXXX", gate[64];

    if (!mkdtemp(directory))
        bench_fail("mkdtemp", directory);
    snprintf(gate, sizeof(gate), "%s/gate", directory);
    if (mkfifo(gate, 0600) < 0)
        bench_fail("mkfifo", gate);
    for (unsigned run = 0; run < bench_options.runs; run++) {
        double parked;

        figure_add(&wait_figure, 1 / wait_outputs(count, gate, &parked));
        figure_add(&parked_figure, parked * 1e3);
        figure_add(&jobs_figure, 1 / wait_jobs(count));
    }
    unlink(gate);
    rmdir(directory);
    figure_report(&wait_figure);
    figure_report(&parked_figure);
    figure_report(&jobs_figure);
}

void bench_jobs(void)
{
    struct figure sync = {.key = "job_sync", .unit = "1/s"};
    struct figure async = {.key = "jobs_async", .unit = "1/s"};

    sync_rate(bench_scaled(20, 3)); /* warms up */
    for (unsigned run = 0; run < bench_options.runs; run++) {
        figure_add(&sync, sync_rate(bench_scaled(500, 20)));
        figure_add(&async, async_rate(bench_scaled(10000, 200)));
    }
    figure_report(&sync);
    figure_report(&async);
    measure_waits();
}
