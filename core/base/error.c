/* Errors: filling and printing struct mob_error. */
#include "core/base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void fill(struct mob_error *err, errint_t code, unsigned line, unsigned column,
                 const char *field, const char *format, va_list args)
{
    err->code = code;
    err->line = line;
    err->column = column;
    snprintf(err->field, sizeof err->field, "%s", field ? field : "");
    vsnprintf(err->message, sizeof err->message, format, args);
}

errint_t mob_error_set(struct mob_error *err, errint_t code, const char *format, ...)
{
    if (!err)
        return code;
    va_list args;
    va_start(args, format);
    fill(err, code, 0, 0, NULL, format, args);
    va_end(args);
    return code;
}

errint_t mob_error_set_at(struct mob_error *err, errint_t code, unsigned line, unsigned column,
                          const char *field, const char *format, ...)
{
    if (!err)
        return code;
    va_list args;
    va_start(args, format);
    fill(err, code, line, column, field, format, args);
    va_end(args);
    return code;
}

const char *mob_error_format(const struct mob_error *err, char *out, size_t out_bytes)
{
    char place[64] = "";
    if (err->line && err->column)
        snprintf(place, sizeof place, "line %u, column %u: ", err->line, err->column);
    else if (err->line)
        snprintf(place, sizeof place, "line %u: ", err->line);
    snprintf(out, out_bytes, "%s%s%s%s", place, err->field, err->field[0] ? ": " : "",
             err->message);
    return out;
}
