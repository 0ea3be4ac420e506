/* Arguments: from what a person types to an object or a job. */
#include "tools/cli_target.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* Reads "…DIRECTORY/ID" and, where `rest` is not NULL, what follows it. */
static bool parse_id_after(const char *path, const char *directory, struct mob_id *id,
                           const char **rest)
{
    size_t length = strlen(directory);
    if (strncmp(path, directory, length) || path[length] != '/')
        return false;
    const char *digits = path + length + 1;
    if (strnlen(digits, MOB_ID_DIGITS) < MOB_ID_DIGITS || !mob_id_parse(digits, MOB_ID_DIGITS, id))
        return false;
    *rest = digits + MOB_ID_DIGITS;
    return **rest == '\0' || **rest == '/';
}

errint_t cli_read_link(const struct cli_mount *mount, const char *path, const char *directory,
                       struct mob_id *out)
{
    char text[PATH_MAX];
    ssize_t length = readlinkat(mount->fd, path, text, sizeof text - 1);
    if (length < 0)
        return -errno;
    text[length] = '\0';
    const char *place = text;
    while (!strncmp(place, "../", 3))
        place += 3;
    const char *rest;
    if (!parse_id_after(place, directory, out, &rest) || *rest)
        return -EINVAL;
    return 0;
}

static void set_target(struct cli_target *out, enum cli_target_kind kind, const struct mob_id *id)
{
    out->kind = kind;
    out->id = *id;
    mob_id_format(id, out->id_text);
    snprintf(out->path, sizeof out->path, "%s/%s", kind == CLI_TARGET_JOB ? "jobs" : "objects",
             out->id_text);
}

static bool exists(const struct cli_mount *mount, const char *path)
{
    struct stat st;
    return !fstatat(mount->fd, path, &st, AT_SYMLINK_NOFOLLOW);
}

static errint_t find_id(const struct cli_mount *mount, const struct mob_id *id,
                        struct cli_target *out, struct mob_error *err)
{
    set_target(out, CLI_TARGET_OBJECT, id);
    if (exists(mount, out->path))
        return 0;
    errint_t error = -errno;
    /* Jobs have index 0, as objects that were put. */
    if (error == -ENOENT && mob_id_index(id) == MOB_INDEX_JOB) {
        set_target(out, CLI_TARGET_JOB, id);
        if (exists(mount, out->path))
            return 0;
        error = -errno;
    }
    if (error == -ENOENT)
        return mob_error_set(
            err, error, "%s: no such object or job: it never existed, or was freed", out->id_text);
    return mob_error_set(err, error, "%s: %s", out->id_text, cli_errno_text(error));
}

/* What an absolute path without links names, if it lies in the mount. */
static errint_t find_real(const struct cli_mount *mount, const char *real, const char *text,
                          struct cli_target *out, struct mob_error *err)
{
    size_t length = strlen(mount->path);
    if (length == 1)
        length = 0;
    if (strncmp(real, mount->path, length) || real[length] != '/')
        return mob_error_set(err, -ENOENT,
                             "%s: not in the mount %s; 'mobula put' makes an object of a file",
                             text, mount->path);
    const char *inside = real + length + 1;
    const char *rest;
    struct mob_id id;
    if (parse_id_after(inside, "objects", &id, &rest)) {
        set_target(out, CLI_TARGET_OBJECT, &id);
        return 0;
    }
    if (parse_id_after(inside, "jobs", &id, &rest)) {
        set_target(out, CLI_TARGET_JOB, &id);
        return 0;
    }
    if (strncmp(inside, "staging/", 8) && strncmp(inside, "run/", 4))
        return mob_error_set(err, -ENOENT, "%s: neither an object nor a job", text);
    out->kind = CLI_TARGET_STAGED;
    memset(&out->id, 0, sizeof out->id);
    out->id_text[0] = '\0';
    snprintf(out->path, sizeof out->path, "%s", inside);
    return 0;
}

/* Follows all links of `path` without opening what they lead to: O_PATH never waits for a pending
 * object. -ENOENT without a sentence if there is nothing. */
static errint_t find_path(const struct cli_mount *mount, int dir_fd, const char *path,
                          const char *text, struct cli_target *out, struct mob_error *err)
{
    cleanup_fd int fd = openat(dir_fd, path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    struct stat st;
    char link[64], real[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, real, sizeof real - 1);
    if (length < 0)
        return mob_error_set(err, -errno, "%s: %s", text, strerror(errno));
    real[length] = '\0';
    errint_t error = find_real(mount, real, text, out, err);
    if (!error && out->kind == CLI_TARGET_STAGED && !fstat(fd, &st) && S_ISDIR(st.st_mode))
        return mob_error_set(err, -EISDIR, "%s: is a directory", text);
    return error;
}

errint_t cli_target_find(const struct cli_mount *mount, const char *text, struct cli_target *out,
                         struct mob_error *err)
{
    static const char *const places[] = {"staging/", "run/", ""};
    struct mob_id id;
    if (!*text)
        return mob_error_set(err, -ENOENT, "an empty argument names nothing");
    if (mob_id_parse(text, strlen(text), &id))
        return find_id(mount, &id, out, err);
    errint_t error = -ENOENT;
    bool path_only = *text == '/' || *text == '.';
    bool missing = true; /* nothing is there; a sentence says what is wrong with something */
    err->message[0] = '\0';
    for (size_t i = 0; !path_only && missing && i < MOB_ARRAY_LENGTH(places); i++) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s%s", places[i], text);
        error = find_path(mount, mount->fd, path, text, out, err);
        missing = (error == -ENOENT || error == -ENOTDIR) && !err->message[0];
    }
    if (missing)
        error = find_path(mount, AT_FDCWD, text, text, out, err);
    if (error == -ENOENT && !err->message[0])
        return mob_error_set(err, error, "%s: no ID, no name in staging/ or run/, and no file",
                             text);
    if (error && !err->message[0])
        return mob_error_set(err, error, "%s: %s", text, cli_errno_text(error));
    return error;
}

errint_t cli_job_result(const struct cli_mount *mount, const struct mob_id *job,
                        struct mob_id *result, struct mob_error *err)
{
    char path[128], id[MOB_ID_STRING_BYTES];
    snprintf(path, sizeof path, "jobs/%s/result", mob_id_format(job, id));
    errint_t error = cli_read_link(mount, path, "objects", result);
    if (!error)
        return 0;
    snprintf(path, sizeof path, "jobs/%s/error", id);
    cleanup_free char *sentence = cli_mount_read(mount, path);
    return mob_error_set(err, error == -ENOENT ? -ENODATA : error, "job %s has no result: %s", id,
                         sentence && *sentence ? sentence : cli_errno_text(error));
}

/* It is neither an object nor a job yet; where it never will be, the mount says why. */
static errint_t refuse_staged(const struct cli_mount *mount, const char *text,
                              const struct cli_target *target, struct mob_error *err)
{
    cleanup_free char *reason = cli_xattr_at(mount->fd, target->path, "error");
    if (reason)
        return mob_error_set(err, -ENODATA, "%s: was closed, but can't be committed: %s", text,
                             reason);
    return mob_error_set(err, -EBUSY, "%s: is still being written", text);
}

errint_t cli_target_object(const struct cli_mount *mount, const char *text, struct cli_target *out,
                           struct mob_error *err)
{
    errint_t error = cli_target_find(mount, text, out, err);
    if (error)
        return error;
    if (out->kind == CLI_TARGET_STAGED)
        return refuse_staged(mount, text, out, err);
    if (out->kind == CLI_TARGET_OBJECT)
        return 0;
    struct mob_id result;
    error = cli_job_result(mount, &out->id, &result, err);
    if (!error)
        set_target(out, CLI_TARGET_OBJECT, &result);
    return error;
}

errint_t cli_target_job(const struct cli_mount *mount, const char *text, struct cli_target *out,
                        struct mob_error *err)
{
    errint_t error = cli_target_find(mount, text, out, err);
    if (!error && out->kind == CLI_TARGET_STAGED)
        return refuse_staged(mount, text, out, err);
    if (!error && out->kind == CLI_TARGET_OBJECT)
        return mob_error_set(err, -EINVAL, "%s: is an object, not a job", text);
    return error;
}
