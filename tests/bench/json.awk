# Figures (key TAB median TAB smallest TAB largest TAB unit) of files NAME.tsv to JSON.
BEGIN {
    FS = "\t"
    gsub(/["\\]/, "", kind)
    printf "{\n \"date\": \"%s\",\n \"machine\": \"%s\",\n \"runs\": %d,\n \"quick\": %s,\n", \
        date, kind, runs, quick == "" ? "false" : "true"
    printf " \"figures\": {"
}
FNR == 1 {
    name = FILENAME
    sub(/^.*\//, "", name)
    sub(/\.tsv$/, "", name)
    printf "%s\n  \"%s\": {", files++ ? "\n  }," : "", name
    figures = 0
}
{
    printf "%s\n   \"%s\": {\"median\": %s, \"min\": %s, \"max\": %s, \"unit\": \"%s\"}", \
        figures++ ? "," : "", $1, $2, $3, $4, $5
}
END { printf "%s\n }\n}\n", files ? "\n  }" : "" }
