/* mobula cancel: jobs end before they are done. */
#include "tools/cli_job.h"

#include <string.h>

static const char help[] =
    "Usage: mobula cancel JOB...\n"
    "Cancel jobs: SIGTERM to all of their processes, SIGKILL to those that stay.\n"
    "JOB is an ID or a name in run/. A job that has ended is no error.\n"
    "\n"
    "      --mount DIR    the mount to use\n"
    "\n"
    "Example:\n"
    "  mobula cancel $(echo '{\"command\": [\"sleep\", \"600\"]}' | mobula submit)\n";

static int cancel_one(const struct cli *cli, const struct cli_mount *mount, const char *text)
{
    struct mob_error err = {0};
    struct cli_target target;
    if (cli_target_job(mount, text, &target, &err))
        return cli_report(cli, &err);
    errint_t error = cli_job_control(mount, &target.id, "cancel\n");
    if (!error)
        return EX_OK;
    if (error == -ESRCH) {
        char path[64];
        snprintf(path, sizeof path, "jobs/%s/state", target.id_text);
        cleanup_free char *state = cli_mount_read(mount, path);
        cli_note(cli, "%s: has ended already (%s)", text, state ? state : "gone");
        return EX_OK;
    }
    return cli_fail(cli, cli_status(error), "%s: %s", text,
                    error == -EPERM || error == -EACCES ? "is someone else's job"
                                                        : cli_errno_text(error));
}

static int run(struct cli *cli, int argc, char **argv)
{
    static const struct option longs[] = {CLI_COMMON_OPTIONS, {NULL, 0, NULL, 0}};
    while (cli_getopt(cli, argc, argv, "", longs) != -1)
        continue;
    if (argc == optind)
        cli_usage(cli, "expected at least one JOB");
    struct mob_error err = {0};
    cleanup_mount struct cli_mount mount = CLI_MOUNT_NONE;
    if (cli_mount_find(cli, &mount, &err))
        return cli_report(cli, &err);
    int status = EX_OK;
    for (int i = optind; i < argc; i++) {
        int one = cancel_one(cli, &mount, argv[i]);
        status = status ? status : one;
    }
    return status;
}

const struct cli_command cmd_cancel = {"cancel", "cancel jobs", help, run};
