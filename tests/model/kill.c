/* Kills the server (SIGKILL) again and again under a load of several processes, and verifies that
 * the mount goes on: no operation fails because of it, and what was acknowledged is there.
 *
 *   kill --dir MNT [--kills N] [--workers N] [--seed N] [--gap-min-ms N] [--gap-max-ms N]
 * [--no-jobs]
 *        [--large MIB] [--both --up COMMAND] [--plain]
 *
 * --large mixes in files of 1 to MIB MiB: on a small store objects are spilled, grow on disk and
 * come back while the server is killed.
 * With --both, keeper and server are killed together and COMMAND (`mobula up ...` on the same
 * state) is run through the shell; operations that this cuts off may have happened or not, but
 * whole. --plain plays the load in an ordinary directory without kills, to try the test itself
 * (--kills counts gaps then). The mount must be this program's alone. Prints one line: kills N,
 * errors N, lost N, leaked N, restart ms median/max Exit status: 0, 1 (errors, losses or leaks), 2
 * (an operation hangs), 64 (usage). */
#include "tests/model/kill.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/util.h"

enum { KILL_LIMIT = 100000, SPARE_FILES_LIMIT = 128 };
#define HANG_LIMIT_NS UINT64_C(20000000000)

struct kill_shared *kill_shared;
struct kill_options kill_options = {.jobs = true};

static struct settings {
    unsigned kills, workers;
    uint64_t seed;
    unsigned gap_min_ms, gap_max_ms;
    const char *up;
} settings = {.kills = 200, .workers = 3, .gap_min_ms = 20, .gap_max_ms = 400};

static pid_t workers[WORKER_LIMIT];
static double *restart_ms;
/* By the servers that were killed: what they spilled, and brought back. */
static uint64_t spilled_bytes, restored_bytes;
static unsigned restart_count;

static struct watched *own_watch(void)
{
    return &kill_shared->watched[WORKER_LIMIT];
}

static void end_workers(void)
{
    for (unsigned i = 0; i < settings.workers; i++)
        if (workers[i] > 0)
            kill(workers[i], SIGKILL);
}

static void give_up(const char *what)
{
    fprintf(stderr, "kill: %s: %s\n", what, strerror(errno));
    end_workers();
    exit(1);
}

/* --- kills --- */

static int open_process(int64_t pid)
{
    int fd;

    if (pid <= 1 || !process_is_daemon((pid_t)pid))
        return -1;
    fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
    return fd;
}

static void kill_process(int pidfd)
{
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
}

static bool wait_dead(int pidfd)
{
    struct pollfd died = {.fd = pidfd, .events = POLLIN};
    bool dead = poll(&died, 1, 10000) == 1;

    close(pidfd);
    return dead;
}

/* A look-up that no cache can answer. */
static void ask_daemon(struct dice *dice)
{
    char id[41];
    struct stat info;

    snprintf(id, sizeof(id), "%016" PRIx64 "%016" PRIx64 "00000000", dice_next(dice),
             dice_next(dice));
    if (stat(mount_object_path(id), &info) == 0 || errno != ENOENT) {
        kill_shared->errors++;
        fprintf(stderr, "kill: look-up of an unknown object after a kill: %s\n", strerror(errno));
    }
}

static void note_spilled(void)
{
    int64_t spilled = mount_number("memory", "spilled_bytes");
    int64_t restored = mount_number("memory", "restored_bytes");

    spilled_bytes += spilled > 0 ? (uint64_t)spilled : 0;
    restored_bytes += restored > 0 ? (uint64_t)restored : 0;
}

static void kill_server(struct dice *dice)
{
    int64_t pid;
    int server;
    uint64_t began;

    watched_begin(own_watch(), "reading the server's pid");
    if (kill_options.large_mib)
        note_spilled();
    pid = mount_number("daemon", "pid");
    server = open_process(pid);
    if (server < 0)
        give_up("no server to kill in nodes/ID/daemon");
    watched_begin(own_watch(), "first answer after a kill");
    began = mob_monotonic_ns();
    kill_process(server);
    if (!wait_dead(server)) {
        process_print_stacks((pid_t)pid);
        give_up("the server does not die of SIGKILL within 10 s");
    }
    ask_daemon(dice);
    restart_ms[restart_count++] = (double)(mob_monotonic_ns() - began) / 1e6;
    watched_end(own_watch());
}

static void kill_both(struct dice *dice)
{
    int server = open_process(mount_number("daemon", "pid"));
    int keeper = open_process(mount_number("daemon", "keeper_pid"));
    bool keeper_first = dice_percent(dice, 50);
    uint64_t began;

    if (server < 0 || keeper < 0)
        give_up("no server and keeper to kill in nodes/ID/daemon");
    kill_shared->paused = 0;
    kill_shared->down = true;
    kill_process(keeper_first ? keeper : server);
    kill_process(keeper_first ? server : keeper);
    if (!wait_dead(server) || !wait_dead(keeper))
        give_up("server and keeper do not die");
    watched_begin(own_watch(), "operations end when the mount is gone");
    while (kill_shared->paused < settings.workers)
        usleep(1000);
    watched_begin(own_watch(), "up");
    began = mob_monotonic_ns();
    if (system(settings.up) != 0 || !mount_open(kill_options.dir))
        give_up("the command to bring it up again failed");
    ask_daemon(dice);
    restart_ms[restart_count++] = (double)(mob_monotonic_ns() - began) / 1e6;
    watched_end(own_watch());
    kill_shared->down = false;
    kill_shared->round++;
}

static void play(void)
{
    struct dice dice = {.state = settings.seed};

    while (restart_count < settings.kills) {
        usleep((useconds_t)(1000 *
                            (settings.gap_min_ms +
                             dice_below(&dice, settings.gap_max_ms - settings.gap_min_ms + 1))));
        if (kill_options.plain)
            restart_ms[restart_count++] = 0;
        else if (kill_options.both)
            kill_both(&dice);
        else
            kill_server(&dice);
        if (restart_count % 20 == 0)
            fprintf(stderr, "kill: %u of %u, %" PRIu64 " operations, %" PRIu64 " errors\n",
                    restart_count, settings.kills, kill_shared->operations, kill_shared->errors);
    }
}

/* --- leaks --- */

struct level {
    int64_t ready, pending, failed, names, staged, disk_bytes;
    struct data_files files;
};

static struct level level_now(void)
{
    static char memory_dir[4096];
    struct level level = {
        .ready = mount_number("objects", "ready"),
        .pending = mount_number("objects", "pending"),
        .failed = mount_number("objects", "failed"),
        .names = mount_number("objects", "names"),
        .staged = mount_number("objects", "staged"),
        .disk_bytes = mount_number("memory", "disk_used_bytes"),
    };

    if (level.ready < 0)
        give_up("nodes/ID/objects can't be read");
    if (!mount_text("daemon", "memory_dir", memory_dir, sizeof(memory_dir)) ||
        !data_files_count(memory_dir, &level.files))
        give_up("the daemon's memory_dir can't be read");
    return level;
}

static uint64_t above(int64_t now, int64_t start)
{
    return now > start ? (uint64_t)(now - start) : 0;
}

static uint64_t leaks_of(const struct level *now, const struct level *start)
{
    return above(now->ready, start->ready) + above(now->pending, start->pending) +
           above(now->failed, start->failed) + above(now->names, start->names) +
           above(now->staged, start->staged) + above(now->disk_bytes, start->disk_bytes) +
           above((int64_t)now->files.filled, (int64_t)start->files.filled) +
           above((int64_t)now->files.others, (int64_t)start->files.others) +
           above((int64_t)now->files.empty, (int64_t)start->files.empty + SPARE_FILES_LIMIT);
}

/* What is there more than at the start, after a moment for what is asynchronous. */
static uint64_t count_leaks(const struct level *start)
{
    struct level now = level_now();

    for (unsigned tries = 0; tries < 100 && leaks_of(&now, start) > 0; tries++) {
        usleep(50000);
        now = level_now();
    }
    if (leaks_of(&now, start) > 0)
        fprintf(stderr,
                "kill: leaked: objects %" PRId64 " pending %" PRId64 " failed %" PRId64
                " names %" PRId64 " staged %" PRId64 "; files with data %" PRIu64 ", empty %" PRIu64
                ", of jobs %" PRIu64 ", bytes on disk %" PRId64 "; at the start %" PRId64
                " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "; %" PRIu64 " %" PRIu64 " %" PRIu64
                ", %" PRId64 "\n",
                now.ready, now.pending, now.failed, now.names, now.staged, now.files.filled,
                now.files.empty, now.files.others, now.disk_bytes, start->ready, start->pending,
                start->failed, start->names, start->staged, start->files.filled, start->files.empty,
                start->files.others, start->disk_bytes);
    return leaks_of(&now, start);
}

/* --- the whole --- */

static int compare_doubles(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return left < right ? -1 : left > right;
}

static void start_worker(unsigned number)
{
    static struct worker worker;
    pid_t parent = getpid();

    fflush(NULL);
    workers[number] = fork();
    if (workers[number] < 0)
        give_up("fork");
    if (workers[number] > 0)
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    worker.number = number;
    worker.dice.state = settings.seed ^ ((uint64_t)number << 40);
    snprintf(worker.directory, sizeof(worker.directory), "%s/%sw%u", kill_options.dir,
             kill_options.plain ? "" : "staging/", number);
    exit(worker_run(&worker));
}

/* Returns how many workers ended badly. */
static unsigned wait_workers(void)
{
    unsigned bad = 0;

    for (unsigned i = 0; i < settings.workers; i++) {
        int status;

        if (waitpid(workers[i], &status, 0) < 0 || status != 0) {
            fprintf(stderr, "kill: worker %u ended with status 0x%x\n", i, status);
            bad++;
        }
        workers[i] = 0;
    }
    return bad;
}

static void usage(void)
{
    fprintf(stderr, "usage: kill --dir MNT [--kills N] [--workers N] [--seed N] [--gap-min-ms N] "
                    "[--gap-max-ms N] [--no-jobs] [--large MIB] [--both --up COMMAND] [--plain]\n");
    exit(64);
}

static void parse(int argc, char **argv)
{
    static const struct option options[] = {
        {"dir", required_argument, NULL, 'd'},
        {"kills", required_argument, NULL, 'k'},
        {"workers", required_argument, NULL, 'w'},
        {"seed", required_argument, NULL, 's'},
        {"gap-min-ms", required_argument, NULL, 'm'},
        {"gap-max-ms", required_argument, NULL, 'M'},
        {"no-jobs", no_argument, NULL, 'j'},
        {"large", required_argument, NULL, 'l'},
        {"both", no_argument, NULL, 'b'},
        {"up", required_argument, NULL, 'u'},
        {"plain", no_argument, NULL, 'p'},
        {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            kill_options.dir = optarg;
            break;
        case 'k':
            settings.kills = (unsigned)atoi(optarg);
            break;
        case 'w':
            settings.workers = (unsigned)atoi(optarg);
            break;
        case 's':
            settings.seed = strtoull(optarg, NULL, 10);
            break;
        case 'm':
            settings.gap_min_ms = (unsigned)atoi(optarg);
            break;
        case 'M':
            settings.gap_max_ms = (unsigned)atoi(optarg);
            break;
        case 'j':
            kill_options.jobs = false;
            break;
        case 'l':
            kill_options.large_mib = (unsigned)atoi(optarg);
            if (kill_options.large_mib < 2 || kill_options.large_mib > 4096)
                usage();
            break;
        case 'b':
            kill_options.both = true;
            break;
        case 'u':
            settings.up = optarg;
            break;
        case 'p':
            kill_options.plain = true;
            break;
        default:
            usage();
        }
    }
    if (!kill_options.dir || optind != argc || settings.workers < 1 ||
        settings.workers > WORKER_LIMIT || settings.kills < 1 || settings.kills > KILL_LIMIT ||
        settings.gap_min_ms > settings.gap_max_ms || (kill_options.both && !settings.up))
        usage();
}

static void report(uint64_t leaked, unsigned bad, double seconds)
{
    qsort(restart_ms, restart_count, sizeof(*restart_ms), compare_doubles);
    printf("kills %u, errors %" PRIu64 ", lost %" PRIu64 ", leaked %" PRIu64
           ", restart ms %.1f/%.1f\n",
           kill_options.plain ? 0 : restart_count, kill_shared->errors + bad, kill_shared->lost,
           leaked, restart_ms[restart_count / 2], restart_ms[restart_count - 1]);
    fprintf(stderr,
            "kill: seed %" PRIu64 ", %u workers, %" PRIu64 " operations in %.1f s, %" PRIu64
            " cut off\n",
            settings.seed, settings.workers, kill_shared->operations, seconds,
            kill_shared->interrupted);
    if (kill_options.large_mib)
        fprintf(stderr,
                "kill: at least %" PRIu64 " MiB spilled, %" PRIu64 " MiB brought back; %" PRIu64
                " writes refused\n",
                spilled_bytes >> 20, restored_bytes >> 20, kill_shared->refused);
}

int main(int argc, char **argv)
{
    struct level start = {0};
    uint64_t began = mob_monotonic_ns(), leaked = 0;
    unsigned bad;

    settings.seed = mob_realtime_ns() % 1000000000;
    parse(argc, argv);
    umask(022);
    restart_ms = calloc(settings.kills, sizeof(*restart_ms));
    kill_shared =
        mmap(NULL, sizeof(*kill_shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (kill_shared == MAP_FAILED || !restart_ms)
        give_up("memory");
    if (!kill_options.plain) {
        if (!mount_open(kill_options.dir))
            give_up("not a mount of mobula");
        start = level_now();
    }
    for (unsigned i = 0; i < settings.workers; i++)
        start_worker(i);
    own_watch()->pid = getpid();
    watchdog_start(kill_shared->watched, WORKER_LIMIT + 1, HANG_LIMIT_NS, end_workers);
    play();
    kill_shared->stop = true;
    bad = wait_workers();
    if (!kill_options.plain)
        leaked = count_leaks(&start);
    report(leaked, bad, (double)(mob_monotonic_ns() - began) / 1e9);
    return kill_shared->errors || kill_shared->lost || leaked || bad ? 1 : 0;
}
