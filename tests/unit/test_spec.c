/* Job specs: what is taken, and for what is refused exactly where and why. */
#include "unit.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/util.h"
#include "core/job/job.h"
#include "core/job/spec.h"

#define ID1 "00112233445566778899aabbccddeeff00000001"
#define ID2 "00112233445566778899aabbccddeeff00000002"
#define JOB1 "00112233445566778899aabbccddeeff00000000"

static struct job_spec *parse(const char *text)
{
    struct job_spec *spec = NULL;
    struct mob_error err = {0};
    errint_t error = spec_parse(text, strlen(text), &spec, &err);
    if (error)
        fail_msg("%s\nis refused: line %u, column %u: %s: %s", text, err.line, err.column,
                 err.field, err.message);
    return spec;
}

static void the_smallest_spec_has_every_default(void **state)
{
    (void)state;
    struct job_spec *spec = parse("{\"command\": [\"true\"]}");
    assert_int_equal(spec->word_count, 1);
    assert_string_equal(spec->words[0].text, "true");
    assert_int_equal(spec->milli_cpus, 1000);
    assert_int_equal(spec->output_count, 0);
    assert_int_equal(spec->stdin_kind, SPEC_STDIN_NULL);
    assert_int_equal(spec->priority, 0);
    assert_int_equal(spec->retries, 0);
    assert_int_equal(spec->timeout_ns, 0);
    assert_true(spec->retry_node);
    assert_false(spec->retry_exit);
    assert_null(spec->cwd);
    spec_free(spec);
}

static void every_field_is_read(void **state)
{
    (void)state;
    struct job_spec *spec =
        parse("{\"command\": [\"sort\", {\"object\": \"" ID1 "\"}, {\"ref\": \"" ID2 "\"},"
              "{\"output\": \"b\"}, {\"output\": \"c\"}],\n"
              "\"stdin\": \"text\\n\", \"outputs\": [\"a\", \"b\"], \"env\": {\"X\": \"1\"},"
              "\"timeout\": \"10m\", \"resources\": {\"cpu\": 0.25}, \"retries\": 2,"
              "\"retry_on\": [\"exit\"], \"after\": [\"" JOB1 "\"], \"priority\": -20,"
              "\"refs\": [\"" ID2 "\"], \"sandbox\": \"none\"}");
    assert_int_equal(spec->word_count, 5);
    assert_int_equal(spec->words[1].kind, SPEC_WORD_OBJECT);
    assert_int_equal(mob_id_index(&spec->words[1].id), 1);
    assert_int_equal(spec->words[2].kind, SPEC_WORD_REF);
    assert_int_equal(spec->words[3].output, 1);
    assert_int_equal(spec->words[4].output, 2);
    assert_int_equal(spec->output_count, 3);
    assert_string_equal(spec->outputs[2], "c");
    assert_int_equal(spec->stdin_kind, SPEC_STDIN_TEXT);
    assert_string_equal(spec->stdin_text, "text\n");
    assert_string_equal(spec->env[0], "X=1");
    assert_true(spec->timeout_ns == UINT64_C(600000000000));
    assert_int_equal(spec->milli_cpus, 250);
    assert_int_equal(spec->retries, 2);
    assert_true(spec->retry_exit && !spec->retry_node);
    assert_int_equal(spec->after.count, 1);
    assert_int_equal(spec->priority, -20);
    assert_int_equal(spec->refs.count, 1);
    spec_free(spec);
    spec = parse("{\"command\": [\"cat\"], \"cwd\": \"/tmp\", \"timeout\": 1.5,"
                 "\"retry_on\": \"exit\", \"stdin\": {\"object\": \"" ID1 "\"}}");
    assert_string_equal(spec->cwd, "/tmp");
    assert_true(spec->timeout_ns == UINT64_C(1500000000));
    assert_int_equal(spec->stdin_kind, SPEC_STDIN_OBJECT);
    spec_free(spec);
}

static void a_script_is_a_spec_with_options_in_comments(void **state)
{
    (void)state;
    static const char text[] = "#!/usr/bin/env -S python3 -u\n"
                               "# what it does\n"
                               "#MOBULA resources.cpu = 1.5\n"
                               "  #MOBULA outputs = a, b\n"
                               "#MOBULA env.GREETING = good morning\n"
                               "\n"
                               "#MOBULA timeout = 10m\n"
                               "#MOBULA stdin = " ID1 "\n"
                               "#MOBULAN is a comment\n"
                               "print(1)\n"
                               "#MOBULA nonsense = is code by now\n";
    struct job_spec *spec = parse(text);
    assert_int_equal(spec->script_bytes, sizeof text - 1);
    assert_string_equal(spec->interpreter, "/usr/bin/env");
    assert_string_equal(spec->interpreter_argument, "-S python3 -u");
    assert_int_equal(spec->milli_cpus, 1500);
    assert_int_equal(spec->output_count, 2);
    assert_string_equal(spec->outputs[1], "b");
    assert_string_equal(spec->env[0], "GREETING=good morning");
    assert_true(spec->timeout_ns == UINT64_C(600000000000));
    assert_int_equal(spec->stdin_kind, SPEC_STDIN_OBJECT);
    spec_free(spec);
    spec = parse("#! /bin/sh\n#MOBULA stdin = hello\n#MOBULA priority = 19\n#MOBULA retries = 3");
    assert_string_equal(spec->interpreter, "/bin/sh");
    assert_null(spec->interpreter_argument);
    assert_string_equal(spec->stdin_text, "hello");
    assert_int_equal(spec->priority, 19);
    assert_int_equal(spec->retries, 3);
    spec_free(spec);
}

/* --- what is refused --- */

static const struct refused {
    const char *text;
    unsigned line, column;
    const char *field, *message; /* how it begins */
} refused[] = {
    {"", 1, 1, "", "the file is empty"},
    {" \n ", 1, 1, "", "the file is empty"},
    {"hello", 1, 1, "", "expected a JSON object, or a script"},
    {"[1]", 1, 1, "", "expected a JSON object"},
    {"{}", 1, 1, "command", "missing; expected a list"},
    {"\n\n  {\"timeout\": 1}", 3, 3, "command", "missing; expected a list"},
    {"{\"command\": [\"a\"]", 1, 17, "", "not valid JSON: '}' expected near end of file"},
    {"{\"command\": [\"a\",]}", 1, 18, "", "not valid JSON: unexpected token near ']'"},
    {"{\"command\": [\"a\"],\n\"command\": [\"b\"]}", 2, 9, "",
     "not valid JSON: duplicate object key near '\"command\"'"},
    {"{\"command\": [\"a\\u0000b\"]}", 1, 23, "",
     "not valid JSON: a string has a NUL character (\\u0000)"},
    {"{\"command\": [\"a\"]} {\"command\": [\"b\"]}", 1, 20, "", "a second JSON object"},
    {"{\"command\": [\"a\"]}\n\n{\"command\": [\"b\"]}\n", 3, 1, "", "a second JSON object"},
    {"{\"command\": [\"a\"]} x", 1, 20, "", "expected the end of the file"},
    {"{\"command\": [\"a\"],\n \"comand\": 1}", 2, 2, "comand", "unknown field; expected command"},
    {"{\"c\\u006fmand\": 1}", 1, 2, "comand", "unknown field"},
    {"{\"command\": \"true\"}", 1, 13, "command",
     "expected a list: the program and its arguments, found a string"},
    {"{\"command\": []}", 1, 13, "command", "expected a list with at least the program"},
    {"{\"command\": [\"\"]}", 1, 14, "command[0]", "expected the program to run, found an empty"},
    {"{\"command\": [{\"output\": \"x\"}]}", 1, 14, "command[0]", "expected the program to run"},
    {"{\"command\": [\"\xc3\xa4\xc3\xa4\", 5]}", 1, 20, "command[1]",
     "expected a string, {\"object\": ID}, {\"ref\": ID} or {\"output\": NAME}, found a number"},
    {"{\"command\": [\"a\", {}]}", 1, 19, "command[1]", "expected one of {\"object\": ID}"},
    {"{\"command\": [\"a\", {\"object\": \"" ID1 "\", \"x\": 1}]}", 1, 19, "command[1]",
     "expected one of"},
    {"{\"command\": [\"a\",\n {\"objekt\": 1}]}", 2, 3, "command[1].objekt", "unknown field"},
    {"{\"command\": [\"a\",\n {\"object\": 1}]}", 2, 13, "command[1].object",
     "expected an object ID (40 hexadecimal digits), found a number"},
    {"{\"command\": [\"a\", {\"object\": \"zz\"}]}", 1, 30, "command[1].object",
     "expected an object ID (40 lower-case hexadecimal digits), found \"zz\""},
    {"{\"command\": [\"a\"], \"outputs\": [\"x\", \"x\"]}", 1, 37, "outputs[1]",
     "expected each name once, found \"x\" again"},
    {"{\"command\": [\"a\"], \"outputs\": [\"../x\"]}", 1, 32, "outputs[0]",
     "expected a file name without '/'"},
    {"{\"command\": [\"a\"], \"outputs\": [\"..\"]}", 1, 32, "outputs[0]", "expected a file name"},
    {"{\"command\": [\"a\"], \"outputs\": [\"\"]}", 1, 32, "outputs[0]", "expected a name of 1 to 255"},
    {"{\"command\": [\"a\"], \"outputs\": \"x\"}", 1, 31, "outputs",
     "expected a list of names, found a string"},
    {"{\"command\": [\"a\"], \"outputs\": [\"a\\nb\"]}", 1, 32, "outputs[0]",
     "expected a file name without control"},
    {"{\"command\": [\"a\"], \"stdin\": 1}", 1, 29, "stdin", "expected a string or {\"object\": ID}"},
    {"{\"command\": [\"a\"], \"stdin\": {\"ref\": \"" ID1 "\"}}", 1, 29, "stdin", "expected a string"},
    {"{\"command\": [\"a\"], \"env\": [\"A=1\"]}", 1, 27, "env", "expected an object of names"},
    {"{\"command\": [\"a\"], \"env\": {\"A\": 1}}", 1, 33, "env.A", "expected a string, found a number"},
    {"{\"command\": [\"a\"], \"env\": {\"A=\": \"\"}}", 1, 28, "env.A=", "expected the name of a var"},
    {"{\"command\": [\"a\"], \"env\": {\"MOBULA_JOB\": \"\"}}", 1, 28, "env.MOBULA_JOB", "is set by"},
    {"{\"command\": [\"a\"], \"cwd\": \"tmp\"}", 1, 27, "cwd", "expected an absolute path"},
    {"{\"command\": [\"a\"], \"cwd\": \"/tmp\", \"outputs\": [\"x\"]}", 1, 47, "outputs[0]", "with cwd"},
    {"{\"command\": [\"a\"], \"timeout\": \"soon\"}", 1, 31, "timeout", "'soon' is no duration"},
    {"{\"command\": [\"a\"], \"timeout\": 0}", 1, 31, "timeout", "expected a number of seconds above 0"},
    {"{\"command\": [\"a\"], \"timeout\": \"0s\"}", 1, 31, "timeout", "expected a time above 0"},
    {"{\"command\": [\"a\"], \"timeout\": true}", 1, 31, "timeout",
     "expected seconds or a duration such as \"10m\", found true or false"},
    {"{\"command\": [\"a\"], \"resources\": {\"cpu\": 0}}", 1, 41, "resources.cpu",
     "expected a number of CPUs from 0.001, found 0"},
    {"{\"command\": [\"a\"], \"resources\": {\"cpu\": \"2\"}}", 1, 41, "resources.cpu",
     "expected a number of CPUs, found a string"},
    {"{\"command\": [\"a\"], \"resources\": {\"memory\": 1}}", 1, 34, "resources.memory",
     "not supported yet"},
    {"{\"command\": [\"a\"], \"resources\": {\"gpu\": 1}}", 1, 34, "resources.gpu", "not supported yet"},
    {"{\"command\": [\"a\"], \"retries\": -1}", 1, 31, "retries", "expected a whole number from 0"},
    {"{\"command\": [\"a\"], \"retries\": 1.5}", 1, 31, "retries", "expected a whole number from 0"},
    {"{\"command\": [\"a\"], \"retry_on\": [\"node\", \"moon\"]}", 1, 41, "retry_on[1]",
     "expected \"node\", \"exit\""},
    {"{\"command\": [\"a\"], \"after\": [\"" ID1 "\"]}", 1, 30, "after[0]",
     "expected a job ID, found an object ID"},
    {"{\"command\": [\"a\"], \"after\": [\"x\"]}", 1, 30, "after[0]", "expected a job ID (40"},
    {"{\"command\": [\"a\"], \"priority\": 20}", 1, 32, "priority", "expected a whole number from -20"},
    {"{\"command\": [\"a\"], \"refs\": {}}", 1, 28, "refs",
     "expected a list of IDs, each of an object, found an object"},
    {"{\"command\": [\"a\"], \"sandbox\": \"strict\"}", 1, 31, "sandbox", "\"strict\" is not supported"},
    {"{\"command\": [\"a\"], \"sandbox\": 1}", 1, 31, "sandbox", "expected \"none\""},
    {"{\"actor\": \"x\", \"command\": [\"a\"]}", 1, 2, "actor", "not supported yet"},
    {"{\"command\": [\"a\"],\n \"near\": []}", 2, 2, "near", "not supported yet"},
    {"{\"call\": \"x\", \"method\": \"y\", \"params\": []}", 1, 2, "call", "not supported yet"},
    {"{\"command\": [\"a\"], \"stdin\": \"}{\\\"\\\\\", \"refs\": [0]}", 1, 48, "refs[0]", "expected an obj"},
    {"#!\n", 1, 3, "", "expected the absolute path of an interpreter"},
    {"#!sh\n", 1, 3, "", "expected the absolute path of an interpreter"},
    {"#!/bin/sh\n#MOBULA cpu = 1\n", 2, 9, "cpu", "unknown field"},
    {"#!/bin/sh\n#MOBULA timeout\n", 2, 9, "timeout", "expected \"#MOBULA key = value\""},
    {"#!/bin/sh\n#MOBULA timeout = soon\n", 2, 19, "timeout", "'soon' is no duration"},
    {"#!/bin/sh\n#MOBULA timeout = 1\n#MOBULA timeout = 2\n", 3, 9, "timeout", "expected each option"},
    {"#!/bin/sh\n\n # x\n#MOBULA resources.memory = 1G\n", 4, 9, "resources.memory", "not supported"},
    {"#!/bin/sh\n#MOBULA command = x\n", 2, 9, "command", "a script is its own command"},
    {"#!/bin/sh\n#MOBULA retries = many\n", 2, 19, "retries", "expected a whole number"},
    {"#!/bin/sh\n#MOBULA after = " ID1 "\n", 2, 17, "after[0]", "expected a job ID"},
};

static void what_is_wrong_is_named_with_its_place(void **state)
{
    (void)state;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(refused); i++) {
        const struct refused *want = &refused[i];
        struct job_spec *spec = NULL;
        struct mob_error err = {0};
        errint_t error = spec_parse(want->text, strlen(want->text), &spec, &err);
        if (error != -EINVAL || err.code != -EINVAL || err.line != want->line ||
            err.column != want->column || strcmp(err.field, want->field) != 0 ||
            strncmp(err.message, want->message, strlen(want->message)) != 0)
            fail_msg("%s\ngives %d, line %u, column %u: '%s': %s\nexpected line %u, column %u: "
                     "'%s': %s",
                     want->text, error, err.line, err.column, err.field, err.message, want->line,
                     want->column, want->field, want->message);
        assert_null(spec);
        assert_int_equal(jobs_check(want->text, strlen(want->text), NULL), -EINVAL);
    }
}

/* A text of `before`, `count` times `unit`, `after`. */
static char *repeat(const char *before, const char *unit, size_t count, const char *after,
                    size_t *bytes)
{
    size_t unit_bytes = strlen(unit);
    *bytes = strlen(before) + count * unit_bytes + strlen(after);
    char *text = malloc(*bytes + 1), *at = stpcpy(text, before);
    for (size_t i = 0; i < count; i++, at += unit_bytes)
        memcpy(at, unit, unit_bytes);
    strcpy(at, after);
    return text;
}

static void check_large(const char *before, const char *unit, size_t count, const char *after,
                        errint_t expected, const char *message)
{
    size_t bytes;
    struct mob_error err = {0};
    char *text = repeat(before, unit, count, after, &bytes);
    errint_t error = jobs_check(text, bytes, &err);
    if (error != expected || strncmp(err.message, message, strlen(message)) != 0)
        fail_msg("%zu times %s: %d, %s", count, unit, error, err.message);
    free(text);
}

static void limits_are_those_of_the_page_and_of_linux(void **state)
{
    (void)state;
    check_large("{\"command\": [\"", "a", 131070, "\"]}", 0, "");
    check_large("{\"command\": [\"", "a", 131072, "\"]}", -EINVAL, "expected less than 128 KiB");
    check_large("{\"command\": [\"a\"", ", \"b\"", 209000, "]}", 0, "");
    check_large("{\"command\": [\"a\"", ", \"b\"", 210000, "]}", -EINVAL, "command and env are");
    check_large("{\"command\": [\"a\"], \"stdin\": \"", "x", 17 << 20, "\"}", -EINVAL,
                "the file has 17825823 bytes; expected at most 16 MiB");
    check_large("{\"command\": ", "[", 31, "", -EINVAL, "not valid JSON");
    check_large("{\"command\": ", "[", 32, "", -EINVAL, "nested too deep; expected at most 32");
    check_large("{\"command\": ", "[", 1000000, "", -EINVAL, "nested too deep");
    check_large("#!/", "x", 300, "\n", -EINVAL, "the first line has more than 255 bytes");
    check_large("{\"command\": [\"a\"], \"", "n", 100000, "\": 1}", -EINVAL, "unknown field");
}

static void a_thousand_outputs_and_not_one_more(void **state)
{
    (void)state;
    for (int count = 1000; count <= 1001; count++) {
        char *text = NULL;
        size_t bytes;
        FILE *out = open_memstream(&text, &bytes);
        fprintf(out, "{\"command\": [\"a\"");
        for (int i = 0; i < count; i++)
            fprintf(out, ", {\"output\": \"o%d\"}", i);
        fprintf(out, "]}");
        fclose(out);
        assert_int_equal(jobs_check(text, bytes, NULL), count == 1000 ? 0 : -EINVAL);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_smallest_spec_has_every_default),
        cmocka_unit_test(every_field_is_read),
        cmocka_unit_test(a_script_is_a_spec_with_options_in_comments),
        cmocka_unit_test(what_is_wrong_is_named_with_its_place),
        cmocka_unit_test(limits_are_those_of_the_page_and_of_linux),
        cmocka_unit_test(a_thousand_outputs_and_not_one_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
