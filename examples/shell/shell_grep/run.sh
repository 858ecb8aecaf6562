#!/bin/sh
# A Cloche plugin in POSIX shell, and nothing but the shell: the image has no other program.
# /job/job.json says what to do, /job/in has the files, /job/out (the working folder) takes files, /job/result.json the result.
set -eu

IFS= read -r job < /job/job.json # one line

# The manifest lets a word be letters and digits only, so that there is no escape to undo.
word=${job#*'"word":"'}
word=${word%%'"'*}

files=0 lines=0 found=0
for file in /job/in/*; do
    [ -f "$file" ] || continue
    hits=0
    while IFS= read -r line || [ -n "$line" ]; do
        lines=$((lines + 1))
        case $line in
        *"$word"*)
            hits=$((hits + 1))
            printf '%s\n' "$line" >> "${file##*/}"
            ;;
        esac
    done < "$file"
    files=$((files + 1)) found=$((found + hits))
    printf '%s: %d\n' "${file##*/}" "$hits" # the job's log
done

printf '{"files": %d, "lines": %d, "found": %d}\n' "$files" "$lines" "$found" > /job/result.json
