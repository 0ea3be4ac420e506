/* What the files of the spec parser share: the place of a value, and options of scripts. */
#ifndef MOBULA_CORE_JOB_SPEC_INTERNAL_H
#define MOBULA_CORE_JOB_SPEC_INTERNAL_H

#include <jansson.h>

#include "core/job/spec.h"

#define SPEC_PATH_STEPS 4

/* A way from the root of the JSON text to a value: keys, or indexes where `key` is NULL. */
struct spec_path {
    struct {
        const char *key;
        size_t index;
    } steps[SPEC_PATH_STEPS];
    size_t count;
    bool at_key; /* the key of the last step is meant, not its value */
};

/* Line and column (1-based, in characters) of a path in JSON text that jansson has accepted. False,
 * and both 0, if there is no such place. Safe with any text. */
bool spec_locate(const char *text, size_t bytes, const struct spec_path *path, unsigned *line,
                 unsigned *column);
/* Line and column of a byte. */
void spec_line_column(const char *text, size_t bytes, size_t offset, unsigned *line,
                      unsigned *column);
/* The offset of the first bracket that nests deeper than SPEC_DEPTH_LIMIT, or `bytes`. */
size_t spec_too_deep(const char *text, size_t bytes);

/* Reads the options of a script into a JSON object as if it had been dropped as JSON, with the
 * interpreter of its first line. */
MOB_MUST_CHECK errint_t spec_script_options(const char *text, size_t bytes, json_t **options,
                                            struct job_spec *spec, struct mob_error *err);
/* Where the value (or the key) of an option stands in a script. */
bool spec_script_locate(const char *text, size_t bytes, const struct spec_path *path,
                        unsigned *line, unsigned *column);

#endif
