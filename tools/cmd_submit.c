/* mobula submit: a job spec, or a script, becomes a job. */
#include "tools/cli_job.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

static const char help[] =
    "Usage: mobula submit [FILE|-]... [--name NAME] [--json]\n"
    "Submit job specs (JSON, or '#!' scripts; see mobula-job(5)); print the ID of each job.\n"
    "\n"
    "  -n, --name NAME    the name in run/ (default: the ID); a name that exists is replaced\n"
    "      --json         print JSON: the IDs of job and result\n"
    "      --mount DIR    the mount to use\n"
    "\n"
    "A spec that is refused: FILE:LINE:COLUMN: what was expected, and status 65.\n"
    "\n"
    "Example:\n"
    "  echo '{\"command\": [\"date\"]}' | mobula submit\n";

struct submit {
    const struct cli *cli;
    const struct cli_mount *mount;
    const char *name;
    json_t *list;
};

static void refuse(const struct cli *cli, const char *label, const struct mob_error *err)
{
    char place[48] = "";
    if (err->line)
        snprintf(place, sizeof place, "%u:%u:", err->line, err->column);
    cli_note(cli, "%s:%s %s", strcmp(label, "-") ? label : "standard input", place, err->message);
}

static void show(const struct submit *submit, const struct mob_id *job, const char *path)
{
    char id[MOB_ID_STRING_BYTES], result_id[MOB_ID_STRING_BYTES];
    struct mob_id result;
    struct mob_error err = {0};
    mob_id_format(job, id);
    if (!submit->cli->json) {
        printf("%s\n", id);
        return;
    }
    bool has_result = !cli_job_result(submit->mount, job, &result, &err);
    json_array_append_new(submit->list,
                          json_pack("{s:s, s:s*, s:s*}", "id", id, "result",
                                    has_result ? mob_id_format(&result, result_id) : NULL, "name",
                                    mob_is_utf8(path, strlen(path)) ? path : NULL));
}

/* From an open spec to a job under its temporary name. */
static int stage(const struct submit *submit, int in, const char *label, struct cli_staged *staged,
                 struct mob_id *job)
{
    struct mob_error err = {0};
    bool reading = false;
    errint_t error = cli_copy(in, staged->fd, NULL, &reading, NULL);
    if (error)
        return cli_fail(submit->cli, cli_status(error), "%s: %s", reading ? label : "the store",
                        cli_errno_text(error));
    error = cli_stage_commit(submit->mount, staged, job, &err);
    if (error == -EINVAL) {
        cli_job_error(submit->mount, job, error, &err);
        refuse(submit->cli, label, &err);
        return EX_DATAERR;
    }
    return error ? cli_report(submit->cli, &err) : EX_OK;
}

static int submit_one(const struct submit *submit, const char *label)
{
    struct mob_error err = {0};
    bool from_stdin = !strcmp(label, "-");
    cleanup_fd int opened = from_stdin ? -1 : open(label, O_RDONLY | O_CLOEXEC);
    int in = from_stdin ? STDIN_FILENO : opened;
    if (in < 0)
        return cli_fail(submit->cli, cli_status(-errno), "%s: %s", label, strerror(errno));
    struct stat st;
    if (!fstat(in, &st) && S_ISDIR(st.st_mode))
        return cli_fail(submit->cli, EX_NOINPUT, "%s: is a directory", label);
    struct cli_staged staged;
    if (cli_stage_begin(submit->mount, "run", "submit", 0666, &staged, &err))
        return cli_report(submit->cli, &err);
    struct mob_id job;
    char path[PATH_MAX], id[MOB_ID_STRING_BYTES];
    int status = stage(submit, in, label, &staged, &job);
    if (!status) {
        snprintf(path, sizeof path, "run/%s",
                 submit->name ? submit->name : mob_id_format(&job, id));
        if (cli_stage_rename(submit->mount, &staged, path, &err)) {
            errint_t cancelled = cli_job_control(submit->mount, &job, "cancel\n");
            (void)cancelled; /* it may have ended already */
            status = cli_fail(submit->cli, cli_name_status(err.code), "%s", err.message);
        }
    }
    if (status)
        cli_stage_abort(submit->mount, &staged);
    else
        show(submit, &job, path);
    return status;
}

static int run(struct cli *cli, int argc, char **argv)
{
    static const struct option longs[] = {CLI_COMMON_OPTIONS,
                                          CLI_JSON_OPTION,
                                          {"name", required_argument, NULL, 'n'},
                                          {NULL, 0, NULL, 0}};
    cleanup_mount struct cli_mount mount = CLI_MOUNT_NONE;
    struct submit submit = {.cli = cli, .mount = &mount};
    while (cli_getopt(cli, argc, argv, "n:", longs) != -1)
        submit.name = optarg;
    char *only_stdin[] = {(char[]){"-"}, NULL};
    char **files = argc > optind ? argv + optind : only_stdin;
    int count = argc > optind ? argc - optind : 1;
    if (submit.name)
        cli_check_name(cli, submit.name);
    if (submit.name && count > 1)
        cli_usage(cli, "--name: one name for %d jobs", count);
    struct mob_error err = {0};
    if (cli_mount_find(cli, &mount, &err))
        return cli_report(cli, &err);
    submit.list = cli->json ? json_array() : NULL;
    int status = EX_OK;
    for (int i = 0; i < count; i++) {
        int one = submit_one(&submit, files[i]);
        status = status ? status : one;
    }
    if (cli->json)
        cli_print_json(submit.list);
    return status;
}

const struct cli_command cmd_submit = {"submit", "submit job specs and print the jobs' IDs", help,
                                       run};
