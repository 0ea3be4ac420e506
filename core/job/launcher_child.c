/* The job's process before its program begins: session, descriptors, user, input, directory, exec.
 */
#include "core/job/launcher_child.h"

#include <alloca.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Noreturn void fail(const struct launcher_child *child, enum launch_stage stage, int code)
{
    child->slot->stage_errno = (uint32_t)code;
    child->slot->stage = stage;
    _exit(stage == LAUNCH_STAGE_NOT_FOUND || stage == LAUNCH_STAGE_INTERPRETER ? 127 : 126);
}

/* The bare system calls: glibc's functions would tell other threads, which a vfork child must not.
 */
static void become_user(const struct launcher_child *child)
{
    const struct launch_request *request = child->request;
    if (syscall(SYS_setgroups, (size_t)request->group_count, request->groups) ||
        syscall(SYS_setresgid, request->gid, request->gid, request->gid) ||
        syscall(SYS_setresuid, request->uid, request->uid, request->uid))
        fail(child, LAUNCH_STAGE_USER, errno);
}

static int text_file(const struct launch_request *request)
{
    int fd = memfd_create("mobula-stdin", 0);
    if (fd < 0)
        return -1;
    for (size_t done = 0; done < request->stdin_bytes;) {
        ssize_t put =
            pwrite(fd, request->stdin_text + done, request->stdin_bytes - done, (off_t)done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return -1;
        done += (size_t)put;
    }
    return fd;
}

static void move_to(const struct launcher_child *child, int fd, int wanted)
{
    if (fd < 0 || (fd == wanted ? fcntl(fd, F_SETFD, 0) : dup2(fd, wanted)) < 0)
        fail(child, LAUNCH_STAGE_STDIN, errno);
}

/* stdout and stderr are never below 3 in the launcher, which keeps 0 to 2 open. */
static void set_up_descriptors(const struct launcher_child *child)
{
    move_to(child, child->stdout_fd, STDOUT_FILENO);
    move_to(child, child->stderr_fd, STDERR_FILENO);
    syscall(SYS_close_range, 3u, ~0u, 0u);
}

static void set_up_input(const struct launcher_child *child)
{
    const struct launch_request *request = child->request;
    const char *path = request->stdin_path[0] ? request->stdin_path : "/dev/null";
    int fd = request->stdin_text ? text_file(request) : open(path, O_RDONLY | O_NOCTTY);
    if (fd < 0)
        fail(child, LAUNCH_STAGE_STDIN, errno);
    move_to(child, fd, STDIN_FILENO);
    if (fd > STDERR_FILENO)
        close(fd);
}

static void reset_oom_score(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (write(fd, "0", 1) < 0)
        errno = 0; /* raising it back to 0 is always allowed; if not, the job runs all the same */
    close(fd);
}

static const char *find_path(char *const *environment)
{
    for (; *environment; environment++)
        if (!strncmp(*environment, "PATH=", 5))
            return *environment + 5;
    return "/usr/bin:/bin";
}

/* Tries one file. Returns only if it can't be run. A file without a known header is a shell script,
 * as in any shell. */
static int try_exec(const struct launch_request *request, const char *path)
{
    execve(path, request->arguments, request->environment);
    if (errno != ENOEXEC)
        return errno;
    size_t count = 0;
    while (request->arguments[count])
        count++;
    char **arguments = alloca((count + 2) * sizeof *arguments);
    arguments[0] = (char *)"/bin/sh";
    arguments[1] = (char *)path;
    memcpy(arguments + 2, request->arguments + 1, count * sizeof *arguments); /* with the NULL */
    execve(arguments[0], arguments, request->environment);
    return errno;
}

static _Noreturn void fail_exec(const struct launcher_child *child, const char *path, int code)
{
    struct stat st;
    if (code != ENOENT && code != ENOTDIR)
        fail(child, LAUNCH_STAGE_EXEC, code);
    fail(child, path && !stat(path, &st) ? LAUNCH_STAGE_INTERPRETER : LAUNCH_STAGE_NOT_FOUND, code);
}

static _Noreturn void run_program(const struct launcher_child *child)
{
    const struct launch_request *request = child->request;
    const char *name = request->arguments[0];
    if (strchr(name, '/'))
        fail_exec(child, name, try_exec(request, name));
    char path[PATH_MAX];
    size_t name_bytes = strlen(name);
    int worst = ENOENT;
    for (const char *from = find_path(request->environment); from;) {
        const char *end = strchrnul(from, ':');
        size_t bytes = (size_t)(end - from);
        if (bytes + name_bytes + 2 <= sizeof path) {
            memcpy(path, bytes ? from : ".", bytes ? bytes : 1);
            bytes = bytes ? bytes : 1;
            path[bytes] = '/';
            memcpy(path + bytes + 1, name, name_bytes + 1);
            int code = try_exec(request, path);
            struct stat st;
            if (code == ENOENT && !stat(path, &st))
                fail_exec(child, path, code);
            if (code != ENOENT && code != ENOTDIR && code != EACCES)
                fail_exec(child, path, code);
            if (code == EACCES)
                worst = EACCES;
        }
        from = *end ? end + 1 : NULL;
    }
    fail_exec(child, NULL, worst);
}

_Noreturn void launcher_child(const struct launcher_child *child)
{
    setsid();
    set_up_descriptors(child);
    umask((mode_t)child->request->umask);
    if (child->reset_oom_score)
        reset_oom_score();
    if (child->change_user)
        become_user(child);
    /* A change of user clears it, so it comes after; the launcher may have died before. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != child->launcher)
        _exit(126);
    set_up_input(child);
    if (chdir(child->request->directory))
        fail(child, LAUNCH_STAGE_DIRECTORY, errno);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    run_program(child);
}
