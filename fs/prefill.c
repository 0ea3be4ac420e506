/* Prefill: which objects, and when nobody reads them. */
#include "fs/prefill.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "fs/internal.h"

enum {
    LOCKS = 64,
    /* Storing takes 3 us, and more than 1 us a page; a READ that is saved is worth some 10. Above
     * this nothing was gained any more, and much lost where only the beginning is read. */
    LIMIT_BYTES = 32 * 1024,
};

struct prefill {
    struct known *looked_up;
    /* Of the objects whose number it is modulo LOCKS: held while one is stored. */
    pthread_mutex_t locks[LOCKS];
};

errint_t prefill_open(struct prefill **out)
{
    struct prefill *prefill = *out = calloc(1, sizeof *prefill);
    if (!prefill)
        return -ENOMEM;
    for (size_t i = 0; i < LOCKS; i++)
        pthread_mutex_init(&prefill->locks[i], NULL);
    return known_open(false, &prefill->looked_up);
}

void prefill_close(struct prefill *prefill)
{
    if (!prefill)
        return;
    for (size_t i = 0; i < LOCKS; i++)
        pthread_mutex_destroy(&prefill->locks[i]);
    known_close(prefill->looked_up);
    free(prefill);
}

void prefill_looked_up(struct prefill *prefill, uint64_t node)
{
    known_mark(prefill->looked_up, node);
}

static void store_content(struct transport *transport, struct store *store, uint64_t node)
{
    struct object_info info;
    uint64_t number = node_number(node);
    if (store_info(store, number, &info) || info.opens != 1 || info.tier != TIER_INLINE ||
        info.size == 0 || info.size > LIMIT_BYTES)
        return;
    char *buffer = reply_buffer(info.size);
    ssize_t got = buffer ? store_read_inline(store, number, buffer, info.size, 0) : -ENOMEM;
    if (got != (ssize_t)info.size)
        return; /* damaged: who reads it is told */
    errint_t error = transport_store(transport, node, buffer, info.size);
    if (error)
        mob_log_debug("content of object %llu not given to the kernel: %s",
                      (unsigned long long)number, strerror(-error));
}

/* Who opens the object counts itself before it gets here: so either the one that stores sees it,
 * and leaves it, or it waits here until that is done. A file that is still being read is still
 * counted: its RELEASE comes after its last READ was answered. */
void prefill_before_open(struct prefill *prefill, struct transport *transport, struct store *store,
                         uint64_t node, bool cache)
{
    if (!transport_can_store(transport))
        return;
    pthread_mutex_t *lock = &prefill->locks[node_number(node) % LOCKS];
    pthread_mutex_lock(lock);
    if (cache && known_take(prefill->looked_up, node))
        store_content(transport, store, node);
    pthread_mutex_unlock(lock);
}
