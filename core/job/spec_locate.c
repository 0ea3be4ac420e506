/* Places in JSON text: jansson keeps none, so an error that is found in the parsed values is
 * located by walking the text a second time. The text has been accepted by jansson, yet nothing
 * here relies on that: every step is bounded by the end of the text. */
#include <string.h>

#include "core/base/util.h"
#include "core/job/spec_internal.h"

struct cursor {
    const char *text;
    size_t bytes, at;
};

void spec_line_column(const char *text, size_t bytes, size_t offset, unsigned *line,
                      unsigned *column)
{
    *line = 1;
    *column = 1;
    for (size_t i = 0; i < offset && i < bytes; i++) {
        if (text[i] == '\n') {
            (*line)++;
            *column = 1;
        } else if (((unsigned char)text[i] & 0xc0) != 0x80) { /* not inside a character */
            (*column)++;
        }
    }
}

static void skip_space(struct cursor *c)
{
    while (c->at < c->bytes && strchr(" \t\r\n", c->text[c->at]) && c->text[c->at])
        c->at++;
}

/* Behind the closing quote of the string that begins here. */
static void skip_string(struct cursor *c)
{
    for (c->at++; c->at < c->bytes && c->text[c->at] != '"'; c->at++)
        if (c->text[c->at] == '\\' && c->at + 1 < c->bytes)
            c->at++;
    if (c->at < c->bytes)
        c->at++;
}

/* Behind the value that begins here; brackets are counted, not recursed into. */
static void skip_value(struct cursor *c)
{
    size_t depth = 0;
    skip_space(c);
    while (c->at < c->bytes) {
        char byte = c->text[c->at];
        if (byte == '"') {
            skip_string(c);
        } else if (byte == '[' || byte == '{') {
            depth++;
            c->at++;
        } else if (byte == ']' || byte == '}') {
            if (depth == 0)
                return;
            depth--;
            c->at++;
        } else if (byte == ',' && depth == 0) {
            return;
        } else {
            c->at++;
            continue; /* part of a number or a word: goes on */
        }
        if (depth == 0)
            return;
    }
}

static bool take(struct cursor *c, char byte)
{
    skip_space(c);
    if (c->at >= c->bytes || c->text[c->at] != byte)
        return false;
    c->at++;
    return true;
}

/* Whether the string token at [from, to) means `key`: jansson decodes the one that has escapes. */
static bool key_is(const char *token, size_t bytes, const char *key)
{
    if (bytes < 2)
        return false;
    if (!memchr(token, '\\', bytes))
        return bytes - 2 == strlen(key) && memcmp(token + 1, key, bytes - 2) == 0;
    json_t *decoded = json_loadb(token, bytes, JSON_DECODE_ANY, NULL);
    bool same = decoded && json_is_string(decoded) && !strcmp(json_string_value(decoded), key);
    json_decref(decoded);
    return same;
}

/* Steps from an object to the value of `key`; with `at_key`, to the key itself. */
static bool enter_key(struct cursor *c, const char *key, bool at_key)
{
    if (!take(c, '{'))
        return false;
    for (;;) {
        skip_space(c);
        size_t start = c->at;
        if (start >= c->bytes || c->text[start] != '"')
            return false;
        skip_string(c);
        bool found = key_is(c->text + start, c->at - start, key);
        if (found && at_key) {
            c->at = start;
            return true;
        }
        if (!take(c, ':'))
            return false;
        skip_space(c);
        if (found)
            return true;
        skip_value(c);
        if (!take(c, ','))
            return false;
    }
}

static bool enter_index(struct cursor *c, size_t index)
{
    if (!take(c, '['))
        return false;
    for (; index > 0; index--) {
        skip_value(c);
        if (!take(c, ','))
            return false;
    }
    skip_space(c);
    return c->at < c->bytes;
}

bool spec_locate(const char *text, size_t bytes, const struct spec_path *path, unsigned *line,
                 unsigned *column)
{
    struct cursor cursor = {text, bytes, 0};
    *line = *column = 0;
    skip_space(&cursor);
    for (size_t i = 0; i < path->count; i++) {
        bool last = i + 1 == path->count;
        bool found = path->steps[i].key
                         ? enter_key(&cursor, path->steps[i].key, last && path->at_key)
                         : enter_index(&cursor, path->steps[i].index);
        if (!found)
            return false;
    }
    spec_line_column(text, bytes, cursor.at, line, column);
    return true;
}

size_t spec_too_deep(const char *text, size_t bytes)
{
    struct cursor cursor = {text, bytes, 0};
    size_t depth = 0;
    while (cursor.at < bytes) {
        char byte = text[cursor.at];
        if (byte == '"') {
            skip_string(&cursor);
            continue;
        }
        if (byte == '[' || byte == '{') {
            if (++depth > SPEC_DEPTH_LIMIT)
                return cursor.at;
        } else if ((byte == ']' || byte == '}') && depth > 0) {
            depth--;
        }
        cursor.at++;
    }
    return bytes;
}
