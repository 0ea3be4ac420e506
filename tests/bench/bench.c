/* Measures one node of mobula through its mount; tests/bench/run calls it and makes the table.
 *
 *   bench --dir MNT [--reference DIR] [--out FILE] [--runs N] [--quick] [--scale N] [--only LIST]
 *   bench --dir MNT --start-up COMMAND --start-down COMMAND [--out FILE] [--runs N]
 *   bench --dir MNT --only spill --start-up COMMAND --start-down COMMAND ...
 *
 * LIST: large,small,trips,references,jobs,scale; and, only if named, spill,spill_gets,
 * spill_small,budget: on a mount of their own with little memory, and spill with the commands that
 * start it anew. Figures go to
 * standard output and FILE, a line each: key, median, smallest, largest, unit, separated by tabs.
 * Nothing asserts on a time; exit status 1 only if an operation fails. The second form mounts and
 * takes down --runs times, for the time to the first put. */
#include "tests/bench/bench.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/util.h"
#include "tests/model/support.h"

struct bench_options bench_options = {.runs = 5, .prefix = ""};
static FILE *out_file;

/* --- figures --- */

void figure_add(struct figure *figure, double value)
{
    if (figure->count < RUN_LIMIT)
        figure->values[figure->count++] = value;
}

static int compare_doubles(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return left < right ? -1 : left > right;
}

static double middle(const struct figure *figure)
{
    double upper = figure->values[figure->count / 2];

    return figure->count % 2 ? upper : (figure->values[figure->count / 2 - 1] + upper) / 2;
}

static void print_figure(FILE *out, const struct figure *figure)
{
    fprintf(out, "%s%s\t%.6g\t%.6g\t%.6g\t%s\n", bench_options.prefix, figure->key, middle(figure),
            figure->values[0], figure->values[figure->count - 1], figure->unit);
    fflush(out);
}

void figure_report(struct figure *figure)
{
    if (figure->count == 0)
        return;
    qsort(figure->values, figure->count, sizeof(double), compare_doubles);
    print_figure(stdout, figure);
    if (out_file)
        print_figure(out_file, figure);
}

void figure_single(const char *key, double value, const char *unit)
{
    struct figure figure = {.key = key, .unit = unit, .values = {value}, .count = 1};

    figure_report(&figure);
}

/* --- helpers --- */

void bench_fail(const char *what, const char *path)
{
    fprintf(stderr, "bench: %s %s: %s\n", what, path, strerror(errno));
    exit(1);
}

double bench_seconds(void)
{
    return (double)mob_monotonic_ns() / 1e9;
}

unsigned bench_scaled(unsigned full, unsigned quick)
{
    return bench_options.quick ? quick : full;
}

const char *bench_path(const char *format, ...)
{
    static char ring[4][PATH_MAX];
    static unsigned next;
    char *out = ring[next++ % 4];
    int length = snprintf(out, PATH_MAX, "%s/", bench_options.dir);
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(out + length, PATH_MAX - (size_t)length, format, arguments);
    va_end(arguments);
    return out;
}

void bench_link_id(const char *path, char id[41])
{
    char target[PATH_MAX];
    ssize_t got = readlink(path, target, sizeof(target) - 1);

    if (got < 40)
        bench_fail("readlink", path);
    memcpy(id, target + got - 40, 40);
    id[40] = '\0';
}

void bench_put(const char *path, const void *data, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

    if (fd < 0)
        bench_fail("create", path);
    if (write(fd, data, bytes) != (ssize_t)bytes)
        bench_fail("write", path);
    if (close(fd) < 0)
        bench_fail("close", path);
}

size_t bench_get(const char *path, void *data, size_t bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got;

    if (fd < 0)
        bench_fail("open", path);
    got = read(fd, data, bytes);
    if (got < 0)
        bench_fail("read", path);
    close(fd);
    return (size_t)got;
}

double bench_process_cpu(int64_t pid)
{
    char path[PATH_MAX];
    struct dirent *entry;
    double seconds = 0;
    DIR *tasks;

    snprintf(path, sizeof(path), "/proc/%" PRId64 "/task", pid);
    tasks = opendir(path);
    if (!tasks)
        return -1;
    while ((entry = readdir(tasks))) {
        unsigned long long ran = 0;
        FILE *file;

        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "/proc/%" PRId64 "/task/%s/schedstat", pid, entry->d_name);
        file = fopen(path, "re");
        if (file && fscanf(file, "%llu", &ran) == 1)
            seconds += (double)ran / 1e9;
        if (file)
            fclose(file);
    }
    closedir(tasks);
    return seconds;
}

int64_t bench_process_anonymous(int64_t pid)
{
    char path[64], line[200];
    long long kib = -1;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%" PRId64 "/status", pid);
    file = fopen(path, "re");
    while (file && fgets(line, sizeof(line), file))
        if (sscanf(line, "RssAnon: %lld", &kib) == 1)
            break;
    if (file)
        fclose(file);
    return kib * 1024;
}

/* --- the whole --- */

/* `up` through the shell until the first put is committed. */
void bench_start(const char *up, const char *down)
{
    struct figure start = {.key = "start", .unit = "ms"};
    struct figure stop = {.key = "stop", .unit = "ms"};

    for (unsigned run = 0; run < bench_options.runs; run++) {
        double began = bench_seconds();
        char id[41];

        if (system(up) != 0)
            bench_fail("up failed:", up);
        bench_put(bench_path("staging/first"), "first\n", 6);
        bench_link_id(bench_path("staging/first"), id);
        figure_add(&start, (bench_seconds() - began) * 1e3);
        if (unlink(bench_path("staging/first")) < 0)
            bench_fail("unlink", "staging/first");
        began = bench_seconds();
        if (system(down) != 0)
            bench_fail("down failed:", down);
        figure_add(&stop, (bench_seconds() - began) * 1e3);
    }
    figure_report(&start);
    figure_report(&stop);
}

/* Without a list: `unnamed`. */
static bool wanted(const char *only, const char *name, bool unnamed)
{
    size_t length = strlen(name);

    if (!only)
        return unnamed;
    for (const char *at = only; (at = strstr(at, name)); at += length)
        if ((at == only || at[-1] == ',') && (at[length] == '\0' || at[length] == ','))
            return true;
    return false;
}

static void measure(const char *only)
{
    static const struct {
        const char *name;
        void (*measure)(void);
        bool unnamed;
    } parts[] = {
        {"large", bench_large, true},
        {"small", bench_small, true},
        {"trips", bench_round_trips, true},
        {"references", bench_references, true},
        {"jobs", bench_jobs, true},
        {"scale", bench_scale, true},
        {"spill", bench_spill, false},
        {"spill_gets", bench_spill_gets, false},
        {"spill_small", bench_spill_small, false},
        {"budget", bench_budget, false},
    };

    if (!mount_open(bench_options.dir))
        bench_fail("not a mount of mobula:", bench_options.dir);
    if (mkdir(bench_path("staging/bench"), 0755) < 0)
        bench_fail("mkdir", "staging/bench");
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(parts); i++)
        if (wanted(only, parts[i].name, parts[i].unnamed))
            parts[i].measure();
    if (rmdir(bench_path("staging/bench")) < 0)
        bench_fail("rmdir", "staging/bench");
}

static void usage(void)
{
    fprintf(stderr, "usage: bench --dir MNT [--reference DIR] [--out FILE] [--runs N] [--quick] "
                    "[--scale N] [--only LIST] [--prefix TEXT] "
                    "[--start-up COMMAND --start-down COMMAND]\n");
    exit(64);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"dir", required_argument, NULL, 'd'},
        {"reference", required_argument, NULL, 'r'},
        {"out", required_argument, NULL, 'o'},
        {"runs", required_argument, NULL, 'n'},
        {"quick", no_argument, NULL, 'q'},
        {"scale", required_argument, NULL, 's'},
        {"only", required_argument, NULL, 'O'},
        {"prefix", required_argument, NULL, 'p'},
        {"start-up", required_argument, NULL, 'u'},
        {"start-down", required_argument, NULL, 'D'},
        {NULL, 0, NULL, 0},
    };
    const char *only = NULL;
    struct rlimit files;
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            bench_options.dir = optarg;
            break;
        case 'r':
            bench_options.reference = optarg;
            break;
        case 'o':
            bench_options.out = optarg;
            break;
        case 'n':
            bench_options.runs = (unsigned)atoi(optarg);
            break;
        case 'q':
            bench_options.quick = true;
            break;
        case 's':
            bench_options.scale = strtoull(optarg, NULL, 10);
            break;
        case 'O':
            only = optarg;
            break;
        case 'p':
            bench_options.prefix = optarg;
            break;
        case 'u':
            bench_options.up = optarg;
            break;
        case 'D':
            bench_options.down = optarg;
            break;
        default:
            usage();
        }
    }
    if (!bench_options.dir || optind != argc || !bench_options.up != !bench_options.down ||
        bench_options.runs < 1 || bench_options.runs > RUN_LIMIT)
        usage();
    umask(022);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    out_file = bench_options.out ? fopen(bench_options.out, "ae") : NULL;
    if (bench_options.out && !out_file)
        bench_fail("open", bench_options.out);
    if (bench_options.up && !only)
        bench_start(bench_options.up, bench_options.down);
    else
        measure(only);
    return 0;
}
