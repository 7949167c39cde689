"""The scripts that run in a device's shell: POSIX sh, one line each.

Values are set by quoted assignments in front. The line is passed to `sh -c` as one quoted word, so that the account's
login shell, which need not be a POSIX shell, has nothing to expand. csh accepts no newline in quotes, so there are
none. The scripts use only programs that every small system has; without sha256sum the device's Python computes sums.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

# marks the scripts' own lines: an account's start-up files may print others
MARKER = "edgedistill:"
STARTED = f"{MARKER} started"
RAN = f"{MARKER} sh"  # the first line of PREPARE: without it something else ran, such as a forced command
EXIT_FOLDER, EXIT_ALTERED = 73, 75  # exit codes: the folder cannot be used; a file differs from what was sent
PART = ".part."
# folders of interrupted runs are removed after so many days
STALE_DAYS = 3
HEX = "[0-9a-f]"
JOB_PATTERN = "job-" + 16 * HEX
SPECIAL = re.compile(r"([\\!])")

_HASHER = "import hashlib, sys; print(hashlib.sha256(getattr(sys.stdin, 'buffer', sys.stdin).read()).hexdigest())"
_SUM = (
    f'sum() {{ if command -v sha256sum >/dev/null 2>&1; then sha256sum <"$1"; else '
    f'"$python" -c {shlex.quote(_HASHER)} <"$1"; fi | cut -c 1-64; }}; '
)
_ENTER = f'CDPATH= cd -- "$workdir/$job" || exit {EXIT_FOLDER}; '
# ends the process group of an agent whose connection was cut, if its leader is still the shell of this folder
_END_FORMER = (
    "former=; if [ -f .agent ]; then read former <.agent; fi; "
    'if [ -n "$former" ] && grep -qF "$job" "/proc/$former/cmdline" 2>/dev/null; then '
    'kill -s TERM -- "-$former"; sleep 1; kill -s KILL -- "-$former"; rm -f .agent; fi 2>/dev/null; '
)

# $@: names. Makes the folder, prints the free space, and for every file its sha256 and the size of its part
PREPARE = (
    f'LC_ALL=C; export LC_ALL; echo; echo "{RAN}"; '
    'command -v "$python" >/dev/null 2>&1 || { echo "$python: not found" >&2; exit 127; }; '
    f'mkdir -p -- "$workdir" && CDPATH= cd -- "$workdir" || exit {EXIT_FOLDER}; '
    'if [ -d "$job" ]; then :; else mkdir -m 700 "$job"; fi; '
    f'if [ -L "$job" ]; then echo "$job: is a link" >&2; exit {EXIT_FOLDER}; fi; '
    f'[ -O "$job" ] || {{ echo "$job: belongs to someone else" >&2; exit {EXIT_FOLDER}; }}; '
    f'touch "$job" || exit {EXIT_FOLDER}; '
    f'find . -maxdepth 1 -type d -name "{JOB_PATTERN}" -mtime +{STALE_DAYS - 1} -exec rm -rf {{}} + 2>/dev/null; '
    f'cd "$job" || exit {EXIT_FOLDER}; {_SUM}'
    f'echo "{MARKER} free $(df -Pk . | tail -n 1)"; '
    'for f in "$@"; do h=; n=0; if [ -f "./$f" ]; then h=$(sum "./$f"); fi; '
    f'if [ -f "./{PART}$f" ]; then n=$(wc -c <"./{PART}$f"); fi; echo "{MARKER} file" "${{h:--}}" $n; done'
)
# stdin: the rest of a file whose beginning is in its part. A cut connection looks like the end of stdin: a part that is
# too short is kept for another try, one of full length with another sha256 is removed
SEND = (
    f'LC_ALL=C; export LC_ALL; {_ENTER}{_SUM}umask 077; cat >>"./{PART}$name" || exit 1; n=$(wc -c <"./{PART}$name"); '
    'if [ "$n" -lt "$size" ]; then echo "$n of $size bytes arrived" >&2; exit 1; fi; '
    f'if [ "$(sum "./{PART}$name")" = "$sum256" ]; then mv -f "./{PART}$name" "./$name"; '
    f'else rm -f "./{PART}$name"; exit {EXIT_ALTERED}; fi'
)
# $@: count times sha256 and name, then the program, which runs only if every file is as it was sent. stdin stays open
# while the host is connected: when it ends, the program and all processes it started are ended
RUN = (
    f'{_ENTER}{_SUM}while [ "$count" -gt 0 ]; do if [ "$(sum "./$2")" = "$1" ]; then shift 2; count=$((count-1)); '
    f'else echo "$2" >&2; exit {EXIT_ALTERED}; fi; done; {_END_FORMER}'
    'if kill -s 0 -- "-$$" 2>/dev/null; then whole="-$$"; echo $$ >.agent; else whole=; fi; '
    f'echo "{STARTED}"; exec 3<&0; "$@" </dev/null 3<&- & agent=$!; '
    '{ trap "" TERM HUP; cat >/dev/null; kill -s TERM -- "${whole:-$agent}"; sleep 5; '
    'kill -s KILL -- "${whole:-$agent}"; } <&3 3<&- >/dev/null 2>&1 & guard=$!; '
    'exec 3<&-; wait "$agent"; code=$?; kill -s KILL "$guard" 2>/dev/null; rm -f .agent; '
    'if [ "$code" -eq 255 ]; then code=254; fi; exit "$code"'
)
GET = (
    f'{_ENTER}[ -r "./$name" ] || {{ echo "$name: No such file" >&2; exit 66; }}; echo "{STARTED}"; exec cat "./$name"'
)
REMOVE = f'{_ENTER}{_END_FORMER}cd .. && rm -rf "./$job"'


def command(script: str, values: Mapping[str, str], arguments: Sequence[str] = ()) -> str:
    """Write a script as one line for any login shell: `values` become its variables, `arguments` its $@."""
    assignments = "".join(f"{name}={shlex.quote(text)}; " for name, text in values.items())
    return " ".join(["exec sh -c", *map(_quoted, [assignments + script, "edgedistill", *arguments])])


def _quoted(word: str) -> str:
    # in single quotes fish interprets a backslash and csh an exclamation mark: both are escaped outside the quotes
    return "".join("\\" + piece if piece in ("\\", "!") else shlex.quote(piece) for piece in SPECIAL.split(word))
