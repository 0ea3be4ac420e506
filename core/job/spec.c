/* Job specs: from text to struct job_spec. One function a field; the table at the end names them.
 */
#include "core/job/spec.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/base/util.h"
#include "core/job/spec_internal.h"

struct parser {
    const char *text;
    size_t bytes;
    bool script;
    struct job_spec *spec;
    struct mob_error *err;
    size_t argument_bytes; /* of command and env, so far */
};

static struct spec_path path_of(const char *key)
{
    return (struct spec_path){.steps = {{key, 0}}, .count = 1};
}

static struct spec_path path_key(struct spec_path path, const char *key)
{
    if (path.count < SPEC_PATH_STEPS)
        path.steps[path.count++].key = key;
    return path;
}

static struct spec_path path_index(struct spec_path path, size_t index)
{
    if (path.count < SPEC_PATH_STEPS) {
        path.steps[path.count].key = NULL;
        path.steps[path.count++].index = index;
    }
    return path;
}

static struct spec_path at_key(struct spec_path path)
{
    path.at_key = true;
    return path;
}

/* "command[2].object" */
static void path_text(const struct spec_path *path, char *out, size_t out_bytes)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < path->count && used < out_bytes; i++) {
        int more =
            path->steps[i].key
                ? snprintf(out + used, out_bytes - used, "%s%s", i ? "." : "", path->steps[i].key)
                : snprintf(out + used, out_bytes - used, "[%zu]", path->steps[i].index);
        used += more > 0 ? (size_t)more : 0;
    }
}

void spec_make_printable(char *text)
{
    size_t bytes = strlen(text);
    for (size_t at = 0; at < bytes;) {
        unsigned char first = (unsigned char)text[at];
        size_t length = first < 0xc0 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
        if (first < ' ' || first == 0x7f) {
            text[at++] = ' ';
        } else if (at + length > bytes || !mob_is_utf8(text + at, length)) {
            text[at++] = '?';
        } else {
            at += length;
        }
    }
}

static errint_t bad(struct parser *p, struct spec_path path, const char *format, ...)
    MOB_PRINTF(3, 4);
static errint_t bad(struct parser *p, struct spec_path path, const char *format, ...)
{
    char message[sizeof((struct mob_error *)NULL)->message], field[64];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    spec_make_printable(message);
    path_text(&path, field, sizeof field);
    spec_make_printable(field);
    unsigned line, column;
    if (p->script)
        spec_script_locate(p->text, p->bytes, &path, &line, &column);
    else
        spec_locate(p->text, p->bytes, &path, &line, &column);
    return mob_error_set_at(p->err, -EINVAL, line, column, field, "%s", message);
}

static const char *type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "true or false";
    default:
        return "null";
    }
}

static errint_t out_of_memory(struct parser *p)
{
    return mob_error_set(p->err, -ENOMEM, "no memory");
}

static errint_t copy_string(struct parser *p, const json_t *value, char **out)
{
    *out = strndup(json_string_value(value), json_string_length(value));
    return *out ? 0 : out_of_memory(p);
}

static errint_t parse_id(struct parser *p, const json_t *value, struct spec_path path,
                         const char *what, struct mob_id *id)
{
    if (!json_is_string(value))
        return bad(p, path, "expected %s ID (40 hexadecimal digits), found %s", what,
                   type_name(value));
    if (!mob_id_parse(json_string_value(value), json_string_length(value), id))
        return bad(p, path, "expected %s ID (40 lower-case hexadecimal digits), found \"%.60s\"",
                   what, json_string_value(value));
    return 0;
}

static errint_t parse_ids(struct parser *p, const json_t *value, struct spec_path path,
                          const char *what, struct spec_ids *out)
{
    if (!json_is_array(value))
        return bad(p, path, "expected a list of IDs, each of %s, found %s", what, type_name(value));
    size_t count = json_array_size(value);
    if (count > SPEC_IDS_LIMIT)
        return bad(p, path, "expected at most %d IDs, found %zu", SPEC_IDS_LIMIT, count);
    out->ids = calloc(count ? count : 1, sizeof *out->ids);
    if (!out->ids)
        return out_of_memory(p);
    for (; out->count < count; out->count++) {
        errint_t error = parse_id(p, json_array_get(value, out->count),
                                  path_index(path, out->count), what, &out->ids[out->count]);
        if (error)
            return error;
    }
    return 0;
}

/* --- outputs --- */

static errint_t check_output_name(struct parser *p, const json_t *value, struct spec_path path)
{
    if (!json_is_string(value))
        return bad(p, path, "expected the name of an output, a string, found %s", type_name(value));
    const char *name = json_string_value(value);
    size_t length = json_string_length(value);
    if (length == 0 || length > SPEC_NAME_LIMIT)
        return bad(p, path, "expected a name of 1 to %d bytes, found %zu", SPEC_NAME_LIMIT, length);
    if (strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
        return bad(p, path, "expected a file name without '/', found \"%.60s\"", name);
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            return bad(p, path, "expected a file name without control characters");
    return 0;
}

static size_t find_output(const struct job_spec *spec, const char *name)
{
    size_t i = 0;
    while (i < spec->output_count && strcmp(spec->outputs[i], name) != 0)
        i++;
    return i;
}

static errint_t add_output(struct parser *p, const json_t *value, struct spec_path path)
{
    struct job_spec *spec = p->spec;
    if (spec->output_count == SPEC_OUTPUT_LIMIT)
        return bad(p, path, "expected at most %d outputs", SPEC_OUTPUT_LIMIT);
    char **larger = reallocarray(spec->outputs, spec->output_count + 1, sizeof *larger);
    if (!larger)
        return out_of_memory(p);
    spec->outputs = larger;
    errint_t error = copy_string(p, value, &larger[spec->output_count]);
    if (!error)
        spec->output_count++;
    return error;
}

static errint_t parse_outputs(struct parser *p, const json_t *value, struct spec_path path)
{
    if (!json_is_array(value))
        return bad(p, path, "expected a list of names, found %s", type_name(value));
    if (json_array_size(value) > SPEC_OUTPUT_LIMIT)
        return bad(p, path, "expected at most %d outputs, found %zu", SPEC_OUTPUT_LIMIT,
                   json_array_size(value));
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *name = json_array_get(value, i);
        errint_t error = check_output_name(p, name, path_index(path, i));
        if (!error && find_output(p->spec, json_string_value(name)) < p->spec->output_count)
            error = bad(p, path_index(path, i), "expected each name once, found \"%.60s\" again",
                        json_string_value(name));
        if (!error)
            error = add_output(p, name, path_index(path, i));
        if (error)
            return error;
    }
    return 0;
}

/* --- command --- */

static errint_t count_argument(struct parser *p, struct spec_path path, size_t bytes)
{
    if (bytes >= SPEC_ARGUMENT_LIMIT)
        return bad(p, path, "expected less than 128 KiB, as Linux has it, found %zu bytes", bytes);
    p->argument_bytes += bytes + 1 + sizeof(char *);
    if (p->argument_bytes > SPEC_ARGUMENTS_LIMIT)
        return bad(p, path, "command and env are together more than 2 MiB");
    return 0;
}

static errint_t parse_word_object(struct parser *p, const json_t *value, struct spec_path path,
                                  struct spec_word *word)
{
    const char *key = NULL;
    const json_t *inner = NULL;
    void *iterator = json_object_iter((json_t *)value);
    if (iterator) {
        key = json_object_iter_key(iterator);
        inner = json_object_iter_value(iterator);
    }
    if (json_object_size(value) != 1)
        return bad(p, path, "expected one of {\"object\": ID}, {\"ref\": ID}, {\"output\": NAME}");
    struct spec_path place = path_key(path, key);
    errint_t error;
    if (!strcmp(key, "object") || !strcmp(key, "ref")) {
        word->kind = key[0] == 'o' ? SPEC_WORD_OBJECT : SPEC_WORD_REF;
        error = parse_id(p, inner, place, "an object", &word->id);
        return error ? error : count_argument(p, place, MOB_ID_DIGITS);
    }
    if (strcmp(key, "output") != 0)
        return bad(p, at_key(place), "unknown field; expected object, ref or output");
    word->kind = SPEC_WORD_OUTPUT;
    error = check_output_name(p, inner, place);
    if (error)
        return error;
    word->output = find_output(p->spec, json_string_value(inner));
    if (word->output == p->spec->output_count)
        error = add_output(p, inner, place);
    return error ? error : count_argument(p, place, json_string_length(inner));
}

static errint_t parse_command(struct parser *p, const json_t *value, struct spec_path path)
{
    if (!json_is_array(value))
        return bad(p, path, "expected a list: the program and its arguments, found %s",
                   type_name(value));
    size_t count = json_array_size(value);
    if (count == 0)
        return bad(p, path, "expected a list with at least the program");
    p->spec->words = calloc(count, sizeof *p->spec->words);
    if (!p->spec->words)
        return out_of_memory(p);
    for (size_t i = 0; i < count; i++) {
        const json_t *element = json_array_get(value, i);
        struct spec_word *word = &p->spec->words[p->spec->word_count++];
        struct spec_path place = path_index(path, i);
        errint_t error;
        if (json_is_string(element)) {
            error = count_argument(p, place, json_string_length(element));
            if (!error)
                error = copy_string(p, element, &word->text);
        } else if (json_is_object(element)) {
            error = parse_word_object(p, element, place, word);
        } else {
            error = bad(p, place,
                        "expected a string, {\"object\": ID}, {\"ref\": ID} or {\"output\": NAME}, "
                        "found %s",
                        type_name(element));
        }
        if (error)
            return error;
    }
    if (p->spec->words[0].kind == SPEC_WORD_OUTPUT)
        return bad(p, path_index(path, 0), "expected the program to run, found an output");
    if (p->spec->words[0].text && !p->spec->words[0].text[0])
        return bad(p, path_index(path, 0), "expected the program to run, found an empty string");
    return 0;
}

/* --- the other fields --- */

static errint_t parse_stdin(struct parser *p, const json_t *value, struct spec_path path)
{
    struct job_spec *spec = p->spec;
    if (json_is_string(value)) {
        spec->stdin_kind = SPEC_STDIN_TEXT;
        spec->stdin_bytes = json_string_length(value);
        return copy_string(p, value, &spec->stdin_text);
    }
    const json_t *id = json_object_get(value, "object");
    if (!id || json_object_size(value) != 1)
        return bad(p, path, "expected a string or {\"object\": ID}");
    spec->stdin_kind = SPEC_STDIN_OBJECT;
    return parse_id(p, id, path_key(path, "object"), "an object", &spec->stdin_object);
}

static errint_t parse_env(struct parser *p, const json_t *value, struct spec_path path)
{
    struct job_spec *spec = p->spec;
    if (!json_is_object(value))
        return bad(p, path, "expected an object of names and strings, found %s", type_name(value));
    spec->env = calloc(json_object_size(value) + 1, sizeof *spec->env);
    if (!spec->env)
        return out_of_memory(p);
    const char *name;
    json_t *content;
    json_object_foreach((json_t *)value, name, content)
    {
        struct spec_path place = path_key(path, name);
        if (!name[0] || strchr(name, '='))
            return bad(p, at_key(place), "expected the name of a variable: not empty, without '='");
        if (!strcmp(name, "MOBULA") || !strcmp(name, "MOBULA_JOB"))
            return bad(p, at_key(place), "is set by mobula itself");
        if (!json_is_string(content))
            return bad(p, place, "expected a string, found %s", type_name(content));
        errint_t error = count_argument(p, place, strlen(name) + 1 + json_string_length(content));
        if (error)
            return error;
        if (asprintf(&spec->env[spec->env_count], "%s=%s", name, json_string_value(content)) < 0)
            return out_of_memory(p);
        spec->env_count++;
    }
    return 0;
}

static errint_t parse_cwd(struct parser *p, const json_t *value, struct spec_path path)
{
    if (!json_is_string(value))
        return bad(p, path, "expected an absolute path, found %s", type_name(value));
    if (json_string_value(value)[0] != '/' || json_string_length(value) >= 4096)
        return bad(p, path, "expected an absolute path, found \"%.60s\"", json_string_value(value));
    return copy_string(p, value, &p->spec->cwd);
}

static errint_t parse_timeout(struct parser *p, const json_t *value, struct spec_path path)
{
    uint64_t ns = 0;
    struct mob_error inner;
    if (json_is_string(value)) {
        if (mob_parse_duration(json_string_value(value), &ns, &inner))
            return bad(p, path, "%s", inner.message);
    } else if (json_is_number(value)) {
        double seconds = json_number_value(value);
        if (!(seconds > 0) || seconds > 9e9)
            return bad(p, path, "expected a number of seconds above 0, found %g", seconds);
        ns = (uint64_t)(seconds * 1e9);
    } else {
        return bad(p, path, "expected seconds or a duration such as \"10m\", found %s",
                   type_name(value));
    }
    if (ns == 0)
        return bad(p, path, "expected a time above 0");
    p->spec->timeout_ns = ns;
    return 0;
}

static errint_t parse_resources(struct parser *p, const json_t *value, struct spec_path path)
{
    if (!json_is_object(value))
        return bad(p, path, "expected an object such as {\"cpu\": 1}, found %s", type_name(value));
    const char *name;
    json_t *amount;
    json_object_foreach((json_t *)value, name, amount)
    {
        struct spec_path place = path_key(path, name);
        if (strcmp(name, "cpu") != 0)
            return bad(p, at_key(place), "not supported yet: this version knows only cpu");
        double cpus = json_number_value(amount);
        if (!json_is_number(amount))
            return bad(p, place, "expected a number of CPUs, found %s", type_name(amount));
        if (!(cpus >= 0.001) || cpus > 1e6)
            return bad(p, place, "expected a number of CPUs from 0.001, found %g", cpus);
        p->spec->milli_cpus = (uint32_t)lround(cpus * 1000);
    }
    return 0;
}

static errint_t parse_integer(struct parser *p, const json_t *value, struct spec_path path,
                              int least, int most, int *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < least ||
        json_integer_value(value) > most)
        return bad(p, path, "expected a whole number from %d to %d", least, most);
    *out = (int)json_integer_value(value);
    return 0;
}

static errint_t parse_retries(struct parser *p, const json_t *value, struct spec_path path)
{
    int retries = 0;
    errint_t error = parse_integer(p, value, path, 0, SPEC_RETRIES_LIMIT, &retries);
    p->spec->retries = (unsigned)retries;
    return error;
}

static errint_t parse_priority(struct parser *p, const json_t *value, struct spec_path path)
{
    return parse_integer(p, value, path, -20, 19, &p->spec->priority);
}

static errint_t parse_retry_word(struct parser *p, const json_t *value, struct spec_path path)
{
    const char *word = json_is_string(value) ? json_string_value(value) : "";
    if (!strcmp(word, "node"))
        p->spec->retry_node = true;
    else if (!strcmp(word, "exit"))
        p->spec->retry_exit = true;
    else
        return bad(p, path, "expected \"node\", \"exit\" or a list of them");
    return 0;
}

static errint_t parse_retry_on(struct parser *p, const json_t *value, struct spec_path path)
{
    p->spec->retry_node = false;
    if (!json_is_array(value))
        return parse_retry_word(p, value, path);
    for (size_t i = 0; i < json_array_size(value); i++) {
        errint_t error = parse_retry_word(p, json_array_get(value, i), path_index(path, i));
        if (error)
            return error;
    }
    return 0;
}

static errint_t parse_after(struct parser *p, const json_t *value, struct spec_path path)
{
    errint_t error = parse_ids(p, value, path, "a job", &p->spec->after);
    for (size_t i = 0; !error && i < p->spec->after.count; i++)
        if (mob_id_index(&p->spec->after.ids[i]) != MOB_INDEX_JOB)
            error = bad(p, path_index(path, i), "expected a job ID, found an object ID");
    return error;
}

static errint_t parse_refs(struct parser *p, const json_t *value, struct spec_path path)
{
    return parse_ids(p, value, path, "an object", &p->spec->refs);
}

static errint_t parse_sandbox(struct parser *p, const json_t *value, struct spec_path path)
{
    const char *word = json_is_string(value) ? json_string_value(value) : "";
    if (!strcmp(word, "none"))
        return 0;
    if (!strcmp(word, "strict"))
        return bad(p, path, "\"strict\" is not supported yet");
    return bad(p, path, "expected \"none\"");
}

static errint_t not_supported(struct parser *p, const json_t *value, struct spec_path path)
{
    (void)value;
    return bad(p, at_key(path), "not supported yet");
}

/* In this order, so that `outputs` is known when `command` is read. */
static const struct field {
    const char *name;
    errint_t (*parse)(struct parser *p, const json_t *value, struct spec_path path);
} fields[] = {
    {"outputs", parse_outputs},
    {"command", parse_command},
    {"stdin", parse_stdin},
    {"env", parse_env},
    {"cwd", parse_cwd},
    {"timeout", parse_timeout},
    {"resources", parse_resources},
    {"retries", parse_retries},
    {"retry_on", parse_retry_on},
    {"after", parse_after},
    {"priority", parse_priority},
    {"refs", parse_refs},
    {"sandbox", parse_sandbox},
    {"node", not_supported},
    {"near", not_supported},
    {"actor", not_supported},
    {"call", not_supported},
    {"pool", not_supported},
    {"method", not_supported},
    {"params", not_supported},
    {"restarts", not_supported},
    {"max", not_supported},
};

static errint_t check_known(struct parser *p, const json_t *root)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)root, name, value)
    {
        size_t i = 0;
        while (i < MOB_ARRAY_LENGTH(fields) && strcmp(fields[i].name, name) != 0)
            i++;
        if (i == MOB_ARRAY_LENGTH(fields))
            return bad(p, at_key(path_of(name)),
                       "unknown field; expected command, stdin, outputs, env, cwd, timeout, "
                       "resources, retries, retry_on, after, priority, refs or sandbox");
        if (p->script && !strcmp(name, "command"))
            return bad(p, at_key(path_of(name)), "a script is its own command");
    }
    return 0;
}

/* What concerns several fields. */
static errint_t check_whole(struct parser *p)
{
    struct job_spec *spec = p->spec;
    if (spec->script_bytes == 0 && spec->word_count == 0) {
        struct spec_path root = {.count = 0};
        errint_t error = bad(p, root, "missing; expected a list: the program and its arguments");
        if (p->err)
            snprintf(p->err->field, sizeof p->err->field, "command");
        return error;
    }
    if (!spec->cwd)
        return 0;
    for (size_t i = 0; i < spec->output_count; i++) {
        bool named = false;
        for (size_t w = 0; w < spec->word_count && !named; w++)
            named = spec->words[w].kind == SPEC_WORD_OUTPUT && spec->words[w].output == i;
        if (!named)
            return bad(p, path_index(path_of("outputs"), i),
                       "with cwd, an output must be an {\"output\": NAME} of command: only the "
                       "scratch directory is searched for outputs");
    }
    return 0;
}

static errint_t parse_fields(struct parser *p, const json_t *root)
{
    errint_t error = check_known(p, root);
    for (size_t i = 0; !error && i < MOB_ARRAY_LENGTH(fields); i++) {
        const json_t *value = json_object_get(root, fields[i].name);
        if (value)
            error = fields[i].parse(p, value, path_of(fields[i].name));
    }
    return error ? error : check_whole(p);
}

/* --- JSON text --- */

static errint_t bad_text(struct parser *p, size_t offset, const char *message)
{
    unsigned line, column;
    spec_line_column(p->text, p->bytes, offset, &line, &column);
    return mob_error_set_at(p->err, -EINVAL, line, column, NULL, "%s", message);
}

/* What follows the object: nothing but space. */
static errint_t check_rest(struct parser *p, size_t offset)
{
    while (offset < p->bytes && p->text[offset] && strchr(" \t\r\n", p->text[offset]))
        offset++;
    if (offset >= p->bytes)
        return 0;
    if (p->text[offset] == '{')
        return bad_text(p, offset,
                        "a second JSON object; expected one job a file (JSON Lines are not "
                        "supported yet)");
    return bad_text(p, offset, "expected the end of the file after the JSON object");
}

static errint_t load_json(struct parser *p, json_t **root)
{
    size_t first = 0, deep = spec_too_deep(p->text, p->bytes);
    while (first < p->bytes && p->text[first] && strchr(" \t\r\n", p->text[first]))
        first++;
    if (first == p->bytes)
        return mob_error_set_at(p->err, -EINVAL, 1, 1, NULL,
                                "the file is empty; expected a JSON object or a #! script");
    if (p->text[first] != '{')
        return bad_text(p, first, "expected a JSON object, or a script that begins with #!");
    if (deep < p->bytes)
        return bad_text(p, deep, "nested too deep; expected at most 32 levels");
    json_error_t error;
    *root = json_loadb(p->text, p->bytes, JSON_REJECT_DUPLICATES | JSON_DISABLE_EOF_CHECK, &error);
    if (!*root && json_error_code(&error) == json_error_out_of_memory)
        return out_of_memory(p);
    if (!*root) {
        enum json_error_code code = json_error_code(&error);
        if (code == json_error_null_character || code == json_error_null_byte_in_key)
            snprintf(error.text, sizeof error.text, "a string has a NUL character (\\u0000)");
        spec_make_printable(error.text);
        return mob_error_set_at(p->err, -EINVAL, error.line > 0 ? (unsigned)error.line : 1,
                                error.column > 0 ? (unsigned)error.column : 1, NULL,
                                "not valid JSON: %s", error.text);
    }
    return check_rest(p, error.position > 0 ? (size_t)error.position : 0);
}

void spec_free(struct job_spec *spec)
{
    if (!spec)
        return;
    for (size_t i = 0; i < spec->word_count; i++)
        free(spec->words[i].text);
    for (size_t i = 0; i < spec->output_count; i++)
        free(spec->outputs[i]);
    for (size_t i = 0; i < spec->env_count; i++)
        free(spec->env[i]);
    free(spec->words);
    free(spec->outputs);
    free(spec->env);
    free(spec->interpreter);
    free(spec->interpreter_argument);
    free(spec->stdin_text);
    free(spec->cwd);
    free(spec->after.ids);
    free(spec->refs.ids);
    free(spec);
}

errint_t spec_parse(const char *text, size_t bytes, struct job_spec **out, struct mob_error *err)
{
    if (bytes > SPEC_TEXT_LIMIT)
        return mob_error_set(err, -EINVAL, "the file has %zu bytes; expected at most 16 MiB",
                             bytes);
    struct job_spec *spec = calloc(1, sizeof *spec);
    if (!spec)
        return mob_error_set(err, -ENOMEM, "no memory");
    spec->milli_cpus = 1000;
    spec->retry_node = true;
    struct parser parser = {.text = text, .bytes = bytes, .spec = spec, .err = err};
    parser.script = bytes >= 2 && text[0] == '#' && text[1] == '!';
    json_t *root = NULL;
    errint_t error = parser.script ? spec_script_options(text, bytes, &root, spec, err)
                                   : load_json(&parser, &root);
    if (!error)
        error = parse_fields(&parser, root);
    json_decref(root);
    if (error) {
        spec_free(spec);
        return error;
    }
    *out = spec;
    return 0;
}

void spec_place(const char *text, size_t bytes, const char *field, size_t place, unsigned *line,
                unsigned *column)
{
    struct spec_path path = path_of(field);
    if (bytes >= 2 && text[0] == '#' && text[1] == '!') {
        spec_script_locate(text, bytes, &path, line, column);
        return;
    }
    if (place != SIZE_MAX)
        path = path_index(path, place);
    spec_locate(text, bytes, &path, line, column);
}
