/* Scripts as specs: a file whose first line is `#!` runs as it is; comment lines `#MOBULA key =
 * value` before the first line of code are its options, as in sbatch. They become the JSON object
 * that would have said the same, so that every check is written once. */
#include <stdlib.h>
#include <string.h>

#include "core/base/util.h"
#include "core/job/spec_internal.h"

#define INTERPRETER_LINE_LIMIT 255 /* the kernel's own */

struct line {
    const char *text; /* without its end */
    size_t bytes;
    unsigned number;
};

/* The next line from *at; false at the end. */
static bool next_line(const char *text, size_t bytes, size_t *at, struct line *line)
{
    if (*at >= bytes)
        return false;
    const char *start = text + *at, *end = memchr(start, '\n', bytes - *at);
    line->text = start;
    line->bytes = end ? (size_t)(end - start) : bytes - *at;
    line->number++;
    *at += line->bytes + 1;
    return true;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

struct option {
    const char *key, *value;
    size_t key_bytes, value_bytes;
    unsigned line, key_column, value_column;
    bool equals; /* there was a '=' */
};

static const char *trim(const char *from, const char *to, size_t *bytes)
{
    while (from < to && is_blank(*from))
        from++;
    while (to > from && is_blank(to[-1]))
        to--;
    *bytes = (size_t)(to - from);
    return from;
}

/* The next `#MOBULA` line among the leading comment and blank lines. False when code begins. */
static bool next_option(const char *text, size_t bytes, size_t *at, struct line *line,
                        struct option *option)
{
    static const char mark[] = "#MOBULA";
    while (next_line(text, bytes, at, line)) {
        size_t length;
        const char *start = trim(line->text, line->text + line->bytes, &length);
        if (length == 0)
            continue;
        if (*start != '#')
            return false;
        if (length < sizeof mark - 1 || memcmp(start, mark, sizeof mark - 1) != 0 ||
            (length > sizeof mark - 1 && !is_blank(start[sizeof mark - 1])))
            continue;
        const char *rest = start + sizeof mark - 1, *end = start + length;
        const char *equals = memchr(rest, '=', (size_t)(end - rest));
        option->equals = equals != NULL;
        option->key = trim(rest, equals ? equals : end, &option->key_bytes);
        option->value = trim(equals ? equals + 1 : end, end, &option->value_bytes);
        option->line = line->number;
        option->key_column = (unsigned)(option->key - line->text) + 1;
        option->value_column = (unsigned)(option->value - line->text) + 1;
        return true;
    }
    return false;
}

static bool key_is(const struct option *option, const char *key)
{
    return option->key_bytes == strlen(key) && !memcmp(option->key, key, option->key_bytes);
}

/* "a, b c" as a list of strings. */
static json_t *value_list(const char *text, size_t bytes)
{
    json_t *list = json_array();
    for (size_t at = 0; list && at < bytes;) {
        size_t start = at;
        while (at < bytes && !is_blank(text[at]) && text[at] != ',')
            at++;
        if (at > start && json_array_append_new(list, json_stringn(text + start, at - start))) {
            json_decref(list);
            return NULL;
        }
        at++;
    }
    return list;
}

/* The JSON value that the text of an option stands for; what isn't what the field wants is left to
 * the field's own check. NULL: no memory. */
static json_t *option_value(const struct option *option)
{
    const char *text = option->value;
    size_t bytes = option->value_bytes;
    static const char *const lists[] = {"outputs", "retry_on", "after", "refs"};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(lists); i++)
        if (key_is(option, lists[i]))
            return value_list(text, bytes);
    struct mob_id id;
    if (key_is(option, "stdin") && mob_id_parse(text, bytes, &id))
        return json_pack("{s:o}", "object", json_stringn(text, bytes));
    if (key_is(option, "resources.cpu") || key_is(option, "retries") ||
        key_is(option, "priority")) {
        json_t *number = json_loadb(text, bytes, JSON_DECODE_ANY, NULL);
        if (json_is_number(number))
            return number;
        json_decref(number);
    }
    return json_stringn(text, bytes);
}

static errint_t bad_option(const struct option *option, struct mob_error *err, unsigned column,
                           const char *message)
{
    char field[64];
    size_t bytes = option->key_bytes < sizeof field - 1 ? option->key_bytes : 0;
    if (!mob_is_utf8(option->key, bytes))
        bytes = 0;
    memcpy(field, option->key, bytes);
    field[bytes] = '\0';
    return mob_error_set_at(err, -EINVAL, option->line, column, field, "%s", message);
}

static errint_t add_option(json_t *root, const struct option *option, struct mob_error *err)
{
    if (!option->equals || option->key_bytes == 0)
        return bad_option(option, err, option->key_column, "expected \"#MOBULA key = value\"");
    if (!mob_is_utf8(option->key, option->key_bytes) ||
        !mob_is_utf8(option->value, option->value_bytes))
        return bad_option(option, err, option->key_column, "expected UTF-8 text");
    if (option->key_bytes > SPEC_NAME_LIMIT)
        return bad_option(option, err, option->key_column, "unknown field");
    char key[SPEC_NAME_LIMIT + 1];
    memcpy(key, option->key, option->key_bytes);
    key[option->key_bytes] = '\0';
    json_t *target = root;
    char *name = key, *dot = strchr(key, '.');
    if (dot) { /* env.NAME and resources.NAME are one level down */
        *dot = '\0';
        name = dot + 1;
        target = json_object_get(root, key);
        if (!target) {
            target = json_object();
            if (json_object_set_new(root, key, target))
                return mob_error_set(err, -ENOMEM, "no memory");
        }
    }
    if (!json_is_object(target) || json_object_get(target, name))
        return bad_option(option, err, option->key_column, "expected each option once");
    if (json_object_set_new(target, name, option_value(option)))
        return mob_error_set(err, -ENOMEM, "no memory");
    return 0;
}

/* The interpreter and its argument, split as the kernel does: at the first blank, the rest is one
 * argument. */
static errint_t parse_interpreter(const char *text, size_t bytes, struct job_spec *spec,
                                  struct mob_error *err)
{
    struct line line = {0};
    size_t at = 0, length;
    if (!next_line(text, bytes, &at, &line) || line.bytes > INTERPRETER_LINE_LIMIT)
        return mob_error_set_at(err, -EINVAL, 1, 1, NULL,
                                "the first line has more than 255 bytes, which is Linux's limit");
    const char *start = trim(line.text + 2, line.text + line.bytes, &length);
    if (length == 0 || *start != '/' || memchr(start, 0, length))
        return mob_error_set_at(err, -EINVAL, 1, 3, NULL,
                                "expected the absolute path of an interpreter after #!");
    size_t path_bytes = 0;
    while (path_bytes < length && !is_blank(start[path_bytes]))
        path_bytes++;
    spec->interpreter = strndup(start, path_bytes);
    const char *argument = trim(start + path_bytes, start + length, &length);
    if (length > 0)
        spec->interpreter_argument = strndup(argument, length);
    if (!spec->interpreter || (length > 0 && !spec->interpreter_argument))
        return mob_error_set(err, -ENOMEM, "no memory");
    spec->script_bytes = bytes;
    return 0;
}

errint_t spec_script_options(const char *text, size_t bytes, json_t **options,
                             struct job_spec *spec, struct mob_error *err)
{
    errint_t error = parse_interpreter(text, bytes, spec, err);
    json_t *root = error ? NULL : json_object();
    if (!error && !root)
        error = mob_error_set(err, -ENOMEM, "no memory");
    struct line line = {0};
    struct option option;
    size_t at = 0;
    while (!error && next_option(text, bytes, &at, &line, &option))
        error = add_option(root, &option, err);
    if (error) {
        json_decref(root);
        return error;
    }
    *options = root;
    return 0;
}

bool spec_script_locate(const char *text, size_t bytes, const struct spec_path *path,
                        unsigned *line_number, unsigned *column)
{
    char key[2 * SPEC_NAME_LIMIT + 2] = "", first[SPEC_NAME_LIMIT + 1] = "";
    *line_number = *column = 0;
    if (path->count > 0 && path->steps[0].key)
        snprintf(first, sizeof first, "%s", path->steps[0].key);
    snprintf(key, sizeof key, "%s", first);
    if (path->count > 1 && path->steps[1].key)
        snprintf(key, sizeof key, "%s.%s", first, path->steps[1].key);
    struct line line = {0};
    struct option option;
    for (size_t at = 0; next_option(text, bytes, &at, &line, &option);) {
        if (!key_is(&option, key) && !key_is(&option, first))
            continue;
        *line_number = option.line;
        *column = path->at_key ? option.key_column : option.value_column;
        return true;
    }
    return false;
}
