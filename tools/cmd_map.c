/* mobula map: one job for each argument, results in the order of the arguments. */
#include "tools/cli_job.h"
#include "tools/cli_lines.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

static const char help[] =
    "Usage: mobula map [-j N] [--cpus N] [--timeout S] [--] COMMAND [{}] ::: ARG...\n"
    "Run COMMAND once for each ARG, as jobs; print their output in the order of the ARGs.\n"
    "An ARG is a file (which is put first), an ID, or a name in staging/ or run/; '{}' becomes\n"
    "its path, and is appended if COMMAND has none. Without ':::' ARGs come from standard\n"
    "input, one a line.\n"
    "\n"
    "  -0, --null         each ARG on standard input ends with a 0, as from 'find -print0'\n"
    "  -j, --jobs N       so many jobs in flight at once (default 256; how many run is up to\n"
    "                     the node's CPUs)\n"
    "  -c, --cpus N       CPUs that each job takes (default 1)\n"
    "  -t, --timeout S    end a job after this time\n"
    "      --mount DIR    the mount to use\n"
    "\n"
    "Status: how many jobs failed; 101 for more than 100.\n"
    "\n"
    "Example:\n"
    "  mobula map -- wc -c {} ::: /etc/passwd /etc/group\n";

/* So many jobs may be between submission and printing: a slow first job stops the flow there. */
enum { WINDOW = 16384, DEFAULT_IN_FLIGHT = 256, MOST_FAILURES_TOLD = 101, OWN_DESCRIPTORS = 24 };

struct map_job {
    struct mob_id id;
    int watch; /* -1 = it is over, or was never made */
    char *argument;
    bool made;
    struct cli_job_end end;
};

struct map {
    const struct cli *cli;
    struct cli_mount mount;
    char **command;   /* ends in NULL */
    bool has_place;   /* one of them is {} */
    char **arguments; /* NULL: from `lines` */
    struct cli_lines lines;
    double cpus;
    uint64_t timeout_ns;
    char directory[48];          /* run/.map-PID-RANDOM */
    uint64_t submitted, printed; /* numbers of the next ones */
    uint64_t over, failed;
    bool no_more, waits_for_line;
    unsigned in_flight, limit;
    struct map_job *window[WINDOW];
    struct pollfd *polls; /* [0] wake, [1] standard input, then jobs */
    uint64_t *numbers;
    struct cli_progress progress;
};

static struct map_job *job_at(struct map *map, uint64_t number)
{
    return map->window[number % WINDOW];
}

static void job_path(const struct map *map, uint64_t number, char out[96])
{
    snprintf(out, 96, "%s/%llu", map->directory, (unsigned long long)number);
}

static void say(struct map *map, const char *argument, const char *sentence)
{
    cli_progress_clear(&map->progress);
    cli_note(map->cli, "%s: %s", argument, sentence);
}

/* --- arguments --- */

/* The next argument: 1, 0 at the end, -EAGAIN, or another negative errno. */
static int next_argument(struct map *map, const char **out)
{
    if (map->arguments) {
        *out = *map->arguments;
        return *out ? map->arguments++, 1 : 0;
    }
    for (;;) {
        int got = cli_lines_next(&map->lines, out);
        if (got != 1 || **out)
            return got; /* empty lines are skipped */
    }
}

static errint_t put_file(struct map *map, const char *path, struct cli_staged *staged,
                         struct mob_id *object, struct mob_error *err)
{
    char name[96];
    struct stat st;
    cleanup_fd int in = open(path, O_RDONLY | O_CLOEXEC);
    if (in < 0 || fstat(in, &st))
        return mob_error_set(err, -errno, "%s", strerror(errno));
    if (S_ISDIR(st.st_mode))
        return mob_error_set(err, -EISDIR, "is a directory");
    snprintf(name, sizeof name, "staging/%s-%llu", map->directory + strlen("run/"),
             (unsigned long long)map->submitted);
    errint_t error = cli_stage_begin_at(&map->mount, name, 0666 | (st.st_mode & 0111), staged, err);
    if (error)
        return error;
    bool reading;
    error = cli_copy(in, staged->fd, NULL, &reading, NULL);
    if (error)
        return mob_error_set(err, error, "%s%s",
                             reading ? "" : "cannot write to the store: ", cli_errno_text(error));
    return cli_stage_commit(&map->mount, staged, object, err);
}

/* A file outside of the mount is put; all else names an object. `staged` holds what was put until
 * the job does. */
static errint_t argument_object(struct map *map, const char *argument, struct cli_staged *staged,
                                struct mob_id *object, struct mob_error *err)
{
    struct stat st, root;
    struct mob_id id;
    struct cli_target target;
    if (!mob_id_parse(argument, strlen(argument), &id) && !stat(argument, &st) &&
        !fstat(map->mount.fd, &root) && st.st_dev != root.st_dev)
        return put_file(map, argument, staged, object, err);
    errint_t error = cli_target_object(&map->mount, argument, &target, err);
    if (!error)
        *object = target.id;
    return error;
}

/* --- submission --- */

static json_t *make_spec(const struct map *map, const struct mob_id *object)
{
    json_t *command = json_array();
    for (char **word = map->command; *word; word++)
        json_array_append_new(command,
                              strcmp(*word, "{}") ? cli_spec_text(*word) : cli_spec_object(object));
    if (!map->has_place)
        json_array_append_new(command, cli_spec_object(object));
    json_t *spec = json_pack("{s:o}", "command", command);
    cli_spec_limits(spec, map->cpus, map->timeout_ns);
    return spec;
}

static errint_t drop(struct map *map, struct map_job *job, struct mob_error *err)
{
    struct cli_staged staged = {.fd = -1};
    struct mob_id object;
    char path[96];
    errint_t error = argument_object(map, job->argument, &staged, &object, err);
    if (!error) {
        json_t *spec = make_spec(map, &object);
        job_path(map, map->submitted, path);
        error = cli_job_drop(&map->mount, path, spec, &job->id, err);
        json_decref(spec);
    }
    cli_stage_abort(&map->mount, &staged); /* the job holds the object from here on */
    if (error)
        return error;
    job->made = true;
    job->watch = cli_job_watch(&map->mount, &job->id);
    return job->watch < 0 ? mob_error_set(err, job->watch, "cannot follow its job: %s",
                                          cli_errno_text(job->watch))
                          : 0;
}

/* Takes `argument` on. An error that would meet every other argument too (no room, a dead daemon)
 * is returned; one of this argument alone counts as its failure. */
static errint_t submit(struct map *map, const char *argument)
{
    struct mob_error err = {0};
    struct map_job *job = calloc(1, sizeof *job);
    if (!job || !(job->argument = strdup(argument))) {
        free(job);
        return -ENOMEM;
    }
    job->watch = -1;
    map->window[map->submitted % WINDOW] = job;
    errint_t error = drop(map, job, &err);
    map->submitted++;
    if (!error) {
        map->polls[2 + map->in_flight] = (struct pollfd){.fd = job->watch, .events = POLLIN};
        map->numbers[map->in_flight++] = map->submitted - 1;
        return 0;
    }
    char sentence[600];
    mob_error_format(&err, sentence, sizeof sentence);
    size_t length = strlen(argument);
    bool names_it = !strncmp(sentence, argument, length) && sentence[length] == ':';
    say(map, argument, names_it ? sentence + length + 2 : sentence);
    map->over++;
    map->failed++;
    bool hopeless = error == -ENOSPC || error == -ENOTCONN || error == -EMFILE || error == -ENOMEM;
    return hopeless ? error : 0;
}

static errint_t submit_more(struct map *map)
{
    map->waits_for_line = false;
    while (!map->no_more && map->in_flight < map->limit && map->submitted - map->printed < WINDOW) {
        const char *argument;
        int got = next_argument(map, &argument);
        if (got == -EAGAIN) {
            map->waits_for_line = true;
            return 0;
        }
        map->no_more = got <= 0;
        if (got < 0)
            say(map, "standard input",
                got == -EILSEQ ? "a line has a 0 in it; from 'find -print0' read with --null"
                               : cli_errno_text(got));
        if (got <= 0)
            return got;
        errint_t error = submit(map, argument);
        if (error)
            return error;
    }
    return 0;
}

/* --- ends --- */

/* Passes on what the job wrote; the errno of standard output, where it can't take it. */
static errint_t print_streams(struct map *map, const struct map_job *job)
{
    static const char *const names[] = {"stdout", "stderr"};
    for (int i = 0; i < 2; i++) {
        struct cli_stream stream;
        bool moved = false, reading = false;
        cli_stream_init(&stream, &job->id, names[i], i ? STDERR_FILENO : STDOUT_FILENO);
        errint_t error = cli_stream_pump(&map->mount, &stream, true, &moved, &reading);
        cli_stream_close(&stream);
        if (error && !reading)
            return error;
        if (error && error != -ENOENT)
            say(map, job->argument, cli_errno_text(error));
    }
    return 0;
}

static errint_t print_job(struct map *map, uint64_t number, bool with_output)
{
    char path[96];
    struct map_job *job = job_at(map, number);
    errint_t error = 0;
    if (job->made && with_output) {
        cli_progress_clear(&map->progress);
        error = print_streams(map, job);
        if (cli_job_needs_words(&job->end))
            say(map, job->argument, *job->end.sentence ? job->end.sentence : job->end.state);
    }
    job_path(map, number, path);
    if (job->made)
        unlinkat(map->mount.fd, path, 0);
    free(job->argument);
    free(job);
    map->window[number % WINDOW] = NULL;
    return error;
}

/* Prints from the front as far as everything is over. */
static errint_t print_in_order(struct map *map)
{
    while (map->printed < map->submitted && job_at(map, map->printed)->watch < 0) {
        errint_t error = print_job(map, map->printed, true);
        map->printed++;
        if (error && error != -EPIPE)
            say(map, "cannot pass on what a job wrote", cli_errno_text(error));
        if (error)
            return error;
    }
    return 0;
}

static void collect_ends(struct map *map)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < map->in_flight; i++) {
        struct pollfd *poller = &map->polls[2 + i];
        struct map_job *job = job_at(map, map->numbers[i]);
        if (poller->revents)
            cli_job_end(&map->mount, &job->id, job->watch, &job->end);
        if (!job->end.over) {
            map->polls[2 + kept] = *poller;
            map->numbers[kept++] = map->numbers[i];
            continue;
        }
        mob_cleanup_fd(&job->watch);
        map->over++;
        map->failed += cli_job_exit(&job->end) != 0;
    }
    map->in_flight = kept;
}

static void wait_for_ends(struct map *map, int wait_ms)
{
    map->polls[1].fd = map->waits_for_line ? map->lines.fd : -1;
    int found = poll(map->polls, 2 + map->in_flight, wait_ms);
    if (found > 0)
        collect_ends(map);
    if (cli_progress_due(&map->progress))
        cli_progress_show(&map->progress, "%llu done, %llu failed, %u in flight",
                          (unsigned long long)map->over, (unsigned long long)map->failed,
                          map->in_flight);
}

/* Cancels what is in flight, waits for its end and removes every name. */
static void give_up(struct map *map)
{
    for (unsigned i = 0; i < map->in_flight; i++) {
        errint_t error =
            cli_job_control(&map->mount, &job_at(map, map->numbers[i])->id, "cancel\n");
        (void)error; /* it may have ended just now, or the daemon be dead */
    }
    uint64_t deadline = cli_deadline(UINT64_C(10000000000));
    map->polls[0].fd = -1;
    map->waits_for_line = false;
    while (map->in_flight && cli_poll_ms(deadline, 1))
        wait_for_ends(map, 200);
    for (; map->printed < map->submitted; map->printed++) {
        mob_cleanup_fd(&job_at(map, map->printed)->watch);
        errint_t error = print_job(map, map->printed, false);
        (void)error; /* nothing is printed */
    }
}

static int map_all(struct map *map)
{
    errint_t error = 0;
    while (!error && !cli_caught_signal()) {
        error = submit_more(map);
        if (!error)
            error = print_in_order(map);
        if (error || (map->no_more && map->printed == map->submitted))
            break;
        wait_for_ends(map, 500);
    }
    cli_progress_clear(&map->progress);
    if (!error && !cli_caught_signal())
        return map->failed < MOST_FAILURES_TOLD ? (int)map->failed : MOST_FAILURES_TOLD;
    give_up(map);
    if (cli_caught_signal())
        return 128 + cli_caught_signal();
    if (error == -EPIPE)
        return 128 + SIGPIPE;
    return cli_fail(map->cli, cli_status(error), "stopped: %s", cli_errno_text(error));
}

/* --- set-up --- */

static void split_arguments(struct map *map, char **argv)
{
    map->command = argv;
    for (char **word = argv; *word; word++) {
        if (!strcmp(*word, ":::")) {
            *word = NULL;
            map->arguments = word + 1;
            break;
        }
        if (!strncmp(*word, ":::", 3))
            cli_usage(map->cli, "'%s': expected ':::' before the ARGs, or ARGs on standard input",
                      *word);
        if (!strcmp(*word, "{}"))
            map->has_place = true;
        else if (strstr(*word, "{}"))
            cli_usage(map->cli,
                      "'%s': {} must be an argument of its own, as in: sh -c 'wc < \"$1\"' sh {}",
                      *word);
        if (!mob_is_utf8(*word, strlen(*word)))
            cli_usage(map->cli, "'%s' is not UTF-8, and a job's spec is", *word);
    }
    if (!*map->command)
        cli_usage(map->cli, "expected a COMMAND");
    if (!map->arguments && isatty(map->lines.fd))
        cli_note(map->cli, "reading ARGs from the terminal, one a line, to Ctrl-D");
}

static int prepare(struct map *map)
{
    struct mob_error err = {0};
    unsigned random = 0;
    if (cli_mount_find(map->cli, &map->mount, &err))
        return cli_report(map->cli, &err);
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return cli_fail(map->cli, EX_OSERR, "the kernel gives no random bytes");
    unsigned files = cli_raise_file_limit();
    unsigned most = files > 2 * OWN_DESCRIPTORS ? files - OWN_DESCRIPTORS : OWN_DESCRIPTORS;
    if (map->limit > most)
        map->limit = most;
    map->polls = calloc((size_t)map->limit + 2, sizeof *map->polls);
    map->numbers = calloc((size_t)map->limit + 2, sizeof *map->numbers);
    if (!map->polls || !map->numbers)
        return cli_fail(map->cli, EX_OSERR, "no memory");
    map->polls[0] = (struct pollfd){.fd = cli_catch_signals(), .events = POLLIN};
    map->polls[1] = (struct pollfd){.fd = -1, .events = POLLIN};
    snprintf(map->directory, sizeof map->directory, "run/.map-%d-%08x", (int)getpid(), random);
    if (mkdirat(map->mount.fd, map->directory, 0777))
        return cli_fail(map->cli, cli_status(-errno), "cannot make %s/%s: %s", map->mount.path,
                        map->directory, strerror(errno));
    return EX_OK;
}

static int run_map(struct map *map)
{
    int status = prepare(map);
    if (!status) {
        cli_progress_start(&map->progress);
        status = map_all(map);
        unlinkat(map->mount.fd, map->directory, AT_REMOVEDIR);
    }
    free(map->polls);
    free(map->numbers);
    cli_lines_free(&map->lines);
    cli_mount_close(&map->mount);
    return status;
}

static int run(struct cli *cli, int argc, char **argv)
{
    static const struct option longs[] = {CLI_COMMON_OPTIONS,
                                          {"null", no_argument, NULL, '0'},
                                          {"jobs", required_argument, NULL, 'j'},
                                          {"cpus", required_argument, NULL, 'c'},
                                          {"timeout", required_argument, NULL, 't'},
                                          {NULL, 0, NULL, 0}};
    struct map *map = calloc(1, sizeof *map);
    if (!map)
        return cli_fail(cli, EX_OSERR, "no memory");
    map->cli = cli;
    map->mount.fd = -1;
    map->lines = (struct cli_lines){.fd = STDIN_FILENO, .end = '\n'};
    map->limit = DEFAULT_IN_FLIGHT;
    for (int option; (option = cli_getopt(cli, argc, argv, "+0j:c:t:", longs)) != -1;) {
        if (option == '0')
            map->lines.end = '\0';
        else if (option == 'j')
            map->limit = (unsigned)cli_parse_count(cli, "--jobs", optarg, 1, WINDOW);
        else if (option == 'c')
            map->cpus = cli_parse_cpus(cli, "--cpus", optarg);
        else
            map->timeout_ns = cli_parse_duration(cli, "--timeout", optarg);
    }
    split_arguments(map, argv + optind);
    int status = run_map(map);
    free(map);
    return status;
}

const struct cli_command cmd_map = {"map", "run a command for each of many files or objects", help,
                                    run};
