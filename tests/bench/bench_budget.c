/* Does the store keep within its memory? Much more than it holds is put in several ways, while the
 * use of its tmpfs is looked at every 20 ms; and all of it reads the same. See bench.h. */
#include "tests/bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "core/base/util.h"
#include "tests/model/support.h"

enum { SAMPLE_US = 20000, SAMPLES_LIMIT = 60000, SLICES = 10, BLOCK = 1 << 20 };

/* Shell commands; $1: the file to put, $2: the mount, $3: MiB of a third of it (rounded up). `name`
 * goes into the figures' keys. `read` prints what was put. */
static const struct way {
    const char *name, *put, *read, *drop;
} ways[] = {
    {"cp", "cp \"$1\" \"$2/staging/budget\"", "cat \"$2/staging/budget\"",
     "rm \"$2/staging/budget\""},
    {"pipe", "cat \"$1\" | dd of=\"$2/staging/budget\" bs=1M iflag=fullblock status=none",
     "cat \"$2/staging/budget\"", "rm \"$2/staging/budget\""},
    {"three",
     "for i in 0 1 2; do dd if=\"$1\" of=\"$2/staging/budget-$i\" bs=1M skip=$((i * $3)) count=$3 "
     "status=none & pids=\"$pids $!\"; done; for pid in $pids; do wait $pid || exit 1; done",
     "cat \"$2/staging/budget-0\" \"$2/staging/budget-1\" \"$2/staging/budget-2\"",
     "rm \"$2\"/staging/budget-?"},
    {"job",
     "echo '{\"command\": [\"cat\", \"'\"$1\"'\"]}' >\"$2/run/budget\"; "
     "test \"$(cat \"$2/run/budget/exit_code\")\" = 0",
     "cat \"$2/run/budget/result\"", "rm \"$2/run/budget\""},
};

struct samples {
    pthread_t thread;
    atomic_bool stop;
    char memory_dir[PATH_MAX];
    double at[SAMPLES_LIMIT], share[SAMPLES_LIMIT]; /* of the budget */
    size_t count;
};

static uint64_t put_bytes(void)
{
    return (uint64_t)bench_scaled(4096, 512) << 20;
}

static double share_used(const char *memory_dir, int64_t budget)
{
    struct statfs info;
    int64_t told = mount_number("memory", "used_bytes"), used;

    if (statfs(memory_dir, &info) < 0)
        bench_fail("statfs", memory_dir);
    used = (int64_t)(info.f_blocks - info.f_bfree) * (int64_t)info.f_bsize;
    return (double)(told > used ? told : used) / (double)budget;
}

static void *sample_main(void *argument)
{
    struct samples *samples = argument;
    int64_t budget = mount_number("memory", "budget_bytes");

    while (!atomic_load(&samples->stop) && samples->count < SAMPLES_LIMIT) {
        samples->at[samples->count] = bench_seconds();
        samples->share[samples->count++] = share_used(samples->memory_dir, budget);
        usleep(SAMPLE_US);
    }
    return NULL;
}

static double most_between(const struct samples *samples, double from, double to)
{
    double most = 0;

    for (size_t i = 0; i < samples->count; i++)
        if (samples->at[i] >= from && samples->at[i] < to && samples->share[i] > most)
            most = samples->share[i];
    return most;
}

static void report(const struct samples *samples, const struct way *way, uint64_t bytes)
{
    double began = samples->at[0], took = bench_seconds() - began;
    char key[64];

    snprintf(key, sizeof(key), "budget_%s", way->name);
    figure_single(key, most_between(samples, began, began + took), "of the budget");
    snprintf(key, sizeof(key), "budget_%s_put", way->name);
    figure_single(key, (double)bytes / took / 1e9, "GB/s");
    for (unsigned i = 0; i < SLICES; i++) {
        snprintf(key, sizeof(key), "slice_%s_%u", way->name, i + 1);
        figure_single(
            key, most_between(samples, began + took * i / SLICES, began + took * (i + 1) / SLICES),
            "of the budget");
    }
}

static void run_shell(const char *command, const char *file, char *out, size_t out_bytes)
{
    char line[3 * PATH_MAX];
    uint64_t third = put_bytes() / BLOCK / 3 + 1;
    FILE *pipe;

    setenv("BENCH_COMMAND", command, 1);
    snprintf(line, sizeof(line), "set -- '%s' '%s' %" PRIu64 "; eval \"$BENCH_COMMAND\"", file,
             bench_options.dir, third);
    pipe = popen(line, "re");
    if (!pipe)
        bench_fail("popen", command);
    if (out && !fgets(out, (int)out_bytes, pipe))
        out[0] = '\0';
    if (pclose(pipe) != 0) {
        errno = EIO;
        bench_fail("failed:", command);
    }
}

static void make_file(const char *path, uint64_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    char *block = malloc(BLOCK);

    if (fd < 0 || !block)
        bench_fail("create", path);
    for (uint64_t done = 0; done < bytes; done += BLOCK) {
        content_fill(7, done, block, BLOCK);
        if (mob_write_full(fd, block, BLOCK) < 0)
            bench_fail("write", path);
    }
    if (close(fd) < 0)
        bench_fail("close", path);
    free(block);
}

static void measure_way(const struct way *way, const char *file, uint64_t bytes, const char *sum)
{
    struct samples *samples = calloc(1, sizeof(*samples));
    char command[1024], is[128];

    if (!samples || !mount_text("daemon", "memory_dir", samples->memory_dir, PATH_MAX))
        bench_fail("no memory_dir:", bench_options.dir);
    if (pthread_create(&samples->thread, NULL, sample_main, samples))
        bench_fail("pthread_create", "");
    run_shell(way->put, file, NULL, 0);
    atomic_store(&samples->stop, true);
    pthread_join(samples->thread, NULL);
    report(samples, way, bytes);
    snprintf(command, sizeof(command), "%s | sha256sum", way->read);
    run_shell(command, file, is, sizeof(is));
    if (strcmp(is, sum) != 0) {
        errno = EBADMSG;
        bench_fail("other bytes than were put:", way->name);
    }
    run_shell(way->drop, file, NULL, 0);
    free(samples);
}

static void measure_ways(const struct way *list, size_t count, uint64_t bytes)
{
    char file[PATH_MAX], state[PATH_MAX - 16], sum[128];

    if (!mount_text("daemon", "state_dir", state, sizeof(state)))
        bench_fail("no state_dir:", bench_options.dir);
    snprintf(file, sizeof(file), "%s/put", state);
    make_file(file, bytes);
    run_shell("sha256sum <\"$1\"", file, sum, sizeof(sum));
    for (size_t i = 0; i < count; i++)
        measure_way(&list[i], file, bytes, sum);
    if (unlink(file) < 0)
        bench_fail("unlink", file);
}

void bench_budget(void)
{
    measure_ways(ways, MOB_ARRAY_LENGTH(ways), put_bytes());
}

void bench_outgrow(void)
{
    static const struct way way = {"outgrow", "cp \"$1\" \"$2/staging/budget\"",
                                   "cat \"$2/staging/budget\"", "rm \"$2/staging/budget\""};

    measure_ways(&way, 1, 2 * (uint64_t)mount_number("memory", "budget_bytes"));
}
