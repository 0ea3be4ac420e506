/* The disk as a tier, against fio on the same filesystem, run by run in turns. See bench.h.
 *
 * The mount is one of its own, whose memory is small beside what is put. fio's figures are of
 * io_uring, direct, blocks of 1 MiB, 16 in flight. A cold read is of a file that isn't in the page
 * cache; small objects, which are in the database, are cold after a new start. */
#include "tests/bench/bench_spill.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "core/base/util.h"
#include "tests/bench/bench.h"
#include "tests/model/support.h"

enum { OBJECTS_LIMIT = 400 };

char *spill_block;

static uint64_t object_bytes(void)
{
    return (uint64_t)bench_scaled(64, 8) << 20;
}

unsigned spill_object_count(void)
{
    uint64_t count = 3 * (uint64_t)mount_number("memory", "budget_bytes") / object_bytes();

    return count < OBJECTS_LIMIT ? (unsigned)count : OBJECTS_LIMIT;
}

static const char *object_name(unsigned number)
{
    return bench_path("staging/bench/spill-%u", number);
}

/* --- a writer and what goes to disk meanwhile --- */

struct watch {
    pthread_t thread;
    atomic_bool stop;
    const char *key;
    int64_t first, last, floor; /* bytes; what came before `floor` is not counted */
    double first_at, last_at;
};

/* Rounds of the evictor show as steps: the time counts from one step to another. */
static void *watch_main(void *argument)
{
    struct watch *watch = argument;

    while (!atomic_load(&watch->stop)) {
        int64_t now = mount_number("memory", watch->key);
        double at = bench_seconds();

        if (now != watch->last && now > watch->floor) {
            if (!watch->first_at) {
                watch->first = now;
                watch->first_at = at;
            }
            watch->last = now;
            watch->last_at = at;
        }
        usleep(2000);
    }
    return NULL;
}

static void watch_start(struct watch *watch, const char *key)
{
    int64_t now = mount_number("memory", key);

    *watch = (struct watch){.key = key, .last = now, .floor = now};
    if (pthread_create(&watch->thread, NULL, watch_main, watch))
        bench_fail("pthread_create", "");
}

/* GB/s between the first step and the last; 0: there were no two. */
static double watch_end(struct watch *watch)
{
    atomic_store(&watch->stop, true);
    pthread_join(watch->thread, NULL);
    return watch->last_at > watch->first_at
               ? (double)(watch->last - watch->first) / (watch->last_at - watch->first_at) / 1e9
               : 0;
}

void spill_put_object(unsigned number)
{
    const char *path = object_name(number);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

    if (fd < 0)
        bench_fail("create", path);
    for (uint64_t done = 0; done < object_bytes(); done += SPILL_BLOCK) {
        memcpy(spill_block, &number, sizeof(number));
        memcpy(spill_block + sizeof(number), &done, sizeof(done));
        if (mob_write_full(fd, spill_block, SPILL_BLOCK) < 0)
            bench_fail("write", path);
    }
    if (close(fd) < 0)
        bench_fail("close", path);
}

/* Returns GB/s of what was put after memory was full. */
static double put_objects(unsigned count)
{
    unsigned fit = (unsigned)((uint64_t)mount_number("memory", "budget_bytes") / object_bytes());
    double began = 0;

    for (unsigned i = 0; i < count; i++) {
        if (i == fit)
            began = bench_seconds();
        spill_put_object(i);
    }
    return (double)((count - fit) * object_bytes()) / (bench_seconds() - began) / 1e9;
}

void spill_wait_for(const char *file, const char *key, int64_t most)
{
    for (unsigned tries = 0; mount_number(file, key) > most; tries++) {
        if (tries == 3000) {
            errno = ETIMEDOUT;
            bench_fail("waiting for", key);
        }
        usleep(10000);
    }
}

/* Until what was put is on disk, and the daemon has its checksums. */
static void settle(void)
{
    int64_t pid = mount_number("daemon", "pid");
    double before, now = bench_process_cpu(pid);

    sync_disk();
    spill_wait_for("memory", "spilling_bytes", 0);
    do {
        before = now;
        usleep(300000);
        now = bench_process_cpu(pid);
    } while (now - before > 0.02);
}

void spill_free_objects(unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++)
        if (unlink(object_name(i)) < 0 && errno != ENOENT)
            bench_fail("unlink", object_name(i));
}

/* --- reading it back --- */

static bool is_on_disk(const char *path)
{
    char tier[16] = "";

    return getxattr(path, "user.mobula.tier", tier, sizeof(tier) - 1) > 0 &&
           strcmp(tier, "disk") == 0;
}

/* Out of the page cache: written back first, as dirty pages stay. */
static void make_cold(const char *path)
{
    char place[PATH_MAX] = "";
    int fd = -1;

    if (getxattr(path, "user.mobula.place", place, sizeof(place) - 1) > 0)
        fd = open(place, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
        bench_fail("not out of the page cache:", path);
    close(fd);
}

/* Those on disk after the first `skip`, at most so many, made cold. */
static unsigned choose_cold(unsigned count, unsigned skip, unsigned most, unsigned *chosen)
{
    unsigned found = 0;

    for (unsigned i = 0; i < count && found < most; i++)
        if (is_on_disk(object_name(i)) && (!skip || !skip--)) {
            make_cold(object_name(i));
            chosen[found++] = i;
        }
    return found;
}

static void read_object(unsigned number)
{
    const char *path = object_name(number);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint64_t bytes = 0;
    ssize_t got;
    unsigned is;

    if (fd < 0)
        bench_fail("open", path);
    while ((got = read(fd, spill_block, SPILL_BLOCK)) > 0)
        bytes += (uint64_t)got;
    memcpy(&is, spill_block, sizeof(is));
    if (got < 0 || bytes != object_bytes() || is != number)
        bench_fail("read", path);
    close(fd);
}

static double read_objects(const unsigned *chosen, unsigned count)
{
    double began = bench_seconds();

    for (unsigned i = 0; i < count; i++)
        read_object(chosen[i]);
    return (double)(count * object_bytes()) / (bench_seconds() - began) / 1e9;
}

/* Two processes, each half of them. */
static double read_by_two(const unsigned *chosen, unsigned count)
{
    double began = bench_seconds();
    int status = 1;
    pid_t pid;

    fflush(NULL);
    pid = fork();
    if (pid < 0)
        bench_fail("fork", "");
    read_objects(chosen + (pid ? 0 : count / 2), pid ? count / 2 : count - count / 2);
    if (!pid)
        _exit(0);
    if (waitpid(pid, &status, 0) != pid || status != 0)
        bench_fail("a reader failed", "");
    return (double)(count * object_bytes()) / (bench_seconds() - began) / 1e9;
}

/* Makes room in memory and opens twice what is on disk and was not read yet (a virtual disk's host
 * may have what was): it is verified, and comes back. */
static double restore_objects(unsigned count)
{
    int64_t budget = mount_number("memory", "budget_bytes"),
            before = mount_number("memory", "restored_bytes"), now = before;
    unsigned chosen[OBJECTS_LIMIT], due;
    double began = 0;

    for (unsigned i = 0; i < count; i++)
        if (!is_on_disk(object_name(i)))
            spill_free_objects(i, i + 1);
    spill_wait_for("memory", "used_bytes", budget / 10);
    due = choose_cold(count, count / 6 * 3, (unsigned)((uint64_t)budget / 2 / object_bytes()),
                      chosen);
    if (!due)
        return 0;
    began = bench_seconds();
    for (unsigned i = 0; i < 2 * due; i++) {
        int fd = open(object_name(chosen[i / 2]), O_RDONLY | O_CLOEXEC);

        if (fd < 0)
            bench_fail("open", object_name(chosen[i / 2]));
        close(fd);
    }
    while (now - before < (int64_t)(due * object_bytes())) {
        usleep(2000);
        if (bench_seconds() - began > 60) {
            errno = ETIMEDOUT;
            bench_fail("waiting for", "restored_bytes");
        }
        now = mount_number("memory", "restored_bytes");
    }
    return (double)(now - before) / (bench_seconds() - began) / 1e9;
}

struct large_figures {
    struct figure spill, evict, put, first, later, two, restore, fio_write, fio_read;
};

/* Bytes a second that went to disk, all told: what the evictor copied, and files that began there
 * as memory was full, written back. `evict`: the evictor's share while somebody writes. */
static void measure_spill(struct large_figures *all, unsigned count)
{
    struct watch watch, evictor;
    double evicted;

    watch_start(&evictor, "spilled_bytes");
    watch_start(&watch, "disk_used_bytes");
    figure_add(&all->put, put_objects(count));
    evicted = watch_end(&evictor);
    if (evicted > 0) /* with little memory, all files begin on disk */
        figure_add(&all->evict, evicted);
    sync_disk();
    spill_wait_for("memory", "spilling_bytes", 0);
    watch_end(&watch);
    figure_add(&all->spill, (double)(mount_number("memory", "disk_used_bytes") - watch.first) /
                                (bench_seconds() - watch.first_at) / 1e9);
}

static void measure_reads(struct large_figures *all, unsigned count, bool fio)
{
    unsigned most = count / 6, chosen[OBJECTS_LIMIT], found;
    double restored;

    found = choose_cold(count, 0, 3 * most, chosen);
    if (found < 3) {
        errno = ENOENT;
        bench_fail("nothing is on disk:", bench_options.dir);
    }
    most = found / 3;
    if (fio)
        fio_reads(&all->fio_read, 2 * most * object_bytes());
    figure_add(&all->first, read_objects(chosen, most));
    for (unsigned i = 0; i < most; i++)
        make_cold(object_name(chosen[i]));
    figure_add(&all->later, read_objects(chosen, most));
    figure_add(&all->two, read_by_two(chosen + most, found - most));
    restored = restore_objects(count);
    if (restored > 0)
        figure_add(&all->restore, restored);
}

static void run_large(struct large_figures *all, bool fio)
{
    unsigned count = spill_object_count();

    if (fio)
        fio_writes(&all->fio_write, count / 3 * object_bytes());
    measure_spill(all, count);
    settle();
    measure_reads(all, count, fio);
    spill_free_objects(0, count);
    spill_wait_for("memory", "disk_used_bytes", 0);
}

static void measure_large(bool fio)
{
    struct large_figures all = {
        .spill = {.key = "spill_large", .unit = "GB/s"},
        .evict = {.key = "spill_evict", .unit = "GB/s"},
        .put = {.key = "spill_put", .unit = "GB/s"},
        .first = {.key = "spill_read_first", .unit = "GB/s"},
        .later = {.key = "spill_read_later", .unit = "GB/s"},
        .two = {.key = "spill_read_two", .unit = "GB/s"},
        .restore = {.key = "spill_restore", .unit = "GB/s"},
        .fio_write = {.key = "fio_write", .unit = "GB/s"},
        .fio_read = {.key = "fio_read", .unit = "GB/s"},
    };

    for (unsigned run = 0; run < bench_options.runs; run++)
        run_large(&all, fio);
    figure_report(&all.spill);
    figure_report(&all.evict);
    figure_report(&all.put);
    figure_report(&all.first);
    figure_report(&all.later);
    figure_report(&all.two);
    figure_report(&all.restore);
    figure_report(&all.fio_write);
    figure_report(&all.fio_read);
}

bool spill_prepare(void)
{
    spill_block = malloc(SPILL_BLOCK);
    if (!spill_block)
        bench_fail("memory", "");
    content_fill(1, 0, spill_block, SPILL_BLOCK);
    return fio_open();
}

void spill_end(void)
{
    fio_close();
    free(spill_block);
}

void bench_spill(void)
{
    measure_large(spill_prepare());
    bench_outgrow();
    spill_end();
}
