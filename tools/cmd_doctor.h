/* What `mobula doctor` checks: a list of findings, each with how to mend it. */
#ifndef MOBULA_TOOLS_CMD_DOCTOR_H
#define MOBULA_TOOLS_CMD_DOCTOR_H

#include <limits.h>

#include "tools/cli_common.h"
#include "tools/spill_place.h"

enum doctor_verdict { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL };

struct doctor {
    const struct cli *cli;
    const char *state; /* the state directory that would be used */
    json_t *findings;  /* with --json */
    bool failed;
    unsigned warnings;
    bool state_given; /* by --state */
    /* Spill directories that were looked at, so that each gives one finding; the first few. */
    char *spill_places[4 * SPILL_PLACES_LIMIT];
};

/* Adds and prints one finding. `mend` is NULL or a sentence. */
void doctor_find(struct doctor *doctor, const char *check, enum doctor_verdict verdict,
                 const char *mend, const char *format, ...) MOB_PRINTF(5, 6);

/* True if the running kernel is at least this. */
bool doctor_kernel_is(int major, int minor);
/* True if this process has CAP_SYS_ADMIN. */
bool doctor_is_admin(void);

/* The kernel's side: version, FUSE, ring, passthrough. */
void doctor_check_kernel(struct doctor *doctor);
/* The machine's: memory, limits, disk, programs. */
void doctor_check_machine(struct doctor *doctor);
/* The spill directories that `mobula up` would use now. */
void doctor_check_spill(struct doctor *doctor);
/* Each mount: whether it answers, within five seconds, and then how it spills. */
void doctor_check_mounts(struct doctor *doctor);
/* How a mount that answers spills, and its directories. */
void doctor_check_mount_spill(struct doctor *doctor, const char *mount_path);

/* `mobula doctor --spill DIR`: lists the files of a spill directory and compares each with its
 * header, by reading it. Needs no daemon, and disturbs none. EX_OK: none is damaged; 1: some are;
 * else it could not be told. Blocks for the disk. */
int doctor_check_files(const struct cli *cli, const char *path);

#endif
