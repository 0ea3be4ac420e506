/* What the page cache owes to the disk. See writeback.h. */
#include "core/store/writeback.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "core/store/store_internal.h"

/* The kernel writes back what is dirty for 30 s at most; asking is what makes it do so earlier. */
#define DELAY_NS UINT64_C(10000000000)

struct owed {
    struct owed *next;
    uint64_t number, due_ns;
};

errint_t writeback_wait(int fd)
{
    int result;
    do
        result = sync_file_range(fd, 0, 0,
                                 SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                     SYNC_FILE_RANGE_WAIT_AFTER);
    while (result < 0 && errno == EINTR);
    if (result < 0 && (errno == EINVAL || errno == ESPIPE || errno == ENOSYS || errno == EPERM))
        result = fdatasync(fd); /* not every filesystem and container has it */
    return result < 0 ? -errno : 0;
}

static bool is_on_disk(struct store *store, uint64_t number, struct object *out)
{
    struct table_shard *shard;
    const struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return false;
    *out = *object;
    table_unlock(shard);
    return out->state == OBJECT_READY && out->tier == TIER_DISK;
}

/* What the disk has is found out by reading it, not what the page cache still has. */
static void ask(struct store *store, uint64_t number)
{
    struct object object;
    char id[MOB_ID_STRING_BYTES];
    if (!is_on_disk(store, number, &object))
        return;
    cleanup_fd int fd = disk_open_file(&store->disk, object.disk, object.file, O_RDONLY);
    errint_t error = fd < 0 ? 0 : writeback_wait(fd); /* without its file, the next open will say */
    if (!error)
        return;
    cleanup_free char *path = disk_path(&store->disk, object.disk, object.file);
    mob_log_error("objects/%s: not all of %s could be written: %s; it is verified again",
                  mob_id_format(&object.id, id), path ? path : "its file", strerror(-error));
    atomic_fetch_add(&store->spill.errors, 1);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    fetch_set_verified(store, number, 0);
    fetch_verify(store, number);
}

static void wait_until_due(struct writeback *writeback, uint64_t due_ns)
{
    struct timespec due = {.tv_sec = (time_t)(due_ns / 1000000000u),
                           .tv_nsec = (long)(due_ns % 1000000000u)};
    pthread_cond_timedwait(&writeback->wake, &writeback->lock, &due);
}

static void *writeback_main(void *argument)
{
    struct store *store = argument;
    struct writeback *writeback = &store->writeback;
    mob_no_hurry();
    pthread_mutex_lock(&writeback->lock);
    while (!writeback->stop) {
        struct owed *owed = writeback->first;
        if (!owed) {
            pthread_cond_wait(&writeback->wake, &writeback->lock);
            continue;
        }
        if (owed->due_ns > mob_monotonic_ns()) {
            wait_until_due(writeback, owed->due_ns);
            continue;
        }
        writeback->first = owed->next;
        if (!owed->next)
            writeback->last = &writeback->first;
        pthread_mutex_unlock(&writeback->lock);
        ask(store, owed->number);
        free(owed);
        pthread_mutex_lock(&writeback->lock);
    }
    pthread_mutex_unlock(&writeback->lock);
    return NULL;
}

errint_t writeback_open(struct store *store)
{
    struct writeback *writeback = &store->writeback;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&writeback->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&writeback->lock, NULL);
    writeback->last = &writeback->first;
    if (!writeback->delay_ns)
        writeback->delay_ns = DELAY_NS;
    int code = pthread_create(&writeback->thread, NULL, writeback_main, store);
    writeback->runs = !code;
    if (!code)
        pthread_setname_np(writeback->thread, "writeback");
    return -code;
}

void writeback_close(struct store *store)
{
    struct writeback *writeback = &store->writeback;
    if (!writeback->runs)
        return;
    pthread_mutex_lock(&writeback->lock);
    writeback->stop = true;
    pthread_cond_signal(&writeback->wake);
    pthread_mutex_unlock(&writeback->lock);
    pthread_join(writeback->thread, NULL);
    writeback->runs = false;
    while (writeback->first) {
        struct owed *owed = writeback->first;
        writeback->first = owed->next;
        free(owed);
    }
}

void writeback_watch(struct store *store, uint64_t number)
{
    struct writeback *writeback = &store->writeback;
    struct owed *owed = malloc(sizeof *owed);
    if (!owed) {
        mob_log_warning("store: no memory; whether a file reaches the disk is not asked");
        return;
    }
    *owed = (struct owed){NULL, number, mob_monotonic_ns() + writeback->delay_ns};
    cleanup_lock pthread_mutex_t *lock = mob_lock(&writeback->lock);
    if (writeback->stop) {
        free(owed);
        return;
    }
    if (!writeback->first)
        pthread_cond_signal(&writeback->wake);
    *writeback->last = owed;
    writeback->last = &owed->next;
}
