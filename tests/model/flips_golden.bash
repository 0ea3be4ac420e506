# What tests/model/flips puts, the states it begins with, and the listing of what can be read.
# shellcheck shell=bash disable=SC2154 # its variables and functions are those of flips

# --- what is put ---

content() { tail -c "+$(($2 + 1))" "$work/random" 2>/dev/null | head -c "$1"; }

# expect PATH SIZE OFFSET: what is put must be in every golden state, or is noted to be missing.
expect() { printf 'content %s\t%s\n' "$1" "$(content "$2" "$3" | sha256sum | cut -d' ' -f1)"; }

# Durable, where something can be.
settle() { [[ $variant = unspilled ]] || sync "$@" || give_up "$* can't be synced"; }

# put ROOT NAME SIZE [sync]; the offset in the random bytes is the size.
put() {
    content "$3" "$3" >"$1/staging/$2" || give_up "$2 can't be put"
    [[ ! ${4-} ]] || settle "$1/staging/$2"
    expect "staging/$2" "$3" "$3" >>"$work/expected"
}

# A file that is written on disk from the start.
put_on_disk() {
    local fd
    exec {fd}<>"$1/staging/$2" && content "$3" "$3" >&"$fd" && exec {fd}>&-
    settle "$1/staging/$2"
    expect "staging/$2" "$3" "$3" >>"$work/expected"
}

put_with_attributes() {
    local fd
    exec {fd}>"$1/staging/$2"
    setfattr -n user.colour -v "blue$3" "$1/staging/$2"
    setfattr -n user.mobula.refs -v "$4" "$1/staging/$2"
    content "$3" "$3" >&"$fd"
    exec {fd}>&-
    expect "staging/$2" "$3" "$3" >>"$work/expected"
}

id_of() { basename "$(readlink "$1")"; }

put_jobs() {
    echo '{"command": ["seq", "'"$2"'"], "outputs": []}' >"$1/run/seq$2"
    echo '{"command": ["sh", "-c", "seq 50000; echo said >&2"]}' >"$1/run/large$2"
    echo '{"command": ["sort", "-rn", {"object": "'"$(id_of "$1/run/seq$2/result")"'"}]}' \
        >"$1/run/d$2/sorted"
    echo '{"command": ["sh", "-c", "echo bad >&2; exit 3"]}' >"$1/run/failed$2"
    mobula wait --mount "$1" "$(id_of "$1/run/d$2/sorted/result")" \
        "$(id_of "$1/run/large$2/result")" >/dev/null || give_up "the jobs don't end"
    cat "$1"/run/failed"$2"/exit_code >/dev/null
}

# put_half ROOT N: of each kind.
put_half() {
    local size held
    mkdir -p "$1/staging/d$2/e/f" "$1/staging/empty$2" "$1/run/d$2"
    for size in 0 1 700 1500 2000 30000 102400; do put "$1" "small$2-$size" "$size"; done
    put "$1" "memory$2" $((300000 + $2)) sync
    put "$1" "d$2/e/memory" $((2500000 + $2)) sync
    put_on_disk "$1" "disk$2" $((700000 + $2))
    put_on_disk "$1" "d$2/disk" $((2200000 + $2))
    held=$(content 400000 5 | mobula put --mount "$1" --name "held$2" -)
    settle "$1/staging/held$2"
    put_with_attributes "$1" "holds$2" 900 "$held $(id_of "$1/staging/small$2-700")"
    put_with_attributes "$1" "d$2/e/f/holds" 150000 "$(id_of "$1/staging/holds$2")"
    settle "$1/staging/d$2/e/f/holds"
    ln "$1/staging/memory$2" "$1/staging/d$2/e/f/again"
    ln -s nowhere "$1/staging/d$2/link"
    rm "$1/staging/held$2"
    put_jobs "$1" "$2"
    settle "$1/staging"
}

copy_running() {
    local pid
    pid=$(sed -n 's/^pid //p' "$1"/nodes/*/daemon)
    kill -STOP "$pid"
    cp -ax --sparse=always "$2" "$3"
    kill -CONT "$pid"
}

# A state whose large objects have no disk to go to.
make_unspilled() {
    variant=unspilled
    rm -rf --one-file-system "$state"
    up || give_up "an empty state can't be started"
    : >"$work/expected"
    put_half "$after" 1
    down || give_up "the state unspilled can't be taken down"
    cp -a "$state" "$golden/unspilled"
    sort -u "$work/expected" >"$golden/expected-unspilled"
}

make_golden() {
    variant=copied
    mkdir -p "$golden"
    head -c 8M /dev/urandom >"$work/random"
    : >"$work/expected"
    put_half "$mnt" 1
    copy_running "$mnt" "$first_state" "$state"
    up || give_up "the first copy can't be started"
    sync "$after" # its snapshot is there then
    put_half "$after" 2
    put "$after" lost-copied 250000 # not synced
    exec 3>"$after/staging/open-small" 4>"$after/staging/open-large"
    content 5000 5000 >&3
    content 1200000 1200000 >&4
    settle "$after/staging/open-small" "$after/staging/open-large" "$after/staging"
    expect staging/open-small 5000 5000 >>"$work/expected"
    expect staging/open-large 1200000 1200000 >>"$work/expected"
    tail -f /dev/null & # has them open; what this shell starts must not, or waits for the server
    holder=$!
    exec 3>&- 4>&-
    copy_running "$after" "$state" "$golden/copied"
    kill "$holder"
    wait "$holder" 2>/dev/null
    holder=''
    down || give_up "the golden state can't be taken down"
    cp -a "$state" "$golden/clean"
    for variant in clean killed copied; do
        grep -v "^content staging/lost-$variant" "$work/expected" |
            sort -u >"$golden/expected-$variant"
    done
    [[ ${key[*]} ]] || make_unspilled
}

# --- what is there ---

# listing MNT: a line for each thing that can be read: "KIND PATH", a tab, and what it is. What is
# recovered from an fsync before its close (open-*) has a new ID and time.
listing() {
    cd "$1" || exit 1
    find staging run -mindepth 1 -printf 'name %p\t%y %m %l\n' |
        sed 's,\(open-[a-z]*\t.*\.\./objects/\).*,\1,'
    find -L staging -type f ! -name 'open-*' -printf 'object %p\t%s %m %T@\n' \
        -printf 'links %p\t%n\n'
    {
        find -L staging run -type f ! -name usage ! -name ctl -print0
        getfattr --only-values -n user.mobula.refs staging/holds* 2>/dev/null |
            sed 's,^,objects/,' | sort -u | tr '\n' '\0' # what only they hold has no name
    } | xargs -0 sha256sum 2>&1 |
        sed -n 's/^\([0-9a-f]\{64\}\)  \(.*\)/content \2\t\1/p
            s/^sha256sum: \(.*\): Input.output error$/content \1\tunreadable/p'
    getfattr -R -L -d -m '^user\.(colour|mobula\.(state|refs|error))$' staging 2>/dev/null |
        awk -F= '/^# file: / { path = substr($0, 9) } /^user/ {
            kind = $1 == "user.mobula.error" ? "error " path : "attribute " path " " $1
            print kind "\t" substr($0, length($1) + 2) }'
}
export -f listing

# list FILE: status 137 if it takes too long.
list() {
    "${limit[@]}" bash -c "listing '$after'" 2>/dev/null >"$1.unsorted"
    local status=$?
    sort -u "$1.unsorted" >"$1"
    return "$status"
}

# said FILE: warnings and errors in the log from byte $log_start on.
said() {
    tail -c "+$((log_start + 1))" "$state/log" 2>/dev/null | tr -d '\0' |
        grep -aE '^[^ ]+ (warning|error) ' | cut -d' ' -f2- | sort -u >"$1"
}
