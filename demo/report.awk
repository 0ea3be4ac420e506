#!/usr/bin/awk -f
# report.awk TRUTH PREDICTIONS...: how many digits were recognised, and which were taken for which.
# TRUTH and PREDICTIONS have "number digit" lines. The last job of the demo runs it as an object.

function fail(text)
{
    print "report: " text > "/dev/stderr"
    failed = 1
    exit 1
}

NF != 2 || $1 !~ /^[0-9]+$/ || $2 !~ /^[0-9]$/ {
    fail(FILENAME ":" FNR ": expected a number and a digit")
}

FILENAME == ARGV[1] {
    truth[$1] = $2
    images++
    next
}

{
    if (!($1 in truth))
        fail(FILENAME ":" FNR ": no image has the number " $1)
    if ($1 in seen)
        fail(FILENAME ":" FNR ": the image " $1 " was recognised twice")
    seen[$1] = 1
    recognised++
    right += truth[$1] == $2
    taken[truth[$1], $2]++
}

END {
    if (failed)
        exit 1
    if (images == 0 || recognised != images)
        fail(recognised + 0 " predictions for " images + 0 " images")
    printf "accuracy %.4f: %d of %d unseen images\n\n", right / images, right, images
    printf "written, down; recognised, across\n  "
    for (to = 0; to < 10; to++)
        printf " %4d", to
    printf "\n"
    for (from = 0; from < 10; from++) {
        printf "%2d", from
        for (to = 0; to < 10; to++)
            printf " %4s", (from, to) in taken ? taken[from, to] : "."
        printf "\n"
    }
}
