/* Passthrough registrations: a hash of data file -> slot in session memory, with counts. */
#include "fs/backing.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/log.h"
#include "core/base/util.h"

#define BUCKETS 16384u
#define IDLE_LIMIT 4096u
#define NONE UINT32_MAX

struct entry {
    uint32_t next; /* in the bucket, or in the free list */
    uint32_t opens;
    uint32_t newer, older; /* in the list of idle ones */
    bool gone;
};

struct backing {
    struct transport *transport;
    struct backing_slot *slots; /* session memory */
    pthread_mutex_t mutex;
    uint32_t buckets[BUCKETS];
    uint32_t free, idle_newest, idle_oldest, idle_count;
    struct entry entries[BACKING_SLOTS];
};

static uint32_t bucket_of(uint64_t file)
{
    return (uint32_t)((file * UINT64_C(0x9e3779b97f4a7c15)) >> 50) % BUCKETS;
}

static uint32_t find(struct backing *backing, uint64_t file)
{
    uint32_t i = backing->buckets[bucket_of(file)];
    while (i != NONE && backing->slots[i].file != file)
        i = backing->entries[i].next;
    return i;
}

static void idle_add(struct backing *backing, uint32_t i)
{
    struct entry *entry = &backing->entries[i];
    entry->newer = NONE;
    entry->older = backing->idle_newest;
    if (backing->idle_newest != NONE)
        backing->entries[backing->idle_newest].newer = i;
    backing->idle_newest = i;
    if (backing->idle_oldest == NONE)
        backing->idle_oldest = i;
    backing->idle_count++;
}

static void idle_remove(struct backing *backing, uint32_t i)
{
    struct entry *entry = &backing->entries[i];
    if (entry->newer != NONE)
        backing->entries[entry->newer].older = entry->older;
    else
        backing->idle_newest = entry->older;
    if (entry->older != NONE)
        backing->entries[entry->older].newer = entry->newer;
    else
        backing->idle_oldest = entry->newer;
    backing->idle_count--;
}

static void insert(struct backing *backing, uint32_t i)
{
    uint32_t bucket = bucket_of(backing->slots[i].file);
    backing->entries[i].next = backing->buckets[bucket];
    backing->entries[i].opens = 0;
    backing->entries[i].gone = false;
    backing->buckets[bucket] = i;
}

/* The slot is freed last: a server killed in between leaves a slot whose ID the kernel no longer
 * knows, which its successor closes once more without harm. */
static void drop(struct backing *backing, uint32_t i)
{
    struct backing_slot *slot = &backing->slots[i];
    uint32_t *link = &backing->buckets[bucket_of(slot->file)];
    while (*link != i)
        link = &backing->entries[*link].next;
    *link = backing->entries[i].next;
    if (slot->id > 0)
        (void)transport_backing_close(backing->transport, slot->id);
    slot->id = 0;
    __atomic_store_n(&slot->file, 0, __ATOMIC_RELEASE);
    backing->entries[i].next = backing->free;
    backing->free = i;
}

errint_t backing_open(struct backing_slot *slots, struct transport *transport, struct backing **out)
{
    struct backing *backing = calloc(1, sizeof *backing);
    if (!backing)
        return -ENOMEM;
    backing->transport = transport;
    backing->slots = slots;
    pthread_mutex_init(&backing->mutex, NULL);
    for (uint32_t i = 0; i < BUCKETS; i++)
        backing->buckets[i] = NONE;
    backing->free = backing->idle_newest = backing->idle_oldest = NONE;
    for (uint32_t i = BACKING_SLOTS; i-- > 0;) {
        if (slots[i].file && slots[i].id > 0) {
            insert(backing, i);
            idle_add(backing, i);
        } else {
            slots[i].file = 0;
            slots[i].id = 0;
            backing->entries[i].next = backing->free;
            backing->free = i;
        }
    }
    *out = backing;
    return 0;
}

void backing_close(struct backing *backing)
{
    if (!backing)
        return;
    pthread_mutex_destroy(&backing->mutex);
    free(backing);
}

int backing_known(struct backing *backing, uint64_t file)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&backing->mutex);
    return find(backing, file) != NONE;
}

/* The kernel keeps the open file that it is given, past our death, and with it a lease that we were
 * just asking writers by (data_has_writers()): the next server's opens would wait for that lease
 * until the system's lease-break-time is over, 45 s. So it gets an open file of its own; of access
 * mode 3 (open(2), "neither reads nor writes"), which counts neither as a reader nor as a writer.
 */
static int register_with_kernel(struct transport *transport, int fd)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    cleanup_fd int own = open(path, O_ACCMODE | O_CLOEXEC);
    return own < 0 ? -errno : transport_backing_open(transport, own);
}

static int register_file(struct backing *backing, uint64_t file, int fd, uint32_t *place)
{
    if (backing->free == NONE && backing->idle_oldest != NONE) {
        uint32_t victim = backing->idle_oldest;
        idle_remove(backing, victim);
        drop(backing, victim);
    }
    uint32_t i = backing->free;
    if (i == NONE)
        return -ENFILE;
    struct backing_slot *slot = &backing->slots[i];
    int id = register_with_kernel(backing->transport, fd);
    if (id <= 0)
        return id ? id : -EIO;
    backing->free = backing->entries[i].next;
    slot->id = id;
    __atomic_store_n(&slot->file, file, __ATOMIC_RELEASE);
    insert(backing, i);
    *place = i;
    return 0;
}

int backing_get(struct backing *backing, uint64_t file, int fd)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&backing->mutex);
    uint32_t i = find(backing, file);
    if (i == NONE) {
        int error = fd < 0 ? -EBADF : register_file(backing, file, fd, &i);
        if (error)
            return error;
    } else if (backing->entries[i].opens == 0) {
        idle_remove(backing, i);
    }
    backing->entries[i].opens++;
    return backing->slots[i].id;
}

static void become_idle(struct backing *backing, uint32_t i)
{
    if (backing->entries[i].gone) {
        drop(backing, i);
        return;
    }
    idle_add(backing, i);
    if (backing->idle_count > IDLE_LIMIT) {
        uint32_t victim = backing->idle_oldest;
        idle_remove(backing, victim);
        drop(backing, victim);
    }
}

void backing_put(struct backing *backing, uint64_t file)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&backing->mutex);
    uint32_t i = find(backing, file);
    if (i != NONE && backing->entries[i].opens && --backing->entries[i].opens == 0)
        become_idle(backing, i);
}

void backing_adopt(struct backing *backing, uint64_t file)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&backing->mutex);
    uint32_t i = find(backing, file);
    if (i == NONE)
        return;
    if (backing->entries[i].opens++ == 0)
        idle_remove(backing, i);
}

void backing_forget(struct backing *backing, uint64_t file)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&backing->mutex);
    uint32_t i = find(backing, file);
    if (i == NONE)
        return;
    if (backing->entries[i].opens) {
        backing->entries[i].gone = true;
        return;
    }
    idle_remove(backing, i);
    drop(backing, i);
}
