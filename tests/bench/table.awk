# goals and figures (NAME.tsv) to a Markdown table. See run.
function short(value) {
    if (value >= 1000 || value <= -1000) return sprintf("%.0f", value)
    if (value >= 100) return sprintf("%.0f", value)
    if (value >= 10) return sprintf("%.1f", value)
    return sprintf("%.2f", value)
}
function with_spread(name, key) {
    if (!((name, key) in median)) return "not measured"
    if (least[name, key] == most[name, key])
        return short(median[name, key]) " " unit[name, key]
    return short(median[name, key]) " " unit[name, key] " (" short(least[name, key]) \
        "–" short(most[name, key]) ")"
}
function met(value, goal, parts) {
    split(goal, parts, " ")
    if (parts[1] == ">=") return value >= parts[2] + 0 ? "yes" : "no"
    if (parts[1] == ">") return value > parts[2] + 0 ? "yes" : "no"
    if (parts[1] == "<=") return value <= parts[2] + 0 ? "yes" : "no"
    return ""
}
# The most of the store's memory that was in use in each tenth of the time that putting took.
function slices(transport, way, ways, count, i, w) {
    count = split("cp pipe three job outgrow", ways, " ")
    if (!((transport, "slice_cp_1") in median) && !((transport, "slice_outgrow_1") in median)) return
    printf "\nMost memory in use in each tenth of the time, of the budget, %s:\n\n", transport
    print "| put by | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 |"
    print "|---|---|---|---|---|---|---|---|---|---|---|"
    for (w = 1; w <= count; w++) {
        if (!((transport, "slice_" ways[w] "_1") in median)) continue
        printf "| %s |", ways[w]
        for (i = 1; i <= 10; i++) printf " %.2f |", median[transport, "slice_" ways[w] "_" i]
        print ""
    }
}
# Was it measured over another transport only?
function elsewhere(key, t) {
    for (t = 1; t <= transport_count; t++)
        if ((transports[t], key) in median) return 1
    return 0
}
function row(transport, r, source, against, ratio, result) {
    if (!((transport, keys[r]) in median) &&
        (only != "" || goals[r] == "" || elsewhere(keys[r]))) return
    against = "–"; ratio = "–"; result = ""
    if (versus[r] != "") {
        source = versus[r] == "Ray" ? "ray" : transport
        against = versus[r] ": " with_spread(source, versus_keys[r])
        if ((transport, keys[r]) in median && median[source, versus_keys[r]] != 0) {
            ratio = median[transport, keys[r]] / median[source, versus_keys[r]]
            if (goals[r] != "" && quick == "") result = met(ratio, goals[r])
            ratio = short(ratio)
        }
    } else if (goals[r] != "" && quick == "" && (transport, keys[r]) in median) {
        result = met(median[transport, keys[r]], goals[r])
    }
    printf "| %s | %s | %s | %s | %s | %s | %s |\n", names[r], transport, \
        with_spread(transport, keys[r]), against, ratio, goals[r], result
}
/^#/ { next }
FILENAME ~ /goals$/ {
    split($0, field, "|")
    rows++
    where[rows] = field[1]; names[rows] = field[2]; keys[rows] = field[3]
    versus[rows] = field[4]; versus_keys[rows] = field[5]; goals[rows] = field[6]
    next
}
FNR == 1 {
    file = FILENAME
    sub(/^.*\//, "", file)
    sub(/\.tsv$/, "", file)
    if (file != "ray") transports[++transport_count] = file
}
{
    split($0, field, "\t")
    median[file, field[1]] = field[2] + 0
    least[file, field[1]] = field[3] + 0
    most[file, field[1]] = field[4] + 0
    unit[file, field[1]] = field[5]
}
END {
    printf "%s, %s.\n", date, kind
    printf "Medians of %d runs (smallest–largest)%s. Ratios are ours to the other's.\n\n", runs, \
        quick == "" ? "" : "; --quick, with a tenth of the counts or less: shows that it works, not how fast"
    print "| figure | transport | mobula | against | ratio | goal | met |"
    print "|---|---|---|---|---|---|---|"
    for (r = 1; r <= rows; r++)
        for (t = transport_count; t >= 1; t--)
            if (where[r] == "*" || where[r] == transports[t])
                row(transports[t], r)
    for (t = transport_count; t >= 1; t--)
        slices(transports[t])
}
