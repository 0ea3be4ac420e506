/* Files that a run has written become objects, without a copy where that is safe.
 *
 * A committed object must never change, and its writer was a user's program. So, before a file is
 * taken: the whole process tree has ended; the scratch directory is taken from the user, so that
 * nobody can swap what is in it; the file must be a regular file of the job's user with one name;
 * it becomes ours with mode 0600, so that nobody opens it anew; and a read lease, which the kernel
 * grants only while nobody has the file open for writing or mapped so, shows that no leftover can
 * still write. A file that fails one of the last two is copied. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/job/job_internal.h"

static bool nobody_writes(int fd)
{
    if (fcntl(fd, F_SETLEASE, F_RDLCK))
        return false;
    fcntl(fd, F_SETLEASE, F_UNLCK);
    return true;
}

/* Copies to a new file of the work directory; *fd becomes the copy's, open for reading only. */
static errint_t copy_file(const struct work_dir *work, const struct job *job,
                          struct collected *file, uint64_t bytes)
{
    char name[WORK_NAME_BYTES], copied[WORK_NAME_BYTES + 32];
    static atomic_uint counter;
    snprintf(copied, sizeof copied, "%s.copy-%u", work_name(job, WORK_SCRATCH, name),
             atomic_fetch_add(&counter, 1));
    cleanup_fd int to = openat(work->fd, copied, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return -errno;
    off_t from = 0;
    while ((uint64_t)from < bytes) {
        ssize_t done = copy_file_range(file->fd, &from, to, NULL, bytes - (uint64_t)from, 0);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0) {
            int code = errno;
            unlinkat(work->fd, copied, 0);
            return -code;
        }
        if (done == 0) /* it became shorter meanwhile */
            break;
    }
    int again = openat(work->fd, copied, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (again < 0)
        return -errno;
    close(file->fd);
    file->fd = again;
    snprintf(file->path, sizeof file->path, "%s/%s", work->path, copied);
    return 0;
}

/* The file, of this work directory, is open for reading; makes it ours alone, or a copy of it. */
static errint_t make_ours(struct jobs *jobs, const struct work_dir *work, const struct job *job,
                          struct collected *file, const struct stat *st)
{
    if (st->st_nlink != 1)
        return copy_file(work, job, file, (uint64_t)st->st_size);
    if ((st->st_uid != jobs->uid && fchown(file->fd, jobs->uid, getegid())) ||
        fchmod(file->fd, 0600))
        return -errno;
    if (!nobody_writes(file->fd))
        return copy_file(work, job, file, (uint64_t)st->st_size);
    return 0;
}

static errint_t take_scratch(struct jobs *jobs, const struct job *job, int *scratch_fd)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    const struct work_dir *work = work_of(jobs, job, WORK_SCRATCH);
    char name[WORK_NAME_BYTES];
    int fd = openat(work->fd, work_name(job, WORK_SCRATCH, name), flags);
    if (fd < 0 && errno == EACCES && !fchmodat(work->fd, name, 0700, 0)) /* its owner's doing */
        fd = openat(work->fd, name, flags);
    if (fd < 0)
        return -errno;
    if ((jobs->uid == 0 && fchown(fd, 0, getegid())) || fchmod(fd, 0700)) {
        int code = errno;
        close(fd);
        return -code;
    }
    *scratch_fd = fd;
    return 0;
}

static int open_output(int scratch_fd, const char *name)
{
    int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    int fd = openat(scratch_fd, name, flags);
    struct stat st;
    /* Not readable for its own owner, which we are: nothing that can't be mended. */
    if (fd < 0 && errno == EACCES && !fstatat(scratch_fd, name, &st, AT_SYMLINK_NOFOLLOW) &&
        S_ISREG(st.st_mode) && st.st_uid == geteuid() && !fchmodat(scratch_fd, name, 0600, 0))
        fd = openat(scratch_fd, name, flags);
    return fd < 0 ? -errno : fd;
}

errint_t collect_output(struct jobs *jobs, const struct job *job, const char *name,
                        struct collected *out, struct mob_error *err)
{
    const struct work_dir *work = work_of(jobs, job, WORK_SCRATCH);
    char scratch[WORK_NAME_BYTES];
    cleanup_fd int scratch_fd = -1;
    out->fd = -1;
    errint_t error = take_scratch(jobs, job, &scratch_fd);
    if (error == -ENOENT || error == -ENOTDIR || error == -ELOOP)
        return mob_error_set(err, -EINVAL, "output %s was not written", name);
    if (error)
        return mob_error_set(err, error, "output %s can't be read: %s", name, strerror(-error));
    int fd = open_output(scratch_fd, name);
    if (fd == -ENOENT)
        return mob_error_set(err, -EINVAL, "output %s was not written", name);
    if (fd == -ELOOP || fd == -ENXIO)
        return mob_error_set(err, -EINVAL, "output %s is not a regular file", name);
    if (fd < 0)
        return mob_error_set(err, fd, "output %s can't be read: %s", name, strerror(-fd));
    struct stat st;
    out->fd = fd;
    snprintf(out->path, sizeof out->path, "%s/%s/%s", work->path,
             work_name(job, WORK_SCRATCH, scratch), name);
    if (fstat(fd, &st))
        error = -errno;
    else if (!S_ISREG(st.st_mode))
        error = mob_error_set(err, -EINVAL, "output %s is not a regular file", name);
    else if (st.st_uid != job->uid && st.st_uid != jobs->uid)
        error = mob_error_set(err, -EINVAL, "output %s does not belong to the job's user", name);
    else {
        out->executable = st.st_mode & 0111;
        error = make_ours(jobs, work, job, out, &st);
        if (error)
            mob_error_set(err, error, "output %s can't be kept in %s: %s", name, work->path,
                          strerror(-error));
    }
    if (error)
        mob_cleanup_fd(&out->fd);
    return error;
}

errint_t collect_stream(struct jobs *jobs, const struct job *job, int which, struct collected *out,
                        uint64_t *bytes, struct mob_error *err)
{
    char name[WORK_NAME_BYTES];
    struct stat st;
    enum work_file kind = which == 1 ? WORK_STDOUT : WORK_STDERR;
    const struct work_dir *work = work_of(jobs, job, kind);
    work_name(job, kind, name);
    out->executable = false;
    snprintf(out->path, sizeof out->path, "%s/%s", work->path, name);
    out->fd = openat(work->fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    errint_t error = out->fd < 0 || fstat(out->fd, &st) ? -errno : 0;
    if (!error)
        error = make_ours(jobs, work, job, out, &st);
    if (!error && fstat(out->fd, &st)) /* what a copy has */
        error = -errno;
    if (error) {
        mob_cleanup_fd(&out->fd);
        return mob_error_set(err, error, "its standard %s can't be kept in %s: %s",
                             which == 1 ? "output" : "error", work->path, strerror(-error));
    }
    *bytes = (uint64_t)st.st_size;
    return 0;
}
