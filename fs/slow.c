/* One thread for what takes long (a checksum of gigabytes, a walk over all names), so that no
 * serving thread does. */
#include "fs/internal.h"

struct work {
    struct work *next;
    void (*function)(void *argument);
    void *argument;
};

struct slow {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct work *first, **last;
    bool stop;
};

static void *slow_main(void *argument)
{
    struct slow *slow = argument;
    pthread_mutex_lock(&slow->mutex);
    for (;;) {
        while (!slow->first && !slow->stop)
            pthread_cond_wait(&slow->wake, &slow->mutex);
        struct work *work = slow->first;
        if (!work)
            break;
        slow->first = work->next;
        if (!slow->first)
            slow->last = &slow->first;
        pthread_mutex_unlock(&slow->mutex);
        work->function(work->argument);
        free(work);
        pthread_mutex_lock(&slow->mutex);
    }
    pthread_mutex_unlock(&slow->mutex);
    return NULL;
}

errint_t slow_open(struct slow **out)
{
    struct slow *slow = calloc(1, sizeof *slow);
    if (!slow)
        return -ENOMEM;
    slow->last = &slow->first;
    pthread_mutex_init(&slow->mutex, NULL);
    pthread_cond_init(&slow->wake, NULL);
    int error = pthread_create(&slow->thread, NULL, slow_main, slow);
    if (error) {
        free(slow);
        return -error;
    }
    pthread_setname_np(slow->thread, "slow");
    *out = slow;
    return 0;
}

void slow_close(struct slow *slow)
{
    if (!slow)
        return;
    pthread_mutex_lock(&slow->mutex);
    slow->stop = true;
    pthread_cond_signal(&slow->wake);
    pthread_mutex_unlock(&slow->mutex);
    pthread_join(slow->thread, NULL);
    pthread_cond_destroy(&slow->wake);
    pthread_mutex_destroy(&slow->mutex);
    free(slow);
}

bool slow_run(struct slow *slow, void (*function)(void *argument), void *argument)
{
    struct work *work = malloc(sizeof *work);
    if (!work)
        return false;
    *work = (struct work){.function = function, .argument = argument};
    pthread_mutex_lock(&slow->mutex);
    *slow->last = work;
    slow->last = &work->next;
    pthread_cond_signal(&slow->wake);
    pthread_mutex_unlock(&slow->mutex);
    return true;
}
