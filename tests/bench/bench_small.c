/* Small objects: one, two and four clients; round trips an operation; an object with many
 * references. */
#include "tests/bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "core/base/util.h"
#include "tests/model/support.h"

enum { SMALL_BYTES = 1024, CLIENT_LIMIT = 8, PHASES = 4 };
enum phase { PHASE_PUT, PHASE_GET_COLD, PHASE_GET_WARM, PHASE_UNLINK };

/* Clients are processes; they wait for each other before each phase. */
struct clients {
    unsigned count;
    unsigned objects; /* each */
    bool native;      /* in the reference directory: names are the objects */
    _Atomic unsigned arrived[PHASES];
    double began[PHASES][CLIENT_LIMIT];
    double ended[PHASES][CLIENT_LIMIT];
};

static void client_path(const struct clients *clients, unsigned client, unsigned number,
                        char out[PATH_MAX])
{
    if (clients->native)
        snprintf(out, PATH_MAX, "%s/c%u-%u", bench_options.reference, client, number);
    else
        snprintf(out, PATH_MAX, "%s/staging/bench/c%u/%u", bench_options.dir, client, number);
}

static void meet(struct clients *clients, unsigned client, enum phase phase)
{
    atomic_fetch_add(&clients->arrived[phase], 1);
    while (atomic_load(&clients->arrived[phase]) < clients->count)
        usleep(50);
    clients->began[phase][client] = bench_seconds();
}

static void leave(struct clients *clients, unsigned client, enum phase phase)
{
    clients->ended[phase][client] = bench_seconds();
}

static void get_all(const struct clients *clients, char (*paths)[PATH_MAX / 8])
{
    char data[2 * SMALL_BYTES];

    for (unsigned i = 0; i < clients->objects; i++)
        if (bench_get(paths[i], data, sizeof(data)) != SMALL_BYTES)
            bench_fail("short read of", paths[i]);
}

static void client_run(struct clients *clients, unsigned client)
{
    char(*paths)[PATH_MAX / 8] = calloc(clients->objects, sizeof(*paths));
    char data[SMALL_BYTES], path[PATH_MAX], id[41];

    if (!paths)
        bench_fail("memory", "");
    content_fill(client, 0, data, sizeof(data));
    meet(clients, client, PHASE_PUT);
    for (unsigned i = 0; i < clients->objects; i++) {
        client_path(clients, client, i, path);
        bench_put(path, data, sizeof(data));
    }
    leave(clients, client, PHASE_PUT);
    for (unsigned i = 0; i < clients->objects; i++) {
        client_path(clients, client, i, path);
        if (!clients->native) {
            bench_link_id(path, id);
            snprintf(path, sizeof(path), "%s", mount_object_path(id));
        }
        memcpy(paths[i], path, sizeof(paths[i]) - 1);
    }
    meet(clients, client, PHASE_GET_COLD);
    get_all(clients, paths);
    leave(clients, client, PHASE_GET_COLD);
    meet(clients, client, PHASE_GET_WARM);
    get_all(clients, paths);
    leave(clients, client, PHASE_GET_WARM);
    meet(clients, client, PHASE_UNLINK);
    for (unsigned i = 0; i < clients->objects; i++) {
        client_path(clients, client, i, path);
        if (unlink(path) < 0)
            bench_fail("unlink", path);
    }
    leave(clients, client, PHASE_UNLINK);
    free(paths);
}

static double phase_rate(const struct clients *clients, enum phase phase)
{
    double began = clients->began[phase][0], ended = clients->ended[phase][0];

    for (unsigned i = 1; i < clients->count; i++) {
        began = clients->began[phase][i] < began ? clients->began[phase][i] : began;
        ended = clients->ended[phase][i] > ended ? clients->ended[phase][i] : ended;
    }
    return clients->count * clients->objects / (ended - began);
}

/* Forks them and waits. */
static void clients_run(struct clients *clients)
{
    bool good = true;

    for (unsigned i = 0; i < clients->count; i++) {
        pid_t pid;

        if (!clients->native && mkdir(bench_path("staging/bench/c%u", i), 0755) < 0)
            bench_fail("mkdir", "staging/bench/cN");
        fflush(NULL);
        pid = fork();
        if (pid < 0)
            bench_fail("fork", "");
        if (pid == 0) {
            client_run(clients, i);
            _exit(0);
        }
    }
    for (unsigned i = 0; i < clients->count; i++) {
        int status;

        good &= wait(&status) > 0 && status == 0;
    }
    if (!good)
        bench_fail("a client failed", "");
    for (unsigned i = 0; i < clients->count && !clients->native; i++)
        if (rmdir(bench_path("staging/bench/c%u", i)) < 0)
            bench_fail("rmdir", "staging/bench/cN");
}

static void measure_clients(unsigned count, bool native)
{
    static const char *const names[PHASES] = {"put_small", "get_small_cold", "get_small_warm",
                                              "unlink_small"};
    static char keys[PHASES][64];
    struct figure figures[PHASES] = {0};
    struct clients *clients =
        mmap(NULL, sizeof(*clients), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (clients == MAP_FAILED)
        bench_fail("memory", "");
    for (unsigned run = 0; run < bench_options.runs; run++) {
        memset(clients, 0, sizeof(*clients));
        clients->count = count;
        clients->objects = bench_scaled(5000, 300);
        clients->native = native;
        clients_run(clients);
        for (unsigned phase = 0; phase < PHASES; phase++)
            figure_add(&figures[phase], phase_rate(clients, phase));
    }
    for (unsigned phase = 0; phase < PHASES; phase++) {
        if (count > 1)
            snprintf(keys[phase], sizeof(keys[phase]), "%s_%u", names[phase], count);
        else
            snprintf(keys[phase], sizeof(keys[phase]), "%s%s", native ? "ref_" : "", names[phase]);
        figures[phase].key = keys[phase];
        figures[phase].unit = "1/s";
        figure_report(&figures[phase]);
    }
    munmap(clients, sizeof(*clients));
}

void bench_small(void)
{
    static const unsigned counts[] = {1, 2, 4};

    for (unsigned i = 0; i < 3; i++)
        measure_clients(counts[i], false);
    if (bench_options.reference)
        measure_clients(1, true);
}

/* --- round trips --- */

/* Requests that somebody has waited for: all opcodes but RELEASE, which is asynchronous; -1: not
 * shown. `print` names those that grew. */
static int64_t requests_total(bool print)
{
    static struct {
        char opcode[32];
        int64_t count;
    } known[64];
    cleanup_free char *text = NULL;
    size_t bytes;
    int64_t total = -1;

    if (mob_read_file(AT_FDCWD, bench_path("metrics"), 1 << 22, &text, &bytes) < 0)
        return -1;
    for (char *line = text; line && *line;
         line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        char opcode[32];
        double value;
        unsigned i = 0;

        if (sscanf(line, "mobula_fuse_requests_total{opcode=\"%31[^\"]\"} %lf", opcode, &value) !=
            2)
            continue;
        if (strncmp(opcode, "RELEASE", 7) != 0)
            total = (total < 0 ? 0 : total) + (int64_t)value;
        while (i < 63 && known[i].opcode[0] && strcmp(known[i].opcode, opcode) != 0)
            i++;
        if (print && (int64_t)value - known[i].count >= 50)
            fprintf(stderr, "bench:   %s %+" PRId64 "\n", opcode, (int64_t)value - known[i].count);
        snprintf(known[i].opcode, sizeof(known[i].opcode), "%s", opcode);
        known[i].count = (int64_t)value;
    }
    return total;
}

static double trips_of(const char *key, unsigned count, void (*operation)(unsigned number))
{
    int64_t overhead = requests_total(false), before = requests_total(false), after;

    overhead = before - overhead;
    for (unsigned i = 0; i < count; i++)
        operation(i);
    fprintf(stderr, "bench: requests of %u times %s:\n", count, key);
    after = requests_total(true);
    if (before < 0)
        return -1;
    figure_single(key, (double)(after - before - overhead) / count, "round trips");
    return 0;
}

static char trip_ids[200][41];

static void trip_put(unsigned number)
{
    char data[SMALL_BYTES] = "x";

    bench_put(bench_path("staging/bench/trip%u", number), data, sizeof(data));
}

static void trip_get(unsigned number)
{
    char data[2 * SMALL_BYTES];

    bench_get(mount_object_path(trip_ids[number]), data, sizeof(data));
}

void bench_round_trips(void)
{
    unsigned count = MOB_ARRAY_LENGTH(trip_ids);

    if (trips_of("trips_put", count, trip_put) < 0)
        fprintf(stderr, "bench: MNT/metrics has no mobula_fuse_requests_total: no round trips\n");
    for (unsigned i = 0; i < count; i++)
        bench_link_id(bench_path("staging/bench/trip%u", i), trip_ids[i]);
    trips_of("trips_get_cold", count, trip_get);
    trips_of("trips_get_warm", count, trip_get);
    for (unsigned i = 0; i < count; i++)
        if (unlink(bench_path("staging/bench/trip%u", i)) < 0)
            bench_fail("unlink", "trip");
}

/* --- an object with many references --- */

static double references_once(const char *list, size_t bytes, char *buffer)
{
    double began = bench_seconds();
    const char *path = bench_path("staging/bench/list");
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    size_t done = 0;

    if (fd < 0 || mob_write_full(fd, list, bytes) < 0)
        bench_fail("write", path);
    if (fsetxattr(fd, "user.mobula.refs", "content", 7, 0) < 0)
        bench_fail("fsetxattr", path);
    if (close(fd) < 0)
        bench_fail("close", path);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && done < bytes) {
        ssize_t got = read(fd, buffer + done, bytes - done);

        if (got <= 0)
            bench_fail("read", path);
        done += (size_t)got;
    }
    if (fd < 0 || memcmp(buffer, list, bytes) != 0)
        bench_fail("compare", path);
    close(fd);
    return bench_seconds() - began;
}

void bench_references(void)
{
    struct figure figure = {.key = "refs_10k", .unit = "1/s"};
    unsigned count = bench_scaled(10000, 100);
    size_t bytes = (size_t)count * 41;
    char *list = malloc(bytes + 1), *buffer = malloc(bytes + 1);
    char id[41];

    if (!list || !buffer || mkdir(bench_path("staging/bench/refs"), 0755) < 0)
        bench_fail("mkdir", "staging/bench/refs");
    for (unsigned i = 0; i < count; i++) {
        bench_put(bench_path("staging/bench/refs/%u", i), &i, sizeof(i));
        bench_link_id(bench_path("staging/bench/refs/%u", i), id);
        snprintf(list + (size_t)i * 41, 42, "%s\n", id);
    }
    for (unsigned run = 0; run < bench_options.runs; run++) {
        figure_add(&figure, 1 / references_once(list, bytes, buffer));
        if (unlink(bench_path("staging/bench/list")) < 0)
            bench_fail("unlink", "staging/bench/list");
    }
    figure_report(&figure);
    for (unsigned i = 0; i < count; i++)
        if (unlink(bench_path("staging/bench/refs/%u", i)) < 0)
            bench_fail("unlink", "staging/bench/refs");
    if (rmdir(bench_path("staging/bench/refs")) < 0)
        bench_fail("rmdir", "staging/bench/refs");
    free(list);
    free(buffer);
}
