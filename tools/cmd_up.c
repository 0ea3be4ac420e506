/* mobula up: mounts a store by starting mobulad, and returns when it answers. */
#include "tools/cli_daemon.h"
#include "tools/cmd_up_options.h"
#include "tools/cmd_up_places.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static const char help[] =
    "Usage: mobula up MNT [OPTION]...\n"
    "Mount a store at the directory MNT; return when it answers.\n"
    "\n"
    "      --name N           the node's name (default: node)\n"
    "      --state DIR        where it keeps what must survive (default: /var/lib/mobula/N, or\n"
    "                         ~/.local/state/mobula/N)\n"
    "      --memory SIZE      for objects: 8G, 512M or 30% (default 30%)\n"
    "      --spill DIR        where objects go when memory is full; up to 8 times, striped over "
    "all\n"
    "                         (default: spill in the state directory); 'none': nowhere\n"
    "      --forget-spill DIR give up a spill directory that is gone for good, and its objects\n"
    "      --spill-key FILE   encrypt what is spilled, and small objects, with the key in FILE\n"
    "      --disk SIZE        for them: 40G, or 30% of the disk (default: what it has free, less\n"
    "                         a reserve)\n"
    "      --cpus N           what jobs may use at once (default: all)\n"
    "      --transport KIND   auto, io_uring or device (default auto)\n"
    "      --no-passthrough   serve all reads and writes by the daemon\n"
    "      --no-idle-polling  let idle CPUs halt, as they do anyway outside virtual machines\n"
    "      --config FILE      options from there (default /etc/mobula/mobula.conf)\n"
    "      --log FILE         the daemon's log (default: DIR/log)\n"
    "      --foreground       stay, as the daemon, until it ends\n"
    "\n"
    "Example:\n"
    "  mkdir -p /tmp/store && mobula up /tmp/store --memory 1G\n";

enum {
    OPTION_FOREGROUND = CLI_OPTION_FIRST,
    OPTION_NO_PASSTHROUGH,
    OPTION_NO_IDLE_POLLING,
    OPTION_CONFIG,
    OPTION_FORGET_SPILL,
    OPTION_VALUE
};

/* --- options --- */

static void set_or_die(const struct cli *cli, struct up_options *options, const char *key,
                       const char *value)
{
    struct mob_error err = {0};
    errint_t error = up_options_set(options, key, value, true, &err);
    if (error == -EINVAL)
        cli_usage(cli, "--%s: %s", key, err.message);
    if (error)
        exit(cli_fail(cli, error == -EOPNOTSUPP ? EX_UNAVAILABLE : EX_OSERR, "--%s is %s", key,
                      err.message));
}

static const char *parse_options(struct cli *cli, int argc, char **argv, struct up_options *options)
{
    static const struct option longs[] = {
        CLI_COMMON_OPTIONS,
        {"name", required_argument, NULL, OPTION_VALUE},
        {"state", required_argument, NULL, OPTION_VALUE + 1},
        {"memory", required_argument, NULL, OPTION_VALUE + 2},
        {"cpus", required_argument, NULL, OPTION_VALUE + 3},
        {"transport", required_argument, NULL, OPTION_VALUE + 4},
        {"log", required_argument, NULL, OPTION_VALUE + 5},
        {"spill", required_argument, NULL, OPTION_VALUE + 6},
        {"disk", required_argument, NULL, OPTION_VALUE + 7},
        {"resource", required_argument, NULL, OPTION_VALUE + 8},
        {"cluster", required_argument, NULL, OPTION_VALUE + 9},
        {"listen", required_argument, NULL, OPTION_VALUE + 10},
        {"spill-key", required_argument, NULL, OPTION_VALUE + 11},
        {"foreground", no_argument, NULL, OPTION_FOREGROUND},
        {"no-passthrough", no_argument, NULL, OPTION_NO_PASSTHROUGH},
        {"no-idle-polling", no_argument, NULL, OPTION_NO_IDLE_POLLING},
        {"config", required_argument, NULL, OPTION_CONFIG},
        {"forget-spill", required_argument, NULL, OPTION_FORGET_SPILL},
        {NULL, 0, NULL, 0}};
    static const char *const keys[] = {"name",      "state",   "memory", "cpus",
                                       "transport", "log",     "spill",  "disk",
                                       "resource",  "cluster", "listen", "spill-key"};
    struct mob_error err = {0};
    for (int option; (option = cli_getopt(cli, argc, argv, "", longs)) != -1;) {
        if (option == OPTION_FOREGROUND) {
            options->foreground = true;
        } else if (option == OPTION_NO_PASSTHROUGH) {
            set_or_die(cli, options, "no-passthrough", "yes");
        } else if (option == OPTION_NO_IDLE_POLLING) {
            set_or_die(cli, options, "no-idle-polling", "yes");
        } else if (option == OPTION_FORGET_SPILL) {
            if (up_options_forget(options, optarg, &err))
                cli_usage(cli, "--forget-spill: %s", err.message);
        } else if (option == OPTION_CONFIG) {
            free(options->config);
            if (!(options->config = strdup(optarg)))
                exit(cli_fail(cli, EX_OSERR, "no memory"));
        } else {
            set_or_die(cli, options, keys[option - OPTION_VALUE], optarg);
        }
    }
    const char *mount = argc > optind ? argv[optind] : cli->mount_option;
    if (!mount || argc - optind > 1)
        cli_usage(cli, "expected one MNT, the directory to mount at");
    return mount;
}

/* --- the directory --- */

/* ECONNABORTED is what a request gets that was under way when the last of the daemon went. */
static bool is_stale(int code)
{
    return code == ENOTCONN || code == ECONNABORTED;
}

/* A mount whose daemon is dead is in the way: takes it away. Several may lie upon each other. */
static int replace_stale(const struct cli *cli, const char *path)
{
    struct statfs fs;
    struct mob_error err = {0};
    /* Not stat(2), which the kernel may answer by what it remembers. */
    for (int layer = 0; layer < 16 && statfs(path, &fs) && is_stale(errno); layer++) {
        cli_note(cli, "%s: unmounted a stale mount, whose daemon is dead", path);
        if (cli_unmount_lazily(path, &err))
            return cli_report(cli, &err);
    }
    return EX_OK;
}

static int refuse_mounted(const struct cli *cli, const char *path)
{
    struct mob_error err = {0};
    struct cli_daemon daemon;
    if (cli_daemon_read(path, &daemon, &err))
        return cli_fail(cli, EX_TEMPFAIL,
                        "%s: is mounted, but its daemon does not answer: 'mobula down %s' first",
                        path, path);
    return cli_fail(cli, EX_TEMPFAIL, "%s: is mounted already (pid %d); 'mobula down %s' ends it",
                    path, (int)daemon.server_pid, path);
}

static int check_directory(const struct cli *cli, const char *given, char path[PATH_MAX])
{
    struct stat st;
    if (!realpath(given, path)) {
        int error = -errno;
        if (error == -ENOENT)
            return cli_fail(cli, EX_NOINPUT, "%s: there is no such directory: 'mkdir -p %s' first",
                            given, given);
        return cli_fail(cli, cli_status(error), "%s: %s", given, cli_errno_text(error));
    }
    int status = replace_stale(cli, path);
    if (status)
        return status;
    if (cli_mount_is_mounted(path))
        return refuse_mounted(cli, path);
    if (stat(path, &st))
        return cli_fail(cli, cli_status(-errno), "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return cli_fail(cli, EX_NOINPUT, "%s: is no directory", path);
    if (geteuid() && access(path, W_OK))
        return cli_fail(cli, EX_NOPERM,
                        "%s: an ordinary user mounts only on directories that are "
                        "theirs to write",
                        path);
    return EX_OK;
}

/* --- starting --- */

enum { ARGUMENTS = 28 + 4 * SPILL_PLACES_LIMIT };

static bool is_on(const char *word)
{
    return word && (!strcmp(word, "yes") || !strcmp(word, "true") || !strcmp(word, "on") ||
                    !strcmp(word, "1"));
}

/* `ready` is the text of the descriptor, NULL in the foreground. */
static void make_arguments(const struct up_options *options, const char *program,
                           const char *mount_path, const char *ready, const char *log,
                           const char *out[ARGUMENTS])
{
    const struct {
        const char *option, *value;
    } pairs[] = {{"--name", options->name},
                 {"--state", options->state},
                 {"--memory", options->memory},
                 {"--disk", options->disk},
                 {"--spill-key", options->spill_key},
                 {"--cpus", options->cpus},
                 {"--transport", options->transport},
                 {"--log", log},
                 {"--ready-fd", ready}};
    size_t count = 0;
    out[count++] = program;
    out[count++] = mount_path;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(pairs); i++)
        if (pairs[i].value) {
            out[count++] = pairs[i].option;
            out[count++] = pairs[i].value;
        }
    for (size_t i = 0; options->spills[i]; i++) {
        out[count++] = "--spill";
        out[count++] = options->spills[i];
    }
    for (size_t i = 0; options->forgets[i]; i++) {
        out[count++] = "--forget-spill";
        out[count++] = options->forgets[i];
    }
    if (is_on(options->no_passthrough))
        out[count++] = "--no-passthrough";
    if (is_on(options->no_idle_polling))
        out[count++] = "--no-idle-polling";
    if (options->foreground)
        out[count++] = "--foreground";
    out[count] = NULL;
}

/* What the caller has open (a pipe that somebody reads to its end, say) is not the daemon's to
 * hold. */
static void close_others(int kept_fd)
{
    if (kept_fd > STDERR_FILENO + 1)
        syscall(SYS_close_range, STDERR_FILENO + 1, kept_fd - 1, 0);
    syscall(SYS_close_range, kept_fd + 1, UINT_MAX, 0);
}

/* In the child: becomes the daemon, with its log as standard output and error. */
__attribute__((noreturn)) static void become_daemon(const char *const arguments[], int log_fd,
                                                    int ready_fd)
{
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    setsid();
    if (null_fd >= 0 && dup2(null_fd, STDIN_FILENO) >= 0 && dup2(log_fd, STDOUT_FILENO) >= 0 &&
        dup2(log_fd, STDERR_FILENO) >= 0 && !fcntl(ready_fd, F_SETFD, 0)) {
        close_others(ready_fd);
        execv(arguments[0], (char *const *)arguments);
    }
    dprintf(ready_fd, "error %s: %s\n", arguments[0], strerror(errno));
    _exit(EX_OSERR);
}

struct start {
    const struct cli *cli;
    const char *mount_path;
    const char *log_path;
    int log_fd;
    off_t log_start; /* what was in the log before */
    int ready_fd;
    pid_t child;
};

/* The child may have detached itself: then the keeper is another process. */
static void interrupt(const struct start *start)
{
    pid_t keeper = cli_daemon_search(start->mount_path);
    kill(keeper > 1 ? keeper : start->child, SIGTERM);
}

/* Reads the daemon's one line into `line`; "" if it ended without a word. */
static void wait_ready(struct start *start, char *line, size_t line_bytes)
{
    struct cli_progress progress;
    size_t used = 0;
    bool told = false;
    cli_progress_start(&progress);
    int wake_fd = cli_catch_signals();
    while (used + 1 < line_bytes) {
        struct pollfd pollers[2] = {{.fd = start->ready_fd, .events = POLLIN},
                                    {.fd = told ? -1 : wake_fd, .events = POLLIN}};
        int found = poll(pollers, 2, 500);
        if (cli_caught_signal() && !told) {
            told = true;
            interrupt(start);
        }
        if (cli_progress_due(&progress))
            cli_progress_show(&progress, "waiting for %s", start->mount_path);
        if (found <= 0 || !pollers[0].revents)
            continue;
        ssize_t got = read(start->ready_fd, line + used, line_bytes - 1 - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        used += (size_t)got;
        if (memchr(line, '\n', used))
            break;
    }
    line[used] = '\0';
    line[strcspn(line, "\n")] = '\0';
    cli_progress_clear(&progress);
}

/* The last lines that this start has added to the log, but for those that say `sentence`, which has
 * been printed. */
static void print_log_tail(const struct start *start, const char *sentence)
{
    enum { TAIL_BYTES = 4096, TAIL_LINES = 12 };
    char text[TAIL_BYTES + 1];
    struct stat st;
    if (fstat(start->log_fd, &st) || st.st_size <= start->log_start)
        return;
    off_t from =
        st.st_size - start->log_start > TAIL_BYTES ? st.st_size - TAIL_BYTES : start->log_start;
    ssize_t got = mob_pread_full(start->log_fd, text, TAIL_BYTES, from);
    if (got <= 0)
        return;
    while (got && text[got - 1] == '\n')
        got--;
    text[got] = '\0';
    char *line = text + got, *rest = NULL;
    for (int lines = 0; line > text; line--)
        if (line[-1] == '\n' && ++lines == TAIL_LINES)
            break;
    bool begun = false;
    for (line = strtok_r(line, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (*sentence && strstr(line, sentence))
            continue;
        if (!begun)
            fprintf(stderr, "The end of %s:\n", start->log_path);
        begun = true;
        fprintf(stderr, "  %s\n", line);
    }
}

/* Waits a moment for the child's end. True and *status as waitpid(2) gives it; the child also ends,
 * with 0, when it has detached itself. */
static bool child_ended(const struct start *start, int *status)
{
    uint64_t deadline = cli_deadline(UINT64_C(3000000000));
    pid_t ended;
    while (!(ended = waitpid(start->child, status, WNOHANG)) && cli_poll_ms(deadline, 1))
        poll(NULL, 0, 10);
    return ended == start->child;
}

/* It has closed the descriptor without a word: what became of it? */
static int explain_silence(const struct start *start)
{
    int status = 0;
    bool ended = child_ended(start, &status);
    if (ended && WIFSIGNALED(status))
        return cli_fail(start->cli, EX_UNAVAILABLE, "mobulad was killed by signal %d (%s)",
                        WTERMSIG(status), strsignal(WTERMSIG(status)));
    if (ended && WEXITSTATUS(status))
        return cli_fail(start->cli, EX_UNAVAILABLE,
                        "mobulad ended with status %d before %s was there", WEXITSTATUS(status),
                        start->mount_path);
    return cli_fail(start->cli, EX_UNAVAILABLE, "mobulad ended before %s was there",
                    start->mount_path);
}

/* It has said what is wrong. A state that another daemon uses is no lasting error. */
static int explain_refusal(const struct start *start, const char *sentence)
{
    int status = 0;
    bool busy =
        child_ended(start, &status) && WIFEXITED(status) && WEXITSTATUS(status) == EX_TEMPFAIL;
    return cli_fail(start->cli, busy ? EX_TEMPFAIL : EX_UNAVAILABLE, "%s", sentence);
}

static int conclude(struct start *start)
{
    char line[600], path[PATH_MAX + 16];
    wait_ready(start, line, sizeof line);
    int status;
    if (!strcmp(line, "ok")) {
        snprintf(path, sizeof path, "%s/objects", start->mount_path);
        if (!access(path, X_OK))
            return EX_OK;
        status = cli_fail(start->cli, EX_UNAVAILABLE, "%s: %s", path, strerror(errno));
    } else if (cli_caught_signal()) {
        return cli_fail(start->cli, 128 + cli_caught_signal(), "interrupted");
    } else if (!strncmp(line, "error ", 6)) {
        status = explain_refusal(start, line + 6);
    } else {
        status = explain_silence(start);
    }
    print_log_tail(start, strncmp(line, "error ", 6) ? "" : line + 6);
    return status;
}

static int start_daemon(const struct cli *cli, const struct up_options *options,
                        const char *program, const char *mount_path)
{
    char log_path[PATH_MAX], ready[16];
    const char *arguments[ARGUMENTS];
    if (options->log)
        snprintf(log_path, sizeof log_path, "%s", options->log);
    else if (snprintf(log_path, sizeof log_path, "%s/log", options->state) >= (int)sizeof log_path)
        cli_usage(cli, "--state: the path is too long");
    cleanup_fd int log_fd = open(log_path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        return cli_fail(cli, EX_CANTCREAT, "%s: %s", log_path, strerror(errno));
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return cli_fail(cli, EX_OSERR, "pipe: %s", strerror(errno));
    cleanup_fd int ready_fd = ends[0];
    cleanup_fd int daemon_fd = ends[1];
    snprintf(ready, sizeof ready, "%d", daemon_fd);
    make_arguments(options, program, mount_path, ready, log_path, arguments);
    struct start start = {.cli = cli,
                          .mount_path = mount_path,
                          .log_path = log_path,
                          .log_fd = log_fd,
                          .log_start = lseek(log_fd, 0, SEEK_END),
                          .ready_fd = ready_fd};
    fflush(NULL);
    start.child = fork();
    if (start.child < 0)
        return cli_fail(cli, EX_OSERR, "fork: %s", strerror(errno));
    if (start.child == 0)
        become_daemon(arguments, log_fd, daemon_fd);
    mob_cleanup_fd(&daemon_fd);
    return conclude(&start);
}

static int up(const struct cli *cli, const char *given, struct up_options *options)
{
    char mount_path[PATH_MAX], program[PATH_MAX];
    struct mob_error err = {0};
    errint_t error = up_options_complete(options, &err);
    if (error)
        return cli_fail(cli, error == -EOPNOTSUPP ? EX_UNAVAILABLE : EX_CONFIG, "%s", err.message);
    int status = check_directory(cli, given, mount_path);
    if (!status)
        status = up_check_memory(cli, options);
    if (!status)
        status = up_make_state(cli, options, mount_path);
    if (!status)
        status = up_check_spills(cli, options, mount_path);
    if (!status)
        status = up_check_forgets(cli, options);
    if (status)
        return status;
    if (!cli_daemon_program(program))
        return cli_fail(cli, EX_UNAVAILABLE,
                        "mobulad is not installed: neither beside this program "
                        "nor in $PATH");
    if (!options->foreground)
        return start_daemon(cli, options, program, mount_path);
    const char *arguments[ARGUMENTS];
    make_arguments(options, program, mount_path, NULL, options->log, arguments);
    execv(program, (char *const *)arguments);
    return cli_fail(cli, EX_OSERR, "%s: %s", program, strerror(errno));
}

static int run(struct cli *cli, int argc, char **argv)
{
    struct up_options options = {0};
    const char *given = parse_options(cli, argc, argv, &options);
    int status = up(cli, given, &options);
    up_options_free(&options);
    return status;
}

const struct cli_command cmd_up = {"up", "mount a store at a directory", help, run};
