/* Keeper: the process around a mount. See keeper.h. */
#include "tools/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/job/launcher.h"
#include "core/store/growing.h"
#include "fs/fs.h"
#include "fs/session.h"
#include "fs/transport.h"
#include "tools/server.h"

#define FAILURE_LIMIT 8 /* starts in a row that never got ready */
#define FIRST_DELAY_MS 50
#define LONGEST_DELAY_MS 2000
#define STOP_GRACE_MS 120000 /* memory goes to disk meanwhile */
/* So many crashes in so short a time: the metadata may be damaged, and is made anew. */
#define CRASHES_LIMIT 3
#define CRASHES_NS UINT64_C(30000000000)

struct keeper {
    struct settings *settings;
    struct session *session;
    int connection_fd;
    struct growing_pipes pipes; /* of files that outgrow memory, kept for the server's successors */
    bool has_pipes;
    int launcher_sockets[2]; /* server's end, launcher's end: both kept for their successors */
    int signal_fd;
    int ready_fd; /* read end: what the present server says when it is up; -1 once read */
    pid_t server, launcher, prober;
    unsigned failures; /* in a row */
    unsigned crashes;  /* of the server's own making, since first_crash_ns */
    uint64_t first_crash_ns;
    bool distrust; /* the next server makes the metadata anew */
    bool stopping;
    char refusal[512]; /* of the first server; "": none */
};

void keeper_tell(struct settings *settings, const char *verdict, const char *sentence)
{
    char line[512];
    int length = snprintf(line, sizeof line, "%s%s\n", verdict, sentence);
    if (settings->ready_fd < 0)
        return;
    if (length > 0 && write(settings->ready_fd, line, (size_t)length) < 0)
        mob_log_warning("who started the daemon is gone");
    close(settings->ready_fd);
    settings->ready_fd = -1;
}

/* --- children --- */

static void become_child(struct keeper *keeper)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    close(keeper->signal_fd);
}

static errint_t start_launcher(struct keeper *keeper)
{
    pid_t keeper_pid = getpid(), pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        become_child(keeper);
        prctl(PR_SET_NAME, "mobula-launcher");
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != keeper_pid)
            _exit(1);
        close(keeper->connection_fd);
        close(keeper->launcher_sockets[0]);
        if (keeper->has_pipes)
            growing_pipes_close(&keeper->pipes);
        if (keeper->settings->ready_fd >= 0)
            close(keeper->settings->ready_fd);
        if (keeper->ready_fd >= 0)
            close(keeper->ready_fd);
        _exit(launcher_run(keeper->launcher_sockets[1]));
    }
    keeper->launcher = pid;
    return 0;
}

static errint_t start_server(struct keeper *keeper)
{
    int ready[2];
    if (pipe2(ready, O_CLOEXEC))
        return -errno;
    pid_t keeper_pid = getpid(), pid = fork();
    if (pid < 0) {
        errint_t error = -errno;
        close(ready[0]);
        close(ready[1]);
        return error;
    }
    if (pid == 0) {
        become_child(keeper);
        close(ready[0]);
        close(keeper->launcher_sockets[1]);
        if (keeper->settings->ready_fd >= 0)
            close(keeper->settings->ready_fd);
        struct server_options options = {
            .settings = keeper->settings,
            .session = keeper->session,
            .connection_fd = keeper->connection_fd,
            .launcher_fd = keeper->launcher_sockets[0],
            .pipes = keeper->has_pipes ? &keeper->pipes : NULL,
            .keeper_pid = (int)keeper_pid,
            .ready_fd = ready[1],
            .distrust_meta = keeper->distrust,
        };
        exit(server_run(&options));
    }
    close(ready[1]);
    if (keeper->ready_fd >= 0)
        close(keeper->ready_fd);
    keeper->ready_fd = ready[0];
    keeper->server = pid;
    keeper->distrust = false;
    return 0;
}

/* Tells who started us once the mount answers: a stat of our own mount, from a process that may
 * wait. It would wait for ever, and so would whoever touches the mount, if it kept the connection
 * of a keeper and a server that were killed meanwhile. */
static void start_prober(struct keeper *keeper)
{
    struct settings *settings = keeper->settings;
    pid_t keeper_pid = getpid();
    keeper->prober = settings->ready_fd < 0 ? 0 : fork();
    if (keeper->prober == 0 && settings->ready_fd >= 0) {
        become_child(keeper);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(keeper->connection_fd);
        if (getppid() != keeper_pid)
            _exit(1);
        char path[PATH_MAX + 16];
        struct stat st;
        snprintf(path, sizeof path, "%s/objects", settings->mountpoint);
        if (stat(path, &st))
            keeper_tell(settings, "error ", strerror(errno));
        else
            keeper_tell(settings, "ok", "");
        _exit(0);
    }
    if (settings->ready_fd >= 0)
        close(settings->ready_fd);
    settings->ready_fd = -1;
}

static void forget_once(struct settings *settings)
{
    for (size_t i = 0; settings->forget_dirs[i]; i++) {
        free(settings->forget_dirs[i]);
        settings->forget_dirs[i] = NULL;
    }
}

static void read_verdict(struct keeper *keeper)
{
    char line[512] = "";
    ssize_t got = read(keeper->ready_fd, line, sizeof line - 1);
    if (got < 0 && errno == EINTR)
        return;
    close(keeper->ready_fd);
    keeper->ready_fd = -1;
    if (got <= 0)
        return; /* it died first: its end is reported too */
    line[strcspn(line, "\n")] = '\0';
    if (!strcmp(line, "ok")) {
        keeper->failures = 0;
        forget_once(keeper->settings);
        start_prober(keeper);
    } else if (session_generation(keeper->session) == 0) {
        /* The first one can't start: it ends, and says why. */
        snprintf(keeper->refusal, sizeof keeper->refusal, "%s", line);
        keeper->stopping = true;
    }
}

static void wait_ms(unsigned ms)
{
    struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&time, NULL);
}

static errint_t restart_server(struct keeper *keeper)
{
    if (keeper->failures >= FAILURE_LIMIT) {
        mob_log_error("the server failed to start %u times: the mount answers EIO until it is "
                      "taken down (mobula down) and brought up again",
                      keeper->failures);
        pid_t keeper_pid = getpid(), pid = fork();
        if (pid == 0) {
            become_child(keeper);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            struct mob_error err = {0};
            if (getppid() == keeper_pid &&
                transport_refuse_session(keeper->connection_fd, keeper->session, &err))
                mob_log_error("requests can't even be refused: %s", err.message);
            _exit(0);
        }
        keeper->server = pid;
        return pid < 0 ? -errno : 0;
    }
    if (keeper->failures) {
        unsigned delay = FIRST_DELAY_MS << (keeper->failures - 1);
        wait_ms(delay < LONGEST_DELAY_MS ? delay : LONGEST_DELAY_MS);
    }
    session_next_generation(keeper->session);
    return start_server(keeper);
}

static void describe_end(const char *what, pid_t pid, int status)
{
    if (WIFSIGNALED(status))
        mob_log_warning("the %s (pid %d) was ended by signal %d (%s)", what, (int)pid,
                        WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        mob_log_warning("the %s (pid %d) ended with status %d", what, (int)pid,
                        WEXITSTATUS(status));
}

/* A server that was ended by its own fault, and not for the first time, may have met damaged
 * metadata (LMDB trusts its file): the next one makes them anew from the journal. */
static void count_crash(struct keeper *keeper, int status)
{
    int by = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    uint64_t now_ns = mob_monotonic_ns();
    if (by != SIGSEGV && by != SIGBUS && by != SIGABRT && by != SIGILL && by != SIGFPE)
        return;
    if (!keeper->crashes || now_ns - keeper->first_crash_ns > CRASHES_NS) {
        keeper->crashes = 0;
        keeper->first_crash_ns = now_ns;
    }
    if (++keeper->crashes < CRASHES_LIMIT)
        return;
    mob_log_error("the server crashed %u times; its metadata is made anew", keeper->crashes);
    keeper->crashes = 0;
    keeper->distrust = true;
    keeper->failures++; /* should that not help, the pauses get longer */
}

static void server_ended(struct keeper *keeper, int status)
{
    pid_t pid = keeper->server;
    keeper->server = 0;
    if (keeper->ready_fd >= 0)
        read_verdict(keeper);
    if (keeper->stopping)
        return;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        keeper->stopping = true; /* unmounted */
        return;
    }
    describe_end("server", pid, status);
    count_crash(keeper, status);
    /* One that was killed after it got ready is replaced at once; read_verdict() has reset the
     * count then. */
    keeper->failures += WIFEXITED(status) ? 1 : 0;
    if (restart_server(keeper)) {
        mob_log_error("no server can be started: %s", strerror(errno));
        keeper->stopping = true;
    }
}

/* Processes of jobs died with it; the server learns what is left from the next launcher. */
static void launcher_ended(struct keeper *keeper, int status)
{
    describe_end("launcher", keeper->launcher, status);
    keeper->launcher = 0;
    if (keeper->stopping)
        return;
    if (start_launcher(keeper))
        mob_log_error("no launcher can be started: %s", strerror(errno));
    if (keeper->server > 0)
        kill(keeper->server, SIGKILL);
}

static void reap(struct keeper *keeper)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == keeper->server)
            server_ended(keeper, status);
        else if (pid == keeper->launcher)
            launcher_ended(keeper, status);
        else if (pid == keeper->prober)
            keeper->prober = 0;
    }
}

static void take_signals(struct keeper *keeper)
{
    struct signalfd_siginfo info;
    while (read(keeper->signal_fd, &info, sizeof info) == (ssize_t)sizeof info)
        if (info.ssi_signo != SIGCHLD)
            keeper->stopping = true;
    reap(keeper);
}

/* --- the end --- */

/* Waits for a child with a deadline, then kills it. */
static void end_child(pid_t *pid, int signal_number, unsigned grace_ms)
{
    if (*pid <= 0)
        return;
    kill(*pid, signal_number);
    for (unsigned waited = 0;; waited += 5) {
        pid_t got = waitpid(*pid, NULL, WNOHANG);
        if (got == *pid || (got < 0 && errno != EINTR))
            break;
        if (waited >= grace_ms)
            kill(*pid, SIGKILL);
        wait_ms(5);
    }
    *pid = 0;
}

static int take_down(struct keeper *keeper)
{
    struct mob_error err = {0};
    /* The name goes first, so that nothing new begins; what is open ends with the connection. */
    if (transport_unmount(keeper->settings->mountpoint, true, &err))
        mob_log_debug("unmount: %s", err.message);
    end_child(&keeper->server, SIGTERM, STOP_GRACE_MS);
    end_child(&keeper->launcher, SIGTERM, STOP_GRACE_MS);
    close(keeper->connection_fd);
    end_child(&keeper->prober, SIGKILL, 1000);
    if (settings_save_memory(keeper->settings, &err)) {
        mob_log_error("%s", err.message);
        return 1;
    }
    return 0;
}

static int watch(struct keeper *keeper)
{
    while (!keeper->stopping) {
        struct pollfd fds[2] = {{keeper->signal_fd, POLLIN, 0}, {keeper->ready_fd, POLLIN, 0}};
        if (poll(fds, keeper->ready_fd >= 0 ? 2 : 1, -1) < 0 && errno != EINTR)
            break;
        if (keeper->ready_fd >= 0 && fds[1].revents)
            read_verdict(keeper);
        if (fds[0].revents)
            take_signals(keeper);
    }
    return take_down(keeper);
}

int keeper_run(struct settings *settings, int lock_fd)
{
    struct keeper keeper = {.settings = settings, .signal_fd = -1, .ready_fd = -1};
    struct mob_error err = {0};
    struct mount_options mount = {
        .mountpoint = settings->mountpoint,
        .source = "mobula",
        .allow_other = geteuid() == 0,
    };
    /* lock_fd is held open: the lock goes with the last process of the daemon. */
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    keeper.signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    errint_t error = session_create(fs_session_bytes(), &keeper.session, &err);
    if (!error && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, keeper.launcher_sockets))
        error = mob_error_set(&err, -errno, "socketpair: %s", strerror(errno));
    if (!error)
        error = transport_mount(&mount, &keeper.connection_fd, &err);
    /* Without them the store makes its own, which end with the server. */
    struct mob_error why = {0};
    keeper.has_pipes = !error && !growing_pipes_open(&keeper.pipes, &why);
    if (error) {
        mob_log_error("%s", err.message);
        keeper_tell(settings, "error ", err.message);
        if (settings_save_memory(settings, &err))
            mob_log_error("%s", err.message);
        return 1;
    }
    if (start_launcher(&keeper) || start_server(&keeper)) {
        mob_log_error("fork: %s", strerror(errno));
        keeper.stopping = true;
    }
    int status = watch(&keeper);
    /* Who hears it may try again at once. */
    close(lock_fd);
    if (keeper.refusal[0])
        keeper_tell(settings, "", keeper.refusal);
    keeper_tell(settings, "error ", "the daemon was stopped; see its log");
    session_destroy(keeper.session);
    return status;
}
