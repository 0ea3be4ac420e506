/* Waiting for pending objects: a list of callbacks at each, no thread. */
#include "core/store/store_internal.h"

void waiters_call(struct waiter *waiters, uint64_t number, enum object_state state)
{
    /* They were pushed at the head: the first to wait is the first to be called. */
    struct waiter *ordered = NULL;
    while (waiters) {
        struct waiter *next = waiters->next;
        waiters->next = ordered;
        ordered = waiters;
        waiters = next;
    }
    while (ordered) {
        struct waiter *next = ordered->next;
        ordered->callback(ordered->argument, number, state);
        free(ordered);
        ordered = next;
    }
}

struct waiter *waiter_new(struct store *store, store_waiter *callback, void *argument,
                          uint64_t *token)
{
    struct waiter *waiter = malloc(sizeof *waiter);
    if (!waiter)
        return NULL;
    *waiter = (struct waiter){.token = atomic_fetch_add(&store->next_token, 1),
                              .callback = callback,
                              .argument = argument};
    *token = waiter->token;
    return waiter;
}

errint_t store_wait(struct store *store, uint64_t number, store_waiter *callback, void *argument,
                    uint64_t *token)
{
    struct waiter *waiter = waiter_new(store, callback, argument, token);
    if (!waiter)
        return -ENOMEM;
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object) {
        free(waiter);
        return -ENOENT;
    }
    enum object_state state = (enum object_state)object->state;
    if (state == OBJECT_PENDING) {
        waiter->next = object->waiters;
        object->waiters = waiter;
    }
    table_unlock(shard);
    if (state != OBJECT_PENDING)
        waiters_call(waiter, number, state);
    return 0;
}

bool store_wait_cancel(struct store *store, uint64_t number, uint64_t token)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, number, &shard);
    struct waiter *found = NULL;
    if (object && object->state == OBJECT_PENDING) {
        struct waiter **link = &object->waiters;
        while (*link && (*link)->token != token)
            link = &(*link)->next;
        found = *link;
        if (found)
            *link = found->next;
    }
    if (object)
        table_unlock(shard);
    if (!found)
        found = fetch_cancel(store, number, token);
    free(found);
    return found != NULL;
}
