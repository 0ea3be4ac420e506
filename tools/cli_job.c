/* Jobs: specs, drops, control, ends. */
#include "tools/cli_job.h"

#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <string.h>

/* --- specs --- */

json_t *cli_spec_object(const struct mob_id *id)
{
    char text[MOB_ID_STRING_BYTES];
    return json_pack("{s:s}", "object", mob_id_format(id, text));
}

json_t *cli_spec_text(const char *text)
{
    return mob_is_utf8(text, strlen(text)) ? json_string(text) : NULL;
}

/* Whole numbers as integers, so that specs read as a person would write them. */
static json_t *number(double value)
{
    return value == floor(value) && value < 1e15 ? json_integer((json_int_t)value)
                                                 : json_real(value);
}

void cli_spec_limits(json_t *spec, double cpus, uint64_t timeout_ns)
{
    if (cpus > 0)
        json_object_set_new(spec, "resources", json_pack("{s:o}", "cpu", number(cpus)));
    if (timeout_ns)
        json_object_set_new(spec, "timeout", number((double)timeout_ns / 1e9));
}

errint_t cli_job_error(const struct cli_mount *mount, const struct mob_id *job, errint_t code,
                       struct mob_error *err)
{
    char path[64], id[MOB_ID_STRING_BYTES];
    snprintf(path, sizeof path, "jobs/%s/error", mob_id_format(job, id));
    cleanup_free char *text = cli_mount_read(mount, path);
    if (!text || !*text)
        return mob_error_set(err, code, "job %s was refused, and does not say why", id);
    text[strcspn(text, "\n")] = '\0';
    unsigned line = 0, column = 0;
    int used = 0;
    const char *sentence = text;
    if (sscanf(text, "line %u, column %u: %n", &line, &column, &used) == 2 && used)
        sentence = text + used;
    return mob_error_set_at(err, code, line, column, NULL, "%s", sentence);
}

errint_t cli_job_drop(const struct cli_mount *mount, const char *path, const json_t *spec,
                      struct mob_id *job, struct mob_error *err)
{
    cleanup_free char *text = json_dumps(spec, JSON_COMPACT);
    if (!text)
        return mob_error_set(err, -ENOMEM, "no memory for the job's spec");
    struct cli_staged staged;
    errint_t error = cli_stage_begin_at(mount, path, 0666, &staged, err);
    if (error)
        return error;
    error = mob_write_full(staged.fd, text, strlen(text));
    if (error)
        mob_error_set(err, error, "cannot write %s/%s: %s", mount->path, path,
                      cli_errno_text(error));
    else
        error = cli_stage_commit(mount, &staged, job, err);
    if (error == -EINVAL) {
        cli_job_error(mount, job, error, err);
        err->line = err->column = 0; /* nobody wrote these lines */
    }
    if (error)
        cli_stage_abort(mount, &staged);
    return error;
}

errint_t cli_job_control(const struct cli_mount *mount, const struct mob_id *job, const char *text)
{
    char path[64], id[MOB_ID_STRING_BYTES];
    snprintf(path, sizeof path, "jobs/%s/ctl", mob_id_format(job, id));
    cleanup_fd int fd = openat(mount->fd, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    errint_t error = mob_write_full(fd, text, strlen(text));
    int closed = close(steal_fd(&fd)) ? -errno : 0;
    return error ? error : closed;
}

/* --- the end --- */

int cli_job_watch(const struct cli_mount *mount, const struct mob_id *job)
{
    char path[64], id[MOB_ID_STRING_BYTES];
    snprintf(path, sizeof path, "jobs/%s/exit_code", mob_id_format(job, id));
    int fd = openat(mount->fd, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static void read_line(const struct cli_mount *mount, const char *id, const char *file, char *out,
                      size_t out_bytes)
{
    char path[64];
    snprintf(path, sizeof path, "jobs/%s/%s", id, file);
    cleanup_free char *text = cli_mount_read(mount, path);
    snprintf(out, out_bytes, "%s", text ? text : "");
    out[strcspn(out, "\n")] = '\0';
}

void cli_job_end(const struct cli_mount *mount, const struct mob_id *job, int watch_fd,
                 struct cli_job_end *out)
{
    char text[32], id[MOB_ID_STRING_BYTES];
    *out = (struct cli_job_end){.over = false};
    ssize_t length;
    do
        length = pread(watch_fd, text, sizeof text - 1, 0);
    while (length < 0 && errno == EINTR);
    if (length < 0 && errno == EAGAIN)
        return;
    out->over = true;
    if (length > 0) {
        text[length] = '\0';
        char *end;
        long code = strtol(text, &end, 10);
        out->has_code = end != text && code >= 0 && code <= 255;
        out->code = (int)code;
    }
    mob_id_format(job, id);
    read_line(mount, id, "state", out->state, sizeof out->state);
    out->succeeded = !strcmp(out->state, "succeeded");
    if (!out->succeeded)
        read_line(mount, id, "error", out->sentence, sizeof out->sentence);
}

int cli_job_exit(const struct cli_job_end *end)
{
    enum { EXIT_TIMED_OUT = 124 }; /* as timeout(1) */
    if (!strcmp(end->state, "timed-out"))
        return EXIT_TIMED_OUT;
    if (end->succeeded)
        return end->has_code ? end->code : EX_OK;
    if (end->has_code && end->code)
        return end->code;
    return strcmp(end->state, "failed") && strcmp(end->state, "cancelled") ? EX_UNAVAILABLE : 1;
}

bool cli_job_needs_words(const struct cli_job_end *end)
{
    if (end->succeeded)
        return false;
    /* "job ID exited with status 3", and not what it needed: the exit code says it all. Behind a
     * ';' is more: that the disk was full, say. */
    bool own = !strncmp(end->sentence, "job ", 4);
    const char *verb = own ? end->sentence + 4 + strcspn(end->sentence + 4, " ") : "";
    return strcmp(end->state, "failed") || !end->has_code || !end->code ||
           strncmp(verb, " exited with status ", 20) || strchr(verb, ';');
}
