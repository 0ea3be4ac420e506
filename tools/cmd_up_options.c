/* Options of `mobula up`: checking each, and the option file. */
#include "tools/cmd_up_options.h"

#include <ini.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#include "tools/cli_daemon.h"

#ifndef MOBULA_CONFIG_FILE
#define MOBULA_CONFIG_FILE "/etc/mobula/mobula.conf"
#endif

/* --- values --- */

/* As mobulad(8) has it, and printable: the name goes into paths and section heads. */
static errint_t check_name(const char *value, struct mob_error *err)
{
    size_t length = strlen(value);
    bool fine = length && length < 64 && *value != '.' && mob_is_utf8(value, length);
    for (const char *c = value; fine && *c; c++)
        fine = *c != '/' && *c != ']' && (unsigned char)*c > ' ' && *c != 0x7f;
    if (fine)
        return 0;
    return mob_error_set(err, -EINVAL,
                         "'%s' is no name: expected up to 63 characters, not beginning with '.', "
                         "without '/', ']' and spaces",
                         value);
}

static errint_t check_path(const char *value, struct mob_error *err)
{
    return *value ? 0 : mob_error_set(err, -EINVAL, "expected a path");
}

static errint_t check_memory(const char *value, struct mob_error *err)
{
    enum { LEAST_BYTES = 1 << 20 };
    uint64_t bytes = 0;
    uint64_t whole = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    errint_t error = mob_parse_size(value, whole, &bytes, err);
    if (!error && bytes < LEAST_BYTES)
        return mob_error_set(err, -EINVAL, "'%s' is too little: expected at least 1M", value);
    return error;
}

/* What "%" is of is only known once there are directories; then mobulad looks again. */
static errint_t check_disk(const char *value, struct mob_error *err)
{
    uint64_t bytes;
    return spill_disk_parse(value, UINT64_C(1) << 40, &bytes, err);
}

static errint_t check_cpus(const char *value, struct mob_error *err)
{
    char *end;
    double cpus = strtod(value, &end);
    bool plain = *value && value[strspn(value, "0123456789.")] == '\0';
    if (plain && !*end && isfinite(cpus) && cpus > 0 && cpus <= 65536)
        return 0;
    return mob_error_set(err, -EINVAL, "'%s' is no number of CPUs: expected one above 0", value);
}

static errint_t check_transport(const char *value, struct mob_error *err)
{
    if (!strcmp(value, "auto") || !strcmp(value, "io_uring") || !strcmp(value, "device"))
        return 0;
    return mob_error_set(err, -EINVAL, "'%s': expected auto, io_uring or device", value);
}

static errint_t check_switch(const char *value, struct mob_error *err)
{
    static const char *const words[] = {"yes", "no", "true", "false", "on", "off", "1", "0"};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(words); i++)
        if (!strcmp(value, words[i]))
            return 0;
    return mob_error_set(err, -EINVAL, "'%s': expected yes or no", value);
}

/* --- the table --- */

struct known_option {
    const char *key;
    size_t offset;
    errint_t (*check)(const char *value, struct mob_error *err);
};

static const struct known_option known_options[] = {
    {"name", offsetof(struct up_options, name), check_name},
    {"state", offsetof(struct up_options, state), check_path},
    {"memory", offsetof(struct up_options, memory), check_memory},
    {"cpus", offsetof(struct up_options, cpus), check_cpus},
    {"transport", offsetof(struct up_options, transport), check_transport},
    {"no-passthrough", offsetof(struct up_options, no_passthrough), check_switch},
    {"no-idle-polling", offsetof(struct up_options, no_idle_polling), check_switch},
    {"log", offsetof(struct up_options, log), check_path},
    {"disk", offsetof(struct up_options, disk), check_disk},
    {"spill-key", offsetof(struct up_options, spill_key), check_path},
};

static const char *const not_yet[] = {"resource", "cluster", "listen"};

/* Directories add up: objects are striped over all. */
static errint_t add_spill(struct up_options *options, const char *value, struct mob_error *err)
{
    size_t count = 0;
    if (!*value)
        return mob_error_set(err, -EINVAL, "expected a directory, or 'none'");
    if (options->spills_closed)
        return 0;
    while (options->spills[count])
        count++;
    if (count &&
        (!strcmp(value, SPILL_PLACE_NONE) || !strcmp(options->spills[0], SPILL_PLACE_NONE)))
        return mob_error_set(err, -EINVAL,
                             "'none' turns spilling off, so no directory can stand beside it");
    if (count == SPILL_PLACES_LIMIT)
        return mob_error_set(err, -EINVAL, "'%s' is one too many: expected up to %d directories",
                             value, SPILL_PLACES_LIMIT);
    options->spills[count] = strdup(value);
    return options->spills[count] ? 0 : mob_error_set(err, -ENOMEM, "no memory");
}

errint_t up_options_forget(struct up_options *options, const char *value, struct mob_error *err)
{
    size_t count = 0;
    while (options->forgets[count])
        count++;
    if (!*value)
        return mob_error_set(err, -EINVAL, "expected a directory");
    if (count == SPILL_PLACES_LIMIT)
        return mob_error_set(err, -EINVAL, "'%s' is one too many: expected up to %d directories",
                             value, SPILL_PLACES_LIMIT);
    options->forgets[count] = strdup(value);
    return options->forgets[count] ? 0 : mob_error_set(err, -ENOMEM, "no memory");
}

errint_t up_options_set(struct up_options *options, const char *key, const char *value,
                        bool replace, struct mob_error *err)
{
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(not_yet); i++)
        if (!strcmp(key, not_yet[i]))
            return mob_error_set(err, -EOPNOTSUPP, "not supported yet: no release has it");
    if (!strcmp(key, "spill"))
        return add_spill(options, value, err);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(known_options); i++) {
        const struct known_option *known = &known_options[i];
        if (strcmp(key, known->key))
            continue;
        errint_t error = known->check(value, err);
        char **place = (char **)((char *)options + known->offset);
        if (error || (*place && !replace))
            return error;
        free(*place);
        *place = strdup(value);
        return *place ? 0 : mob_error_set(err, -ENOMEM, "no memory");
    }
    return mob_error_set(err, -ENOENT, "no such option");
}

void up_options_free(struct up_options *options)
{
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(known_options); i++)
        free(*(char **)((char *)options + known_options[i].offset));
    for (size_t i = 0; options->spills[i]; i++)
        free(options->spills[i]);
    for (size_t i = 0; options->forgets[i]; i++)
        free(options->forgets[i]);
    free(options->config);
}

/* --- the file --- */

struct file_pass {
    struct up_options *options;
    const char *section; /* the one to take; "" = what stands before any */
    struct mob_error *err;
    char key[64]; /* where it went wrong */
    errint_t error;
};

static int take_line(void *context, const char *section, const char *key, const char *value)
{
    struct file_pass *pass = context;
    if (pass->error || strcmp(section, pass->section))
        return 1;
    pass->error = up_options_set(pass->options, key, value, false, pass->err);
    if (pass->error)
        snprintf(pass->key, sizeof pass->key, "%s", key);
    return 1;
}

static errint_t take_section(struct up_options *options, const char *file, const char *section,
                             struct mob_error *err)
{
    struct mob_error inner = {0};
    struct file_pass pass = {.options = options, .section = section, .err = &inner};
    options->spills_closed = options->spills[0] != NULL;
    int line = ini_parse(file, take_line, &pass);
    if (line == -1)
        return mob_error_set(err, -ENOENT, "%s: %s", file, strerror(errno));
    if (line < 0)
        return mob_error_set(err, -ENOMEM, "%s: no memory", file);
    if (line > 0)
        return mob_error_set(err, -EINVAL, "%s:%d: expected 'option = value' or '[name]'", file,
                             line);
    if (pass.error)
        return mob_error_set(err, pass.error, "%s: option '%s': %s", file, pass.key, inner.message);
    return 0;
}

errint_t up_options_complete(struct up_options *options, struct mob_error *err)
{
    const char *file = options->config ? options->config : MOBULA_CONFIG_FILE;
    if (options->config || !access(file, F_OK)) {
        struct up_options first = {0};
        errint_t error = take_section(&first, file, "", err);
        /* The name may stand in the file; it chooses the section, which goes before the rest. */
        const char *name = options->name ? options->name : first.name;
        if (!error)
            error = take_section(options, file, name ? name : "node", err);
        up_options_free(&first);
        if (!error)
            error = take_section(options, file, "", err);
        if (error)
            return error;
    }
    if (!options->name && !(options->name = strdup("node")))
        return mob_error_set(err, -ENOMEM, "no memory");
    if (!options->state) {
        char path[PATH_MAX];
        cli_default_state(options->name, path);
        if (!(options->state = strdup(path)))
            return mob_error_set(err, -ENOMEM, "no memory");
    }
    return 0;
}
