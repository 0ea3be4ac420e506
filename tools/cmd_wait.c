/* mobula wait: which of these objects are ready? One poll(2), and no object is fetched. */
#include "tools/cli_object.h"
#include "tools/cli_target.h"

#include <poll.h>
#include <string.h>

static const char help[] =
    "Usage: mobula wait [-n COUNT] [--timeout S] ID...|-\n"
    "Wait for objects, or for the results of jobs; print each as it becomes ready.\n"
    "'-' reads IDs from standard input, one a line.\n"
    "\n"
    "  -n, --count COUNT  end when so many are ready (default: all)\n"
    "  -t, --timeout S    give up after this time (seconds, or 250ms, 10m): status 75;\n"
    "                     0 only looks\n"
    "      --json         print JSON at the end\n"
    "      --mount DIR    the mount to use\n"
    "\n"
    "Status: 0 COUNT are ready; 1 too many failed for that; 75 the timeout ran out.\n"
    "\n"
    "Example:\n"
    "  mobula wait $(echo '{\"command\": [\"sleep\", \"1\"]}' | mobula submit)\n";

struct waiting {
    struct mob_id object;
    char *text;  /* as it was given, which is what gets printed */
    char *never; /* there is no such object, as its job was refused: the reason; or NULL */
};

struct wait {
    const struct cli *cli;
    struct cli_mount mount;
    struct waiting *all;
    size_t count, capacity;
    size_t opened;        /* the first so many have been opened */
    struct pollfd *polls; /* of those still pending */
    size_t *places;       /* polls[i] is of all[places[i]] */
    size_t polling;
    size_t ready, failed, wanted;
    json_t *list;
};

static char *copy(struct wait *wait, const char *text)
{
    char *out = strdup(text);
    if (!out)
        exit(cli_fail(wait->cli, EX_OSERR, "no memory"));
    return out;
}

static void add(struct wait *wait, const char *text)
{
    struct cli_target target = {0};
    struct mob_error err = {0};
    errint_t error = cli_target_object(&wait->mount, text, &target, &err);
    bool never = error == -ENODATA && target.kind == CLI_TARGET_JOB;
    if (error && !never)
        exit(cli_report(wait->cli, &err));
    if (wait->count == wait->capacity) {
        wait->capacity = wait->capacity ? wait->capacity * 2 : 64;
        struct waiting *larger = realloc(wait->all, wait->capacity * sizeof *larger);
        if (!larger)
            exit(cli_fail(wait->cli, EX_OSERR, "no memory"));
        wait->all = larger;
    }
    wait->all[wait->count++] = (struct waiting){.object = target.id,
                                                .text = copy(wait, text),
                                                .never = never ? copy(wait, err.message) : NULL};
}

static void add_lines(struct wait *wait)
{
    cleanup_free char *line = NULL;
    size_t line_bytes = 0;
    while (getline(&line, &line_bytes, stdin) > 0) {
        line[strcspn(line, "\r\n")] = '\0';
        if (*line)
            add(wait, line);
    }
    if (ferror(stdin))
        exit(cli_fail(wait->cli, EX_IOERR, "standard input: %s", strerror(errno)));
}

static void add_json(struct wait *wait, const struct waiting *one, const char *state,
                     const char *sentence)
{
    char id[MOB_ID_STRING_BYTES];
    if (!wait->list)
        return;
    json_array_append_new(wait->list,
                          json_pack("{s:s, s:s*, s:s, s:s*}", "id", mob_id_format(&one->object, id),
                                    "argument",
                                    mob_is_utf8(one->text, strlen(one->text)) ? one->text : NULL,
                                    "state", state, "error", sentence));
}

/* One is over: ready (0) or failed. */
static void settle(struct wait *wait, const struct waiting *one, errint_t state)
{
    if (!state) {
        wait->ready++;
        add_json(wait, one, "ready", NULL);
        if (!wait->cli->json) {
            printf("%s\n", one->text);
            fflush(stdout);
        }
        return;
    }
    struct mob_error err = {0};
    wait->failed++;
    if (one->never)
        mob_error_set(&err, state, "%s: %s", one->text, one->never);
    else
        cli_object_error(&wait->mount, &one->object, one->text, state, &err);
    add_json(wait, one, "failed", err.message);
    if (!wait->cli->json)
        cli_note(wait->cli, "%s", err.message);
}

static bool is_over(const struct wait *wait)
{
    return wait->ready >= wait->wanted || wait->ready + wait->failed == wait->count;
}

/* Opens more, as far as descriptors allow; what is over already is settled at once. */
static void open_more(struct wait *wait, size_t limit)
{
    while (wait->opened < wait->count && wait->polling < limit && !is_over(wait)) {
        const struct waiting *one = &wait->all[wait->opened];
        int fd = one->never ? -ENODATA : cli_object_watch(&wait->mount, &one->object);
        if ((fd == -EMFILE || fd == -ENFILE) && wait->polling)
            return; /* goes on when others are over */
        wait->places[wait->polling] = wait->opened++;
        if (fd < 0)
            settle(wait, one, fd);
        else
            wait->polls[wait->polling++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
}

/* Returns whether any was. */
static bool settle_ready(struct wait *wait)
{
    size_t kept = 0, before = wait->polling;
    for (size_t i = 0; i < wait->polling; i++) {
        errint_t state = -EAGAIN;
        if (wait->polls[i].revents && !is_over(wait))
            state = cli_object_state(wait->polls[i].fd);
        if (state == -EAGAIN) {
            wait->places[kept] = wait->places[i];
            wait->polls[kept++] = wait->polls[i];
            continue;
        }
        settle(wait, &wait->all[wait->places[i]], state);
        close(wait->polls[i].fd);
    }
    wait->polling = kept;
    return kept < before;
}

static int wait_all(struct wait *wait, uint64_t deadline)
{
    enum { OWN_DESCRIPTORS = 16 };
    unsigned files = cli_raise_file_limit();
    size_t limit = files > 2 * OWN_DESCRIPTORS ? files - OWN_DESCRIPTORS : OWN_DESCRIPTORS;
    struct cli_progress progress;
    cli_progress_start(&progress);
    if (isatty(STDOUT_FILENO))
        progress.terminal = false;
    for (;;) {
        open_more(wait, limit);
        if (is_over(wait))
            break;
        int ms = cli_poll_ms(deadline, 500);
        int found = poll(wait->polls, wait->polling, ms);
        if (found < 0 && errno != EINTR)
            return cli_fail(wait->cli, EX_OSERR, "poll: %s", strerror(errno));
        bool settled = found > 0 && settle_ready(wait);
        if (is_over(wait) || (!settled && !cli_poll_ms(deadline, 1)))
            break;
        if (cli_progress_due(&progress))
            cli_progress_show(&progress, "%zu of %zu ready", wait->ready, wait->wanted);
    }
    cli_progress_clear(&progress);
    if (wait->ready >= wait->wanted)
        return EX_OK;
    return is_over(wait) ? 1 : EX_TEMPFAIL;
}

static void release(struct wait *wait)
{
    for (size_t i = 0; i < wait->polling; i++)
        close(wait->polls[i].fd);
    for (size_t i = 0; i < wait->count; i++) {
        free(wait->all[i].text);
        free(wait->all[i].never);
    }
    free(wait->all);
    free(wait->polls);
    free(wait->places);
    cli_mount_close(&wait->mount);
}

static int run(struct cli *cli, int argc, char **argv)
{
    static const struct option longs[] = {CLI_COMMON_OPTIONS,
                                          CLI_JSON_OPTION,
                                          {"count", required_argument, NULL, 'n'},
                                          {"timeout", required_argument, NULL, 't'},
                                          {NULL, 0, NULL, 0}};
    struct wait wait = {.cli = cli, .mount = CLI_MOUNT_NONE};
    uint64_t deadline = CLI_NO_DEADLINE, wanted = 0;
    for (int option; (option = cli_getopt(cli, argc, argv, "n:t:", longs)) != -1;) {
        if (option == 'n')
            wanted = cli_parse_count(cli, "--count", optarg, 1, UINT32_MAX);
        else
            deadline = cli_deadline(cli_parse_duration(cli, "--timeout", optarg));
    }
    if (argc == optind)
        cli_usage(cli, "expected at least one ID, or '-'");
    struct mob_error err = {0};
    if (cli_mount_find(cli, &wait.mount, &err))
        return cli_report(cli, &err);
    for (int i = optind; i < argc; i++) {
        if (!strcmp(argv[i], "-"))
            add_lines(&wait);
        else
            add(&wait, argv[i]);
    }
    if (wanted > wait.count)
        cli_usage(cli, "--count: %llu of only %zu objects", (unsigned long long)wanted, wait.count);
    wait.wanted = wanted ? wanted : wait.count;
    wait.polls = calloc(wait.count + 1, sizeof *wait.polls);
    wait.places = calloc(wait.count + 1, sizeof *wait.places);
    wait.list = cli->json ? json_array() : NULL;
    int status = wait.polls && wait.places ? wait_all(&wait, deadline)
                                           : cli_fail(cli, EX_OSERR, "no memory");
    if (cli->json)
        cli_print_json(wait.list);
    release(&wait);
    return status;
}

const struct cli_command cmd_wait = {"wait", "wait until objects or jobs are ready", help, run};
