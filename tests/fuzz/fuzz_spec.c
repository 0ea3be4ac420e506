/* Job specs are text from users: whatever it is, spec_parse() says yes, or no with a sentence and a place that is in
 * the text. */
#include <stdlib.h>
#include <string.h>

#include "core/base/util.h"
#include "core/job/job.h"
#include "core/job/spec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool condition)
{
    if (!condition)
        abort();
}

/* An error names a place that exists, and can be printed. */
static void check_error(const struct mob_error *err, const char *text, size_t bytes)
{
    unsigned lines = 1;
    for (size_t i = 0; i < bytes; i++)
        lines += text[i] == '\n';
    require(err->code == -EINVAL || err->code == -ENOMEM);
    require(err->message[0] && mob_is_utf8(err->message, strlen(err->message)));
    require(err->line <= lines && err->column <= bytes + 1);
}

static void check_spec(const struct job_spec *spec)
{
    require(spec->script_bytes ? spec->interpreter && !spec->word_count : spec->word_count > 0);
    require(spec->output_count <= SPEC_OUTPUT_LIMIT && spec->milli_cpus > 0);
    require(spec->priority >= -20 && spec->priority <= 19);
    for (size_t i = 0; i < spec->word_count; i++)
        require(spec->words[i].kind == SPEC_WORD_TEXT     ? spec->words[i].text != NULL
                : spec->words[i].kind == SPEC_WORD_OUTPUT ? spec->words[i].output < spec->output_count
                                                          : true);
    for (size_t i = 0; i < spec->output_count; i++)
        require(spec->outputs[i][0] && !strchr(spec->outputs[i], '/'));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    /* A copy of the exact length, so that a read past the end is seen. */
    char *text = calloc(1, bytes ? bytes : 1);
    struct job_spec *spec = NULL;
    struct mob_error err = {0};
    unsigned line, column;
    require(text != NULL);
    if (bytes)
        memcpy(text, data, bytes);
    if (spec_parse(text, bytes, &spec, &err))
        check_error(&err, text, bytes);
    else
        check_spec(spec);
    spec_free(spec);
    /* The second pass must be safe with text that the first one refused. */
    spec_place(text, bytes, "command", bytes % 7, &line, &column);
    spec_place(text, bytes, "after", SIZE_MAX, &line, &column);
    free(text);
    return 0;
}
