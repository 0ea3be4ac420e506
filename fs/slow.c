/* Threads for what takes long (a checksum of gigabytes, a walk over all names, waiting for the
 * disk), so that no serving thread does. Each is made when there is work and all others are busy.
 */
#include <sched.h>
#include <string.h>

#include "fs/internal.h"

enum { THREADS_LIMIT = 8 };

struct work {
    struct work *next;
    void (*function)(void *argument);
    void *argument;
};

struct slow {
    const char *name;
    pthread_t threads[THREADS_LIMIT];
    unsigned limit, count, idle;
    bool urgent;
    cpu_set_t cores; /* of who made it: those who give it work are pinned, each to one */
    size_t queued;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct work *first, **last;
    bool stop;
};

static void *slow_main(void *argument)
{
    struct slow *slow = argument;
    (void)sched_setaffinity(0, sizeof slow->cores, &slow->cores);
    if (!slow->urgent)
        mob_no_hurry();
    pthread_mutex_lock(&slow->mutex);
    for (;;) {
        slow->idle++;
        while (!slow->first && !slow->stop)
            pthread_cond_wait(&slow->wake, &slow->mutex);
        slow->idle--;
        struct work *work = slow->first;
        if (!work)
            break;
        slow->first = work->next;
        if (!slow->first)
            slow->last = &slow->first;
        slow->queued--;
        pthread_mutex_unlock(&slow->mutex);
        work->function(work->argument);
        free(work);
        pthread_mutex_lock(&slow->mutex);
    }
    pthread_mutex_unlock(&slow->mutex);
    return NULL;
}

errint_t slow_open(const char *name, unsigned threads, bool urgent, struct slow **out)
{
    struct slow *slow = calloc(1, sizeof *slow);
    if (!slow)
        return -ENOMEM;
    slow->name = name;
    slow->urgent = urgent;
    slow->limit = threads < THREADS_LIMIT ? threads : THREADS_LIMIT;
    slow->last = &slow->first;
    if (sched_getaffinity(0, sizeof slow->cores, &slow->cores) < 0)
        memset(&slow->cores, 0xff, sizeof slow->cores); /* all that there are */
    pthread_mutex_init(&slow->mutex, NULL);
    pthread_cond_init(&slow->wake, NULL);
    *out = slow;
    return 0;
}

void slow_close(struct slow *slow)
{
    if (!slow)
        return;
    pthread_mutex_lock(&slow->mutex);
    slow->stop = true;
    pthread_cond_broadcast(&slow->wake);
    pthread_mutex_unlock(&slow->mutex);
    for (unsigned i = 0; i < slow->count; i++)
        pthread_join(slow->threads[i], NULL);
    pthread_cond_destroy(&slow->wake);
    pthread_mutex_destroy(&slow->mutex);
    free(slow);
}

/* One thread more, if all are busy. Without the first nothing would be done. Locked. */
static bool have_thread(struct slow *slow)
{
    if (slow->queued < slow->idle || slow->count == slow->limit)
        return true;
    if (pthread_create(&slow->threads[slow->count], NULL, slow_main, slow))
        return slow->count > 0;
    pthread_setname_np(slow->threads[slow->count++], slow->name);
    return true;
}

bool slow_run(struct slow *slow, void (*function)(void *argument), void *argument)
{
    struct work *work = malloc(sizeof *work);
    if (!work)
        return false;
    *work = (struct work){.function = function, .argument = argument};
    cleanup_lock pthread_mutex_t *held = mob_lock(&slow->mutex);
    if (!have_thread(slow)) {
        free(work);
        return false;
    }
    *slow->last = work;
    slow->last = &work->next;
    slow->queued++;
    pthread_cond_signal(&slow->wake);
    return true;
}
