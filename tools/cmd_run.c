/* mobula run: a command as a job, as if it ran here. */
#include "tools/cli_job.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/random.h>

static const char help[] =
    "Usage: mobula run [--cpus N] [--timeout S] [-i ID]... [--] COMMAND [ARG]...\n"
    "Run COMMAND as a job, pass its output on as it comes, and exit as it did.\n"
    "\n"
    "  -i, --input ID     an object by value: replaces the next argument that is '{}', or is\n"
    "                     appended when none is left (may be repeated; ID or NAME)\n"
    "      --stdin ID|-   what the job reads: an object, or '-' for what is piped in here\n"
    "  -c, --cpus N       CPUs that it takes (default 1; fractions are fine)\n"
    "  -t, --timeout S    end it after this time (seconds, or 250ms, 10m, 2h): status 124\n"
    "      --mount DIR    the mount to use\n"
    "\n"
    "Ctrl-C cancels the job. Status: the job's own; 124 timed out; 65 refused.\n"
    "\n"
    "Example:\n"
    "  mobula run -i $(mobula put /etc/passwd) -- sort {}\n";

struct run_options {
    const char **inputs;
    size_t input_count;
    const char *standard_input;
    double cpus;
    uint64_t timeout_ns;
};

/* The ID of an argument of --input or --stdin, as {"object": ID}. NULL after a sentence, *status
 * set. */
static json_t *input_element(const struct cli *cli, const struct cli_mount *mount,
                             const char *option, const char *text, int *status)
{
    struct cli_target target;
    struct mob_error err = {0};
    if (cli_target_object(mount, text, &target, &err)) {
        *status = cli_fail(cli, cli_status(err.code), "%s: %s", option, err.message);
        return NULL;
    }
    return cli_spec_object(&target.id);
}

static json_t *make_command(const struct cli *cli, const struct cli_mount *mount,
                            const struct run_options *options, char **argv, int *status)
{
    json_t *command = json_array();
    size_t input = 0;
    for (; *argv && !*status; argv++) {
        bool replace = !strcmp(*argv, "{}") && input < options->input_count;
        json_t *element =
            replace ? input_element(cli, mount, "--input", options->inputs[input++], status)
                    : cli_spec_text(*argv);
        if (!*status && json_array_append_new(command, element))
            *status = cli_fail(cli, EX_DATAERR, "'%s' is not UTF-8, and a job's spec is", *argv);
    }
    for (; input < options->input_count && !*status; input++)
        json_array_append_new(command,
                              input_element(cli, mount, "--input", options->inputs[input], status));
    return command;
}

/* Puts what is piped in; the name goes with the job's. */
static json_t *put_standard_input(const struct cli *cli, const struct cli_mount *mount,
                                  struct cli_staged *staged, int *status)
{
    struct mob_error err = {0};
    struct mob_id object;
    bool reading = false;
    errint_t error = cli_stage_begin(mount, "staging", "run-stdin", 0666, staged, &err);
    if (error) {
        *status = cli_report(cli, &err);
        return NULL;
    }
    error = cli_copy(STDIN_FILENO, staged->fd, NULL, &reading, NULL);
    if (error)
        *status = cli_fail(cli, EX_IOERR, "%s: %s", reading ? "standard input" : "the store",
                           cli_errno_text(error));
    else if (cli_stage_commit(mount, staged, &object, &err))
        *status = cli_report(cli, &err);
    return *status ? NULL : cli_spec_object(&object);
}

static int drop(const struct cli *cli, const struct cli_mount *mount,
                const struct run_options *options, char **argv, const char *path,
                struct mob_id *job)
{
    struct mob_error err = {0};
    struct cli_staged input = {.fd = -1};
    int status = EX_OK;
    json_t *spec = json_object();
    json_object_set_new(spec, "command", make_command(cli, mount, options, argv, &status));
    if (!status && options->standard_input) {
        json_t *element =
            strcmp(options->standard_input, "-")
                ? input_element(cli, mount, "--stdin", options->standard_input, &status)
                : put_standard_input(cli, mount, &input, &status);
        json_object_set_new(spec, "stdin", element);
    }
    cli_spec_limits(spec, options->cpus, options->timeout_ns);
    if (!status && cli_job_drop(mount, path, spec, job, &err))
        status = cli_report(cli, &err);
    json_decref(spec);
    cli_stage_abort(mount, &input); /* the job holds it now */
    return status;
}

/* After the job: what a person should know beyond its own output. */
static int conclude(const struct cli *cli, const struct mob_id *job, const struct cli_job_end *end)
{
    char id[MOB_ID_STRING_BYTES];
    int caught = cli_caught_signal();
    if (!end->over)
        return caught ? 128 + caught : EX_UNAVAILABLE;
    if (caught && !strcmp(end->state, "cancelled"))
        return 128 + caught;
    if (cli_job_needs_words(end) && *end->sentence)
        cli_note(cli, "%s", end->sentence);
    else if (cli_job_needs_words(end))
        cli_note(cli, "job %s: %s", mob_id_format(job, id), *end->state ? end->state : "gone");
    return cli_job_exit(end);
}

static int run_job(const struct cli *cli, const struct cli_mount *mount,
                   const struct run_options *options, char **argv)
{
    char path[64];
    unsigned random = 0;
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return cli_fail(cli, EX_OSERR, "the kernel gives no random bytes");
    snprintf(path, sizeof path, "run/.run-%d-%08x", (int)getpid(), random);
    int wake_fd = cli_catch_signals();
    struct mob_id job;
    int status = drop(cli, mount, options, argv, path, &job);
    if (status)
        return status;
    wake_fd = cli_catch_signals(); /* putting the input had handlers of its own */
    struct mob_error err = {0};
    struct cli_job_end end;
    if (cli_job_follow(mount, &job, wake_fd, true, &end, &err)) {
        errint_t cancelled = cli_job_control(mount, &job, "cancel\n");
        (void)cancelled; /* it may have ended, or the daemon be dead */
        status = err.code == -EPIPE ? 128 + SIGPIPE : cli_report(cli, &err);
    } else {
        status = conclude(cli, &job, &end);
    }
    unlinkat(mount->fd, path, 0);
    return status;
}

static int run(struct cli *cli, int argc, char **argv)
{
    enum { OPTION_STDIN = CLI_OPTION_FIRST, OPTION_MEMORY };
    static const struct option longs[] = {CLI_COMMON_OPTIONS,
                                          {"input", required_argument, NULL, 'i'},
                                          {"cpus", required_argument, NULL, 'c'},
                                          {"timeout", required_argument, NULL, 't'},
                                          {"stdin", required_argument, NULL, OPTION_STDIN},
                                          {"memory", required_argument, NULL, OPTION_MEMORY},
                                          {NULL, 0, NULL, 0}};
    cleanup_free const char **inputs = calloc((size_t)argc + 1, sizeof *inputs);
    struct run_options options = {.inputs = inputs};
    if (!inputs)
        return cli_fail(cli, EX_OSERR, "no memory");
    for (int option; (option = cli_getopt(cli, argc, argv, "+i:c:t:", longs)) != -1;) {
        if (option == 'i')
            inputs[options.input_count++] = optarg;
        else if (option == 'c')
            options.cpus = cli_parse_cpus(cli, "--cpus", optarg);
        else if (option == 't')
            options.timeout_ns = cli_parse_duration(cli, "--timeout", optarg);
        else if (option == OPTION_STDIN)
            options.standard_input = optarg;
        else
            return cli_fail(cli, EX_UNAVAILABLE,
                            "--memory is not supported yet: no release limits a job's memory");
    }
    if (argc == optind)
        cli_usage(cli, "expected a COMMAND");
    struct mob_error err = {0};
    cleanup_mount struct cli_mount mount = CLI_MOUNT_NONE;
    if (cli_mount_find(cli, &mount, &err))
        return cli_report(cli, &err);
    return run_job(cli, &mount, &options, argv + optind);
}

const struct cli_command cmd_run = {"run", "run a command as a job, and exit as it did", help, run};
