#!/usr/bin/env bats
# References: names, open files, jobs and containing objects keep an object; with the last it goes.
# shellcheck disable=SC2002,SC2012,SC2016,SC2030,SC2031,SC2314,SC2315

load helper

object() { echo "$MNT/objects/$(id_of "$1")"; }

# with_refs NAME REFS: an object staging/NAME that says its content and lists REFS.
with_refs() {
    local writer
    exec {writer}>"$MNT/staging/$1"
    setfattr -n user.mobula.refs -v "$2" "$MNT/staging/$1"
    echo "holds: $2" >&"$writer"
    exec {writer}>&-
}

# --- names ---

@test "st_nlink counts names: ln and ln -s add one, rm takes one" {
    echo x | put named
    local path
    path=$(object named)
    equals "$(links "$path")" 1
    ln "$path" "$MNT/staging/named-2"
    equals "$(links "$path")" 2
    ln -s "$path" "$MNT/staging/named-3"
    equals "$(links "$path")" 3
    mkdir "$MNT/staging/directory"
    ln -s "../../objects/${path##*/}" "$MNT/staging/directory/named-4"
    equals "$(links "$path")" 4
    equals "$(cat "$MNT/staging/named-2" "$MNT/staging/named-3" "$MNT/staging/directory/named-4")" $'x\nx\nx'
    rm "$MNT/staging/named" "$MNT/staging/named-3"
    equals "$(links "$path")" 2
    rm -r "$MNT/staging/directory"
    equals "$(links "$path")" 1
    equals "$(cat "$MNT/staging/named-2")" x
    rm "$MNT/staging/named-2"
    wait_until gone "$path"
}

@test "ln of a name makes another name of the same object" {
    echo x | put original
    ln "$MNT/staging/original" "$MNT/staging/second"
    equals "$(id_of second)" "$(id_of original)"
    equals "$(links "$(object original)")" 2
    rm "$MNT/staging/original"
    equals "$(cat "$MNT/staging/second")" x
}

@test "rm of the last name frees the object and its memory" {
    local before path
    before=$(used_bytes)
    bytes 8000000 | put heavy
    path=$(object heavy)
    (($(used_bytes) - before >= 7900000))
    rm "$MNT/staging/heavy"
    refused ENOENT stat "$path"
    refused ENOENT open-read "$path"
    wait_until '(( $(used_bytes) <= '"$before"' + 1000000 ))'
}

@test "a freed inline object is gone, also for who has just read it" {
    local path
    echo x | put light
    path=$(object light)
    cat "$path" >/dev/null
    rm "$MNT/staging/light"
    # The kernel tells of cat's close a moment later; nothing else may keep it.
    wait_until gone "$path"
    refused ENOENT open-read "$path"
}

@test "a name replaced by rename gives its reference up" {
    local old
    echo old | put replaced
    echo new | put replacing
    old=$(object replaced)
    mv "$MNT/staging/replacing" "$MNT/staging/replaced"
    refused ENOENT stat "$old"
    equals "$(links "$(object replaced)")" 1
}

@test "renaming one of two names over the other leaves one reference" {
    local path
    echo x | put twin-1
    path=$(object twin-1)
    ln "$path" "$MNT/staging/twin-2"
    # The kernel takes them for two links of one file, for which rename does nothing.
    allowed rename "$MNT/staging/twin-1" "$MNT/staging/twin-2"
    equals "$(links "$path")" "$(find "$MNT/staging" -name 'twin-*' | wc -l)"
    rm -f "$MNT/staging"/twin-*
    refused ENOENT stat "$path"
}

@test "an ID received by mail can be kept" {
    local path
    echo precious | put sent
    path=$(object sent)
    ln "$path" "$MNT/staging/kept"
    rm "$MNT/staging/sent"
    equals "$(cat "$MNT/staging/kept")" precious
    refused ENOENT link "${path%????????????????????????}ffffffffffffffff00000000" "$MNT/staging/unknown"
}

@test "two thousand names in a directory go with rm -r, and so do their objects" {
    local before
    before=$(object_count)
    bash -c 'mkdir "$1" && cd "$1" && for ((i = 0; i < 2000; i++)); do echo "$i" >"$i"; done' - "$MNT/staging/crowd"
    # The last ones may still be on their way: close(2) doesn't wait for the commit, a look-up does.
    wait_until '[[ $(object_count) -eq '"$((before + 2000))"' ]]'
    rm -r "$MNT/staging/crowd"
    wait_until '[[ $(object_count) -eq '"$before"' ]]'
}

# --- open files ---

@test "an open file keeps its object, inline or large, after the last name is gone" {
    local size path reader
    for size in 3000 3000000; do
        bytes "$size" | put held
        path=$(object held)
        exec {reader}<"$path"
        rm "$MNT/staging/held"
        # It still has its ID: an open file is a reference.
        equals "$(stat -c %s "$path")" "$size"
        equals "$(sha256sum <"$path")" "$(bytes "$size" | sha256sum)"
        equals "$(sha256sum <&"$reader")" "$(bytes "$size" | sha256sum)"
        exec {reader}<&-
        wait_until gone "$path"
    done
}

@test "an object held by an open file only can get a name again" {
    local path reader
    echo rescued | put fading
    path=$(object fading)
    exec {reader}<"$path"
    rm "$MNT/staging/fading"
    # Not by a hard link: the kernel makes none to what has no name left.
    ln -s "$path" "$MNT/staging/rescued"
    exec {reader}<&-
    equals "$(cat "$MNT/staging/rescued")" rescued
    equals "$(links "$path")" 1
}

@test "a map of an object reads on after the last name is gone" {
    bytes 3000000 >"$BATS_TEST_TMPDIR/copy"
    put mapped <"$BATS_TEST_TMPDIR/copy"
    coproc MAP { mapreader "$MNT/staging/mapped" "$BATS_TEST_TMPDIR/copy"; }
    local line out=${MAP[0]} in=${MAP[1]} pid=$MAP_PID
    read -ru "$out" line
    equals "$line" mapped
    rm "$MNT/staging/mapped"
    echo >&"$in"
    read -ru "$out" line
    equals "$line" equal
    exec {in}>&-
    wait "$pid"
}

# --- objects inside objects ---

@test "an object that lists others keeps them, and they go with it" {
    local inner_1 inner_2 outer
    echo 1 | put inner-1
    echo 2 | put inner-2
    inner_1=$(id_of inner-1)
    inner_2=$(id_of inner-2)
    with_refs outer "$inner_1 $inner_2"
    outer=$(id_of outer)
    equals "$(links "$MNT/objects/$inner_1")" 2
    equals "$(attribute refs "$MNT/objects/$outer" | tr '\n' ' ' | sed 's/ *$//')" "$inner_1 $inner_2"
    rm "$MNT/staging/inner-1" "$MNT/staging/inner-2"
    equals "$(links "$MNT/objects/$inner_1")" 1
    equals "$(cat "$MNT/objects/$inner_1" "$MNT/objects/$inner_2")" $'1\n2'
    rm "$MNT/staging/outer"
    refused ENOENT stat "$MNT/objects/$outer"
    wait_until gone "$MNT/objects/$inner_1"
    wait_until gone "$MNT/objects/$inner_2"
}

@test "a chain of objects, each in the next, goes with the last" {
    local first id i before
    before=$(object_count)
    echo 0 | put chain
    first=$(id_of chain)
    for ((i = 0; i < 100; i++)); do
        id=$(id_of chain)
        with_refs chain-next "$id"
        mv -f "$MNT/staging/chain-next" "$MNT/staging/chain"
    done
    wait_until '[[ $(object_count) -eq '"$((before + 101))"' ]]'
    exists "$MNT/objects/$first"
    rm "$MNT/staging/chain"
    wait_until '[[ $(object_count) -eq '"$before"' ]]'
    refused ENOENT stat "$MNT/objects/$first"
}

@test "refs \"content\" takes the list from the content, however long" {
    local writer
    bash -c 'mkdir "$1" && cd "$1" && for ((i = 0; i < 1000; i++)); do echo "$i" >"$i"; done' - "$MNT/staging/members"
    exec {writer}>"$MNT/staging/list"
    setfattr -n user.mobula.refs -v content "$MNT/staging/list"
    find "$MNT/staging/members" -type l -printf '%l\n' | sed 's,.*/,,' | tee "$BATS_TEST_TMPDIR/ids" >&"$writer"
    exec {writer}>&-
    rm -r "$MNT/staging/members"
    same "$MNT/staging/list" "$BATS_TEST_TMPDIR/ids"
    local id
    while read -r id; do
        equals "$(links "$MNT/objects/$id")" 1
    done < <(sed -n '1p;500p;1000p' "$BATS_TEST_TMPDIR/ids")
    equals "$(comm -12 <(sort "$BATS_TEST_TMPDIR/ids") <(ls "$MNT/objects") | wc -l)" 1000
    rm "$MNT/staging/list"
    wait_until '[[ $(comm -12 <(sort "$BATS_TEST_TMPDIR/ids") <(ls "$MNT/objects") | wc -l) -eq 0 ]]'
}

@test "references to what doesn't exist, or isn't an ID, are refused with EINVAL" {
    local id writer
    echo x | put real
    id=$(id_of real)
    exec {writer}>"$MNT/staging/bad-refs"
    refused EINVAL setxattr "$MNT/staging/bad-refs" user.mobula.refs=nonsense
    refused EINVAL setxattr "$MNT/staging/bad-refs" "user.mobula.refs=${id:0:16}ffffffffffffffff00000000"
    refused EINVAL setxattr "$MNT/staging/bad-refs" "user.mobula.refs=$id ${id:1}"
    refused EINVAL setxattr "$MNT/staging/bad-refs" "user.mobula.refs=$id$id"
    allowed setxattr "$MNT/staging/bad-refs" "user.mobula.refs=$id"
    exec {writer}>&-
    equals "$(links "$MNT/objects/$id")" 2
}

@test "a content list with a bad line is reported by close, and holds nothing" {
    local id
    echo x | put listed
    id=$(id_of listed)
    # cp closes its target after it has written it; the attribute is set in between by this shell.
    run bash -c '
        exec 5>"$1/bad-list"
        setfattr -n user.mobula.refs -v content "$1/bad-list"
        printf "%s\nnot an ID\n" "$2" >"$3"
        cat "$3" >>"$1/bad-list"' - "$MNT/staging" "$id" "$BATS_TEST_TMPDIR/list"
    [[ $status -ne 0 ]]
    matches "$output" 'Invalid argument'
    equals "$(links "$MNT/objects/$id")" 1
    rm -f "$MNT/staging/bad-list"
}

# A cycle would need an object that lists one made after it. The list is fixed when the object is
# committed, its IDs must exist then, and no ID exists (or can be guessed) before its own commit.
@test "a cycle can't be made: not by itself, not by what comes later, not afterwards" {
    local first second writer
    exec {writer}>"$MNT/staging/cycle-1"
    # A file being written has no ID yet, so it can't list itself.
    equals "$(attribute owner "$MNT/staging/cycle-1" | grep -cE '^[0-9a-f]{40}$')" 0
    refused EINVAL setxattr "$MNT/staging/cycle-1" user.mobula.refs=cycle-1
    refused EINVAL setxattr "$MNT/staging/cycle-1" user.mobula.refs=../staging/cycle-1
    exec {writer}>&-
    first=$(id_of cycle-1)
    with_refs cycle-2 "$first"
    second=$(id_of cycle-2)
    # The first is committed: nothing can be added to its list.
    refused 'EPERM|EROFS|EACCES' setxattr "$MNT/objects/$first" "user.mobula.refs=$second"
    refused 'EPERM|EROFS|EACCES' setxattr "$MNT/staging/cycle-1" "user.mobula.refs=$second"
    equals "$(attribute refs "$MNT/objects/$first")" ""
    # So what is dropped is freed.
    rm "$MNT/staging/cycle-1" "$MNT/staging/cycle-2"
    wait_until gone "$MNT/objects/$first"
    wait_until gone "$MNT/objects/$second"
}

# --- jobs ---

@test "a job keeps its arguments until it ends, by value and by reference" {
    local by_value by_ref gate=$BATS_TEST_TMPDIR/gate
    echo value | put by-value
    echo ref | put by-ref
    by_value=$(id_of by-value)
    by_ref=$(id_of by-ref)
    mkfifo -m 666 "$gate"
    drop keeper '{"command": ["sh", "-c", "cat '"$gate"'; cat $0 $1", {"object": "'"$by_value"'"}, {"ref": "'"$by_ref"'"}]}'
    rm "$MNT/staging/by-value" "$MNT/staging/by-ref"
    ((1 <= $(links "$MNT/objects/$by_value")))
    ((1 <= $(links "$MNT/objects/$by_ref")))
    within 10 bash -c 'echo go >"$1"' - "$gate"
    ends keeper succeeded
    equals "$(cat "$MNT/run/keeper/result")" $'go\nvalue\nref'
    wait_until gone "$MNT/objects/$by_value"
    wait_until gone "$MNT/objects/$by_ref"
}

@test "a job's result is kept by its name in run, and goes with it" {
    local id job
    drop made '{"command": ["echo", "made"]}'
    ends made succeeded
    id=$(result made)
    job=$(job made)
    equals "$(cat "$MNT/objects/$id")" made
    equals "$(links "$MNT/objects/$id")" 1
    rm "$MNT/run/made"
    wait_until gone "$MNT/jobs/$job"
    wait_until gone "$MNT/objects/$id"
}

@test "a result that was linked into staging outlives its job" {
    local id job
    drop outlived '{"command": ["echo", "outlived"]}'
    id=$(result outlived)
    job=$(job outlived)
    # Already while it is pending.
    ln -s "$MNT/objects/$id" "$MNT/staging/outlived"
    ends outlived succeeded
    rm "$MNT/run/outlived"
    wait_until gone "$MNT/jobs/$job"
    equals "$(cat "$MNT/staging/outlived")" outlived
    equals "$(links "$MNT/objects/$id")" 1
}

@test "refs of a job are held for its life" {
    local id
    echo x | put life
    id=$(id_of life)
    gate life-gate
    drop life-job '{"command": ["cat", {"object": "'"$(result life-gate)"'"}], "refs": ["'"$id"'"]}'
    rm "$MNT/staging/life"
    exists "$MNT/objects/$id"
    open_gate life-gate over
    ends life-job succeeded
    rm "$MNT/run/life-job" "$MNT/run/life-gate"
    wait_until gone "$MNT/objects/$id"
}

# --- who holds it ---

@test "the attribute holders and mobula stat name every holder" {
    local id outer reader holders
    mkdir -p "$MNT/staging/holders"
    echo x | put holders/one
    id=$(id_of holders/one)
    ln "$MNT/objects/$id" "$MNT/staging/holders/two"
    with_refs holders/outer "$id"
    outer=$(id_of holders/outer)
    gate holders-gate
    drop holders-job '{"command": ["cat", {"object": "'"$id"'"}, {"object": "'"$(result holders-gate)"'"}]}'
    exec {reader}<"$MNT/objects/$id"
    holders=$(attribute holders "$MNT/objects/$id")
    matches "$holders" 'name staging/holders/one'
    matches "$holders" 'name staging/holders/two'
    matches "$holders" "object $outer"
    matches "$holders" "job $(job holders-job) argument"
    matches "$holders" 'open files 1'
    matches "$(attribute holders "$MNT/objects/$(result holders-job)")" "job $(job holders-job) output"
    run within 10 env MOBULA="$MNT" mobula stat "$id"
    [[ $status -eq 0 ]]
    matches "$output" 'staging/holders/one'
    matches "$output" 'staging/holders/two'
    matches "$output" "$outer"
    matches "$output" "$(job holders-job)"
    ln "$MNT/objects/$id" "$MNT/staging/holders/"$'new\nline'
    ln "$MNT/objects/$id" "$MNT/staging/holders/"$'\xff'
    equals "$(MOBULA=$MNT mobula stat --json "$id" | jq -c '[.holders[] | select(test("new|377"))] | sort')" \
        '["name staging/holders/\\377","name staging/holders/new\\012line"]'
    rm "$MNT/staging/holders/"$'new\nline' "$MNT/staging/holders/"$'\xff'
    exec {reader}<&-
    open_gate holders-gate y
    ends holders-job succeeded
    wait_until '[[ $(attribute holders "$MNT/objects/'"$id"'") != *argument* ]]'
    equals "$(links "$MNT/objects/$id")" 3
}
