/* Signals: leaving nothing behind, and waking a poll loop. Handlers need file-scope state; this
 * file has all of it. */
#include "tools/cli_common.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>

static const int ending_signals[] = {SIGINT, SIGTERM, SIGHUP};

static char undo_path[PATH_MAX];
static int undo_dir_fd = -1;
static volatile sig_atomic_t undo_armed;

static volatile sig_atomic_t caught_signal;
static int wake_pipe[2] = {-1, -1};

static void set_handler(int signal_number, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    sigemptyset(&action.sa_mask);
    sigaction(signal_number, &action, NULL);
}

/* nohup(1) and background jobs of a shell have signals ignored; that must stay. */
static void set_unless_ignored(int signal_number, void (*handler)(int))
{
    struct sigaction now;
    if (!sigaction(signal_number, NULL, &now) && now.sa_handler != SIG_IGN)
        set_handler(signal_number, handler);
}

/* Only async-signal-safe calls: unlinkat(2), signal handling, raise(3). */
static void undo_and_die(int signal_number)
{
    if (undo_armed)
        unlinkat(undo_dir_fd, undo_path, 0);
    set_handler(signal_number, SIG_DFL);
    raise(signal_number);
}

void cli_undo_arm(int dir_fd, const char *path)
{
    undo_armed = 0;
    undo_dir_fd = dir_fd;
    snprintf(undo_path, sizeof undo_path, "%s", path);
    undo_armed = 1;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(ending_signals); i++)
        set_unless_ignored(ending_signals[i], undo_and_die);
    set_unless_ignored(SIGPIPE, undo_and_die);
}

void cli_undo_disarm(void)
{
    undo_armed = 0;
}

static void note_signal(int signal_number)
{
    int saved_errno = errno;
    if (caught_signal) {
        set_handler(signal_number, SIG_DFL);
        raise(signal_number);
    }
    caught_signal = signal_number;
    ssize_t written = write(wake_pipe[1], "", 1);
    (void)written;
    errno = saved_errno;
}

int cli_catch_signals(void)
{
    if (wake_pipe[0] < 0 && pipe2(wake_pipe, O_CLOEXEC | O_NONBLOCK))
        return -1;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(ending_signals); i++)
        set_unless_ignored(ending_signals[i], note_signal);
    set_handler(SIGPIPE, SIG_IGN);
    return wake_pipe[0];
}

int cli_caught_signal(void)
{
    return caught_signal;
}
