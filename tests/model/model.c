/* Plays random operations through a mount and compares it with a model in memory, after each of
 * them.
 *
 *   model --dir MNT [--seed N] [--ops N] [--kill] [--kill-min-ms N] [--kill-max-ms N] [--jobs
 * PERCENT]
 *         [--verbose]
 *
 * With --kill a second process kills the server (SIGKILL) at random moments all the while, and
 * nothing is allowed to differ: no operation may fail because of it, and nothing acknowledged may
 * be missing. The mount must be this program's alone. At the end it removes all its names and the
 * store must be back where it began. Exit status: 0, 1 (something differs: the seed and the last
 * operations are printed), 2 (an operation hangs), 64 (usage). */
#include "tests/model/model.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/util.h"

enum { LOG_LINES = 50, LOG_LINE_BYTES = 1400 };
#define HANG_LIMIT_NS UINT64_C(30000000000)

struct model model;

static char log_lines[LOG_LINES][LOG_LINE_BYTES];
static uint64_t log_next;
static uint64_t seed;
static pid_t main_pid;

/* Shared with the killer. */
static struct shared {
    struct watched watched;
    _Atomic uint64_t kills, failed_kills;
    _Atomic bool stop;
} * shared;

/* --- reporting --- */

void say(const char *format, ...)
{
    char *line = log_lines[log_next++ % LOG_LINES];
    int length = snprintf(line, LOG_LINE_BYTES, "#%llu ", (unsigned long long)model.step);
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line + length, LOG_LINE_BYTES - (size_t)length, format, arguments);
    va_end(arguments);
    for (char *at = line; (at = strchr(at, '\n'));) /* of names */
        *at = '?';
    if (model.verbose)
        fprintf(stderr, "%s\n", line);
}

static void print_log(void)
{
    uint64_t from = log_next > LOG_LINES ? log_next - LOG_LINES : 0;

    fprintf(stderr, "model: seed %llu; the last operations:\n", (unsigned long long)seed);
    for (; from < log_next; from++)
        fprintf(stderr, "  %s\n", log_lines[from % LOG_LINES]);
}

void fail(const char *function, int line, const char *format, ...)
{
    va_list arguments;

    print_log();
    fprintf(stderr, "model: FAILED at operation %llu (seed %llu, %s:%d, %llu kills so far): ",
            (unsigned long long)model.step, (unsigned long long)seed, function, line,
            (unsigned long long)(shared ? shared->kills : 0));
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    if (shared)
        shared->stop = true;
    exit(1);
}

void check_refused(int line, long rc, const char *what, const char *path, ...)
{
    int got = errno;
    va_list allowed;
    int each;
    bool right = false;

    if (rc >= 0)
        fail("check_refused", line, "%s %s worked, and should have been refused", what, path);
    va_start(allowed, path);
    while ((each = va_arg(allowed, int)))
        right |= each == got;
    va_end(allowed);
    va_start(allowed, path);
    each = va_arg(allowed, int);
    va_end(allowed);
    if (!right)
        fail("check_refused", line, "%s %s: %s (%d), expected %s (%d) or so", what, path,
             strerror(got), got, strerror(each), each);
}

/* --- the game --- */

static const struct operation {
    const char *name;
    void (*play)(void);
    unsigned weight;
} operations[] = {
    {"put", op_put, 140},
    {"put with references", op_put_refs, 20},
    {"hold a staged file", op_hold_staged, 50},
    {"reopen a staged file", op_reopen_staged, 30},
    {"write", op_write_held, 60},
    {"truncate", op_truncate_held, 25},
    {"write to a mapping", op_map_held, 15},
    {"fallocate", op_allocate_held, 12},
    {"duplicate", op_duplicate_held, 15},
    {"fsync", op_sync_held, 8},
    {"fchmod", op_mode_held, 10},
    {"attributes", op_attribute_held, 25},
    {"compare a descriptor", op_check_held, 30},
    {"close", op_close_held, 90},
    {"copy in the kernel", op_copy_object, 20},
    {"hold an object", op_hold_object, 30},
    {"read an object", op_read_object, 60},
    {"read a name", op_read_name, 60},
    {"map an object", op_map_object, 20},
    {"rename", op_rename, 110},
    {"unlink", op_unlink, 130},
    {"mkdir", op_make_directory, 30},
    {"rmdir", op_remove_directory, 25},
    {"link", op_link, 40},
    {"symlink", op_symlink, 30},
    {"list", op_list, 40},
    {"list objects", op_list_objects, 10},
    {"stat", op_stat, 60},
    {"look for a freed object", op_freed, 30},
    {"refused on an object", op_refused_object, 30},
    {"refused name", op_refused_name, 30},
    {"refused attribute", op_refused_attribute, 10},
    {"job", op_job, 20},
};

static const struct operation *choose(void)
{
    static unsigned total;
    uint64_t roll;
    size_t i = 0;

    if (total == 0)
        for (size_t each = 0; each < MOB_ARRAY_LENGTH(operations); each++)
            total += operations[each].weight;
    roll = dice_below(&model.dice, total);
    while (roll >= operations[i].weight)
        roll -= operations[i++].weight;
    return &operations[i];
}

/* Keeps the tables from filling up. */
static void make_room(void)
{
    while (model.held_count > HELD_LIMIT - 4)
        op_close_held();
    while (model.node_count > NODE_LIMIT || model.object_count > OBJECT_LIMIT) {
        op_unlink();
        op_remove_directory(); /* at last they may all be directories */
    }
}

static void play(uint64_t count)
{
    for (model.step = 1; model.step <= count; model.step++) {
        const struct operation *operation = choose();

        watched_begin(&shared->watched, operation->name);
        operation->play();
        make_room();
        watched_end(&shared->watched);
    }
}

/* --- the end --- */

static void check_all(void)
{
    for (unsigned i = 0; i < model.held_count; i++)
        check_held(&model.held[i]);
    for (unsigned i = 1; i < model.node_count; i++) {
        check_node(model.nodes[i]);
        if (model.nodes[i]->kind == NODE_OBJECT)
            check_object_content(model.nodes[i]->object, path_of(model.nodes[i]));
    }
    for (unsigned i = 0; i < model.node_count; i++)
        if (model.nodes[i]->kind == NODE_DIRECTORY)
            check_directory(model.nodes[i]);
    for (unsigned i = 0; i < model.object_count; i++)
        if (model.objects[i]->names + model.objects[i]->containers)
            check_object_content(model.objects[i], mount_object_path(model.objects[i]->id));
    check_objects_directory();
}

static void clean_up(void)
{
    while (model.held_count)
        held_close(model.held_count - 1);
    while (model.node_count > 1) {
        for (unsigned i = model.node_count - 1; i > 0; i--) {
            struct node *node = model.nodes[i];
            const char *path = path_of(node);

            if (node->kind == NODE_DIRECTORY && node->entries)
                continue;
            CHECK_CALL(node->kind == NODE_DIRECTORY ? rmdir(path) : unlink(path), "remove",
                       short_path(path));
            node_remove(node);
            break;
        }
    }
    CHECK(model.object_count == 0, "the model has %u objects left (an error of the test)",
          model.object_count);
    check_directory(model.nodes[0]);
}

struct level {
    int64_t ready, pending, failed, names, staged, used;
};

static struct level level_now(void)
{
    return (struct level){
        .ready = mount_number("objects", "ready"),
        .pending = mount_number("objects", "pending"),
        .failed = mount_number("objects", "failed"),
        .names = mount_number("objects", "names"),
        .staged = mount_number("objects", "staged"),
        .used = mount_number("memory", "used_bytes"),
    };
}

/* Everything is back where it began, within a few seconds. */
static void check_level(struct level start)
{
    struct level now = level_now();

    for (unsigned tries = 0; tries < 100; tries++) {
        if (now.ready == start.ready && now.pending == start.pending &&
            now.failed == start.failed && now.names == start.names && now.staged == start.staged &&
            now.used <= start.used)
            return;
        usleep(50000);
        now = level_now();
    }
    CHECK(false,
          "not back at the start: ready %lld (start %lld) pending %lld (%lld) failed %lld (%lld) "
          "names %lld (%lld) staged %lld (%lld) used bytes %lld (%lld)",
          (long long)now.ready, (long long)start.ready, (long long)now.pending,
          (long long)start.pending, (long long)now.failed, (long long)start.failed,
          (long long)now.names, (long long)start.names, (long long)now.staged,
          (long long)start.staged, (long long)now.used, (long long)start.used);
}

/* --- the killer: a process of its own --- */

static bool kill_server(void)
{
    int64_t pid = mount_number("daemon", "pid");
    struct pollfd died = {.events = POLLIN};

    if (pid <= 1 || !process_is_daemon((pid_t)pid))
        return false;
    died.fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
    if (died.fd < 0)
        return false;
    kill((pid_t)pid, SIGKILL);
    poll(&died, 1, 10000);
    close(died.fd);
    return true;
}

static pid_t start_killer(unsigned min_ms, unsigned max_ms)
{
    struct dice dice = {.state = seed ^ 0x6b696c6c};
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (!shared->stop && getppid() == main_pid) {
        usleep((useconds_t)(1000 * (min_ms + dice_below(&dice, max_ms - min_ms + 1))));
        if (shared->stop)
            break;
        if (kill_server())
            shared->kills++;
        else
            shared->failed_kills++;
    }
    _exit(0);
}

static void usage(void)
{
    fprintf(stderr, "usage: model --dir MNT [--seed N] [--ops N] [--kill] [--kill-min-ms N] "
                    "[--kill-max-ms N] [--jobs PERCENT] [--verbose]\n");
    exit(64);
}

struct settings {
    const char *dir;
    uint64_t ops;
    bool kill;
    unsigned min_ms, max_ms;
};

static void parse(int argc, char **argv, struct settings *settings)
{
    static const struct option options[] = {
        {"dir", required_argument, NULL, 'd'},
        {"seed", required_argument, NULL, 's'},
        {"ops", required_argument, NULL, 'o'},
        {"kill", no_argument, NULL, 'k'},
        {"kill-min-ms", required_argument, NULL, 'm'},
        {"kill-max-ms", required_argument, NULL, 'M'},
        {"jobs", required_argument, NULL, 'j'},
        {"verbose", no_argument, NULL, 'v'},
        {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            settings->dir = optarg;
            break;
        case 's':
            seed = strtoull(optarg, NULL, 10);
            break;
        case 'o':
            settings->ops = strtoull(optarg, NULL, 10);
            break;
        case 'k':
            settings->kill = true;
            break;
        case 'm':
            settings->min_ms = (unsigned)atoi(optarg);
            break;
        case 'M':
            settings->max_ms = (unsigned)atoi(optarg);
            break;
        case 'j':
            model.job_percent = (unsigned)atoi(optarg);
            break;
        case 'v':
            model.verbose = true;
            break;
        default:
            usage();
        }
    }
    if (!settings->dir || optind != argc || settings->min_ms > settings->max_ms)
        usage();
}

int main(int argc, char **argv)
{
    struct settings settings = {.ops = 10000, .min_ms = 20, .max_ms = 500};
    struct level start;
    uint64_t began = mob_monotonic_ns();
    pid_t killer = 0;
    int64_t generation;

    seed = mob_realtime_ns() % 1000000000;
    model.job_percent = 50;
    parse(argc, argv, &settings);
    umask(022);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || !mount_open(settings.dir)) {
        fprintf(stderr, "model: %s is not a mount of mobula: %s\n", settings.dir, strerror(errno));
        return 64;
    }
    printf("model: seed %llu, %llu operations%s\n", (unsigned long long)seed,
           (unsigned long long)settings.ops, settings.kill ? ", with kills" : "");
    fflush(stdout);
    main_pid = getpid();
    shared->watched.pid = main_pid;
    model.dice.state = seed;
    node_add(NULL, "", NODE_DIRECTORY);
    start = level_now();
    CHECK(start.ready >= 0 && start.staged >= 0 && start.used >= 0,
          "nodes/ID/objects or memory can't be read: %s", strerror(errno));
    generation = mount_number("daemon", "generation");
    watchdog_start(&shared->watched, 1, HANG_LIMIT_NS, print_log);
    if (settings.kill)
        killer = start_killer(settings.min_ms, settings.max_ms);
    play(settings.ops);
    watched_begin(&shared->watched, "check everything");
    check_all();
    shared->stop = true;
    if (killer > 0)
        waitpid(killer, NULL, 0);
    check_all();
    clean_up();
    check_level(start);
    watched_end(&shared->watched);
    CHECK(!settings.kill || shared->kills > 0, "no kill was made: %llu tries failed",
          (unsigned long long)shared->failed_kills);
    printf("model: ok, %llu operations in %.1f s, %llu kills (generation %lld to %lld), late: %llu "
           "link counts, %llu frees, worst %.1f ms\n",
           (unsigned long long)settings.ops, (double)(mob_monotonic_ns() - began) / 1e9,
           (unsigned long long)shared->kills, (long long)generation,
           (long long)mount_number("daemon", "generation"), (unsigned long long)model.late_links,
           (unsigned long long)model.late_frees, (double)model.late_worst_ns / 1e6);
    return 0;
}
