/* Writing into staging/ and run/: a temporary name, the commit at close, the final name. */
#include "tools/cli_object.h"
#include "tools/cli_target.h"

#include <fcntl.h>
#include <string.h>
#include <sys/random.h>

static errint_t begin_error(const struct cli_mount *mount, const char *path, errint_t code,
                            struct mob_error *err)
{
    if (code == -ENOSPC)
        return mob_error_set(err, code, "%s: the store is full ('df %s')", mount->path,
                             mount->path);
    if (code == -ENOTCONN)
        return mob_error_set(err, code, "%s: the daemon is dead; 'mobula up %s' brings it back",
                             mount->path, mount->path);
    return mob_error_set(err, code, "cannot write %s/%s: %s", mount->path, path,
                         cli_errno_text(code));
}

errint_t cli_stage_begin_at(const struct cli_mount *mount, const char *path, mode_t mode,
                            struct cli_staged *out, struct mob_error *err)
{
    snprintf(out->path, sizeof out->path, "%s", path);
    out->fd = openat(mount->fd, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    return out->fd < 0 ? begin_error(mount, path, -errno, err) : 0;
}

errint_t cli_stage_begin(const struct cli_mount *mount, const char *directory, const char *prefix,
                         mode_t mode, struct cli_staged *out, struct mob_error *err)
{
    uint64_t random = 0;
    char path[128];
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return mob_error_set(err, -EIO, "the kernel gives no random bytes");
    snprintf(path, sizeof path, "%s/.%s-%d-%08x", directory, prefix, (int)getpid(),
             (unsigned)random);
    cli_undo_arm(mount->fd, path);
    errint_t error = cli_stage_begin_at(mount, path, mode, out, err);
    if (error)
        cli_undo_disarm();
    return error;
}

static bool is_rejected(const struct cli_mount *mount, const struct mob_id *job)
{
    char path[64], id[MOB_ID_STRING_BYTES];
    snprintf(path, sizeof path, "jobs/%s/state", mob_id_format(job, id));
    cleanup_free char *state = cli_mount_read(mount, path);
    return state && !strcmp(state, "rejected");
}

errint_t cli_stage_commit(const struct cli_mount *mount, struct cli_staged *staged,
                          struct mob_id *id, struct mob_error *err)
{
    bool is_job = !strncmp(staged->path, "run/", 4);
    int closed = close(staged->fd) ? -errno : 0;
    staged->fd = -1;
    if (closed && !(is_job && closed == -EINVAL))
        return begin_error(mount, staged->path, closed, err);
    errint_t error = cli_read_link(mount, staged->path, is_job ? "jobs" : "objects", id);
    if (error == -EINVAL)
        return mob_error_set(err, -EBUSY,
                             "%s/%s was not committed at its close: someone else has it open",
                             mount->path, staged->path);
    if (error)
        return begin_error(mount, staged->path, error, err);
    /* What only the node knows (an object that does not exist) may be found after the close. */
    if (is_job && !closed && is_rejected(mount, id))
        closed = -EINVAL;
    return closed ? mob_error_set(err, closed, "the job was refused") : 0;
}

errint_t cli_stage_rename(const struct cli_mount *mount, struct cli_staged *staged,
                          const char *new_path, struct mob_error *err)
{
    if (renameat(mount->fd, staged->path, mount->fd, new_path)) {
        errint_t error = -errno;
        if (error == -ENOENT)
            return mob_error_set(err, error,
                                 "cannot name it %s/%s: there is no such directory: 'mkdir -p' it "
                                 "first",
                                 mount->path, new_path);
        return mob_error_set(err, error, "cannot name it %s/%s: %s", mount->path, new_path,
                             cli_errno_text(error));
    }
    cli_undo_disarm();
    snprintf(staged->path, sizeof staged->path, "%s", new_path);
    return 0;
}

int cli_name_status(errint_t code)
{
    int status = cli_status(code);
    return status == EX_NOINPUT ? EX_CANTCREAT : status;
}

void cli_stage_abort(const struct cli_mount *mount, struct cli_staged *staged)
{
    int saved_errno = errno;
    /* First the name, so that the close has nothing to commit. */
    if (staged->path[0])
        unlinkat(mount->fd, staged->path, 0);
    staged->path[0] = '\0';
    mob_cleanup_fd(&staged->fd);
    cli_undo_disarm();
    errno = saved_errno;
}
