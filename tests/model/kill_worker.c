/* One process of the kill test's load. See kill.h. */
#include "tests/model/kill.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/util.h"

static const struct work {
    const char *name;
    void (*play)(struct worker *worker);
    unsigned weight;
} works[] = {
    {"put", work_put, 30},
    {"copy of 8 MiB", work_copy_large, 4},
    {"large put", work_put_large, 6},
    {"large get, again and again", work_get_again, 4},
    {"get", work_get, 25},
    {"rename", work_rename, 12},
    {"replace", work_replace, 6},
    {"unlink", work_unlink, 18},
    {"open and hold", work_hold, 8},
    {"read and close held", work_release, 6},
    {"list", work_list, 4},
    {"mkdir and rmdir", work_directory, 3},
    {"map", work_map, 6},
    {"job", work_job, 3},
    {"waiting open", work_wait, 1},
};

static struct watched *mine(struct worker *worker)
{
    return &kill_shared->watched[worker->number];
}

void work_error(struct worker *worker, const char *what, const char *path, int error)
{
    if (kill_shared->down) {
        kill_shared->interrupted++;
        siglongjmp(worker->cut_off, 1);
    }
    kill_shared->errors++;
    fprintf(stderr, "kill: worker %u: %s %s: %s (%d)\n", worker->number, what, path,
            strerror(error), error);
}

void work_lost(struct worker *worker, const char *what, const struct fact *fact)
{
    kill_shared->lost++;
    fprintf(stderr, "kill: worker %u: LOST %s (%s, %" PRIu64 " bytes): %s\n", worker->number,
            fact->name, fact->id, fact->size, what);
}

static void play_one(struct worker *worker)
{
    static unsigned total;
    uint64_t roll;
    size_t i = 0;

    if (total == 0)
        for (size_t each = 0; each < MOB_ARRAY_LENGTH(works); each++)
            total += works[each].weight;
    roll = dice_below(&worker->dice, total);
    while (roll >= works[i].weight)
        roll -= works[i++].weight;
    watched_begin(mine(worker), works[i].name);
    works[i].play(worker);
    watched_end(mine(worker));
    kill_shared->operations++;
}

static void close_all(struct worker *worker)
{
    if (worker->open_fd >= 0)
        close(worker->open_fd);
    if (worker->second_fd >= 0)
        close(worker->second_fd);
    worker->open_fd = worker->second_fd = -1;
    while (worker->hold_count)
        close(worker->holds[--worker->hold_count].fd);
}

/* Between the mount's death and the next up. */
static void pause_until_up(struct worker *worker)
{
    unsigned round = kill_shared->round;

    close_all(worker);
    watched_end(mine(worker));
    kill_shared->paused++;
    while (kill_shared->round == round)
        usleep(1000);
}

static void verify_all(struct worker *worker)
{
    for (unsigned i = 0; i < worker->fact_count; i++) {
        watched_begin(mine(worker), "verify");
        fact_verify(worker, &worker->facts[i]);
    }
    watched_begin(mine(worker), "list");
    work_list(worker);
    watched_end(mine(worker));
}

static void clean_up(struct worker *worker)
{
    while (worker->hold_count) {
        watched_begin(mine(worker), "release");
        work_release(worker);
    }
    verify_all(worker);
    while (worker->fact_count) {
        watched_begin(mine(worker), "unlink");
        work_unlink(worker);
    }
    watched_begin(mine(worker), "rmdir");
    if (rmdir(worker->directory) < 0)
        work_error(worker, "rmdir", worker->directory, errno);
    watched_end(mine(worker));
}

int worker_run(struct worker *worker)
{
    worker->open_fd = worker->second_fd = -1;
    mine(worker)->pid = getpid();
    if (mkdir(worker->directory, 0755) < 0)
        work_error(worker, "mkdir", worker->directory, errno);
    if (sigsetjmp(worker->cut_off, 0)) {
        pause_until_up(worker);
        watched_begin(mine(worker), "settle");
        doubt_settle(worker);
        verify_all(worker);
    }
    while (!kill_shared->stop) {
        if (kill_shared->down)
            siglongjmp(worker->cut_off, 1);
        play_one(worker);
    }
    clean_up(worker);
    return 0;
}
