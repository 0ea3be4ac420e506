/* Large objects against the same bytes in a tmpfs, run by run in turns. See bench.h. */
#include "tests/bench/bench.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/util.h"
#include "tests/model/support.h"

enum { READ_BLOCK = 128 * 1024, WRITE_BLOCK = 1 << 20 };

static size_t large_bytes(void)
{
    return (size_t)bench_scaled(512, 64) << 20;
}

static double gigabytes_a_second(double seconds)
{
    return (double)large_bytes() / seconds / 1e9;
}

static double time_read(const char *path)
{
    static char block[READ_BLOCK];
    double began = bench_seconds();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t bytes = 0;
    ssize_t got;

    if (fd < 0)
        bench_fail("open", path);
    while ((got = read(fd, block, sizeof(block))) > 0)
        bytes += (size_t)got;
    if (got < 0 || bytes != large_bytes())
        bench_fail("read", path);
    close(fd);
    return bench_seconds() - began;
}

static double time_map(const char *path)
{
    double began = bench_seconds();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    unsigned sum = 0;
    unsigned char *map;

    if (fd < 0)
        bench_fail("open", path);
    map = mmap(NULL, large_bytes(), PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        bench_fail("mmap", path);
    for (size_t i = 0; i < large_bytes(); i += 4096)
        sum += map[i];
    __asm__ volatile("" : : "r"(sum)); /* so that the reads are made */
    munmap(map, large_bytes());
    close(fd);
    return bench_seconds() - began;
}

/* As dd does it; `link`: until the name answers as a link. */
static double time_write(const char *path, const char *block, bool link)
{
    double began = bench_seconds();
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    char id[41];

    if (fd < 0)
        bench_fail("create", path);
    for (size_t done = 0; done < large_bytes(); done += WRITE_BLOCK)
        if (mob_write_full(fd, block, WRITE_BLOCK) < 0)
            bench_fail("write", path);
    if (close(fd) < 0)
        bench_fail("close", path);
    if (link)
        bench_link_id(path, id);
    return bench_seconds() - began;
}

static void measure_puts(const char *block, const char *ours, const char *reference)
{
    struct figure put = {.key = "put_large", .unit = "GB/s"};
    struct figure native = {.key = "ref_put_large", .unit = "GB/s"};

    for (unsigned run = 0; run <= bench_options.runs; run++) {
        double seconds = time_write(ours, block, true);

        if (run > 0) /* the first warms up */
            figure_add(&put, gigabytes_a_second(seconds));
        if (unlink(ours) < 0)
            bench_fail("unlink", ours);
        if (!bench_options.reference)
            continue;
        seconds = time_write(reference, block, false);
        if (run > 0)
            figure_add(&native, gigabytes_a_second(seconds));
        unlink(reference);
    }
    figure_report(&put);
    figure_report(&native);
}

static void measure_gets(const char *ours, const char *reference)
{
    struct figure reads = {.key = "get_large_read", .unit = "GB/s"};
    struct figure native_reads = {.key = "ref_get_large_read", .unit = "GB/s"};
    struct figure maps = {.key = "get_large_mmap", .unit = "GB/s"};
    struct figure native_maps = {.key = "ref_get_large_mmap", .unit = "GB/s"};
    struct figure cpu = {.key = "get_large_daemon_cpu", .unit = "ms/GiB"};
    int64_t pid = mount_number("daemon", "pid");
    double gib = (double)large_bytes() / (1 << 30);

    for (unsigned run = 0; run <= bench_options.runs; run++) {
        double cpu_before = bench_process_cpu(pid), cpu_after;
        double read_seconds = time_read(ours), map_seconds = time_map(ours);

        cpu_after = bench_process_cpu(pid);
        if (run > 0) {
            figure_add(&reads, gigabytes_a_second(read_seconds));
            figure_add(&maps, gigabytes_a_second(map_seconds));
            if (cpu_before >= 0)
                figure_add(&cpu, (cpu_after - cpu_before) * 1e3 / (2 * gib));
        }
        if (!bench_options.reference)
            continue;
        read_seconds = time_read(reference);
        map_seconds = time_map(reference);
        if (run > 0) {
            figure_add(&native_reads, gigabytes_a_second(read_seconds));
            figure_add(&native_maps, gigabytes_a_second(map_seconds));
        }
    }
    figure_report(&reads);
    figure_report(&native_reads);
    figure_report(&maps);
    figure_report(&native_maps);
    figure_report(&cpu);
}

void bench_large(void)
{
    char ours[PATH_MAX], reference[PATH_MAX], object[PATH_MAX], id[41];
    char *block = malloc(WRITE_BLOCK);

    if (!block)
        bench_fail("memory", "");
    content_fill(1, 0, block, WRITE_BLOCK);
    snprintf(ours, sizeof(ours), "%s", bench_path("staging/bench/large"));
    snprintf(reference, sizeof(reference), "%s/large",
             bench_options.reference ? bench_options.reference : "");
    measure_puts(block, ours, reference);
    time_write(ours, block, true);
    if (bench_options.reference)
        time_write(reference, block, false);
    bench_link_id(ours, id);
    snprintf(object, sizeof(object), "%s", mount_object_path(id));
    measure_gets(object, reference);
    if (unlink(ours) < 0)
        bench_fail("unlink", ours);
    if (bench_options.reference)
        unlink(reference);
    free(block);
}
