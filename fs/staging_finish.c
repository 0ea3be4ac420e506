/* Staged files that were closed: each becomes an object, or a job if it is in run/.
 *
 * A staged file is finished at its last close. RELEASE comes after close has returned, so a look-up
 * may overtake it: the look-up then finishes the file itself, if every descriptor that could write
 * has been closed at least once (FLUSH) and the kernel says that nobody has the data file open for
 * writing any more. Without passthrough the kernel can't be asked, and the look-up waits a little
 * for the release. */
#include <errno.h>
#include <string.h>

#include "fs/staging_internal.h"

#define RELEASE_TICK_NS 2000000
#define RELEASE_WAIT_NS                                                                            \
    UINT64_C(50000000) /* without passthrough a release is waited for so long                      \
                        */
#define DISK_WAIT_NS                                                                               \
    UINT64_C(10000000000) /* and a commit that waits for the disk: a disk may stall */
#define LIST_WAIT_NS UINT64_C(100000000) /* a listing doesn't wait longer */

static void *timer_main(void *argument);

errint_t staging_open(struct staging **out)
{
    struct staging *staging = calloc(1, sizeof *staging);
    if (!staging)
        return -ENOMEM;
    pthread_mutex_init(&staging->mutex, NULL);
    pthread_cond_init(&staging->changed, NULL);
    pthread_cond_init(&staging->tick, NULL);
    int error = pthread_create(&staging->timer, NULL, timer_main, staging);
    if (error) {
        free(staging);
        return -error;
    }
    pthread_setname_np(staging->timer, "releases");
    *out = staging;
    return 0;
}

void staging_stop(struct staging *staging)
{
    pthread_mutex_lock(&staging->mutex);
    bool stopped = staging->stop;
    staging->stop = true;
    pthread_cond_signal(&staging->tick);
    pthread_mutex_unlock(&staging->mutex);
    if (!stopped)
        pthread_join(staging->timer, NULL);
}

void staging_close(struct staging *staging)
{
    if (!staging)
        return;
    staging_stop(staging);
    for (size_t i = 0; i < STAGING_BUCKETS; i++)
        for (struct state *state = staging->buckets[i], *next; state; state = next) {
            next = state->next;
            free(state->failure);
            free(state); /* what it holds goes with the jobs */
        }
    free(staging->retries);
    pthread_cond_destroy(&staging->tick);
    pthread_cond_destroy(&staging->changed);
    pthread_mutex_destroy(&staging->mutex);
    free(staging);
}

/* --- states: call with the mutex held --- */

static struct state **state_place(struct staging *staging, uint64_t number)
{
    struct state **link = &staging->buckets[number % STAGING_BUCKETS];
    while (*link && (*link)->number != number)
        link = &(*link)->next;
    return link;
}

struct state *state_get(struct staging *staging, uint64_t number, bool make)
{
    struct state **link = state_place(staging, number);
    if (!*link && make && (*link = calloc(1, sizeof **link)))
        (*link)->number = number;
    return *link;
}

void state_drop(struct staging *staging, struct state *state)
{
    if (state->hold)
        jobs_hold_drop(staging->jobs, state->hold);
    *state_place(staging, state->number) = state->next;
    free(state->failure);
    free(state);
}

void wait_a_tick(struct staging *staging, pthread_cond_t *signal)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += RELEASE_TICK_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(signal, &staging->mutex, &until);
}

/* --- finishing --- */

static void wake_lookups(struct fs *fs, uint64_t number)
{
    struct parked parked;
    while (waiting_take_for(fs->waiting, WAITING_RELEASE, number, 0, &parked))
        directory_lookup_continue(&parked);
}

errint_t spec_text(struct fs *fs, uint64_t number, char **text, size_t *bytes)
{
    errint_t error = staged_content(fs->store, number, SPEC_LIMIT_BYTES, text, bytes);
    if (error != -EFBIG)
        return error;
    *text = malloc(SPEC_LIMIT_BYTES + 1);
    if (!*text)
        return -ENOMEM;
    ssize_t got = staged_read(fs->store, number, *text, SPEC_LIMIT_BYTES + 1, 0);
    *bytes = got > 0 ? (size_t)got : 0;
    return got < 0 ? (errint_t)got : 0;
}

struct job_credentials credentials(const struct staged_info *info)
{
    return (struct job_credentials){
        .uid = info->uid, .gid = info->gid, .umask = ~info->mode & 0666};
}

/* A refused spec is a job too, in state `rejected`: its name shows why. */
static errint_t submit(struct fs *fs, const struct staged_info *info, struct mob_error *err)
{
    if (staged_has_writers(fs->store, info->number) > 0)
        return -EBUSY;
    cleanup_free char *text = NULL;
    size_t bytes = 0;
    errint_t error = spec_text(fs, info->number, &text, &bytes);
    if (error)
        return mob_error_set(err, error, "it can't be read: %s", strerror(-error));
    struct job_credentials who = credentials(info);
    struct mob_id id;
    error = jobs_submit(fs->jobs, &who, info->number, text, bytes, &id, err);
    return error == -EINVAL ? 0 : error;
}

static errint_t finish_now(struct fs *fs, uint64_t number, struct mob_error *err)
{
    struct staged_info info;
    errint_t error = staged_peek(fs->store, number, &info);
    if (error == -ENOENT || (!error && (info.committed || info.unlinked)))
        return 0;
    if (error)
        return error;
    if (info.root == NAMES_RUN)
        return submit(fs, &info, err);
    struct mob_id id;
    error = staged_commit(fs->store, number, &id, NULL, err);
    if (error == -ENOENT) /* unlinked meanwhile */
        return 0;
    if (error && !err->message[0])
        mob_error_set(err, error, "%s", strerror(-error));
    return error;
}

static void unwritten(void *argument, uint64_t number)
{
    errint_t error = finish(argument, number, true);
    if (error && error != -EBUSY) /* else there is a writer again, whose close will do it */
        mob_log_debug("a file that was mapped: %s", strerror(-error));
}

void finish_when_unwritten(struct fs *fs, uint64_t number)
{
    if (staged_when_unwritten(fs->store, number, unwritten, fs))
        mob_log_warning("a closed staged file is committed at its next look-up");
}

/* The state of a file that this thread now finishes; NULL: there's nothing to do (0 in *error), or
 * it can't be now (-EBUSY). Waits for another thread that is at it. */
static struct state *claim(struct staging *staging, uint64_t number, bool only_if_unopened,
                           errint_t *error)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&staging->mutex);
    struct state *state;
    while ((state = state_get(staging, number, false)) && state->finishing)
        pthread_cond_wait(&staging->changed, &staging->mutex);
    *error = 0;
    if (!state || state->finished)
        return NULL;
    if (state->unflushed || (only_if_unopened && state->opens)) {
        *error = -EBUSY;
        return NULL;
    }
    state->finishing = true;
    return state;
}

/* Each look-up tries again: the log has a reason once. The mutex is held. */
static void note_failure(struct state *state, errint_t error, const struct mob_error *err)
{
    char *reason = NULL, sentence[sizeof err->message + 256];
    if (error && error != -EBUSY)
        reason = strdup(mob_error_format(err, sentence, sizeof sentence));
    if (reason && (!state->failure || strcmp(reason, state->failure) != 0))
        mob_log_error("a file was closed and can't be committed: %s", reason);
    free(state->failure);
    state->failure = reason;
}

/* Ends what claim() has begun; `err` has the reason if it failed. */
static void conclude(struct fs *fs, struct state *state, uint64_t number, errint_t error,
                     const struct mob_error *err)
{
    struct staging *staging = fs->staging;
    uint64_t released = 0;
    struct job_hold *hold = NULL;
    pthread_mutex_lock(&staging->mutex);
    state->finishing = false;
    note_failure(state, error, err);
    if (!error) {
        state->finished = true;
        hold = state->hold;
        state->hold = NULL;
        released = state->released;
        state->released = 0;
        if (!state->opens)
            state_drop(staging, state);
    }
    pthread_cond_broadcast(&staging->changed);
    pthread_mutex_unlock(&staging->mutex);
    jobs_hold_drop(fs->jobs, hold);
    if (released)
        handles_free(fs->handles, released);
    if (error != -EBUSY)
        wake_lookups(fs, number);
}

errint_t finish(struct fs *fs, uint64_t number, bool only_if_unopened)
{
    errint_t error;
    struct state *state = claim(fs->staging, number, only_if_unopened, &error);
    if (!state)
        return error;
    struct mob_error err = {0};
    error = finish_now(fs, number, &err);
    conclude(fs, state, number, error, &err);
    return error;
}

char *staging_failure(struct fs *fs, uint64_t number)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
    const struct state *state = state_get(fs->staging, number, false);
    return state && state->failure && !state->unflushed ? strdup(state->failure) : NULL;
}

/* It has outgrown memory, and all who wrote it have closed it. */
static uint64_t wait_for_split(struct fs *fs, uint64_t number, bool open, bool passthrough)
{
    if (!open)
        return staging_put_off_finish(fs, number) ? DISK_WAIT_NS : 0;
    bool releases = passthrough && staged_has_writers(fs->store, number) == 0;
    return releases ? DISK_WAIT_NS : RELEASE_WAIT_NS;
}

bool staging_finish_if_closed(struct fs *fs, uint64_t number, uint64_t *wait_ns)
{
    bool passthrough = staged_passthrough(fs);
    bool open, closed;
    {
        cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
        struct state *state = state_get(fs->staging, number, false);
        closed = state && !state->unflushed;
        open = state && state->opens;
        passthrough = passthrough && !(state && state->mediated);
    }
    *wait_ns = closed && open && !passthrough ? RELEASE_WAIT_NS : 0;
    if (closed && is_split(fs, number)) {
        *wait_ns = wait_for_split(fs, number, open, passthrough);
        return false;
    }
    if (!closed || *wait_ns || staged_has_writers(fs->store, number) > 0)
        return false;
    return finish(fs, number, false) == 0;
}

/* Those that are closed and whose release is on its way, as a new array. NULL: none, or no memory.
 */
static uint64_t *list_closed(struct staging *staging, size_t *count)
{
    uint64_t *numbers = NULL;
    size_t capacity = 0;
    *count = 0;
    cleanup_lock pthread_mutex_t *held = mob_lock(&staging->mutex);
    for (size_t i = 0; i < STAGING_BUCKETS; i++)
        for (struct state *state = staging->buckets[i]; state; state = state->next) {
            if (state->unflushed || state->finished)
                continue;
            if (*count == capacity) {
                capacity = capacity ? 2 * capacity : 64;
                uint64_t *grown = realloc(numbers, capacity * sizeof *grown);
                if (!grown) /* these at least */
                    return numbers;
                numbers = grown;
            }
            numbers[(*count)++] = state->number;
        }
    return numbers;
}

/* Waits until no thread is at it, or is to be; not past until_ns. */
static void wait_for_late(struct fs *fs, uint64_t number, uint64_t until_ns)
{
    struct staging *staging = fs->staging;
    cleanup_lock pthread_mutex_t *held = mob_lock(&staging->mutex);
    const struct state *state;
    while ((state = state_get(staging, number, false)) && (state->put_off || state->finishing) &&
           mob_monotonic_ns() < until_ns)
        wait_a_tick(staging, &staging->changed);
}

void staging_finish_closed(struct fs *fs)
{
    size_t count;
    uint64_t wait_ns, until_ns = mob_monotonic_ns() + LIST_WAIT_NS;
    cleanup_free uint64_t *numbers = list_closed(fs->staging, &count);
    for (size_t i = 0; i < count; i++)
        if (staging_finish_if_closed(fs, numbers[i], &wait_ns) || wait_ns != DISK_WAIT_NS)
            numbers[i] = 0;
    for (size_t i = 0; i < count; i++)
        if (numbers[i])
            wait_for_late(fs, numbers[i], until_ns);
}

/* --- files that are closed but still seem to be written ---
 *
 * Mostly it is only that the kernel has put off the last fput of the writer, whose close has told
 * us already: in a moment it is done. What is still written then is mapped, and is watched until
 * the mapping goes. */

bool finish_soon(struct fs *fs, uint64_t number)
{
    struct staging *staging = fs->staging;
    cleanup_lock pthread_mutex_t *held = mob_lock(&staging->mutex);
    if (staging->retry_count == staging->retry_capacity) {
        size_t capacity = staging->retry_capacity ? staging->retry_capacity * 2 : 256;
        uint64_t *larger = realloc(staging->retries, capacity * sizeof *larger);
        if (!larger)
            return false;
        staging->retries = larger;
        staging->retry_capacity = capacity;
    }
    staging->retries[staging->retry_count++] = number;
    if (!staging->timer_fs) {
        staging->timer_fs = fs;
        pthread_cond_signal(&staging->tick);
    }
    return true;
}

/* True if some thread is at it: maybe this one, as a number may be among the retries twice. */
static bool is_claimed(struct staging *staging, uint64_t number)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&staging->mutex);
    const struct state *state = state_get(staging, number, false);
    return state && state->finishing;
}

static void finish_alone(struct fs *fs, uint64_t number)
{
    if (finish(fs, number, true) == -EBUSY)
        finish_when_unwritten(fs, number);
}

/* Up to STAGED_COMMIT_MANY files in one transaction: a transaction a file would take the store's
 * lock, which every create needs, as often. */
static void finish_many(struct fs *fs, const uint64_t *numbers, size_t count)
{
    struct state *states[STAGED_COMMIT_MANY];
    uint64_t claimed[STAGED_COMMIT_MANY], others[STAGED_COMMIT_MANY];
    errint_t results[STAGED_COMMIT_MANY];
    size_t claims = 0, left = 0;
    for (size_t i = 0; i < count; i++) {
        errint_t error;
        if (is_claimed(fs->staging, numbers[i]))
            others[left++] = numbers[i];
        else if ((states[claims] = claim(fs->staging, numbers[i], true, &error)))
            claimed[claims++] = numbers[i];
    }
    staged_commit_many(fs->store, claimed, claims, results);
    for (size_t i = 0; i < claims; i++) {
        struct mob_error err = {0};
        if (results[i] && results[i] != -EBUSY)
            results[i] = finish_now(fs, claimed[i], &err); /* a spec; or it says what is wrong */
        conclude(fs, states[i], claimed[i], results[i], &err);
        if (results[i] == -EBUSY)
            finish_when_unwritten(fs, claimed[i]);
    }
    for (size_t i = 0; i < left; i++)
        finish_alone(fs, others[i]);
}

/* On the timer's thread. */
static void finish_retries(struct fs *fs)
{
    struct staging *staging = fs->staging;
    pthread_mutex_lock(&staging->mutex);
    uint64_t *numbers = staging->retries;
    size_t count = staging->retry_count;
    staging->retries = NULL;
    staging->retry_count = staging->retry_capacity = 0;
    pthread_mutex_unlock(&staging->mutex);
    for (size_t done = 0; done < count; done += STAGED_COMMIT_MANY)
        finish_many(fs, numbers + done,
                    count - done < STAGED_COMMIT_MANY ? count - done : STAGED_COMMIT_MANY);
    free(numbers);
}

/* --- look-ups that wait for a release --- */

static void *timer_main(void *argument)
{
    struct staging *staging = argument;
    pthread_mutex_lock(&staging->mutex);
    while (!staging->stop) {
        struct fs *fs = staging->timer_fs;
        if (!fs) {
            pthread_cond_wait(&staging->tick, &staging->mutex);
            continue;
        }
        wait_a_tick(staging, &staging->tick);
        pthread_mutex_unlock(&staging->mutex);
        struct parked parked;
        while (waiting_take_for(fs->waiting, WAITING_RELEASE, 0, mob_monotonic_ns(), &parked))
            directory_lookup_continue(&parked);
        finish_retries(fs);
        pthread_mutex_lock(&staging->mutex);
        if (!staging->retry_count && !waiting_has(fs->waiting, WAITING_RELEASE))
            staging->timer_fs = NULL;
    }
    pthread_mutex_unlock(&staging->mutex);
    return NULL;
}

void staging_start_timer(struct fs *fs)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
    fs->staging->timer_fs = fs;
    pthread_cond_signal(&fs->staging->tick);
}
