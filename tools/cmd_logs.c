/* mobula logs: what a job has written to its standard output and error. */
#include "tools/cli_job.h"

#include <signal.h>
#include <string.h>

static const char help[] =
    "Usage: mobula logs [-f] JOB\n"
    "Print what a job has written: its standard output to standard output, its standard\n"
    "error to standard error. JOB is an ID or a name in run/.\n"
    "\n"
    "  -f, --follow       go on until the job ends\n"
    "      --mount DIR    the mount to use\n"
    "\n"
    "Example:\n"
    "  mobula logs -f $(echo '{\"command\": [\"date\"]}' | mobula submit)\n";

/* What is there now, once. */
static errint_t print_now(const struct cli_mount *mount, const struct mob_id *job,
                          struct mob_error *err)
{
    static const char *const names[] = {"stdout", "stderr"};
    errint_t error = 0;
    for (int i = 0; i < 2 && !error; i++) {
        struct cli_stream stream;
        bool moved = false, reading = false;
        cli_stream_init(&stream, job, names[i], i ? STDERR_FILENO : STDOUT_FILENO);
        error = cli_stream_pump(mount, &stream, true, &moved, &reading);
        cli_stream_close(&stream);
        if (error)
            mob_error_set(err, reading ? error : -EIO, "%s: %s",
                          reading ? stream.path : "cannot write", cli_errno_text(error));
    }
    return error;
}

/* What neither its output nor its exit status tells: that its spec was refused, say. */
static void note_end(const struct cli *cli, const struct cli_mount *mount, const struct mob_id *job)
{
    struct cli_job_end end;
    cleanup_fd int watch = cli_job_watch(mount, job);
    cli_job_end(mount, job, watch, &end);
    if (watch >= 0 && end.over && cli_job_needs_words(&end))
        cli_note(cli, "%s%s%s", end.state, *end.sentence ? ": " : "", end.sentence);
}

static int run(struct cli *cli, int argc, char **argv)
{
    static const struct option longs[] = {
        CLI_COMMON_OPTIONS, {"follow", no_argument, NULL, 'f'}, {NULL, 0, NULL, 0}};
    bool follow = false;
    while (cli_getopt(cli, argc, argv, "f", longs) != -1)
        follow = true;
    if (argc - optind != 1)
        cli_usage(cli, "expected one JOB");
    struct mob_error err = {0};
    cleanup_mount struct cli_mount mount = CLI_MOUNT_NONE;
    struct cli_target target;
    if (cli_mount_find(cli, &mount, &err) || cli_target_job(&mount, argv[optind], &target, &err))
        return cli_report(cli, &err);
    struct cli_job_end end = {.over = true};
    errint_t error = follow ? cli_job_follow(&mount, &target.id, -1, false, &end, &err)
                            : print_now(&mount, &target.id, &err);
    if (error)
        return cli_report(cli, &err);
    note_end(cli, &mount, &target.id);
    return EX_OK;
}

const struct cli_command cmd_logs = {"logs", "print what a job has written", help, run};
