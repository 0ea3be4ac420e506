/* Parked requests: a growing array of slots with generations. Look-ups that wait for a release are
 * few and short, and are kept in a list of their own to be found by number or deadline. */
#include "fs/waiting.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/util.h"

#define NONE UINT32_MAX

struct slot {
    struct parked parked;
    uint32_t generation;
    bool used;
    uint32_t next; /* free list; or the list of WAITING_RELEASE */
};

struct waiting {
    pthread_mutex_t mutex;
    struct slot *slots;
    uint32_t capacity, free, releases;
    uint64_t count;
};

errint_t waiting_open(struct waiting **out)
{
    struct waiting *waiting = calloc(1, sizeof *waiting);
    if (!waiting)
        return -ENOMEM;
    pthread_mutex_init(&waiting->mutex, NULL);
    waiting->free = waiting->releases = NONE;
    *out = waiting;
    return 0;
}

void waiting_close(struct waiting *waiting)
{
    if (!waiting)
        return;
    for (uint32_t i = 0; i < waiting->capacity; i++)
        if (waiting->slots[i].used)
            free(waiting->slots[i].parked.name);
    free(waiting->slots);
    pthread_mutex_destroy(&waiting->mutex);
    free(waiting);
}

static errint_t grow(struct waiting *waiting)
{
    uint32_t capacity = waiting->capacity ? waiting->capacity * 2 : 256;
    struct slot *larger = realloc(waiting->slots, capacity * sizeof *larger);
    if (!larger)
        return -ENOMEM;
    memset(larger + waiting->capacity, 0, (capacity - waiting->capacity) * sizeof *larger);
    for (uint32_t i = capacity; i-- > waiting->capacity;) {
        larger[i].generation = 1;
        larger[i].next = waiting->free;
        waiting->free = i;
    }
    waiting->slots = larger;
    waiting->capacity = capacity;
    return 0;
}

errint_t waiting_add(struct waiting *waiting, const struct parked *parked, uint64_t *id)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&waiting->mutex);
    if (waiting->free == NONE && grow(waiting))
        return -ENOMEM;
    uint32_t i = waiting->free;
    struct slot *slot = &waiting->slots[i];
    waiting->free = slot->next;
    slot->parked = *parked;
    slot->used = true;
    if (parked->kind == WAITING_RELEASE) {
        slot->next = waiting->releases;
        waiting->releases = i;
    }
    waiting->count++;
    *id = (uint64_t)slot->generation << 32 | i;
    return 0;
}

static struct slot *find(struct waiting *waiting, uint64_t id)
{
    uint32_t i = (uint32_t)id;
    if (i >= waiting->capacity || !waiting->slots[i].used ||
        waiting->slots[i].generation != id >> 32)
        return NULL;
    return &waiting->slots[i];
}

static void take(struct waiting *waiting, struct slot *slot, struct parked *out)
{
    uint32_t i = (uint32_t)(slot - waiting->slots);
    if (slot->parked.kind == WAITING_RELEASE) {
        uint32_t *link = &waiting->releases;
        while (*link != i)
            link = &waiting->slots[*link].next;
        *link = slot->next;
    }
    *out = slot->parked;
    slot->used = false;
    slot->generation++;
    slot->next = waiting->free;
    waiting->free = i;
    waiting->count--;
}

bool waiting_take(struct waiting *waiting, uint64_t id, struct parked *out)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&waiting->mutex);
    struct slot *slot = find(waiting, id);
    if (slot)
        take(waiting, slot, out);
    return slot != NULL;
}

bool waiting_set_token(struct waiting *waiting, uint64_t id, uint64_t token)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&waiting->mutex);
    struct slot *slot = find(waiting, id);
    if (slot)
        slot->parked.token = token;
    return slot != NULL;
}

bool waiting_take_for(struct waiting *waiting, enum waiting_kind kind, uint64_t number,
                      uint64_t now_ns, struct parked *out)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&waiting->mutex);
    for (uint32_t i = waiting->releases; i != NONE; i = waiting->slots[i].next) {
        struct slot *slot = &waiting->slots[i];
        if (slot->parked.kind == kind &&
            (number ? slot->parked.number == number : slot->parked.deadline_ns <= now_ns)) {
            take(waiting, slot, out);
            return true;
        }
    }
    return false;
}

uint64_t waiting_count(struct waiting *waiting)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&waiting->mutex);
    return waiting->count;
}

bool waiting_has(struct waiting *waiting, enum waiting_kind kind)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&waiting->mutex);
    return kind == WAITING_RELEASE ? waiting->releases != NONE : waiting->count != 0;
}
