/* Notifier: a queue, a thread, and a filter of what the kernel may have cached. */
#include "fs/notify.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/util.h"

/* One bit a hash of a node: false alarms cost a needless notification, nothing else. */
#define FILTER_BITS (1u << 22)

struct message {
    struct message *next;
    uint64_t parent;
    struct mob_id id;
};

struct notifier {
    struct transport *transport;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct message *first, **last;
    bool stop;
    uint64_t filter[FILTER_BITS / 64];
};

static void *notifier_main(void *argument)
{
    struct notifier *notifier = argument;
    for (;;) {
        pthread_mutex_lock(&notifier->mutex);
        while (!notifier->first && !notifier->stop)
            pthread_cond_wait(&notifier->wake, &notifier->mutex);
        struct message *batch = notifier->first;
        notifier->first = NULL;
        notifier->last = &notifier->first;
        bool stop = notifier->stop;
        pthread_mutex_unlock(&notifier->mutex);
        while (batch) {
            struct message *message = batch;
            batch = message->next;
            char name[MOB_ID_STRING_BYTES];
            mob_id_format(&message->id, name);
            if (!stop)
                (void)transport_invalidate_entry(notifier->transport, message->parent, name,
                                                 MOB_ID_DIGITS);
            free(message);
        }
        if (stop)
            return NULL;
    }
}

errint_t notifier_open(struct transport *transport, bool know_nothing, struct notifier **out)
{
    struct notifier *notifier = calloc(1, sizeof *notifier);
    if (!notifier)
        return -ENOMEM;
    notifier->transport = transport;
    notifier->last = &notifier->first;
    if (know_nothing)
        memset(notifier->filter, 0xff, sizeof notifier->filter);
    pthread_mutex_init(&notifier->mutex, NULL);
    pthread_cond_init(&notifier->wake, NULL);
    int error = pthread_create(&notifier->thread, NULL, notifier_main, notifier);
    if (error) {
        free(notifier);
        return -error;
    }
    pthread_setname_np(notifier->thread, "notifier");
    *out = notifier;
    return 0;
}

void notifier_close(struct notifier *notifier)
{
    if (!notifier)
        return;
    pthread_mutex_lock(&notifier->mutex);
    notifier->stop = true;
    pthread_cond_signal(&notifier->wake);
    pthread_mutex_unlock(&notifier->mutex);
    pthread_join(notifier->thread, NULL);
    pthread_cond_destroy(&notifier->wake);
    pthread_mutex_destroy(&notifier->mutex);
    free(notifier);
}

static uint32_t filter_bit(uint64_t node)
{
    return (uint32_t)((node * UINT64_C(0x9e3779b97f4a7c15)) >> 42) % FILTER_BITS;
}

/* Relaxed: a mark is made before the reply that tells the kernel, and a question about a node that
 * the kernel has only just been told of comes after that through the kernel's own locks. */
void notifier_mark(struct notifier *notifier, uint64_t node)
{
    uint32_t bit = filter_bit(node);
    uint64_t mask = UINT64_C(1) << bit % 64;
    if (!(__atomic_load_n(&notifier->filter[bit / 64], __ATOMIC_RELAXED) & mask))
        __atomic_fetch_or(&notifier->filter[bit / 64], mask, __ATOMIC_RELAXED);
}

bool notifier_may_know(struct notifier *notifier, uint64_t node)
{
    uint32_t bit = filter_bit(node);
    return __atomic_load_n(&notifier->filter[bit / 64], __ATOMIC_RELAXED) >> bit % 64 & 1;
}

void notifier_drop_name(struct notifier *notifier, uint64_t parent, const struct mob_id *id)
{
    struct message *message = malloc(sizeof *message);
    if (!message) {
        mob_log_warning("out of memory: a freed object's name stays cached in the kernel");
        return;
    }
    message->next = NULL;
    message->parent = parent;
    message->id = *id;
    pthread_mutex_lock(&notifier->mutex);
    *notifier->last = message;
    notifier->last = &message->next;
    pthread_cond_signal(&notifier->wake);
    pthread_mutex_unlock(&notifier->mutex);
}
