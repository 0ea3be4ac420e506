/* From a dropped spec to a job in the table. */
#include <string.h>

#include "core/job/job_internal.h"

errint_t jobs_check(const char *text, size_t bytes, struct mob_error *err)
{
    struct job_spec *spec = NULL;
    errint_t error = spec_parse(text, bytes, &spec, err);
    spec_free(spec);
    return error;
}

/* --- what a job holds --- */

struct argument {
    const struct mob_id *id;
    const char *field;
    size_t place; /* SIZE_MAX: the field itself */
};

/* The `cursor`th object that the spec names; false past the end, true with id NULL where there is
 * none. */
static bool argument_at(const struct job_spec *spec, size_t cursor, struct argument *out)
{
    *out = (struct argument){.field = "command", .place = cursor};
    if (cursor < spec->word_count) {
        const struct spec_word *word = &spec->words[cursor];
        if (word->kind == SPEC_WORD_OBJECT || word->kind == SPEC_WORD_REF)
            out->id = &word->id;
        return true;
    }
    cursor -= spec->word_count;
    if (cursor == 0) {
        out->field = "stdin";
        out->place = SIZE_MAX;
        out->id = spec->stdin_kind == SPEC_STDIN_OBJECT ? &spec->stdin_object : NULL;
        return true;
    }
    cursor--;
    out->field = "refs";
    out->place = cursor;
    out->id = cursor < spec->refs.count ? &spec->refs.ids[cursor] : NULL;
    return cursor < spec->refs.count;
}

static void drop_objects(struct jobs *jobs, const struct job_spec *spec, size_t limit)
{
    struct argument argument;
    for (size_t i = 0; i < limit && argument_at(spec, i, &argument); i++)
        if (argument.id)
            store_drop(jobs->store, argument.id);
}

static void drop_dependencies(struct jobs *jobs, const struct job_spec *spec, size_t limit)
{
    for (size_t i = 0; i < limit; i++)
        job_let_go(jobs, &spec->after.ids[i], 0, -1);
}

static errint_t missing(const char *text, size_t bytes, const char *field, size_t place,
                        const char *what, const struct mob_id *id, struct mob_error *err)
{
    unsigned line = 0, column = 0;
    char digits[MOB_ID_STRING_BYTES], path[64];
    if (text)
        spec_place(text, bytes, field, place, &line, &column);
    if (place == SIZE_MAX)
        snprintf(path, sizeof path, "%s", field);
    else
        snprintf(path, sizeof path, "%s[%zu]", field, place);
    return mob_error_set_at(err, -EINVAL, line, column, path, "there is no %s %s", what,
                            mob_id_format(id, digits));
}

static errint_t hold_dependencies(struct jobs *jobs, struct job *job, const char *text,
                                  size_t bytes, struct mob_error *err)
{
    const struct spec_ids *after = &job->spec->after;
    for (size_t i = 0; i < after->count; i++) {
        pthread_mutex_lock(&jobs->lock);
        struct job *other = table_find(jobs, &after->ids[i]);
        if (other)
            other->dependents++;
        pthread_mutex_unlock(&jobs->lock);
        if (other)
            continue;
        drop_dependencies(jobs, job->spec, i);
        return missing(text, bytes, "after", i, "job", &after->ids[i], err);
    }
    return 0;
}

errint_t job_hold_arguments(struct jobs *jobs, struct job *job, const char *text, size_t bytes,
                            struct mob_error *err)
{
    struct argument argument;
    for (size_t i = 0; argument_at(job->spec, i, &argument); i++) {
        errint_t error = argument.id ? store_hold(jobs->store, argument.id) : 0;
        if (!error)
            continue;
        drop_objects(jobs, job->spec, i);
        if (error != -ENOENT)
            return mob_error_set(err, error, "%s", strerror(-error));
        return missing(text, bytes, argument.field, argument.place, "object", argument.id, err);
    }
    errint_t error = hold_dependencies(jobs, job, text, bytes, err);
    if (error)
        drop_objects(jobs, job->spec, SIZE_MAX);
    else
        job->holding = true;
    return error;
}

void job_drop_arguments(struct jobs *jobs, struct job *job)
{
    if (!job->holding)
        return;
    job->holding = false;
    drop_objects(jobs, job->spec, SIZE_MAX);
    drop_dependencies(jobs, job->spec, job->spec->after.count);
}

/* The `cursor`th object that the run opens by itself; false past the end, true with *id NULL where
 * there is none. */
static bool value_at(const struct job_spec *spec, size_t cursor, const struct mob_id **id)
{
    *id = NULL;
    if (cursor < spec->word_count && spec->words[cursor].kind == SPEC_WORD_OBJECT)
        *id = &spec->words[cursor].id;
    else if (cursor == spec->word_count && spec->stdin_kind == SPEC_STDIN_OBJECT)
        *id = &spec->stdin_object;
    return cursor <= spec->word_count;
}

void job_pin_arguments(struct jobs *jobs, const struct job *job)
{
    const struct mob_id *id;
    for (size_t i = 0; value_at(job->spec, i, &id); i++)
        if (id && store_pin(jobs->store, id))
            mob_log_warning("jobs: an argument of a job that runs is not there");
}

void job_unpin_arguments(struct jobs *jobs, const struct job *job)
{
    const struct mob_id *id;
    for (size_t i = 0; value_at(job->spec, i, &id); i++)
        if (id)
            store_unpin(jobs->store, id);
}

/* --- submission --- */

static errint_t new_job(struct jobs *jobs, const struct job_credentials *credentials,
                        struct job **out)
{
    struct job *job = calloc(1, sizeof *job);
    if (!job)
        return -ENOMEM;
    job->uid = credentials->uid;
    job->gid = credentials->gid;
    job->umask = credentials->umask & 0777;
    job->state = JOB_QUEUED;
    job->submitted_ns = jobs->clock.wall_ns(jobs->clock.context);
    errint_t error = mob_id_new(jobs->owner, MOB_INDEX_JOB, &job->id);
    if (!error)
        error = store_new_number(jobs->store, &job->number);
    if (error) {
        job_free(job);
        return error;
    }
    *out = job;
    return 0;
}

/* What a spec asks for that this node can't give. */
static errint_t check_possible(struct jobs *jobs, const struct job *job, const char *text,
                               size_t bytes, struct mob_error *err)
{
    unsigned line, column;
    if (jobs->uid != 0 && job->uid != jobs->uid)
        return mob_error_set(err, -EINVAL,
                             "this node runs as user %u, so it runs jobs of that user only, not "
                             "of user %u",
                             (unsigned)jobs->uid, (unsigned)job->uid);
    if (job->spec->milli_cpus <= jobs->milli_cpus)
        return 0;
    spec_place(text, bytes, "resources", SIZE_MAX, &line, &column);
    return mob_error_set_at(err, -EINVAL, line, column, "resources.cpu",
                            "asks for %g CPUs; this node has %g", job->spec->milli_cpus / 1000.0,
                            jobs->milli_cpus / 1000.0);
}

/* A job that is not submitted, for the sake of what it holds. */
struct job_hold {
    struct job *job;
};

errint_t jobs_check_here(struct jobs *jobs, const struct job_credentials *credentials,
                         const char *text, size_t bytes, struct job_hold **hold,
                         struct mob_error *err)
{
    struct job *job = calloc(1, sizeof *job);
    *hold = malloc(sizeof **hold);
    if (!job || !*hold) {
        free(job);
        free(*hold);
        return mob_error_set(err, -ENOMEM, "%s", strerror(ENOMEM));
    }
    (*hold)->job = job;
    job->uid = credentials->uid;
    job->gid = credentials->gid;
    errint_t error = spec_parse(text, bytes, &job->spec, err);
    if (!error)
        error = check_possible(jobs, job, text, bytes, err);
    if (!error)
        error = job_hold_arguments(jobs, job, text, bytes, err);
    if (error) {
        jobs_hold_drop(jobs, *hold);
        *hold = NULL;
    }
    return error;
}

void jobs_hold_drop(struct jobs *jobs, struct job_hold *hold)
{
    if (!hold)
        return;
    job_drop_arguments(jobs, hold->job);
    job_free(hold->job);
    free(hold);
}

static errint_t reserve_outputs(struct jobs *jobs, struct job *job, struct store_batch *batch)
{
    job->output_count = (uint32_t)job->spec->output_count;
    job->outputs = job->spec->outputs; /* moved: the job's names outlive the spec */
    job->spec->outputs = NULL;
    job->spec->output_count = 0;
    if (!job->output_count) {
        free(job->outputs);
        job->outputs = NULL;
    }
    uint32_t count = job_object_count(job);
    job->numbers = calloc(count, sizeof *job->numbers);
    if (!job->numbers)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        struct mob_id id = mob_id_with_index(&job->id, MOB_INDEX_FIRST_OUTPUT + i);
        errint_t error = store_new_number(jobs->store, &job->numbers[i]);
        if (!error)
            error = store_batch_pending(batch, &id, job->uid, job->gid, job->umask, job->numbers[i],
                                        NULL);
        if (error)
            return error;
    }
    return 0;
}

static errint_t fill_batch(struct jobs *jobs, struct job *job, uint64_t staged, const char *text,
                           size_t bytes, struct store_batch *batch, bool *linked)
{
    struct record_key key = record_key(job->number);
    errint_t error = job->end ? 0 : reserve_outputs(jobs, job, batch);
    if (!error)
        error = record_put(batch, job, job->end);
    if (!error)
        error = store_batch_put(batch, STORE_TABLE_JOB_DATA, key.bytes, sizeof key, text, bytes);
    if (!error && staged)
        error = store_batch_link_job(batch, staged, &job->id, linked);
    return error;
}

/* In the table before it is on disk, so that the name, once it is a link, leads somewhere; nobody
 * can know the ID before. */
static errint_t record_job(struct jobs *jobs, struct job *job, uint64_t staged, const char *text,
                           size_t bytes, struct mob_error *err)
{
    struct store_batch *batch;
    bool linked = true;
    errint_t error = store_batch_new(jobs->store, &batch);
    if (error)
        return mob_error_set(err, error, "%s", strerror(-error));
    error = fill_batch(jobs, job, staged, text, bytes, batch, &linked);
    job->names = staged ? 1 : 0;
    job->kept = !staged;
    if (!error) {
        pthread_mutex_lock(&jobs->lock);
        error = table_add(jobs, job);
        pthread_mutex_unlock(&jobs->lock);
    }
    if (error) {
        store_batch_abort(batch);
        return mob_error_set(err, error, "%s", strerror(-error));
    }
    error = store_batch_commit(batch, err);
    pthread_mutex_lock(&jobs->lock);
    if (error)
        table_remove(jobs, job);
    else if (!linked && job->names > 0)
        job->names--;
    pthread_mutex_unlock(&jobs->lock);
    return error;
}

/* The job that only says why there is none. */
static errint_t reject(struct jobs *jobs, struct job *job, uint64_t staged, const char *text,
                       size_t bytes, const struct mob_error *why, struct mob_error *err)
{
    const struct mob_id id = job->id;
    char sentence[640];
    struct mob_error failure;
    job->end = calloc(1, sizeof *job->end);
    if (!job->end)
        return -ENOMEM;
    job->state = job->end->state = JOB_REJECTED;
    job->end->exit_code = EXIT_CODE_NEVER_RAN;
    job->end->ended_ns = job->submitted_ns;
    job->end->error = job_sentence(mob_error_format(why, sentence, sizeof sentence));
    errint_t error =
        record_job(jobs, job, staged, text, bytes > SPEC_TEXT_LIMIT ? 0 : bytes, &failure);
    if (error) {
        if (err)
            *err = failure;
        return error;
    }
    job_let_go(jobs, &id, 0, 0); /* its name may have gone meanwhile */
    return -EINVAL;
}

errint_t jobs_submit(struct jobs *jobs, const struct job_credentials *credentials, uint64_t staged,
                     const char *text, size_t bytes, struct mob_id *id, struct mob_error *err)
{
    struct mob_error own;
    struct mob_error *why = err ? err : &own;
    struct job *job = NULL;
    errint_t error = new_job(jobs, credentials, &job);
    if (error)
        return mob_error_set(err, error, "%s", strerror(-error));
    *id = job->id;
    error = spec_parse(text, bytes, &job->spec, why);
    if (!error)
        error = check_possible(jobs, job, text, bytes, why);
    if (!error)
        error = job_hold_arguments(jobs, job, text, bytes, why);
    if (error == -EINVAL) {
        struct mob_error reason = *why;
        error = reject(jobs, job, staged, text, bytes, &reason, err);
        if (error != -EINVAL)
            job_free(job);
        return error;
    }
    if (!error)
        error = record_job(jobs, job, staged, text, bytes, why);
    if (error) {
        job_drop_arguments(jobs, job);
        job_free(job);
        return error;
    }
    mailbox_post(jobs, &job->submitted_post, POST_SUBMITTED);
    return 0;
}
