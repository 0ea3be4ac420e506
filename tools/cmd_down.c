/* mobula down: waits for writers, ends the daemon, unmounts. Nothing is left mounted or running. */
#include "tools/cli_daemon.h"

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "tools/cmd_down_writers.h"

static const char help[] =
    "Usage: mobula down [MNT] [--timeout S] [--force]\n"
    "Wait for files that are being written in staging/, stop jobs, unmount. Everything that was\n"
    "committed is there again after the next 'mobula up'.\n"
    "\n"
    "  -t, --timeout S    wait for writers this long (default 30): status 75\n"
    "  -f, --force        do not wait for writers; kill a daemon that does not end in 10 s\n"
    "      --mount DIR    the same as MNT\n"
    "\n"
    "Example:\n"
    "  mobula down /tmp/store\n";

struct down {
    const struct cli *cli;
    char path[PATH_MAX];
    bool force;
    uint64_t timeout_ns;
};

enum { FORCE_KILL_AFTER_S = 10, END_WITHIN_S = 60, GONE_WITHIN_S = 5 };

/* Not pidfd_open(3): glibc has it only from 2.36 on. */
static int open_pid(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

static int signal_pid(int pid_fd, int number)
{
    return (int)syscall(SYS_pidfd_send_signal, pid_fd, number, NULL, 0);
}

/* True once the process of `pid_fd` (-1: none) has ended. */
static bool wait_end(int pid_fd, uint64_t deadline)
{
    if (pid_fd < 0)
        return true;
    for (;;) {
        struct pollfd poller = {.fd = pid_fd, .events = POLLIN};
        if (poll(&poller, 1, cli_poll_ms(deadline, 1000)) > 0)
            return true;
        if (!cli_poll_ms(deadline, 1))
            return false;
    }
}

static bool wait_unmounted(const char *path, uint64_t deadline)
{
    while (cli_mount_is_mounted(path)) {
        if (!cli_poll_ms(deadline, 1))
            return false;
        poll(NULL, 0, 5);
    }
    return true;
}

/* The processes of a daemon, held by descriptors, so that no number is signalled that has been
 * given to another process meanwhile. */
struct processes {
    int keeper_fd, server_fd;
    pid_t keeper_pid;
};

static int end_keeper(const struct down *down, struct processes *processes)
{
    if (signal_pid(processes->keeper_fd, SIGTERM) && errno != ESRCH)
        return cli_fail(down->cli, cli_status(-errno), "cannot end mobulad (pid %d): %s",
                        (int)processes->keeper_pid, strerror(errno));
    int seconds = down->force ? FORCE_KILL_AFTER_S : END_WITHIN_S;
    uint64_t deadline = cli_deadline((uint64_t)seconds * 1000000000u);
    if (wait_end(processes->keeper_fd, deadline) && wait_end(processes->server_fd, deadline))
        return EX_OK;
    if (!down->force)
        return cli_fail(down->cli, EX_TEMPFAIL,
                        "mobulad (pid %d) has not ended in %d s; --force kills it",
                        (int)processes->keeper_pid, seconds);
    cli_note(down->cli, "mobulad (pid %d) has not ended in %d s: killed",
             (int)processes->keeper_pid, seconds);
    signal_pid(processes->keeper_fd, SIGKILL);
    if (processes->server_fd >= 0)
        signal_pid(processes->server_fd, SIGKILL);
    deadline = cli_deadline((uint64_t)GONE_WITHIN_S * 1000000000u);
    if (!wait_end(processes->keeper_fd, deadline) || !wait_end(processes->server_fd, deadline))
        return cli_fail(down->cli, EX_OSERR, "mobulad (pid %d) can't be killed",
                        (int)processes->keeper_pid);
    return EX_OK;
}

static int unmount_rest(const struct down *down)
{
    struct mob_error err = {0};
    if (wait_unmounted(down->path, cli_deadline((uint64_t)GONE_WITHIN_S * 1000000000u)))
        return EX_OK;
    if (cli_unmount_lazily(down->path, &err))
        return cli_report(down->cli, &err);
    return EX_OK;
}

/* Checks that the number the mount gave is its daemon's, and takes hold of it. */
static int hold_processes(const struct down *down, const struct cli_daemon *daemon,
                          struct processes *processes)
{
    processes->keeper_pid = daemon->keeper_pid;
    processes->keeper_fd = open_pid(daemon->keeper_pid);
    if (processes->keeper_fd < 0)
        return cli_fail(down->cli, EX_UNAVAILABLE, "mobulad (pid %d) is not there: %s",
                        (int)daemon->keeper_pid, strerror(errno));
    if (daemon->server_pid > 1)
        processes->server_fd = open_pid(daemon->server_pid);
    /* Looked at after the descriptor was made: it can't become another process any more. */
    bool is_keeper = cli_daemon_is_process(daemon->keeper_pid, NULL) ||
                     cli_daemon_search(down->path) == daemon->keeper_pid;
    bool is_parent =
        processes->server_fd < 0 || cli_parent_of(daemon->server_pid) == daemon->keeper_pid;
    if (!is_keeper || !is_parent)
        return cli_fail(down->cli, EX_SOFTWARE, "process %d is not the mobulad of %s: not ended",
                        (int)daemon->keeper_pid, down->path);
    return EX_OK;
}

static int end_daemon(const struct down *down, const struct cli_daemon *daemon)
{
    struct processes processes = {.keeper_fd = -1, .server_fd = -1};
    int status = hold_processes(down, daemon, &processes);
    if (!status)
        status = end_keeper(down, &processes);
    mob_cleanup_fd(&processes.keeper_fd);
    mob_cleanup_fd(&processes.server_fd);
    return status ? status : unmount_rest(down);
}

/* Says what keeps the daemon from ending: `count` files, of which `stuck` can't be committed. */
static int refuse(const struct down *down, uint64_t count, uint64_t stuck)
{
    unsigned long long writers = count > stuck ? count - stuck : 0, closed = stuck;
    if (writers) {
        cli_fail(down->cli, 0, "%s: %llu file%s in staging/ %s still being written:", down->path,
                 writers, writers == 1 ? "" : "s", writers == 1 ? "is" : "are");
        down_print_writers(down->path);
        fprintf(stderr, "End these, or use --force: what they have written is then lost.\n");
    }
    if (closed) {
        cli_fail(down->cli, 0, "%s: %llu file%s closed, but can't be committed:", down->path,
                 closed, closed == 1 ? " was" : "s were");
        down_count_stuck(down->path, true);
        fprintf(stderr,
                "Copy what can be read of %s and remove %s, or use --force: %s then lost.\n",
                closed == 1 ? "it" : "them", closed == 1 ? "it" : "them",
                closed == 1 ? "it is" : "they are");
    }
    return EX_TEMPFAIL;
}

static int wait_for_writers(const struct down *down, const struct cli_daemon *daemon)
{
    struct cli_progress progress;
    uint64_t deadline = cli_deadline(down->timeout_ns), look_ns = UINT64_C(500000000);
    uint64_t look = cli_deadline(look_ns); /* when to look through the names, which takes a while */
    cli_progress_start(&progress);
    for (int wait_ms = 2;; wait_ms = wait_ms < 50 ? wait_ms * 2 : 50) {
        uint64_t count = down_count_writers(down->path, daemon->node), stuck = 0;
        if (!count)
            break;
        bool late = !cli_poll_ms(deadline, 1);
        if (late || !cli_poll_ms(look, 1)) {
            stuck = down_count_stuck(down->path, false);
            look = cli_deadline(look_ns *= 2);
        }
        if (late || stuck >= count) {
            cli_progress_clear(&progress);
            return refuse(down, count, stuck);
        }
        if (cli_progress_due(&progress))
            cli_progress_show(&progress, "waiting for %llu writers", (unsigned long long)count);
        poll(NULL, 0, wait_ms);
    }
    cli_progress_clear(&progress);
    return EX_OK;
}

static int down_mount(const struct down *down)
{
    struct mob_error err = {0};
    struct cli_daemon daemon;
    errint_t error = cli_daemon_read(down->path, &daemon, &err);
    /* A server that has just died has a successor in a moment; what it is blocked by comes back as
     * EIO. */
    for (int attempt = 0; error == -EIO && attempt < 3; attempt++) {
        poll(NULL, 0, 100);
        error = cli_daemon_read(down->path, &daemon, &err);
    }
    if (!error) {
        int status = down->force ? EX_OK : wait_for_writers(down, &daemon);
        return status ? status : end_daemon(down, &daemon);
    }
    /* Root may end a user's mount, though FUSE does not let it look inside. */
    if (error == -EACCES && geteuid())
        return cli_fail(down->cli, EX_NOPERM, "%s: is someone else's mount", down->path);
    /* Nobody serves it. A keeper may still be there, without a server. */
    daemon = (struct cli_daemon){.keeper_pid = cli_daemon_search(down->path)};
    if (daemon.keeper_pid)
        return end_daemon(down, &daemon);
    return cli_unmount_lazily(down->path, &err) ? cli_report(down->cli, &err) : EX_OK;
}

static int run(struct cli *cli, int argc, char **argv)
{
    static const struct option longs[] = {CLI_COMMON_OPTIONS,
                                          {"timeout", required_argument, NULL, 't'},
                                          {"force", no_argument, NULL, 'f'},
                                          {NULL, 0, NULL, 0}};
    struct down down = {.cli = cli, .timeout_ns = UINT64_C(30000000000)};
    for (int option; (option = cli_getopt(cli, argc, argv, "t:f", longs)) != -1;) {
        if (option == 'f')
            down.force = true;
        else
            down.timeout_ns = cli_parse_duration(cli, "--timeout", optarg);
    }
    if (argc - optind > 1)
        cli_usage(cli, "expected one MNT");
    struct mob_error err = {0};
    const char *given = argc > optind ? argv[optind] : cli->mount_option;
    if (!given) {
        if (cli_mount_locate(cli, NULL, down.path, &err))
            return cli_report(cli, &err);
    } else if (!realpath(given, down.path)) {
        return cli_fail(cli, cli_status(-errno), "%s: %s", given, strerror(errno));
    }
    if (!cli_mount_is_mounted(down.path))
        return cli_fail(cli, EX_NOINPUT, "%s: no mobula mount is there", given ? given : down.path);
    return down_mount(&down);
}

const struct cli_command cmd_down = {"down", "stop jobs and unmount", help, run};
