/* The table of jobs: by ID a hash of lists, by number an array in rising order, which is the order
 * of listing too. */
#include <string.h>

#include "core/job/job_internal.h"

static size_t bucket_of(const struct jobs *jobs, const struct mob_id *id)
{
    uint64_t random; /* the middle of the ID is from the kernel's generator: as good as a hash */
    memcpy(&random, id->bytes + MOB_ID_OWNER_BYTES, sizeof random);
    return random & (jobs->bucket_count - 1);
}

static errint_t grow_buckets(struct jobs *jobs)
{
    size_t old_count = jobs->bucket_count, count = old_count ? old_count * 2 : 1024;
    struct job **buckets = calloc(count, sizeof *buckets), **old = jobs->buckets;
    if (!buckets)
        return -ENOMEM;
    jobs->buckets = buckets;
    jobs->bucket_count = count;
    for (size_t i = 0; i < old_count; i++)
        for (struct job *job = old[i], *next; job; job = next) {
            next = job->hash_next;
            struct job **head = &buckets[bucket_of(jobs, &job->id)];
            job->hash_next = *head;
            *head = job;
        }
    free(old);
    return 0;
}

static void close_holes(struct jobs *jobs)
{
    size_t kept = 0;
    for (size_t i = 0; i < jobs->order_count; i++)
        if (jobs->order[i].job)
            jobs->order[kept++] = jobs->order[i];
    jobs->order_count = kept;
    jobs->order_holes = 0;
}

size_t table_place(struct jobs *jobs, uint64_t number)
{
    size_t low = 0, high = jobs->order_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (jobs->order[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static errint_t add_in_order(struct jobs *jobs, struct job *job)
{
    if (jobs->order_count == jobs->order_capacity) {
        size_t capacity = jobs->order_capacity ? jobs->order_capacity * 2 : 256;
        struct job_place *larger = reallocarray(jobs->order, capacity, sizeof *larger);
        if (!larger)
            return -ENOMEM;
        jobs->order = larger;
        jobs->order_capacity = capacity;
    }
    /* Numbers come nearly in order: two threads that submit at once may swap theirs. */
    size_t place = jobs->order_count++;
    for (; place > 0 && jobs->order[place - 1].number > job->number; place--)
        jobs->order[place] = jobs->order[place - 1];
    jobs->order[place] = (struct job_place){job->number, job};
    return 0;
}

errint_t table_add(struct jobs *jobs, struct job *job)
{
    if (jobs->count >= jobs->bucket_count) {
        errint_t error = grow_buckets(jobs);
        if (error && !jobs->bucket_count)
            return error;
    }
    if (table_find(jobs, &job->id) || table_number(jobs, job->number))
        return -EEXIST;
    errint_t error = add_in_order(jobs, job);
    if (error)
        return error;
    struct job **head = &jobs->buckets[bucket_of(jobs, &job->id)];
    job->hash_next = *head;
    *head = job;
    jobs->count++;
    jobs->state_counts[job->state]++;
    return 0;
}

void table_remove(struct jobs *jobs, struct job *job)
{
    struct job **link = &jobs->buckets[bucket_of(jobs, &job->id)];
    while (*link != job)
        link = &(*link)->hash_next;
    *link = job->hash_next;
    size_t place = table_place(jobs, job->number);
    while (jobs->order[place].job != job)
        place++;
    jobs->order[place].job = NULL;
    jobs->order_holes++;
    while (jobs->order_count > 0 && !jobs->order[jobs->order_count - 1].job) {
        jobs->order_count--;
        jobs->order_holes--;
    }
    if (jobs->order_holes > 64 && jobs->order_holes > jobs->order_count / 4)
        close_holes(jobs);
    jobs->count--;
    jobs->state_counts[job->state]--;
}

struct job *table_find(struct jobs *jobs, const struct mob_id *id)
{
    if (!jobs->bucket_count)
        return NULL;
    struct job *job = jobs->buckets[bucket_of(jobs, id)];
    while (job && !mob_id_equal(&job->id, id))
        job = job->hash_next;
    return job;
}

struct job *table_number(struct jobs *jobs, uint64_t number)
{
    for (size_t i = table_place(jobs, number);
         i < jobs->order_count && jobs->order[i].number == number; i++)
        if (jobs->order[i].job)
            return jobs->order[i].job;
    return NULL;
}

void job_end_free(struct job_end *end)
{
    if (!end)
        return;
    free(end->error);
    free(end->cause);
    free(end);
}

void job_free(struct job *job)
{
    if (!job)
        return;
    for (uint32_t i = 0; job->outputs && i < job->output_count; i++)
        free(job->outputs[i]);
    free(job->outputs);
    free(job->numbers);
    free(job->broken);
    spec_free(job->spec);
    job_end_free(job->end);
    free(job);
}

bool job_has_ended(struct jobs *jobs, const struct job *job)
{
    if (job_state_is_end(job->state))
        return true;
    if (!job->committing)
        return false;
    /* The end is being committed: it is on disk when its first object is no longer pending. */
    struct object_info info;
    struct mob_id id = mob_id_with_index(&job->id, MOB_INDEX_FIRST_OUTPUT);
    return store_find(jobs->store, &id, &info) || info.state != OBJECT_PENDING;
}

void job_set_state(struct jobs *jobs, struct job *job, enum job_state state)
{
    pthread_mutex_lock(&jobs->lock);
    jobs->state_counts[job->state]--;
    job->state = state;
    if (job_state_is_end(state))
        job->committing = false;
    jobs->state_counts[state]++;
    pthread_mutex_unlock(&jobs->lock);
    if (jobs->hooks.job_changed)
        jobs->hooks.job_changed(jobs->hooks.context, job->number);
}

static void drop_results(struct jobs *jobs, const struct job *job)
{
    for (uint32_t i = 0; i < job_object_count(job); i++) {
        struct mob_id id = mob_id_with_index(&job->id, MOB_INDEX_FIRST_OUTPUT + i);
        store_drop(jobs->store, &id);
    }
    struct mob_id out = mob_id_with_index(&job->id, MOB_INDEX_STDOUT);
    struct mob_id err = mob_id_with_index(&job->id, MOB_INDEX_STDERR);
    if (job->end->stdout_object)
        store_drop(jobs->store, &out);
    if (job->end->stderr_object)
        store_drop(jobs->store, &err);
}

void job_let_go(struct jobs *jobs, const struct mob_id *id, int names, int dependents)
{
    pthread_mutex_lock(&jobs->lock);
    struct job *job = table_find(jobs, id);
    if (job && (names > 0 || job->names > 0))
        job->names += (unsigned)names;
    if (job && names > 0)
        job->kept = false;
    if (job)
        job->dependents += (unsigned)dependents;
    bool goes = job && !job->kept && job->names == 0 && job->dependents == 0 &&
                job_state_is_end(job->state);
    if (goes)
        table_remove(jobs, job);
    pthread_mutex_unlock(&jobs->lock);
    if (!goes)
        return;
    drop_results(jobs, job);
    if (jobs->hooks.job_gone)
        jobs->hooks.job_gone(jobs->hooks.context, job->number, &job->id);
    mailbox_post(jobs, &job->gone_post, POST_GONE); /* the loop frees it: last of all */
}

char *job_sentence(const char *text)
{
    char *copy = strndup(text, 1000);
    if (copy)
        spec_make_printable(copy);
    return copy;
}
