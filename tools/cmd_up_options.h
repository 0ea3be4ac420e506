/* Options of `mobula up`: from the command line, then from a file. */
#ifndef MOBULA_TOOLS_CMD_UP_OPTIONS_H
#define MOBULA_TOOLS_CMD_UP_OPTIONS_H

#include "tools/cli_common.h"
#include "tools/spill_place.h"

/* An option is a string, as mobulad takes it; NULL = not given. */
struct up_options {
    char *name;
    char *state;
    char *memory;
    char *cpus;
    char *transport;
    char *no_passthrough; /* "yes" or "no" */
    char *no_idle_polling;
    char *log;
    char *disk;
    char *spill_key;
    /* Directories, or "none" alone; NULL at the end. */
    char *spills[SPILL_PLACES_LIMIT + 1];
    char *forgets[SPILL_PLACES_LIMIT + 1]; /* of the command line; NULL at the end */
    bool spills_closed;                    /* what comes now has no say on them any more */
    char *config;                          /* not from a file */
    bool foreground;
};

/* Sets the option `key` ("memory") unless it is set already; with `replace` in
 * any case, as the last of an option given twice counts. "spill" adds a directory, or does nothing
 * once `spills_closed` is set. -ENOENT: no such option; -EOPNOTSUPP:
 * one of SPEC.md that is not there yet; -EINVAL and a sentence: a bad value. */
MOB_MUST_CHECK errint_t up_options_set(struct up_options *options, const char *key,
                                       const char *value, bool replace, struct mob_error *err);

/* Adds a directory to be given up. It is no option of the file: that would give up what comes
 * later, too. -EINVAL and a sentence. */
MOB_MUST_CHECK errint_t up_options_forget(struct up_options *options, const char *value,
                                          struct mob_error *err);

/* Fills what the command line left open from the option file, section [NAME] before no section,
 * then from the defaults. The first of these that says anything of "spill" says all of it. The
 * default file may be missing. Sentences name the file. */
MOB_MUST_CHECK errint_t up_options_complete(struct up_options *options, struct mob_error *err);

void up_options_free(struct up_options *options);

#endif
