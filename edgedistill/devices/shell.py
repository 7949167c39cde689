"""What a device's shell is asked to do: POSIX sh, one line each.

Values are set by assignments in front, quoted; the line is handed to `sh -c` as one quoted word, so the account's login
shell, which may be no sh at all, has nothing to expand. csh takes no newline in quotes: there are none. Nothing is
asked for but what every small system has; sha256sum, where there is none, is done by the device's Python.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

# lines of ours are told by this word from what an account's start-up files print
OURS = "edgedistill:"
STARTED = f"{OURS} started"
PLACE, ALTERED = 73, 75  # exit codes of our own: the folder cannot be used; a file is not what was sent
PART = ".part."
# what broken runs left is removed after so many days
STALE_DAYS = 3
HEX = "[0-9a-f]"
JOB_PATTERN = "job-" + 16 * HEX
SPECIAL = re.compile(r"([\\!])")

_HASHER = "import hashlib, sys; print(hashlib.sha256(getattr(sys.stdin, 'buffer', sys.stdin).read()).hexdigest())"
_SUM = (
    f'sum() {{ if command -v sha256sum >/dev/null 2>&1; then sha256sum <"$1"; else '
    f'"$python" -c {shlex.quote(_HASHER)} <"$1"; fi | cut -c 1-64; }}; '
)
_ENTER = f'CDPATH= cd -- "$workdir/$job" || exit {PLACE}; '
# an agent whose connection was cut: its group is ended if its leader is still the shell that ran it in this folder
_END_FORMER = (
    "former=; if [ -f .agent ]; then read former <.agent; fi; "
    'if [ -n "$former" ] && grep -qF "$job" "/proc/$former/cmdline" 2>/dev/null; then '
    'kill -s TERM -- "-$former"; sleep 1; kill -s KILL -- "-$former"; rm -f .agent; fi 2>/dev/null; '
)

# $@: names. Makes the folder, says how much room there is, and of every file its sha256 and how much of a part there is
PREPARE = (
    "LC_ALL=C; export LC_ALL; "
    'command -v "$python" >/dev/null 2>&1 || { echo "$python: not found" >&2; exit 127; }; '
    f'mkdir -p -- "$workdir" && CDPATH= cd -- "$workdir" || exit {PLACE}; '
    'if [ -d "$job" ]; then :; else mkdir -m 700 "$job"; fi; '
    f'if [ -L "$job" ]; then echo "$job: is a link" >&2; exit {PLACE}; fi; '
    f'[ -O "$job" ] || {{ echo "$job: belongs to someone else" >&2; exit {PLACE}; }}; '
    f'touch "$job" || exit {PLACE}; '
    f'find . -maxdepth 1 -type d -name "{JOB_PATTERN}" -mtime +{STALE_DAYS} -exec rm -rf {{}} + 2>/dev/null; '
    f'cd "$job" || exit {PLACE}; {_SUM}'
    f'echo "{OURS} free $(df -Pk . | tail -n 1)"; '
    'for f in "$@"; do h=; n=0; if [ -f "./$f" ]; then h=$(sum "./$f"); fi; '
    f'if [ -f "./{PART}$f" ]; then n=$(wc -c <"./{PART}$f"); fi; echo "{OURS} file" "${{h:--}}" $n; done'
)
# stdin: the rest of a file whose beginning lies in its part. A cut connection looks like its end: a part that is too
# short stays for another try, a whole one that is something else goes
SEND = (
    f'LC_ALL=C; export LC_ALL; {_ENTER}{_SUM}umask 077; cat >>"./{PART}$name" || exit 1; n=$(wc -c <"./{PART}$name"); '
    'if [ "$n" -lt "$size" ]; then echo "$n of $size bytes arrived" >&2; exit 1; fi; '
    f'if [ "$(sum "./{PART}$name")" = "$sum256" ]; then mv -f "./{PART}$name" "./$name"; '
    f'else rm -f "./{PART}$name"; exit {ALTERED}; fi'
)
# $@: count times sha256 and name, then the program. Nothing runs unless every file is as it was sent. stdin stays open
# as long as the other side lives: when it ends, so does the program, whatever it has started
RUN = (
    f'{_ENTER}{_SUM}while [ "$count" -gt 0 ]; do if [ "$(sum "./$2")" = "$1" ]; then shift 2; count=$((count-1)); '
    f'else echo "$2" >&2; exit {ALTERED}; fi; done; {_END_FORMER}'
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
    """A script as one line for any login shell: `values` become its variables, `arguments` its $@."""
    assigned = "".join(f"{name}={shlex.quote(value)}; " for name, value in values.items())
    return " ".join(["exec sh -c", *map(_quoted, [assigned + script, "edgedistill", *arguments])])


def _quoted(word: str) -> str:
    # fish reads a backslash even in single quotes, csh an exclamation mark; both are escaped outside them, as anywhere
    return "".join("\\" + piece if piece in ("\\", "!") else shlex.quote(piece) for piece in SPECIAL.split(word))
