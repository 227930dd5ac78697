"""Which format a data file has, and what to do about a file that has none of them."""

import re
import shlex
from pathlib import Path

from distill_jax.types import UserError
from distill_jax.untrusted import parse_json

# What data.format may say, and the suffixes that say it by themselves, in any case.
FORMATS = {
    "text": (".txt", ".md", ".rst"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
}
OF_SUFFIX = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}

# Bytes that are looked at: there may be many files, and the first line of one may be long.
_SHORT_HEAD, _HEAD = 1 << 12, 1 << 20
_COMPRESSED = {
    b"\x1f\x8b": "gunzip -c",
    b"\x28\xb5\x2f\xfd": "zstd -dc",
    b"BZh": "bunzip2 -c",
    b"\xfd7zXZ\x00": "xz -dc",
    b"PK\x03\x04": "unzip -p",
}
_PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".zip")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_CSV = 'csv.DictReader(open(sys.argv[1], encoding="utf-8-sig", newline=""){more})'
_ARRAY = 'json.load(open(sys.argv[1], encoding="utf-8-sig"))'


def format_of(path: Path, form: str = "") -> str:
    """The format of a file by its suffix, or `form` if it is not empty.

    Raises UserError, with the remedy for this very file, where the suffix is not known or the
    first bytes are of another format.
    """
    found = form or OF_SUFFIX.get(path.suffix.lower())
    try:
        with open(path, "rb") as file:
            head = file.read(_SHORT_HEAD if found else _HEAD)
    except OSError as error:
        raise unreadable(path, error) from error
    if found == "parquet":
        return found
    for magic, command in _COMPRESSED.items():
        if head.startswith(magic):
            plain = path.with_suffix("") if path.suffix in _PACKED_SUFFIXES else f"{path}.plain"
            raise UserError(
                f"{path} is compressed: unpack it with {command} {_quoted(path)} > {_quoted(plain)}"
            )
    if head.startswith(b"PAR1"):
        raise UserError(
            f"{path} is a parquet file by its content: rename it to .parquet or give"
            " --config.data.format=parquet"
        )
    if found == "jsonl" and _is_array(head):
        raise _array(path)
    if found:
        return found
    raise _unknown(path, head)


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that the system does not give."""
    return UserError(f"{path} cannot be read ({error.strerror or error}): make it readable")


def not_text(content: bytes, where: str) -> UserError | None:
    """The error for bytes that are no UTF-8 text, None where they are."""
    if content.startswith(_UTF_16):
        return UserError(
            f"{where} is UTF-16, not UTF-8: convert it with iconv -f UTF-16 -t UTF-8 FILE > NEW"
        )
    if b"\0" in content:
        return UserError(
            f"{where}: byte {content.index(0)} is 0, as in binary files: write its text as UTF-8"
        )
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return UserError(
            f"{where}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8: "
            "convert the file to UTF-8"
        )
    return None


def _unknown(path: Path, head: bytes) -> UserError:
    """Why a file of an unknown suffix is not read, and what to do."""
    suffix = path.suffix.lower()
    what = f"its suffix {path.suffix} is" if path.suffix else "its name has no suffix, which is"
    if head.startswith(b"ARROW1") or suffix in (".arrow", ".feather"):
        return UserError(f"{path} is an Arrow file, which is not read: write it as parquet")
    if not head.startswith(_UTF_16) and b"\0" in head:
        return UserError(
            f"{path} is a binary file and {what} not known: write its text to a .txt file, or"
            " records to .jsonl or .parquet"
        )
    if _is_array(head):
        return _array(path)
    if head.lstrip().startswith(b"{"):
        if _first_line_is_record(head):
            return UserError(
                f"{path} has one JSON record per line and {what} not known: give"
                " --config.data.format=jsonl or rename it to .jsonl"
            )
        return UserError(
            f"{path} is one JSON object over many lines, which is not read: write its records to a"
            " .jsonl file, one per line"
        )
    if suffix in (".csv", ".tsv"):
        more = ', delimiter="\\t"' if suffix == ".tsv" else ""
        return UserError(
            f"{path} is a table of {suffix[1:]}, which is not read: name its columns text, or"
            f" prompt and completion, and write it as jsonl: {_converter(path, _CSV, more)}"
        )
    return UserError(
        f"{path}: {what} not known: texts are {', '.join(FORMATS['text'])}, records"
        f" {', '.join(FORMATS['jsonl'] + FORMATS['parquet'])}; if it is a text, give"
        " --config.data.format=text"
    )


def _array(path: Path) -> UserError:
    return UserError(
        f"{path} is one JSON array, not one record per line: write it as jsonl:"
        f" {_converter(path, _ARRAY)}"
    )


def _converter(path: Path, records: str, more: str = "") -> str:
    """A command that writes one record per line. It holds no double backslash and no new line."""
    records = records.replace("{more}", more)
    program = f"import csv, json, sys; [print(json.dumps(r)) for r in {records}]"
    target = path.with_suffix(".jsonl")
    if target == path:
        target = path.with_name(f"{path.stem}-lines.jsonl")
    return f"python -c '{program}' {_quoted(path)} > {_quoted(target)}"


def _is_array(head: bytes) -> bool:
    return re.match(rb"(\xef\xbb\xbf)?\s*\[\s*[{\]]", head) is not None


def _first_line_is_record(head: bytes) -> bool:
    line = head.lstrip().split(b"\n", 1)[0]
    if len(line) == _HEAD:
        return True  # too long to see its end: an object over many lines has short ones
    try:
        return isinstance(parse_json(line, "", ""), dict)
    except UserError:
        return False


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))
