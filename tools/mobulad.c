/* mobulad: serves an object store at a directory. See mobulad(8). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "tools/keeper.h"
#include "tools/settings.h"

static errint_t open_log(struct settings *settings, struct mob_error *err)
{
    if (!settings->log_path[0])
        snprintf(settings->log_path, sizeof settings->log_path, "%s/log", settings->state_dir);
    int fd = open(settings->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        return mob_error_set(err, -errno, "can't open the log %s: %s", settings->log_path,
                             strerror(errno));
    cleanup_fd int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(nothing, STDIN_FILENO);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    close(fd);
    return 0;
}

/* The parent goes once the child lives on its own; who waits for more reads --ready-fd. */
static errint_t detach(struct mob_error *err)
{
    pid_t pid = fork();
    if (pid < 0)
        return mob_error_set(err, -errno, "fork: %s", strerror(errno));
    if (pid > 0)
        _exit(EX_OK);
    setsid();
    if (chdir("/"))
        mob_log_warning("chdir /: %s", strerror(errno));
    return 0;
}

static void raise_limits(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files))
        return;
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files))
        mob_log_warning("the limit of open files can't be raised: %s", strerror(errno));
}

int main(int argc, char **argv)
{
    static struct settings settings;
    struct mob_error err = {0};
    int lock_fd = -1;
    errint_t error = settings_parse(argc, argv, &settings, &err);
    if (error == 1)
        return EX_OK;
    if (error) {
        fprintf(stderr, "mobulad: %s\n", err.message);
        keeper_tell(&settings, "error ", err.message);
        return EX_USAGE;
    }
    umask(022);
    raise_limits();
    /* Locks of flock() go over a fork, so the place can be prepared before anybody is left. */
    error = settings_prepare(&settings, &lock_fd, &err);
    if (!error && !settings.foreground) {
        error = open_log(&settings, &err);
        if (!error)
            error = detach(&err);
    }
    if (error) {
        fprintf(stderr, "mobulad: %s\n", err.message);
        keeper_tell(&settings, "error ", err.message);
        return error == -EBUSY ? EX_TEMPFAIL : EX_OSERR;
    }
    return keeper_run(&settings, lock_fd) ? EX_SOFTWARE : EX_OK;
}
