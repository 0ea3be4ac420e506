/* mobula doctor, the mounts: whether each answers, and how it spills. */
#include "tools/cmd_doctor.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "tools/cli_daemon.h"

enum { ANSWER_MS = 5000 };

static errint_t ask_mount(const char *path)
{
    struct stat st;
    struct statfs fs; /* asks the daemon, which stat(2) may not */
    char inner[PATH_MAX];
    snprintf(inner, sizeof inner, "%s/objects", path);
    return statfs(path, &fs) || stat(inner, &st) ? -errno : 0;
}

/* With no descriptor but that of the answer: whoever reads what doctor prints gets to its end. */
static _Noreturn void answer_from_child(const char *path, int answer_fd)
{
    if (dup2(answer_fd, STDIN_FILENO) < 0)
        _exit(1);
    for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++)
        close(fd);
    syscall(SYS_close_range, STDERR_FILENO + 1, ~0u, 0); /* not glibc's: since 2.34 only */
    errint_t answer = ask_mount(path);
    _exit(write(STDIN_FILENO, &answer, sizeof answer) != sizeof answer);
}

/* Who asks a daemon that doesn't answer can't be ended before it does, so a child asks, and is not
 * waited for: it ends with the mount. -ETIMEDOUT. */
static errint_t ask_mount_in_time(const char *path)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    pid_t child = fork();
    if (child < 0) {
        errint_t error = -errno;
        close(ends[0]);
        close(ends[1]);
        return error;
    }
    if (!child)
        answer_from_child(path, ends[1]);
    close(ends[1]);
    struct pollfd answered = {.fd = ends[0], .events = POLLIN};
    errint_t error = -ETIMEDOUT;
    if (poll(&answered, 1, ANSWER_MS) > 0 && read(ends[0], &error, sizeof error) != sizeof error)
        error = -EIO;
    close(ends[0]);
    if (error == -ETIMEDOUT)
        kill(child, SIGKILL);
    else
        waitpid(child, NULL, 0);
    return error;
}

static bool check_mount(void *context, const char *path)
{
    struct doctor *doctor = context;
    char mend[PATH_MAX + 64];
    int error = -ask_mount_in_time(path);
    if (!error) {
        doctor_find(doctor, "mount", DOCTOR_OK, NULL, "%s answers", path);
        doctor_check_mount_spill(doctor, path);
        return true;
    }
    snprintf(mend, sizeof mend, "'mobula up %s' replaces it, 'mobula down %s' takes it away", path,
             path);
    /* Someone else's is no finding. */
    if (error == ETIMEDOUT)
        doctor_find(doctor, "mount", DOCTOR_WARN, mend, "%s did not answer for %d s", path,
                    ANSWER_MS / 1000);
    else if (error != EACCES)
        doctor_find(doctor, "mount", DOCTOR_WARN, mend, "%s: %s", path, strerror(error));
    return true;
}

void doctor_check_mounts(struct doctor *doctor)
{
    if (doctor->cli->mount_option)
        check_mount(doctor, doctor->cli->mount_option);
    else
        cli_mount_each(check_mount, doctor);
}
