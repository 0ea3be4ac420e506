/* Records of jobs in LMDB. Whoever can write the state directory can write anything there, and a
 * disk can, too: a record is nothing until its checksum, every length and every range have been
 * checked. */
#include <string.h>
#include <xxhash.h>

#include "core/job/bytes.h"
#include "core/job/job_internal.h"

#define RECORD_MAGIC 0x3142424au /* "JBB1" */
#define RECORD_TEXT_LIMIT 4096u

enum {
    RECORD_STDOUT = 1,
    RECORD_STDERR = 2,
    RECORD_ERROR = 4,
    RECORD_CAUSE = 8,
    RECORD_NAMES = 16
};

struct record_key record_key(uint64_t number)
{
    struct record_key key;
    for (int i = 0; i < 8; i++)
        key.bytes[i] = (uint8_t)(number >> (56 - 8 * i));
    return key;
}

static void put_end(struct bytes_writer *writer, const struct job_end *end)
{
    bytes_put_u32(writer, (uint32_t)-end->failure);
    bytes_put_u32(writer, (uint32_t)end->exit_code);
    bytes_put_u64(writer, end->ended_ns);
    bytes_put_u64(writer, end->wall_ns);
    bytes_put_u64(writer, end->user_us);
    bytes_put_u64(writer, end->system_us);
    bytes_put_u64(writer, end->max_resident_bytes);
    if (end->error)
        bytes_put_string(writer, end->error);
    if (end->cause)
        bytes_put_string(writer, end->cause);
}

errint_t record_encode(const struct job *job, const struct job_end *end, uint8_t **data,
                       size_t *bytes)
{
    struct bytes_writer writer = {0};
    uint32_t flags = 0;
    if (end)
        flags |= (end->stdout_object ? RECORD_STDOUT : 0) |
                 (end->stderr_object ? RECORD_STDERR : 0) | (end->error ? RECORD_ERROR : 0) |
                 (end->cause ? RECORD_CAUSE : 0);
    flags |= job->outputs ? RECORD_NAMES : 0;
    bytes_put_u32(&writer, RECORD_MAGIC);
    bytes_put_u64(&writer, 0); /* the checksum's place */
    bytes_put_u64(&writer, job->number);
    bytes_put(&writer, job->id.bytes, MOB_ID_BYTES);
    bytes_put_u32(&writer, end ? end->state : job->state);
    bytes_put_u32(&writer, flags);
    bytes_put_u32(&writer, job->uid);
    bytes_put_u32(&writer, job->gid);
    bytes_put_u32(&writer, job->umask);
    bytes_put_u32(&writer, job->attempt);
    bytes_put_u32(&writer, job->restarts);
    bytes_put_u32(&writer, job->exits);
    bytes_put_u64(&writer, job->submitted_ns);
    bytes_put_u64(&writer, job->started_ns);
    bytes_put_u32(&writer, job->output_count);
    for (uint32_t i = 0; job->outputs && i < job->output_count; i++)
        bytes_put_string(&writer, job->outputs[i]);
    uint32_t numbers = job->numbers ? (job->output_count ? job->output_count : 1) : 0;
    bytes_put_u32(&writer, numbers);
    bytes_put(&writer, job->numbers, numbers * sizeof *job->numbers);
    if (end)
        put_end(&writer, end);
    if (writer.failed) {
        free(writer.data);
        return -ENOMEM;
    }
    uint64_t sum = XXH3_64bits(writer.data + 12, writer.used - 12);
    memcpy(writer.data + 4, &sum, sizeof sum);
    *data = writer.data;
    *bytes = writer.used;
    return 0;
}

static char *get_text(struct bytes_reader *reader, size_t limit)
{
    const char *text = bytes_get_string(reader, limit);
    if (reader->failed || !mob_is_utf8(text, strlen(text))) {
        reader->failed = true;
        return NULL;
    }
    char *copy = strdup(text);
    if (!copy)
        reader->failed = true;
    return copy;
}

static void get_outputs(struct bytes_reader *reader, struct job *job, uint32_t flags)
{
    job->output_count = bytes_get_u32(reader);
    if (job->output_count > SPEC_OUTPUT_LIMIT ||
        ((flags & RECORD_NAMES) != 0) != (job->output_count > 0)) {
        reader->failed = true;
        job->output_count = 0;
        return;
    }
    if (job->output_count && !(job->outputs = calloc(job->output_count, sizeof *job->outputs)))
        reader->failed = true;
    for (uint32_t i = 0; !reader->failed && i < job->output_count; i++) {
        job->outputs[i] = get_text(reader, SPEC_NAME_LIMIT);
        if (!reader->failed && (!job->outputs[i][0] || strchr(job->outputs[i], '/')))
            reader->failed = true;
    }
    uint32_t expected = job->output_count ? job->output_count : 1;
    uint32_t count = bytes_get_u32(reader);
    if (count != 0 && count != expected)
        reader->failed = true;
    if (reader->failed || count == 0)
        return;
    job->numbers = calloc(count, sizeof *job->numbers);
    if (!job->numbers) {
        reader->failed = true;
        return;
    }
    bytes_get(reader, job->numbers, count * sizeof *job->numbers);
    for (uint32_t i = 0; i < count; i++)
        if (job->numbers[i] == 0 || job->numbers[i] >= STORE_NUMBER_LIMIT)
            reader->failed = true;
}

static void get_end(struct bytes_reader *reader, struct job *job, uint32_t flags)
{
    struct job_end *end = job->end = calloc(1, sizeof *end);
    if (!end) {
        reader->failed = true;
        return;
    }
    uint32_t failure = bytes_get_u32(reader);
    end->state = job->state;
    end->failure = -(errint_t)(failure < 4096 ? failure : EIO);
    end->exit_code = (int)bytes_get_u32(reader);
    end->ended_ns = bytes_get_u64(reader);
    end->wall_ns = bytes_get_u64(reader);
    end->user_us = bytes_get_u64(reader);
    end->system_us = bytes_get_u64(reader);
    end->max_resident_bytes = bytes_get_u64(reader);
    end->stdout_object = flags & RECORD_STDOUT;
    end->stderr_object = flags & RECORD_STDERR;
    if (flags & RECORD_ERROR)
        end->error = get_text(reader, RECORD_TEXT_LIMIT);
    if (flags & RECORD_CAUSE)
        end->cause = get_text(reader, RECORD_TEXT_LIMIT);
    if (end->state != JOB_SUCCEEDED && end->state != JOB_REJECTED && end->failure == 0)
        end->failure = -EIO;
}

errint_t record_decode(const void *data, size_t bytes, uint64_t number, struct job **out)
{
    struct bytes_reader reader = {.data = data, .left = bytes};
    uint32_t magic = bytes_get_u32(&reader);
    uint64_t sum = bytes_get_u64(&reader);
    if (reader.failed || magic != RECORD_MAGIC || sum != XXH3_64bits(reader.data, reader.left))
        return -EBADMSG;
    struct job *job = calloc(1, sizeof *job);
    if (!job)
        return -ENOMEM;
    job->number = bytes_get_u64(&reader);
    bytes_get(&reader, job->id.bytes, MOB_ID_BYTES);
    job->state = bytes_get_u32(&reader);
    uint32_t flags = bytes_get_u32(&reader);
    job->uid = bytes_get_u32(&reader);
    job->gid = bytes_get_u32(&reader);
    job->umask = bytes_get_u32(&reader);
    job->attempt = bytes_get_u32(&reader);
    job->restarts = bytes_get_u32(&reader);
    job->exits = bytes_get_u32(&reader);
    job->submitted_ns = bytes_get_u64(&reader);
    job->started_ns = bytes_get_u64(&reader);
    if (job->state > JOB_REJECTED || job->number != number || number >= STORE_NUMBER_LIMIT ||
        mob_id_index(&job->id) != MOB_INDEX_JOB || job->umask > 0777)
        reader.failed = true;
    get_outputs(&reader, job, flags);
    if (!reader.failed && job_state_is_end(job->state))
        get_end(&reader, job, flags);
    else if (!reader.failed && !job->numbers)
        reader.failed = true;
    if (reader.failed || reader.left > 0) {
        job_free(job);
        return -EBADMSG;
    }
    *out = job;
    return 0;
}

errint_t record_put(struct store_batch *batch, const struct job *job, const struct job_end *end)
{
    cleanup_free uint8_t *data = NULL;
    size_t bytes;
    errint_t error = record_encode(job, end, &data, &bytes);
    struct record_key key = record_key(job->number);
    return error ? error
                 : store_batch_put(batch, STORE_TABLE_JOBS, key.bytes, sizeof key, data, bytes);
}

errint_t record_write(struct jobs *jobs, const struct job *job, struct mob_error *err)
{
    struct store_batch *batch;
    errint_t error = store_batch_new(jobs->store, &batch);
    if (error)
        return mob_error_set(err, error, "no memory");
    error = record_put(batch, job, NULL);
    if (!error)
        return store_batch_commit(batch, err);
    store_batch_abort(batch);
    return mob_error_set(err, error, "the job's record can't be written: %s", strerror(-error));
}
