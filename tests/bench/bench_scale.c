/* Many small objects: time a put at the start and at the end, memory an object, listing, freeing.
 * See bench.h. */
#include "tests/bench/bench.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/util.h"
#include "tests/model/support.h"

enum { OBJECT_BYTES = 100, DIRECTORY_OBJECTS = 1000 };

static const char *scale_path(uint64_t number)
{
    return bench_path("staging/bench/s%" PRIu64 "/%" PRIu64, number / DIRECTORY_OBJECTS,
                      number % DIRECTORY_OBJECTS);
}

static void put_range(uint64_t from, uint64_t to)
{
    char data[OBJECT_BYTES];

    for (uint64_t i = from; i < to; i++) {
        if (i % DIRECTORY_OBJECTS == 0 &&
            mkdir(bench_path("staging/bench/s%" PRIu64, i / DIRECTORY_OBJECTS), 0755) < 0)
            bench_fail("mkdir", "staging/bench/sN");
        content_fill(i, 0, data, sizeof(data));
        bench_put(scale_path(i), data, sizeof(data));
    }
}

static double microseconds_each(uint64_t from, uint64_t to)
{
    double began = bench_seconds();

    put_range(from, to);
    return (bench_seconds() - began) * 1e6 / (double)(to - from);
}

static uint64_t count_listed(void)
{
    DIR *stream = opendir(bench_path("objects"));
    struct dirent *entry;
    uint64_t count = 0;

    if (!stream)
        bench_fail("opendir", "objects");
    while ((errno = 0, entry = readdir(stream)))
        count += entry->d_name[0] != '.';
    if (errno)
        bench_fail("readdir", "objects");
    closedir(stream);
    return count;
}

/* Contents of a few, spread over all. */
static void check_some(uint64_t count)
{
    char data[2 * OBJECT_BYTES];

    for (uint64_t i = 0; i < count; i += 1 + count / 1000)
        if (bench_get(scale_path(i), data, sizeof(data)) != OBJECT_BYTES ||
            content_differs(i, 0, data, OBJECT_BYTES) >= 0)
            bench_fail("other content:", scale_path(i));
}

static void free_all(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        if (unlink(scale_path(i)) < 0)
            bench_fail("unlink", scale_path(i));
        if ((i + 1) % DIRECTORY_OBJECTS == 0 || i + 1 == count)
            if (rmdir(bench_path("staging/bench/s%" PRIu64, i / DIRECTORY_OBJECTS)) < 0)
                bench_fail("rmdir", "staging/bench/sN");
    }
}

/* What earlier parts let go of may be freed a moment later. */
static int64_t ready_at_rest(void)
{
    int64_t ready = mount_number("objects", "ready"), before;

    do {
        before = ready;
        usleep(300000);
        ready = mount_number("objects", "ready");
    } while (ready != before);
    return ready;
}

static int64_t settled_ready(int64_t due)
{
    int64_t ready = mount_number("objects", "ready");

    for (unsigned tries = 0; tries < 100 && ready > due; tries++) {
        usleep(50000);
        ready = mount_number("objects", "ready");
    }
    return ready;
}

void bench_scale(void)
{
    uint64_t count = bench_options.scale;
    uint64_t window = count / 20 < 10000 ? count / 20 : 10000;
    int64_t pid = mount_number("daemon", "pid");
    int64_t ready = ready_at_rest();
    int64_t memory = bench_process_anonymous(pid);
    uint64_t listed = count_listed();
    double first, last, began;

    if (window < 50)
        return;
    first = microseconds_each(0, window);
    put_range(window, count - window);
    last = microseconds_each(count - window, count);
    figure_single("scale_objects", (double)count, "objects");
    figure_single("scale_put_first", first, "us");
    figure_single("scale_put_last", last, "us");
    figure_single("scale_memory", (double)(bench_process_anonymous(pid) - memory) / (double)count,
                  "bytes/object");
    began = bench_seconds();
    listed = count_listed() - listed;
    figure_single("scale_list", (double)count / (bench_seconds() - began), "1/s");
    figure_single("scale_listed", (double)listed, "objects");
    check_some(count);
    began = bench_seconds();
    free_all(count);
    figure_single("scale_free", (double)count / (bench_seconds() - began), "1/s");
    figure_single("scale_left", (double)(settled_ready(ready) - ready), "objects");
    figure_single("scale_memory_left",
                  (double)(bench_process_anonymous(pid) - memory) / (double)count, "bytes/object");
}
