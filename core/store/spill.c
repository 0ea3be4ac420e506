/* Spilling: its threads are started and ended, and what both use. */
#include "core/store/spill.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/store/store_internal.h"

static bool is_a_filesystem_of_its_own(int fd)
{
    struct stat here, above;
    return fstat(fd, &here) == 0 && fstatat(fd, "..", &above, 0) == 0 &&
           here.st_dev != above.st_dev;
}

errint_t spill_open(struct store *store, struct mob_error *err)
{
    struct spill *spill = &store->spill;
    pthread_condattr_t attributes;
    store->memory_is_own = is_a_filesystem_of_its_own(store->memory_fd);
    if (!store->disk.count)
        return 0;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&spill->evictor_wake, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_cond_init(&spill->fetcher_wake, NULL);
    snprintf(spill->described, sizeof spill->described, "starting");
    errint_t error = grow_open(store, err);
    if (error)
        return error;
    error = disk_hands_open(store);
    if (!error)
        error = evictor_start(store);
    if (!error)
        error = writeback_open(store);
    if (!error)
        error = fetcher_start(store);
    return error ? mob_error_set(err, error, "spilling can't begin: %s", strerror(-error)) : 0;
}

void spill_hurry(int nice)
{
    if (!mob_hurry(nice))
        mob_log_debug("store: a thread that spills has no priority: %s", strerror(errno));
}

struct spill_io *spill_engine(struct store *store, struct spill_io **place)
{
    struct spill *spill = &store->spill;
    struct spill_io *io = *place; /* only this thread sets it */
    struct mob_error err = {0};
    if (io)
        return io;
    if (spill_io_open(NULL, &io, &err)) {
        mob_log_warning("store: %s", err.message);
        return NULL;
    }
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    *place = io;
    spill_io_cancel(io, spill->stop);
    return io;
}

void spill_describe(struct store *store)
{
    struct spill *spill = &store->spill;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    if (spill->evictor_io)
        snprintf(spill->described, sizeof spill->described, "%s",
                 spill_io_describe(spill->evictor_io));
}

void spill_count_tier(struct store *store, bool to_memory)
{
    atomic_fetch_add(&store->ready_memory, to_memory ? 1 : -1);
    atomic_fetch_add(&store->ready_disk, to_memory ? -1 : 1);
}

void spill_settled(struct store *store)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->spill.lock);
    pthread_cond_broadcast(&store->spill.settled);
}

void spill_wait_settled(struct store *store)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->spill.lock);
    pthread_cond_timedwait(&store->spill.settled, &store->spill.lock, &until);
}

void spill_clear_busy(struct store *store, uint64_t number)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return;
    object->flags &= (uint16_t)~OBJECT_BUSY;
    table_unlock(shard);
}

static void stop_threads(struct spill *spill)
{
    pthread_mutex_lock(&spill->lock);
    spill->stop = true;
    if (spill->evictor_runs)
        pthread_cond_signal(&spill->evictor_wake);
    if (spill->fetcher_runs)
        pthread_cond_signal(&spill->fetcher_wake);
    if (spill->evictor_io)
        spill_io_cancel(spill->evictor_io, true);
    if (spill->fetcher_io)
        spill_io_cancel(spill->fetcher_io, true);
    if (spill->syncer_io)
        spill_io_cancel(spill->syncer_io, true);
    pthread_cond_broadcast(&spill->settled);
    pthread_mutex_unlock(&spill->lock);
    if (spill->evictor_runs)
        pthread_join(spill->evictor, NULL);
    if (spill->fetcher_runs)
        pthread_join(spill->fetcher, NULL);
    spill->evictor_runs = spill->fetcher_runs = false;
}

/* Who still waits finds out by store_readable(). */
static void drop_fetches(struct spill *spill)
{
    while (spill->fetches) {
        struct fetch *fetch = spill->fetches;
        spill->fetches = fetch->next;
        waiters_call(fetch->waiters, fetch->number, OBJECT_READY);
        free(fetch);
    }
}

void spill_close(struct store *store)
{
    struct spill *spill = &store->spill;
    writeback_close(store);
    stop_threads(spill);
    grow_close(store);
    disk_hands_close(store);
    drop_fetches(spill);
    settler_close(store);
    while (spill->damages) {
        struct damage *damage = spill->damages;
        spill->damages = damage->next;
        free(damage);
    }
    spill_io_close(spill->evictor_io);
    spill_io_close(spill->fetcher_io);
    spill_io_close(spill->syncer_io);
    spill->evictor_io = spill->fetcher_io = spill->syncer_io = NULL;
    lru_free(&spill->lru);
}

const char *store_work_dir(struct store *store)
{
    return store->key ? NULL : store->disk.work_dir;
}

bool store_memory_is_plenty(struct store *store)
{
    return !store->disk.count || spill_memory_is_plenty(store);
}

bool store_disk_has_room(struct store *store)
{
    return store->disk.count && disk_room(&store->disk) > 0;
}

errint_t store_spill_all(struct store *store)
{
    if (!store->disk.count)
        return -EOPNOTSUPP;
    stop_threads(&store->spill);
    struct spill_io *io = spill_engine(store, &store->spill.evictor_io);
    if (!io)
        return -ENOMEM;
    spill_io_cancel(io, false);
    errint_t error = spill_all(store);
    for (unsigned i = 0; i < store->disk.count; i++)
        if (syncfs(store->disk.dirs[i].fd) < 0 && !error)
            error = -errno;
    /* What is left was not committed. Nobody may copy it to disk as it is. */
    if (!error && store->key)
        error = data_clear(store);
    return error;
}
