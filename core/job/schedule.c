/* The queue: a heap of jobs that only wait for CPUs.
 *
 * A priority step is worth 30 seconds of waiting. Since every job in the queue ages alike, their
 * order never changes while they wait: the key is priority * 30 s + time of submission, and first
 * in is first out within a priority. The first that does not fit keeps what becomes free until it
 * fits: small jobs behind it don't pass, so a big one is not starved. */
#include "core/job/job_internal.h"

#define STEP_NS (INT64_C(30) * INT64_C(1000000000))

static int64_t key_of(const struct job *job)
{
    return (int64_t)job->submitted_ns + job->spec->priority * STEP_NS;
}

static bool before(const struct job *a, const struct job *b)
{
    int64_t left = key_of(a), right = key_of(b);
    return left != right ? left < right : a->number < b->number;
}

static void put(struct jobs *jobs, size_t place, struct job *job)
{
    jobs->heap[place - 1] = job;
    job->heap_place = place;
}

static struct job *at(struct jobs *jobs, size_t place)
{
    return jobs->heap[place - 1];
}

static void rise(struct jobs *jobs, struct job *job, size_t place)
{
    while (place > 1 && before(job, at(jobs, place / 2))) {
        put(jobs, place, at(jobs, place / 2));
        place /= 2;
    }
    put(jobs, place, job);
}

static void sink(struct jobs *jobs, struct job *job, size_t place)
{
    for (;;) {
        size_t child = 2 * place;
        if (child > jobs->heap_count)
            break;
        if (child < jobs->heap_count && before(at(jobs, child + 1), at(jobs, child)))
            child++;
        if (!before(at(jobs, child), job))
            break;
        put(jobs, place, at(jobs, child));
        place = child;
    }
    put(jobs, place, job);
}

void queue_add(struct jobs *jobs, struct job *job)
{
    if (job->heap_place)
        return;
    if (jobs->heap_count == jobs->heap_capacity) {
        size_t capacity = jobs->heap_capacity ? jobs->heap_capacity * 2 : 256;
        struct job **larger = reallocarray(jobs->heap, capacity, sizeof *larger);
        if (!larger) {
            job_end_without_run(jobs, job, JOB_FAILED, -EIO, NULL, "no memory to queue it");
            return;
        }
        jobs->heap = larger;
        jobs->heap_capacity = capacity;
    }
    rise(jobs, job, ++jobs->heap_count);
}

void queue_remove(struct jobs *jobs, struct job *job)
{
    size_t place = job->heap_place;
    if (!place)
        return;
    job->heap_place = 0;
    struct job *last = at(jobs, jobs->heap_count--);
    if (last == job)
        return;
    if (place > 1 && before(last, at(jobs, place / 2)))
        rise(jobs, last, place);
    else
        sink(jobs, last, place);
}

void running_add(struct jobs *jobs, struct job *job)
{
    job->running_previous = NULL;
    job->running_next = jobs->running;
    if (jobs->running)
        jobs->running->running_previous = job;
    jobs->running = job;
    atomic_fetch_add(&jobs->milli_cpus_used, job->spec->milli_cpus);
    job_pin_arguments(jobs, job);
    loop_arm_timer(jobs);
}

void running_remove(struct jobs *jobs, struct job *job)
{
    if (job->running_previous)
        job->running_previous->running_next = job->running_next;
    else
        jobs->running = job->running_next;
    if (job->running_next)
        job->running_next->running_previous = job->running_previous;
    job->running_previous = job->running_next = NULL;
    atomic_fetch_sub(&jobs->milli_cpus_used, job->spec->milli_cpus);
    job_unpin_arguments(jobs, job);
}

void queue_run(struct jobs *jobs)
{
    while (jobs->heap_count > 0 && !jobs->launcher_gone && !jobs->stop) {
        struct job *job = at(jobs, 1);
        uint32_t needed = job->spec->milli_cpus;
        if (needed > jobs->milli_cpus) { /* the node was started anew with fewer */
            job_end_without_run(jobs, job, JOB_FAILED, -EIO, NULL,
                                "asks for %g CPUs; this node has %g", needed / 1000.0,
                                jobs->milli_cpus / 1000.0);
            continue;
        }
        if (atomic_load(&jobs->milli_cpus_used) + needed > jobs->milli_cpus)
            return;
        struct mob_error err = {0};
        queue_remove(jobs, job);
        errint_t error = job_start(jobs, job, &err);
        if (error == -EPIPE) {
            jobs->launcher_gone = true;
            queue_add(jobs, job);
        } else if (error) {
            job_end_without_run(jobs, job, JOB_FAILED, -EIO, NULL, "can't be started: %s",
                                err.message);
        }
    }
}
