/* mobula doctor: what this machine can do, and how to mend what it can't. */
#include "tools/cmd_doctor.h"

#include <stdarg.h>
#include <string.h>

#include "tools/cli_daemon.h"

static const char help[] =
    "Usage: mobula doctor [--state DIR] [--json]\n"
    "       mobula doctor --spill DIR [--json]\n"
    "Check what this machine can do, line by line, and say how to mend what it can't.\n"
    "Status 0: usable (warnings are about speed or limits); 69: not.\n"
    "With --spill: list the objects in a spill directory, and read each to see that it is\n"
    "intact. Status 0: none is damaged; 1: some are.\n"
    "\n"
    "      --state DIR    the state directory to look at (default: that of 'mobula up')\n"
    "      --mount DIR    the mount to look at (default: all)\n"
    "      --spill DIR    the spill directory to list and verify\n"
    "      --json         print JSON\n"
    "\n"
    "Example:\n"
    "  mobula doctor\n"
    "  mobula doctor --spill /var/lib/mobula/node/spill\n";

static const char *const verdicts[] = {"ok", "warn", "fail"};

void doctor_find(struct doctor *doctor, const char *check, enum doctor_verdict verdict,
                 const char *mend, const char *format, ...)
{
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    doctor->failed |= verdict == DOCTOR_FAIL;
    doctor->warnings += verdict == DOCTOR_WARN;
    if (verdict == DOCTOR_OK)
        mend = NULL;
    if (doctor->findings) {
        json_array_append_new(doctor->findings,
                              json_pack("{s:s, s:s, s:s, s:s*}", "check", check, "status",
                                        verdicts[verdict], "text", text, "mend", mend));
        return;
    }
    printf("%-5s %-14s %s\n", verdicts[verdict], check, text);
    if (mend)
        printf("%20s mend: %s\n", "", mend);
}

static int run(struct cli *cli, int argc, char **argv)
{
    enum { OPTION_STATE = CLI_OPTION_FIRST, OPTION_SPILL };
    static const struct option longs[] = {CLI_COMMON_OPTIONS,
                                          CLI_JSON_OPTION,
                                          {"state", required_argument, NULL, OPTION_STATE},
                                          {"spill", required_argument, NULL, OPTION_SPILL},
                                          {NULL, 0, NULL, 0}};
    char state[PATH_MAX];
    cli_default_state("node", state);
    struct doctor doctor = {.cli = cli, .state = state};
    const char *spill = NULL;
    for (int option; (option = cli_getopt(cli, argc, argv, "", longs)) != -1;) {
        if (option == OPTION_SPILL && spill)
            cli_usage(cli, "--spill: one directory at a time");
        if (option == OPTION_SPILL)
            spill = optarg;
        else
            doctor.state = optarg;
        doctor.state_given |= option == OPTION_STATE;
    }
    if (argc > optind)
        cli_usage(cli, "unexpected argument '%s'", argv[optind]);
    if (spill && (doctor.state_given || cli->mount_option))
        cli_usage(cli, "--spill goes with neither --state nor --mount");
    if (spill)
        return doctor_check_files(cli, spill);
    if (cli->json)
        doctor.findings = json_array();
    doctor_check_kernel(&doctor);
    doctor_check_machine(&doctor);
    doctor_check_spill(&doctor);
    doctor_check_mounts(&doctor);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(doctor.spill_places); i++)
        free(doctor.spill_places[i]);
    if (cli->json)
        cli_print_json(
            json_pack("{s:b, s:o}", "usable", !doctor.failed, "checks", doctor.findings));
    else
        printf("%s", doctor.failed     ? "\nNot usable: mend what is marked 'fail'.\n"
                     : doctor.warnings ? "\nUsable.\n"
                                       : "\nAll is well.\n");
    return doctor.failed ? EX_UNAVAILABLE : EX_OK;
}

const struct cli_command cmd_doctor = {"doctor", "check what this machine can do", help, run};
